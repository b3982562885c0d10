"""The NETIF line of a container's configuration: its adapters in virtual networks (ctid.conf(5)).

``ifname=eth0,mac=…,host_ifname=veth101.1,network=NAME,ip=…,gw=…,dhcp=yes;ifname=eth1,…``
"""

from __future__ import annotations

import hashlib
import ipaddress
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from runtime.errors import VethFailed
from runtime.net import addresses, names
from runtime.net.addresses import Ip

_IFNAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,63}")
#: The range of addresses the product's adapters have (vzctl's SW-Soft OUI).
_OUI = (0x00, 0x18, 0x51)
LARGEST_NUMBER = 64


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter of a container in a virtual network."""

    ifname: str
    mac: str
    host_ifname: str
    host_mac: str = ""
    #: Virtual network; empty: connected to nothing.
    network: str = ""
    ips: tuple[Ip, ...] = ()
    gw: str = ""
    gw6: str = ""
    dhcp: bool = False
    dhcp6: bool = False
    #: Whether its addresses are set from outside: "all" or "none".
    configure: str = "all"
    #: Whether it may only use its own addresses.
    mac_filter: bool = True

    def text(self) -> str:
        """Return it as it stands in the file; what has its default value is left out."""
        words = [f"ifname={self.ifname}", f"mac={self.mac}", f"host_ifname={self.host_ifname}"]
        for key in ("host_mac", "network"):
            if getattr(self, key):
                words.append(f"{key}={getattr(self, key)}")
        words += [f"ip={ip}" for ip in self.ips]
        words += [f"{key}={getattr(self, key)}" for key in ("gw", "gw6") if getattr(self, key)]
        words += [f"{key}=yes" for key in ("dhcp", "dhcp6") if getattr(self, key)]
        if self.configure != "all":
            words.append(f"configure={self.configure}")
        if not self.mac_filter:
            words.append("mac_filter=off")
        return ",".join(words)


_KEYS = frozenset(field.name for field in fields(Adapter)) - {"ips"} | {"ip", "bridge"}


def check_mac(text: str) -> str:
    """Return an Ethernet address in lower case with colons; raises VethFailed."""
    plain = text.replace(":", "").replace("-", "").lower()
    if not re.fullmatch(r"[0-9a-f]{12}", plain):
        raise VethFailed(f"invalid MAC address: {text[:40]!r}", hint="write 00:18:51:AB:CD:EF")
    if int(plain[:2], 16) & 1 or plain == "0" * 12:
        raise VethFailed(f"no adapter can have this MAC address: {text[:40]}")
    return ":".join(plain[i : i + 2] for i in range(0, 12, 2))


def new_mac(taken: frozenset[str] = frozenset()) -> str:
    """Return a random address of the product's range that is not ``taken``."""
    source = random.SystemRandom()
    while True:
        mac = ":".join(f"{byte:02x}" for byte in (*_OUI, *source.randbytes(3)))
        if mac not in taken:
            return mac


