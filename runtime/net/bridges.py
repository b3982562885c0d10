"""The bridges behind virtual networks: made, given their ports and addresses, removed."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from runtime.errors import NoKernelSupport, VethFailed
from runtime.net import dhcp, names
from runtime.net.links import IFF_UP, LinkFailed, Links, set_sysctl
from runtime.net.networks import HOST_ONLY, VirtualNetwork
from runtime.paths import Paths

_SCOPE_LINK = 253


def apply(
    paths: Paths, host: Links, network: VirtualNetwork, reservations: Iterable[dhcp.Reservation]
) -> int:
    """Make the bridge of a network as defined and return its index; may be repeated.

    Raises NoKernelSupport, VethFailed, SystemFailure.
    """
    name = network.bridge
    index = host.index(name)
    if index is None:
        try:
            index = host.add(name, "bridge", br_forward_delay=0, br_mcast_snooping=0)
        except LinkFailed as error:
            if error.errno == errno.EOPNOTSUPP:
                raise NoKernelSupport("the kernel has no bridge", hint="modprobe bridge") from error
            raise
    set_sysctl(f"ipv6/conf/{name}/accept_ra", "0", missing_ok=True)
    host.change(index, group=names.GROUP_BRIDGE, ifalias=f"virtual network {network.name}")
    for port in network.ports:
        _enslave(host, index, port)
    host.flags(index, IFF_UP)
    wanted = {(str(i.ip), i.network.prefixlen) for i in network.interfaces()}
    if network.type == HOST_ONLY:
        for address, prefix in host.addresses(index) - wanted:
            host.delete_address(index, address, prefix)
    for address, prefix in wanted:
        host.add_address(index, address, prefix)
    if network.dhcp:
        dhcp.ensure(paths, network, reservations)
    else:
        dhcp.stop(paths, network.bridge)
    return index


def _enslave(host: Links, bridge: int, name: str) -> None:
    """Put an interface of the server into a bridge; its addresses and routes move along."""
    link = host.link(name)
    if link is None:
        raise VethFailed(f"there is no interface {name}", hint="pnetcfg if list shows them")
    if link.master == bridge:
        return
    if link.master:
        raise VethFailed(f"{name} is in another bridge", hint=f"pnetcfg net delif {name}")
    if link.kind == "bridge":
        raise VethFailed(f"{name} is a bridge itself")
    # Pinned: else the bridge takes the lowest address of its ports, which changes with guests.
    host.change(bridge, address=link.mac)
    try:
        host.change(link.index, master=bridge)
    except LinkFailed as error:
        raise VethFailed(f"{name} cannot be put into a bridge: {error.message}") from error
    host.flags(link.index, IFF_UP)
    host.flags(bridge, IFF_UP)
    _move(host, link.index, bridge)


def _move(host: Links, origin: int, target: int) -> None:
    """Move addresses, then the routes an administrator or DHCP made, from link to link."""
    routes = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in host.route.get_routes(family=family, table=254):
            if message.get_attr("RTA_OIF") == origin and message["proto"] != 2:  # not the kernel's
                routes.append(message)
    for address, prefix in host.addresses(origin):
        host.delete_address(origin, address, prefix)
        host.add_address(target, address, prefix)
    # Those without a gateway first: a gateway has to be reachable when its route is set.
    for message in sorted(routes, key=lambda m: m.get_attr("RTA_GATEWAY") is not None):
        destination = message.get_attr("RTA_DST")
        settings = {
            key: value
            for key, value in (
                ("gateway", message.get_attr("RTA_GATEWAY")),
                ("priority", message.get_attr("RTA_PRIORITY")),
                ("prefsrc", message.get_attr("RTA_PREFSRC")),
            )
            if value is not None
        }
        host.set_route(
            f"{destination}/{message['dst_len']}" if destination else "default",
            target,
            family=message["family"],
            proto=message["proto"],
            scope=message["scope"],
            **settings,
        )


def release(host: Links, name: str) -> None:
    """Take an interface of the server out of its bridge; its addresses move back with it."""
    link = host.link(name)
    if link is None or not link.master:
        return
    bridge = link.master
    host.change(link.index, master=0)
    _move(host, bridge, link.index)


def remove(paths: Paths, host: Links, network: VirtualNetwork) -> None:
    """Remove a network's bridge; raises VethFailed while adapters of environments are in it."""
    index = host.index(network.bridge)
    if index is None:
        return
    inside = [link for link in host.all() if link.master == index]
    used = [link.name for link in inside if link.name not in network.ports]
    if used:
        raise VethFailed(
            f"network {network.name} is in use by {', '.join(used[:5])}",
            hint="disconnect these adapters first",
        )
    dhcp.stop(paths, network.bridge)
    for port in network.ports:
        release(host, port)
    host.delete(network.bridge)
