"""Host-routed mode: one veth pair a container without ARP or neighbour discovery, host routes.

Both ends have the same address and IFF_NOARP: a frame from either end is accepted by the other,
nobody resolves anything, and there is no gateway address. Every step replaces, so ``apply`` may
be repeated after a crash at any point.

Order: guard (in place before) → link → routes → proxy entries → guest addresses → announcement.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.net import names
from runtime.net.addresses import Ip
from runtime.net.links import (
    IFF_MULTICAST,
    IFF_NOARP,
    IFF_UP,
    SCOPE_HOST,
    SCOPE_LINK,
    Links,
    entered,
    set_sysctl,
)
from runtime.net.model import ContainerNet

#: Source of nothing: only there so that the interface is never without an address.
_PLACEHOLDER = "127.0.0.2"


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface of the host behind which the world is."""

    index: int
    name: str
    #: Whether neighbours there ask for addresses (Ethernet); a tunnel's do not.
    ethernet: bool = True


def uplinks(host: Links, config: Mapping[str, str]) -> tuple[Uplink, ...]:
    """Return the uplinks: VE_ROUTE_SRC_DEV, those of NEIGHBOUR_DEVS, else the default routes'."""
    wanted: list[str] = []
    if config.get("VE_ROUTE_SRC_DEV"):
        wanted.append(config["VE_ROUTE_SRC_DEV"])
    kind, _, listed = (config.get("NEIGHBOUR_DEVS") or "").partition(":")
    if kind == "list":
        wanted += listed.split()
    indexes = [index for name in wanted if (index := host.index(name)) is not None]
    if not indexes:
        indexes = host.default_devices()
    found = []
    for index in dict.fromkeys(indexes):
        link = host.by_index(index)
        if link is not None and link.group not in (names.GROUP_ROUTED, names.GROUP_BRIDGED):
            found.append(Uplink(index, link.name, link.hardware == 1))
    return tuple(found)


def prepare_host(ups: Sequence[Uplink]) -> None:
    """Let the host forward between its uplinks and containers, and answer for their addresses.

    Forwarding IPv6 while accept_ra is 1 would drop the routers' advertisements: 2 comes first.
    """
    for up in ups:
        accept = f"ipv6/conf/{up.name}/accept_ra"
        if _value(accept) == "1":
            set_sysctl(accept, "2", missing_ok=True)
    set_sysctl("ipv6/conf/all/forwarding", "1", missing_ok=True)
    for up in ups:
        set_sysctl(f"ipv4/conf/{up.name}/forwarding", "1")
        set_sysctl(f"ipv6/conf/{up.name}/proxy_ndp", "1", missing_ok=True)
        # The default delays the answer to the first packet by up to 0.8 s (arp(7)).
        for family in ("ipv4", "ipv6"):
            set_sysctl(f"{family}/neigh/{up.name}/proxy_delay", "0", missing_ok=True)


