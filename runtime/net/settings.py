"""Settings of the network: rows for addresses, names, adapters, rates (vzctl(8), pctl(8)).

``--ifname`` makes the options beside it mean one adapter (``--ifname eth0 --ipadd …``): ``fold``
turns them into the one setting they amount to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from runtime.errors import InvalidOption, VethFailed
from runtime.net import addresses, netdevs, netfilter, netif, rates
from runtime.settings import Setting, yes_no

_LIVE = "runtime.net.live:apply_network"
_LIVE_DNS = "runtime.net.live:apply_dns"
_LIVE_RATE = "runtime.net.live:apply_rate"

#: Options that mean an adapter once --ifname is given, and their key in NETIF.
_OF_ADAPTER = {
    "ipadd": "ipadd",
    "ipdel": "ipdel",
    "ip": "ip",
    "mac": "mac",
    "host_ifname": "host_ifname",
    "host_mac": "host_mac",
    "gw": "gw",
    "gw6": "gw6",
    "dhcp": "dhcp",
    "dhcp6": "dhcp6",
    "network": "network",
    "bridge": "network",
    "configure": "configure",
    "mac_filter": "mac_filter",
}
#: Those of them which mean nothing without --ifname.
_ONLY_OF_ADAPTER = tuple(name for name in _OF_ADAPTER if name not in ("ipadd", "ipdel", "bridge"))
#: Stands between the parts of a folded argument: cannot be in any of them.
_UNIT = "\x1f"
_CTID = re.compile(r"host_ifname=v(?:eth)?(\d+)\.")


def fold(given: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the options of a command line with those of ``--ifname`` as one: ``netif_set``.

    Raises InvalidOption.
    """
    found = {name: list(words) for name, words in given.items()}
    ifnames = found.pop("ifname", None)
    if ifnames is None:
        alone = [name for name in _ONLY_OF_ADAPTER if name in found]
        if alone:
            raise InvalidOption(
                f"--{alone[0]} needs --ifname", hint="which adapter? pctl list -o netif"
            )
        return found
    if len(ifnames) > 1:
        raise InvalidOption("only one --ifname at a time")
    words = [netif.check_ifname(ifnames[0])]
    for option, key in _OF_ADAPTER.items():
        words += [f"{key}={word}" for word in found.pop(option, [])]
    if len(words) == 1:
        raise InvalidOption("nothing to set for this adapter", hint="--ipadd, --network, --dhcp …")
    found["netif_set"] = [_UNIT.join(words)]
    return found


def _ctid_of(stored: str | None) -> int:
    """Return the id in the host names of stored adapters, 0 without any."""
    match = _CTID.search(stored or "")
    return int(match[1]) if match else 0


def _portable(text: str | None, ctid: int) -> str | None:
    """Return a NETIF line which holds for a copy of the container too: ``$VEID`` for its id.

    The configuration puts the number in its place when a value is read.
    """
    if text is None:
        return None
    return re.sub(rf"host_ifname=v(?:eth)?{ctid}\.(?=\d)", "host_ifname=veth$VEID.", text)


def _netif_add(stored: str | None, given: Sequence[str]) -> str | None:
    stored = (stored or "").replace("$VEID", "0") or None
    ctid = _ctid_of(stored)
    for word in given:
        stored = netif.add(stored, word, ctid)
    return _portable(stored, ctid)


def _netif_del(stored: str | None, given: Sequence[str]) -> str | None:
    stored = (stored or "").replace("$VEID", "0") or None
    ctid = _ctid_of(stored)
    for word in given:
        stored = netif.remove(stored, word, ctid)
    return _portable(stored, ctid)


def _netif_set(stored: str | None, given: Sequence[str]) -> str | None:
    # What an option before this one on the same command line stored has no number in it yet.
    stored = (stored or "").replace("$VEID", "0") or None
    ctid = _ctid_of(stored)
    for argument in given:
        ifname, *words = argument.split(_UNIT if _UNIT in argument else ",")
        values: dict[str, list[str]] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                raise VethFailed(f"not KEY=VALUE: {word[:60]!r}")
            values.setdefault(key, []).append(value)
        stored = netif.change(stored, ifname, values, ctid)
    return _portable(stored, ctid)


def _needs_ifname(stored: str | None, given: Sequence[str]) -> str | None:
    raise InvalidOption("this option needs --ifname", hint="pctl set ID --ifname eth0 …")


def _rate(stored: str | None, given: Sequence[str]) -> str | None:
    return rates.merge(stored, list(given))


def _adapter_row(option: str, metavar: str, help: str) -> Setting:
    return Setting(
        option,
        "NETIF",
        f"{help} (with --ifname)",
        metavar=metavar,
        merge=_needs_ifname,
        live=_LIVE,
        group="Adapters",
    )


