"""Entry points for containers: their network at start, while they run, and when they stop.

``setup`` and ``teardown`` may be repeated; after a kill at any point, running them again leaves
what one undisturbed run leaves. The lock order is: environment, then ``net``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from runtime.errors import AddAddressFailed, AddressInUse, VethFailed, VzError
from runtime.net import (
    accounting,
    announce,
    bridged,
    guard,
    guestcfg,
    names,
    netdevs,
    netif,
    routed,
    slots,
)
from runtime.net.addresses import Address, Ip
from runtime.net.links import LinkFailed, Links, open_namespace
from runtime.net.model import ContainerNet
from runtime.net.server import Server
from runtime.paths import Paths

_RTN_LOCAL = 2  # linux/rtnetlink.h


def setup(paths: Paths, ctid: int, config: Mapping[str, str], init_pid: int) -> None:
    """Make the network of a container whose init (already in its own namespace) is ``init_pid``.

    Raises BadAddress, AddressInUse, VethFailed, NetdevFailed, AddAddressFailed, ShapingFailed,
    SystemFailure;
    nothing of it remains then.
    """
    if not names.wanted(config):
        return
    net = ContainerNet.of(ctid, config)
    try:
        with Server(paths) as server:
            _check_wire(server, net.ips)
            _apply(server, net, config, init_pid, before=())
    except BaseException:
        with suppress(VzError, OSError):
            teardown(paths, ctid, config)
        raise


def apply_live(
    paths: Paths,
    ctid: int,
    before: Mapping[str, str],
    after: Mapping[str, str],
    init_pid: int,
) -> None:
    """Change the network of a running container; raises as ``setup``, the change then undone."""
    old, new = ContainerNet.of(ctid, before), ContainerNet.of(ctid, after)
    known = {ip.address for ip in old.ips}
    fresh = [ip for ip in new.ips if ip.address not in known]
    with Server(paths) as server:
        _check_wire(server, fresh)
        try:
            _apply(server, new, after, init_pid, before=old.adapters, fresh=fresh)
        except BaseException:
            with suppress(VzError, OSError):
                _apply(server, old, before, init_pid, before=new.adapters, fresh=())
            raise


def teardown(paths: Paths, ctid: int, config: Mapping[str, str] | None = None) -> None:
    """Remove everything of a container from the host's network; absent is success.

    ``config`` tells adapters whose host names do not follow from the id. What was counted is
    saved. Order: links, guards, proxy entries, classes.
    """
    with Server(paths) as server:
        present = server.host.names()
        own = {name for name in present if names.owner(name) == ctid}
        net = None
        if config is not None:
            with suppress(VzError):
                net = ContainerNet.of(ctid, config)
        if net is not None:
            own |= {a.host_ifname for a in net.adapters if a.host_ifname in present}
        with server.locked():
            netdevs.give_back(paths, server.host, ctid)
        tables = server.nft.tables()
        guarded = ("bridge", names.TABLE_GUARD) in tables
        if not own and net is None and not guarded:
            names.mark(paths, ctid).unlink(missing_ok=True)
            return
        with server.locked():
            venet = names.host_end(ctid, 0)
            for name in own:
                server.host.delete(name)
            if guarded:
                # Adapters may have been added since the configuration we are given was read.
                ports = {name for name in guard.ports(server.nft) if names.owner(name) == ctid}
                ports |= {a.host_ifname for a in net.adapters} if net else set()
                script = guard.ports_of(sorted(ports - {venet}))
                if script:
                    server.nft.run(script)
            routed.sweep(server.host, server.uplinks)
            if server.shapes:
                with suppress(VzError):
                    server.unshape_one(ctid)
            if ("inet", names.TABLE_ACCOUNTING) in tables:
                accounting.save(paths, accounting.read(server.nft))
    names.mark(paths, ctid).unlink(missing_ok=True)


def forget(paths: Paths, ctid: int) -> None:
    """Drop what outlives a stop, when a container is destroyed: its slot and its counters."""
    slots.release(paths, str(ctid))
    guestcfg.forget(paths, ctid)
    with Server(paths) as server:
        if accounting.present(server.nft):
            counted = accounting.read(server.nft)
            doomed = {key[0] for c in counted.values() for key in c if names.owner(key[0]) == ctid}
            if doomed:
                accounting.forget(server.nft, doomed)
                accounting.save(paths, accounting.read(server.nft))


def _apply(
    server: Server,
    net: ContainerNet,
    config: Mapping[str, str],
    init_pid: int,
    *,
    before: Iterable[netif.Adapter],
    fresh: Sequence[Ip] | None = None,
) -> None:
    mark = names.mark(server.paths, net.ctid)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    netns_fd = open_namespace(init_pid)
    try:
        with server.locked():
            server.ensure()
            _check_host(server, net)
            if net.ips or server.host.index(net.venet) is not None:
                try:
                    routed.apply(server.host, netns_fd, net, server.uplinks)
                except LinkFailed as error:
                    raise AddAddressFailed(error.message) from error
            if net.adapters or before:
                bridged.apply(
                    server.host,
                    server.nft,
                    netns_fd,
                    net,
                    server.bridges_for(net),
                    before=before,
                )
            netdevs.apply(
                server.paths,
                server.host,
                net.ctid,
                net.devices,
                netns_fd,
                uplinks={up.name for up in server.uplinks},
                inside={adapter.ifname for adapter in net.adapters},
            )
            server.shape_one(net.ctid, config)
    finally:
        # An open descriptor keeps the links of a container alive that has died.
        os.close(netns_fd)
    _announce(server, net.ips if fresh is None else fresh)


def _announce(server: Server, ips: Sequence[Ip]) -> None:
    """Tell the neighbours; that one cannot be told fails nothing."""
    for up in server.uplinks:
        if up.ethernet:
            with suppress(OSError):
                announce.announce(up.name, [ip.address for ip in ips])


def _check_wire(server: Server, ips: Sequence[Ip]) -> None:
    """Ask the neighbours whether they have these addresses; raises AddressInUse."""
    if server.config.get("SKIP_ARPDETECT", "no") == "yes":
        return
    names_up = [up.name for up in server.uplinks if up.ethernet]
    if not ips or not names_up:
        return
    try:
        found = announce.conflicts(names_up, [ip.address for ip in ips])
    except OSError:
        return  # an uplink that is down asks nobody
    if found:
        clash = found[0]
        raise AddressInUse(
            f"the address {clash.address} is in use by {clash.mac} on {clash.device}",
            hint="choose another address, or SKIP_ARPDETECT=yes in vz.conf",
        )


def holder(host: Links, address: Address) -> str | None:
    """Return the interface of this host an address is at (``lo`` for its own), None elsewhere."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        answer = host.route.route("get", dst=str(address), family=family)
    except NetlinkError:
        return None  # no route at all
    for message in answer:
        if message["type"] == _RTN_LOCAL:
            return "lo"
        index = message.get_attr("RTA_OIF")
        for link in host.route.link("get", index=index):
            group = link.get_attr("IFLA_GROUP") or 0
            if group == names.GROUP_ROUTED:
                return str(link.get_attr("IFLA_IFNAME"))
    return None


