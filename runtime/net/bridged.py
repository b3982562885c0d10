"""Adapters of a container in virtual networks: a veth pair each, its host's end in a bridge."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping

from runtime.errors import VethFailed
from runtime.net import guard, names
from runtime.net.links import IFF_UP, Links, entered, open_namespace, set_sysctl
from runtime.net.model import ContainerNet
from runtime.net.netif import Adapter
from runtime.net.nft import Nft


def port_of(adapter: Adapter) -> guard.Port:
    """Return what the guard lets an adapter do.

    Where it gets its addresses by DHCP, or has none configured, only its MAC is fixed.
    """
    fixed = not (adapter.dhcp or adapter.dhcp6)
    return guard.Port(
        adapter.host_ifname,
        adapter.mac,
        tuple(ip.address for ip in adapter.ips) if fixed else (),
        guarded=adapter.mac_filter,
    )


def apply(
    host: Links,
    nft: Nft,
    netns_fd: int,
    net: ContainerNet,
    bridges: Mapping[str, int],
    *,
    before: Iterable[Adapter] = (),
) -> None:
    """Make the adapters as ``net`` says and remove others; ``bridges``: network → index.

    ``before`` are those it had, whose host names may not follow from its id. Raises VethFailed,
    SystemFailure.
    """
    before = tuple(before)
    wanted = {adapter.host_ifname for adapter in net.adapters}
    gone = {adapter.host_ifname for adapter in before} - wanted
    gone |= {
        name
        for name in host.names()
        if names.owner(name) == net.ctid and name not in wanted and name != net.venet
    }
    remove(host, nft, gone)
    for adapter in net.adapters:
        if adapter.network and adapter.network not in bridges:
            raise VethFailed(
                f"there is no virtual network {adapter.network!r}",
                hint="psrvctl net list shows them",
            )
        _adapter(host, nft, netns_fd, net, adapter, bridges.get(adapter.network, 0))
    _take_from_dhcp(netns_fd, net, before)


def _adapter(
    host: Links, nft: Nft, netns_fd: int, net: ContainerNet, adapter: Adapter, bridge: int
) -> None:
    index = host.index(adapter.host_ifname)
    with entered(netns_fd), Links() as guest:
        inside = guest.link(adapter.ifname)
        if inside is not None and inside.mac != adapter.mac and index is not None:
            guest.flags(inside.index, 0, IFF_UP)
            guest.change(inside.index, address=adapter.mac)
    if index is None or inside is None:
        host.delete(adapter.host_ifname)
        peer = {"ifname": adapter.ifname, "net_ns_fd": netns_fd, "address": adapter.mac}
        more = {"address": adapter.host_mac} if adapter.host_mac else {}
        index = host.add(adapter.host_ifname, "veth", peer=peer, **more)
    alias = f"container {net.ctid}, {adapter.ifname}"
    host.change(index, group=names.GROUP_BRIDGED, ifalias=alias)
    nft.run(guard.port_script(port_of(adapter)))
    link = host.link(adapter.host_ifname)
    if link is None or link.master != bridge:
        host.change(index, master=bridge)
    host.flags(index, IFF_UP)
    configure_guest(netns_fd, adapter)


def _take_from_dhcp(netns_fd: int, net: ContainerNet, before: Iterable[Adapter]) -> None:
    """Remove what the server had set on adapters that now get their addresses by DHCP."""
    known = {adapter.ifname: adapter for adapter in before}
    for adapter in net.adapters:
        old = known.get(adapter.ifname)
        if old is None or old.dhcp or old.dhcp6 or not (adapter.dhcp or adapter.dhcp6):
            continue
        with entered(netns_fd), Links() as guest:
            index = guest.need(adapter.ifname)
            for ip in old.ips:
                if ip not in adapter.ips:
                    guest.delete_address(index, str(ip.address), ip.prefix)


def configure_guest(netns_fd: int, adapter: Adapter) -> None:
    """Bring an adapter up inside, with its addresses and gateways unless told not to."""
    with entered(netns_fd), Links() as guest:
        index = guest.need(adapter.ifname)
        guest.flags(index, IFF_UP)
        if adapter.configure == "none":
            return
        if any(ip.version == 6 for ip in adapter.ips):
            # A guest's tool may have left it off.
            set_sysctl(f"ipv6/conf/{adapter.ifname}/disable_ipv6", "0", missing_ok=True)
        if not (adapter.dhcp or adapter.dhcp6):
            wanted = {(str(ip.address), ip.prefix) for ip in adapter.ips}
            for address, prefix in guest.addresses(index) - wanted:
                guest.delete_address(index, address, prefix)
            for address, prefix in wanted:
                guest.add_address(index, address, prefix)
        for gateway, family in ((adapter.gw, socket.AF_INET), (adapter.gw6, socket.AF_INET6)):
            if gateway:
                on_link = not any(
                    ip.interface.network.overlaps(type(ip.interface.network)(gateway))
                    for ip in adapter.ips
                    if (ip.version == 6) == (family == socket.AF_INET6)
                )
                # RTNH_F_ONLINK: the gateway is reached though no network of ours holds it.
                more = {"flags": 4} if on_link else {}
                guest.set_route("default", index, family=family, gateway=gateway, **more)


def configure_guests(pid: int, adapters: Iterable[Adapter]) -> None:
    """Do that for some adapters of the container whose init is ``pid``; raises SystemFailure."""
    for adapter in adapters:
        netns_fd = open_namespace(pid)
        try:
            configure_guest(netns_fd, adapter)
        finally:
            os.close(netns_fd)


def remove(host: Links, nft: Nft, ifnames: Iterable[str]) -> None:
    """Remove adapters by their host names, the guard last; absent is success."""
    for name in ifnames:
        host.delete(name)
        nft.run(guard.remove_port_script(name))