ROWS = (
    Setting(
        "ipadd",
        "IP_ADDRESS",
        "an address to add",
        check=addresses.check,
        metavar="ADDRESS[/MASK]",
        merge=addresses.add,
        live=_LIVE,
        group="Network",
    ),
    Setting(
        "ipdel",
        "IP_ADDRESS",
        "an address to remove, or all",
        check=addresses.check_removal,
        metavar="ADDRESS|all",
        merge=addresses.remove,
        live=_LIVE,
        group="Network",
    ),
    Setting(
        "ext_ipadd",
        "EXT_IP_ADDRESS",
        "an address assigned by other means (only shown)",
        check=addresses.check,
        metavar="ADDRESS",
        merge=addresses.add,
        group="Network",
    ),
    Setting(
        "ext_ipdel",
        "EXT_IP_ADDRESS",
        "such an address to forget, or all",
        check=addresses.check_removal,
        metavar="ADDRESS|all",
        merge=addresses.remove,
        group="Network",
    ),
    Setting(
        "nameserver",
        "NAMESERVER",
        "a DNS server, or inherit: those of the server; replaces the old ones",
        check=addresses.nameserver,
        metavar="ADDRESS|inherit",
        merge=addresses.replace_all,
        live=_LIVE_DNS,
        group="Network",
    ),
    Setting(
        "searchdomain",
        "SEARCHDOMAIN",
        "a DNS search domain, or inherit; replaces the old ones",
        check=addresses.searchdomain,
        metavar="DOMAIN|inherit",
        merge=addresses.replace_all,
        live=_LIVE_DNS,
        group="Network",
    ),
    Setting(
        "netif_add",
        "NETIF",
        "an adapter to add in a virtual network",
        metavar="IFNAME[,MAC[,HOST_IFNAME[,HOST_MAC]]]",
        merge=_netif_add,
        live=_LIVE,
        group="Adapters",
    ),
    Setting(
        "netif_del",
        "NETIF",
        "an adapter to remove, or all",
        metavar="IFNAME|all",
        merge=_netif_del,
        live=_LIVE,
        group="Adapters",
    ),
    Setting(
        "netdev_add",
        "NETDEV",
        "a network interface of the server to hand over while it runs",
        check=netdevs.check,
        metavar="NAME",
        merge=netdevs.add,
        live=_LIVE,
        group="Network",
    ),
    Setting(
        "netdev_del",
        "NETDEV",
        "such an interface to take back, or all",
        check=netdevs.check_removal,
        metavar="NAME|all",
        merge=netdevs.remove,
        live=_LIVE,
        group="Network",
    ),
    Setting(
        "netif_set",
        "NETIF",
        "changes of an adapter in the words of NETIF",
        metavar="IFNAME,KEY=VALUE…",
        merge=_netif_set,
        live=_LIVE,
        group="Adapters",
    ),
    _adapter_row("ifname", "IFNAME", "the adapter that the following options mean"),
    _adapter_row("ip", "ADDRESS[/MASK]", "the only address"),
    _adapter_row("mac", "MAC|auto", "MAC address"),
    _adapter_row("host_ifname", "NAME", "name of the server's end"),
    _adapter_row("host_mac", "MAC", "MAC address of the server's end"),
    _adapter_row("gw", "ADDRESS", "gateway; '' removes it"),
    _adapter_row("gw6", "ADDRESS", "IPv6 gateway; '' removes it"),
    _adapter_row("dhcp", "yes|no", "get an IPv4 address by DHCP"),
    _adapter_row("dhcp6", "yes|no", "get an IPv6 address by DHCP"),
    _adapter_row("network", "NETWORK", "virtual network to connect to; '' disconnects"),
    _adapter_row("configure", "all|none", "whether addresses are set from outside"),
    _adapter_row("mac_filter", "on|off", "let it use only its own addresses"),
    Setting(
        "rate",
        "RATE",
        "guaranteed rate of outgoing traffic of a class",
        check=rates.check,
        metavar="DEVICE:CLASS:KBPS",
        merge=_rate,
        live=_LIVE_RATE,
        group="Network",
    ),
    Setting(
        "ratebound",
        "RATEBOUND",
        "whether RATE is the limit too",
        check=yes_no,
        choices=("yes", "no"),
        live=_LIVE_RATE,
        group="Network",
    ),
    Setting(
        "netfilter",
        "NETFILTER",
        "which parts of netfilter it may use",
        check=netfilter.check,
        choices=tuple(netfilter.Level),
        group="Network",
    ),
    Setting(
        "iptables",
        "IPTABLES",
        "iptables modules it may use; without --netfilter they decide the level",
        check=netfilter.check_modules,
        metavar="MODULE…",
        merge=addresses.replace_all,
        group="Network",
    ),
)