def derived_mac(ctid: int, ifname: str) -> str:
    """Return the address of an adapter whose line names none: the same each time it is read."""
    digest = hashlib.sha256(f"{ctid} {ifname}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (*_OUI, *digest[:3]))


def check_ifname(text: str) -> str:
    """Return the name of an interface; raises VethFailed."""
    if not _IFNAME.fullmatch(text) or text in ("lo", names.VENET):
        raise VethFailed(
            f"invalid name of an adapter: {text[:40]!r}",
            hint="a letter, then letters, digits, '_', '.', '-': at most 15",
        )
    return text


def check_network(text: str) -> str:
    """Return the name of a virtual network (empty: none); raises VethFailed."""
    if text and not _NETWORK.fullmatch(text):
        raise VethFailed(f"invalid name of a network: {text[:40]!r}")
    return text


def _gateway(version: int, text: str) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise VethFailed(f"invalid gateway: {text[:60]!r}") from None
    if address.version != version or address.is_multicast or address.is_unspecified:
        raise VethFailed(f"not an IPv{version} gateway: {text[:60]!r}")
    return str(address)


def _switch(key: str, text: str) -> bool:
    word = text.lower()
    if word in ("yes", "on"):
        return True
    if word in ("no", "off"):
        return False
    raise VethFailed(f"{key} is neither yes nor no: {text[:40]!r}")


def changed(adapter: Adapter, values: Mapping[str, Sequence[str]]) -> Adapter:
    """Return ``adapter`` with keys of the NETIF line set; raises VethFailed, BadAddress.

    ``ipadd`` and ``ipdel`` add to and take from its addresses, ``ip`` replaces them.
    """
    for key, given in values.items():
        last = given[-1] if given else ""
        if key == "ip":
            adapter = replace(adapter, ips=addresses.parse_list(" ".join(given)))
        elif key == "ipadd":
            text = addresses.add(" ".join(map(str, adapter.ips)), given)
            adapter = replace(adapter, ips=addresses.parse_list(text))
        elif key == "ipdel":
            text = addresses.remove(" ".join(map(str, adapter.ips)), given)
            adapter = replace(adapter, ips=addresses.parse_list(text))
        elif key == "mac":
            adapter = replace(adapter, mac=new_mac() if last == "auto" else check_mac(last))
        elif key == "host_mac":
            adapter = replace(adapter, host_mac=check_mac(last) if last else "")
        elif key == "host_ifname":
            adapter = replace(adapter, host_ifname=check_ifname(names.fitting(last)))
        elif key in ("network", "bridge"):
            adapter = replace(adapter, network=check_network(last))
        elif key == "gw":
            adapter = replace(adapter, gw=_gateway(4, last))
        elif key == "gw6":
            adapter = replace(adapter, gw6=_gateway(6, last))
        elif key == "dhcp":
            adapter = replace(adapter, dhcp=_switch(key, last))
        elif key == "dhcp6":
            adapter = replace(adapter, dhcp6=_switch(key, last))
        elif key == "mac_filter":
            adapter = replace(adapter, mac_filter=_switch(key, last))
        elif key == "configure":
            if last not in ("all", "none"):
                raise VethFailed(f"configure is neither all nor none: {last[:40]!r}")
            adapter = replace(adapter, configure=last)
        elif key != "ifname":
            raise VethFailed(
                f"unknown key of an adapter: {key[:40]!r}", hint=", ".join(sorted(_KEYS))
            )
    return adapter


def parse(text: str | None, ctid: int) -> tuple[Adapter, ...]:
    """Return the adapters of a NETIF line in its order; raises VethFailed, BadAddress."""
    found: list[Adapter] = []
    for part in (text or "").split(";"):
        if not part.strip():
            continue
        values: dict[str, list[str]] = {}
        for word in part.split(","):
            key, equals, value = word.strip().partition("=")
            if not equals:
                raise VethFailed(f"not KEY=VALUE in NETIF: {word[:40]!r}")
            values.setdefault(key, []).append(value)
        found.append(_made(ctid, found, values))
    return tuple(found)


def _made(ctid: int, others: Sequence[Adapter], values: Mapping[str, Sequence[str]]) -> Adapter:
    ifname = check_ifname(values.get("ifname", [""])[-1])
    if any(other.ifname == ifname for other in others):
        raise VethFailed(f"there are two adapters called {ifname}")
    taken = {other.host_ifname for other in others}
    number = next(n for n in range(1, 10**3) if names.host_end(ctid, n) not in taken)
    if number > LARGEST_NUMBER:
        raise VethFailed(f"a container has at most {LARGEST_NUMBER} adapters")
    mac = values.get("mac", [""])[-1]
    new = Adapter(
        ifname, check_mac(mac) if mac else derived_mac(ctid, ifname), names.host_end(ctid, number)
    )
    rest = {key: value for key, value in values.items() if key != "mac"}
    made = changed(new, rest)
    if made.host_ifname in taken:
        raise VethFailed(f"two adapters have the host name {made.host_ifname}")
    return made


def text_of(adapters: Sequence[Adapter]) -> str | None:
    """Return the NETIF line of ``adapters``, None without any."""
    return ";".join(adapter.text() for adapter in adapters) or None


def add(stored: str | None, given: str, ctid: int) -> str | None:
    """Add the adapter ``ifname[,mac[,host_ifname[,host_mac]]]`` of --netif_add; raises VethFailed.

    An empty place takes its default.
    """
    present = parse(stored, ctid)
    values: dict[str, list[str]] = {}
    if "=" in given:
        for word in given.split(","):
            key, _, value = word.partition("=")
            values.setdefault(key, []).append(value)
    else:
        places = ("ifname", "mac", "host_ifname", "host_mac", "network")
        words = given.split(",")
        if len(words) > len(places):
            raise VethFailed(f"too much in --netif_add: {given[:60]!r}", hint=",".join(places))
        for key, word in zip(places, words, strict=False):
            if word or key == "ifname":
                values[key] = [word]
    if values.get("mac", ["auto"]) == ["auto"]:
        values["mac"] = [new_mac(frozenset(adapter.mac for adapter in present))]
    return text_of((*present, _made(ctid, present, values)))


def remove(stored: str | None, ifname: str, ctid: int) -> str | None:
    """Remove an adapter (``all``: every one); raises VethFailed when there is none."""
    present = parse(stored, ctid)
    if ifname == "all":
        return None
    rest = [adapter for adapter in present if adapter.ifname != ifname]
    if len(rest) == len(present):
        raise VethFailed(f"the container has no adapter {ifname[:40]!r}", hint=_have(present))
    return text_of(rest)


def change(stored: str | None, ifname: str, values: Mapping[str, Sequence[str]], ctid: int) -> str:
    """Change one adapter of a NETIF line; raises VethFailed, BadAddress."""
    present = parse(stored, ctid)
    if not any(adapter.ifname == ifname for adapter in present):
        raise VethFailed(f"the container has no adapter {ifname[:40]!r}", hint=_have(present))
    made = tuple(
        changed(adapter, values) if adapter.ifname == ifname else adapter for adapter in present
    )
    return text_of(made) or ""


def _have(present: Sequence[Adapter]) -> str:
    if not present:
        return "it has none; --netif_add NAME adds one"
    return f"it has {', '.join(adapter.ifname for adapter in present)}"


def outside(adapter: Adapter) -> list[str]:
    """Return the gateways which lie outside every network of the adapter: worth a warning."""
    return [
        gateway
        for gateway in (adapter.gw, adapter.gw6)
        if gateway
        and adapter.ips
        and not any(
            ipaddress.ip_address(gateway) in ip.interface.network
            for ip in adapter.ips
            if ip.version == ipaddress.ip_address(gateway).version
        )
        and not ipaddress.ip_address(gateway).is_link_local
    ]