def _check_host(server: Server, net: ContainerNet) -> None:
    """Refuse addresses which this host or another container of it has; raises AddressInUse."""
    for ip in net.ips:
        where = holder(server.host, ip.address)
        if where is None or where == net.venet:
            continue
        who = names.owner(where)
        by = "this server itself" if where == "lo" else f"container {who}" if who else where
        raise AddressInUse(f"the address {ip.address} is in use by {by}")
    _check_adapters(server, net)


def _check_adapters(server: Server, net: ContainerNet) -> None:
    """Refuse names and MAC addresses that adapters of other containers have; raises VethFailed."""
    if not net.adapters:
        return
    for adapter in net.adapters:
        other = names.owner(adapter.host_ifname)
        if other is not None and other != net.ctid:
            raise VethFailed(
                f"{adapter.host_ifname} is the name of an adapter of container {other}"
            )
    macs = {adapter.mac: adapter.ifname for adapter in net.adapters}
    if len(macs) != len(net.adapters):
        raise VethFailed("two adapters of the container have the same MAC address")
    for theirs in server.running():
        for adapter in theirs.adapters:
            if theirs.ctid != net.ctid and adapter.mac in macs:
                raise VethFailed(
                    f"MAC address {adapter.mac} belongs to {adapter.ifname} of container "
                    f"{theirs.ctid}",
                    hint=f"pctl set {net.ctid} --ifname {macs[adapter.mac]} --mac auto --save",
                )
