"""Settings of the network: rows for addresses, names, adapters, rates (vzctl(8), pctl(8)).

``--ifname`` makes the options beside it mean one adapter (``--ifname eth0 --ipadd …``): ``fold``
turns them into the one setting they amount to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from runtime.errors import InvalidOption, VethFailed
from runtime.net import addresses, netdevs, netfilter, netif, rates
from runtime.settings import Merge, Setting, yes_no

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


def _each(change: Callable[[str | None, str, int], str | None]) -> Merge:
    """Return what does one change of a NETIF line for every argument."""

    def merge(stored: str | None, given: Sequence[str]) -> str | None:
        # What an option before this one on the same command line stored has no number in it yet.
        stored = (stored or "").replace("$VEID", "0") or None
        ctid = _ctid_of(stored)
        for argument in given:
            stored = change(stored, argument, ctid)
        return _portable(stored, ctid)

    return merge


def _netif_set(stored: str | None, argument: str, ctid: int) -> str | None:
    ifname, *words = argument.split(_UNIT if _UNIT in argument else ",")
    values: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise VethFailed(f"not KEY=VALUE: {word[:60]!r}")
        values.setdefault(key, []).append(value)
    return netif.change(stored, ifname, values, ctid)


def _needs_ifname(stored: str | None, given: Sequence[str]) -> str | None:
    raise InvalidOption("this option needs --ifname", hint="pctl set ID --ifname eth0 …")


def _rate(stored: str | None, given: Sequence[str]) -> str | None:
    return rates.merge(stored, list(given))


def _row(option: str, key: str, metavar: str, help: str, **more: Any) -> Setting:
    return Setting(option, key, help, metavar=metavar, group="Network", **more)


def _netif_row(option: str, metavar: str, help: str, merge: Merge) -> Setting:
    return Setting(
        option, "NETIF", help, metavar=metavar, merge=merge, live=_LIVE, group="Adapters"
    )


def _adapter_row(option: str, metavar: str, help: str) -> Setting:
    return _netif_row(option, metavar, f"{help} (with --ifname)", _needs_ifname)


def _both(
    stem: str,
    key: str,
    metavar: str,
    helps: tuple[str, str],
    module: ModuleType,
    live: str | None,
) -> tuple[Setting, Setting]:
    """Return the rows that add to a list and take from it."""
    return (
        _row(f"{stem}add", key, metavar, helps[0], check=module.check, merge=module.add, live=live),
        _row(
            f"{stem}del",
            key,
            f"{metavar.partition('[')[0]}|all",
            helps[1],
            check=module.check_removal,
            merge=module.remove,
            live=live,
        ),
    )


ROWS = (
    *_both(
        "ip",
        "IP_ADDRESS",
        "ADDRESS[/MASK]",
        ("an address to add", "an address to remove, or all"),
        addresses,
        _LIVE,
    ),
    *_both(
        "ext_ip",
        "EXT_IP_ADDRESS",
        "ADDRESS",
        (
            "an address assigned by other means (only shown)",
            "such an address to forget, or all",
        ),
        addresses,
        None,
    ),
    _row(
        "nameserver",
        "NAMESERVER",
        "ADDRESS|inherit",
        "a DNS server, or inherit: those of the server; replaces the old ones",
        check=addresses.nameserver,
        merge=addresses.replace_all,
        live=_LIVE_DNS,
    ),
    _row(
        "searchdomain",
        "SEARCHDOMAIN",
        "DOMAIN|inherit",
        "a DNS search domain, or inherit; replaces the old ones",
        check=addresses.searchdomain,
        merge=addresses.replace_all,
        live=_LIVE_DNS,
    ),
    _netif_row(
        "netif_add",
        "IFNAME[,MAC[,HOST_IFNAME[,HOST_MAC]]]",
        "an adapter to add in a virtual network",
        _each(netif.add),
    ),
    _netif_row("netif_del", "IFNAME|all", "an adapter to remove, or all", _each(netif.remove)),
    *_both(
        "netdev_",
        "NETDEV",
        "NAME",
        (
            "a network interface of the server to hand over while it runs",
            "such an interface to take back, or all",
        ),
        netdevs,
        _LIVE,
    ),
    _netif_row(
        "netif_set",
        "IFNAME,KEY=VALUE…",
        "changes of an adapter in the words of NETIF",
        _each(_netif_set),
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
    _row(
        "rate",
        "RATE",
        "DEVICE:CLASS:KBPS",
        "guaranteed rate of outgoing traffic of a class",
        check=rates.check,
        merge=_rate,
        live=_LIVE_RATE,
    ),
    _row(
        "ratebound",
        "RATEBOUND",
        "VALUE",
        "whether RATE is the limit too",
        check=yes_no,
        choices=("yes", "no"),
        live=_LIVE_RATE,
    ),
    _row(
        "netfilter",
        "NETFILTER",
        "VALUE",
        "which parts of netfilter it may use",
        check=netfilter.check,
        choices=tuple(netfilter.Level),
    ),
    _row(
        "iptables",
        "IPTABLES",
        "MODULE…",
        "iptables modules it may use; without --netfilter they decide the level",
        check=netfilter.check_modules,
        merge=addresses.replace_all,
    ),
)
