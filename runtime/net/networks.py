"""Virtual networks (guide §6.4): named bridges of the server which adapters join.

A bridged network may have an interface of the server in it; a host-only one has an address of the
server, DHCP, and no way out. Each is a file ``/etc/vz/networks/NAME.conf``; "Bridged" and
"Host-Only" exist without one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtime import files
from runtime.config import ConfigFile
from runtime.errors import ConfigMissing, InvalidValue, VethFailed
from runtime.net import names
from runtime.net.addresses import Interface, overlapping
from runtime.net.netif import check_network
from runtime.paths import Paths

BRIDGED = "bridged"
HOST_ONLY = "host-only"
_TYPES = (BRIDGED, HOST_ONLY)


@dataclass(frozen=True, slots=True)
class VirtualNetwork:
    """One virtual network as defined."""

    name: str
    type: str = BRIDGED
    #: Interface of the server in the bridge, bridged networks only.
    interface: str = ""
    description: str = ""
    #: Addresses of the server in it.
    ip: str = ""
    ip6: str = ""
    dhcp: bool = False
    scope_start: str = ""
    scope_end: str = ""
    #: MAC address of the server's interface by which it was meant (-m).
    mac: str = ""
    #: VLANs and other interfaces attached by ``pnetcfg net addif``.
    slaves: tuple[str, ...] = field(default=())

    @property
    def bridge(self) -> str:
        """The interface of the host behind it."""
        return names.bridge(self.name)

    @property
    def ports(self) -> tuple[str, ...]:
        """Interfaces of the server that are in its bridge."""
        return (*([self.interface] if self.interface else []), *self.slaves)

    def interfaces(self) -> tuple[Interface, ...]:
        """The server's addresses in it with their prefixes."""
        return tuple(ipaddress.ip_interface(text) for text in (self.ip, self.ip6) if text)


DEFAULTS = {
    "Bridged": VirtualNetwork("Bridged", BRIDGED, description="bridged to an adapter"),
    "Host-Only": VirtualNetwork(
        "Host-Only",
        HOST_ONLY,
        description="this server and its environments only",
        ip="10.37.130.1/24",
        dhcp=True,
        scope_start="10.37.130.2",
        scope_end="10.37.130.254",
    ),
}
_FIELDS = {
    "TYPE": "type",
    "INTERFACE": "interface",
    "DESCRIPTION": "description",
    "IP": "ip",
    "IP6": "ip6",
    "IP_SCOPE_START": "scope_start",
    "IP_SCOPE_END": "scope_end",
    "MAC": "mac",
}


def _directory(paths: Paths) -> Path:
    return paths.etc / "networks"


def load_all(paths: Paths) -> dict[str, VirtualNetwork]:
    """Return every network by name, the initial ones first; a deleted initial one is left out."""
    found = dict(DEFAULTS)
    for path in sorted(_directory(paths).glob("*.conf")):
        file = ConfigFile.read(path)
        if file.get("DELETED") == "yes":
            found.pop(path.stem, None)
            continue
        values = {name: file.get(key) or "" for key, name in _FIELDS.items()}
        found[path.stem] = VirtualNetwork(
            name=path.stem,
            dhcp=file.get("DHCP_SERVER") == "on",
            slaves=tuple((file.get("SLAVES") or "").split()),
            **{**values, "type": values["type"] or BRIDGED},
        )
    return found


def find(paths: Paths, name: str) -> VirtualNetwork:
    """Return a network; raises ConfigMissing."""
    found = load_all(paths)
    if name not in found:
        raise ConfigMissing(
            f"there is no virtual network {name[:60]!r}", hint=f"there are: {', '.join(found)}"
        )
    return found[name]


def check(paths: Paths, network: VirtualNetwork) -> VirtualNetwork:
    """Return the network with its addresses in one spelling; raises InvalidValue, VethFailed."""
    if not network.name:
        raise VethFailed("a network needs a name")
    check_network(network.name)
    if network.type not in _TYPES:
        raise InvalidValue(f"unknown type of network: {network.type!r}", hint=" or ".join(_TYPES))
    if network.type == HOST_ONLY and network.ports:
        raise InvalidValue("a host-only network has no interface of the server")
    if network.type == BRIDGED and network.dhcp:
        raise InvalidValue("a bridged network's addresses are given by its own DHCP server")
    ip, ip6 = _interface(network.ip, 4), _interface(network.ip6, 6)
    network = replace(network, ip=str(ip) if ip else "", ip6=str(ip6) if ip6 else "")
    for other in load_all(paths).values():
        if other.name == network.name:
            continue
        theirs = [interface.network for interface in other.interfaces()]
        for interface in network.interfaces():
            clash = overlapping(theirs, interface.network)
            if clash is not None:
                raise InvalidValue(f"{interface.network} overlaps {clash} of network {other.name}")
        shared = set(network.ports) & set(other.ports)
        if shared:
            raise InvalidValue(f"{shared.pop()} is in network {other.name}")
    return _check_scope(network, ip)


def _interface(text: str, version: int) -> Interface | None:
    if not text:
        return None
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise InvalidValue(f"invalid address: {text[:60]!r}", hint="write 10.37.130.1/24") from None
    if interface.version != version or interface.network.prefixlen == interface.max_prefixlen:
        raise InvalidValue(f"not an IPv{version} address with its mask: {text[:60]!r}")
    return interface


def _check_scope(network: VirtualNetwork, ip: Interface | None) -> VirtualNetwork:
    if not network.dhcp:
        return network
    if ip is None:
        raise InvalidValue("a DHCP server needs the network's --ip")
    hosts = ip.network
    start = network.scope_start or str(hosts.network_address + 2)
    end = network.scope_end or str(hosts.broadcast_address - 1)
    try:
        first, last = ipaddress.IPv4Address(start), ipaddress.IPv4Address(end)
    except ValueError:
        raise InvalidValue(f"invalid range of addresses: {start[:40]!r} – {end[:40]!r}") from None
    if first > last:
        raise InvalidValue(f"the range ends before it starts: {first} – {last}")
    if first not in hosts or last not in hosts:
        raise InvalidValue(f"the range {first} – {last} is not in {hosts}")
    return replace(network, scope_start=str(first), scope_end=str(last))


def store(paths: Paths, network: VirtualNetwork) -> None:
    """Write the definition durably; check it before."""
    path = _directory(paths) / f"{network.name}.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = ConfigFile(path.read_text() if path.exists() else "", path=path)
    file.unset("DELETED")
    values: Mapping[str, str] = {
        **{key: str(getattr(network, name)) for key, name in _FIELDS.items()},
        "DHCP_SERVER": "on" if network.dhcp else "off",
        "SLAVES": " ".join(network.slaves),
    }
    for key, value in values.items():
        if value:
            file.set(key, value)
        else:
            file.unset(key)
    file.save()


def delete(paths: Paths, name: str) -> None:
    """Forget a network; an initial one is marked as deleted. Raises ConfigMissing."""
    find(paths, name)
    path = _directory(paths) / f"{name}.conf"
    if name in DEFAULTS:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = ConfigFile("", path=path)
        file.set("DELETED", "yes")
        file.save()
    else:
        files.remove(path)