def _value(name: str) -> str:
    try:
        with open(f"/proc/sys/net/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def apply(host: Links, netns_fd: int, net: ContainerNet, ups: Sequence[Uplink]) -> None:
    """Make venet0 of a container as ``net`` says; raises SystemFailure, OSError."""
    index = _pair(host, netns_fd, net)
    wanted = {_host_route(ip): ip for ip in net.ips}
    present = {destination for destination, _oif in host.routes(index)}
    for destination in present:
        if destination not in wanted:
            address = destination.partition("/")[0]
            host.delete_route(destination, index)
            for up in ups:
                host.delete_proxy(address, up.index)
    for destination, ip in wanted.items():
        if destination not in present:
            host.set_route(destination, index)
        for up in ups:
            if up.ethernet:
                host.set_proxy(str(ip.address), up.index)
    configure_guest(netns_fd, net)


def _host_route(ip: Ip) -> str:
    return f"{ip.address}/{ip.interface.max_prefixlen}"


def _pair(host: Links, netns_fd: int, net: ContainerNet) -> int:
    """Return the index of the host's end, making the pair where it is not whole."""
    name, mac = net.venet, names.venet_mac(net.ctid)
    index = host.index(name)
    with entered(netns_fd):
        with Links() as guest:
            inside = guest.index(names.VENET)
    if index is None or inside is None:
        host.delete(name)
        index = host.add(
            name,
            "veth",
            address=mac,
            peer={"ifname": names.VENET, "net_ns_fd": netns_fd, "address": mac},
        )
    set_sysctl(f"ipv4/conf/{name}/rp_filter", "1")
    set_sysctl(f"ipv4/conf/{name}/forwarding", "1")
    set_sysctl(f"ipv6/conf/{name}/forwarding", "1", missing_ok=True)
    set_sysctl(f"ipv6/conf/{name}/accept_ra", "0", missing_ok=True)
    # No link-local address: containers have nobody to talk to on this link.
    set_sysctl(f"ipv6/conf/{name}/addr_gen_mode", "1", missing_ok=True)
    # The group first: rules match it, and the link must never be up outside of them.
    host.change(index, group=names.GROUP_ROUTED, ifalias=f"container {net.ctid}, venet0")
    host.flags(index, IFF_UP | IFF_NOARP, IFF_MULTICAST)
    return index


def configure_guest(netns_fd: int, net: ContainerNet) -> None:
    """Give venet0 inside the addresses of ``net`` and the default routes; raises SystemFailure."""
    with entered(netns_fd), Links() as guest:
        index = guest.need(names.VENET)
        set_sysctl(f"ipv6/conf/{names.VENET}/accept_ra", "0", missing_ok=True)
        set_sysctl(f"ipv6/conf/{names.VENET}/addr_gen_mode", "1", missing_ok=True)
        guest.flags(index, IFF_UP | IFF_NOARP, IFF_MULTICAST)
        wanted = {(str(ip.address), net.guest_prefix(ip)) for ip in net.ips}
        present = guest.addresses(index)
        for address, prefix in present - wanted - {(_PLACEHOLDER, 32)}:
            guest.delete_address(index, address, prefix)
        if (_PLACEHOLDER, 32) not in present:
            guest.add_address(index, _PLACEHOLDER, 32, scope=SCOPE_HOST)
        for ip in net.ips:  # in their order: the first is the source of what the guest sends
            if (str(ip.address), net.guest_prefix(ip)) not in present:
                guest.add_address(index, str(ip.address), net.guest_prefix(ip))
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            own = [ip for ip in net.ips if ip.version == version]
            if own and _has_family(version):
                more = {"prefsrc": str(own[0].address)}
                if version == 4:
                    more["scope"] = SCOPE_LINK  # type: ignore[assignment]  # a number
                guest.set_route("default", index, family=family, **more)


def _has_family(version: int) -> bool:
    return version == 4 or _value(f"ipv6/conf/{names.VENET}/disable_ipv6") == "0"


def remove(host: Links, ctid: int) -> None:
    """Take venet0 of a container away; absent is success.

    The link is deleted explicitly: when only the container's namespace dies, the name stays taken
    until the kernel's asynchronous clean-up. Proxy entries are collected by ``sweep``.
    """
    host.delete(names.host_end(ctid, 0))


def sweep(host: Links, ups: Sequence[Uplink]) -> int:
    """Remove proxy entries whose address is routed nowhere or which are on no uplink; count them."""
    routed = {destination.partition("/")[0] for destination, _oif in host.routes()}
    indexes = {up.index for up in ups}
    swept = 0
    for address, index in host.proxies():
        if address not in routed or index not in indexes:
            host.delete_proxy(address, index)
            swept += 1
    return swept


def repair_proxies(host: Links, ups: Sequence[Uplink]) -> None:
    """Answer on today's uplinks for every address that is routed to a container."""
    present = host.proxies()
    for destination, _oif in host.routes():
        address, _, length = destination.partition("/")
        if length == ("128" if ":" in address else "32"):
            for up in ups:
                if up.ethernet and (address, up.index) not in present:
                    host.set_proxy(address, up.index)
    sweep(host, ups)
