"""Why a container has no network: link, address, route, neighbours, guard, DNS, in that order.

Nothing is changed. Each finding says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from runtime import state
from runtime.errors import VzError
from runtime.net import guard, guestcfg, names, netdevs, networks, privnet
from runtime.net.links import Link, Links, entered, open_namespace
from runtime.net.model import ContainerNet
from runtime.net.routed import Uplink
from runtime.net.server import Server
from runtime.paths import Paths


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: status ``ok``, ``warn`` or ``fail``, and what to do about it."""

    name: str
    status: str
    detail: str
    todo: str = ""


def checks(paths: Paths, ctid: int, config: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings about a container's network."""
    try:
        net = ContainerNet.of(ctid, config)
    except VzError as error:
        yield Finding("configuration", "fail", error.message, "correct it with pctl set")
        return
    if not (net.ips or net.adapters or net.devices):
        yield Finding(
            "configuration",
            "warn",
            "no address and no adapter is configured",
            f"pctl set {ctid} --ipadd ADDRESS --save",
        )
        return
    run = state.load(paths, ctid)
    with Server(paths) as server:
        try:
            ups = server.uplinks
            yield from _uplinks(server.host, ups)
            for name in (net.venet,) if net.ips else ():
                yield from _host_end(server.host, name, ctid)
            for adapter in net.adapters:
                yield from _host_end(server.host, adapter.host_ifname, ctid)
                yield from _network(paths, server.host, adapter.network, adapter.ifname, ctid)
            if net.ips:
                yield from _routes(server.host, net, ups)
            if run is not None and run.init is not None and run.init.alive:
                yield from _inside(run.init.pid, net)
            pid = run.init.pid if run is not None and run.init is not None else 0
            yield from _devices(paths, server.host, net, pid)
            yield from _drops(server, net)
            yield from _private(paths, net)
        except OSError as error:
            yield Finding("network", "fail", f"it cannot be looked at: {error.strerror}")
    yield from _dns(config, ctid)


def _uplinks(host: Links, ups: tuple[Uplink, ...]) -> Iterator[Finding]:
    if not ups:
        yield Finding(
            "uplink",
            "warn",
            "the server has no default route: only this server is reached",
            "set one, or VE_ROUTE_SRC_DEV in vz.conf",
        )
    for up in ups:
        link = host.link(up.name)
        if link is not None and link.up and link.carrier:
            yield Finding("uplink", "ok", up.name)
        else:
            yield Finding("uplink", "fail", f"{up.name} is down", "check the cable and the switch")


def _host_end(host: Links, name: str, ctid: int) -> Iterator[Finding]:
    link = host.link(name)
    if link is None:
        yield Finding("link", "fail", f"{name} is missing", f"pctl restart {ctid}")
    elif not link.up or not link.carrier:
        yield Finding("link", "fail", f"{name} is down", f"pctl restart {ctid}")
    elif link.group not in (names.GROUP_ROUTED, names.GROUP_BRIDGED):
        yield Finding(
            "link", "fail", f"{name} is in the wrong interface group", f"pctl restart {ctid}"
        )
    else:
        yield Finding("link", "ok", name)


def _network(paths: Paths, host: Links, network: str, ifname: str, ctid: int) -> Iterator[Finding]:
    if not network:
        yield Finding(
            "network",
            "warn",
            f"{ifname} is connected to no network",
            f"pctl set {ctid} --ifname {ifname} --network NAME --save",
        )
        return
    found = networks.load_all(paths).get(network)
    if found is None:
        yield Finding(
            "network", "fail", f"there is no network {network}", "psrvctl net list shows them"
        )
        return
    bridge = host.link(found.bridge)
    if bridge is None or not bridge.up:
        yield Finding(
            "network", "fail", f"bridge {found.bridge} is missing or down", f"pctl restart {ctid}"
        )
    elif found.type == networks.BRIDGED and not found.ports:
        yield Finding(
            "network",
            "warn",
            f"{network} is bound to no interface of the server",
            f"psrvctl net set {network} -i INTERFACE",
        )
    else:
        yield Finding("network", "ok", f"{network} ({found.bridge})")


def _devices(paths: Paths, host: Links, net: ContainerNet, pid: int) -> Iterator[Finding]:
    """Find the server's interfaces: inside while it runs, else at home."""
    if not net.devices:
        return
    with ExitStack() as stack:
        netns_fd = -1
        if pid:
            netns_fd = open_namespace(pid)
            stack.callback(os.close, netns_fd)
        for name in net.devices:
            inside = pid != 0 and netdevs.is_there(paths, net.ctid, name, netns_fd)
            if inside or (not pid and host.index(name) is not None):
                yield Finding("device", "ok", f"{name} {'inside' if inside else 'at hand'}")
            else:
                todo = f"pctl restart {net.ctid}" if pid else "pnetcfg if list shows what there is"
                yield Finding("device", "fail", f"{name} is missing", todo)


def _routes(host: Links, net: ContainerNet, ups: tuple[Uplink, ...]) -> Iterator[Finding]:
    index = host.index(net.venet)
    routed = {d for d, _oif in host.routes(index)} if index is not None else set()
    answered = host.proxies()
    for ip in net.ips:
        if f"{ip.address}/{ip.interface.max_prefixlen}" not in routed:
            yield Finding(
                "route", "fail", f"{ip.address} is not routed to it", f"pctl restart {net.ctid}"
            )
            continue
        missing = [
            up.name for up in ups if up.ethernet and (str(ip.address), up.index) not in answered
        ]
        if missing:
            yield Finding(
                "neighbours",
                "fail",
                f"the server does not answer for {ip.address} on {missing[0]}",
                "the uplink changed: psrvctl net reconcile",
            )
        else:
            yield Finding("route", "ok", str(ip.address))
    for up in ups:
        forwarding = Path(f"/proc/sys/net/ipv4/conf/{up.name}/forwarding")
        with suppress(OSError):
            if forwarding.read_text().strip() != "1":
                yield Finding(
                    "forwarding",
                    "fail",
                    f"forwarding is off on {up.name}",
                    f"sysctl net.ipv4.conf.{up.name}.forwarding=1; who turned it off?",
                )


def _inside(pid: int, net: ContainerNet) -> Iterator[Finding]:
    import os

    fd = open_namespace(pid)
    try:
        with entered(fd), Links() as guest:
            expected = [(names.VENET, net.ips)] if net.ips else []
            expected += [(a.ifname, a.ips if a.configure == "all" and not a.dhcp else ())
                         for a in net.adapters]  # fmt: skip
            for name, ips in expected:
                link: Link | None = guest.link(name)
                if link is None or not link.up:
                    yield Finding(
                        "inside", "fail", f"{name} is down inside", f"pctl exec {net.ctid} ip a"
                    )
                    continue
                have = {address for address, _prefix in guest.addresses(link.index)}
                gone = [str(ip.address) for ip in ips if str(ip.address) not in have]
                if gone:
                    yield Finding(
                        "inside",
                        "fail",
                        f"{gone[0]} was removed from {name} inside",
                        f"pctl restart {net.ctid}, and see what the guest's network tools do",
                    )
                elif not have - {"127.0.0.2"}:
                    yield Finding("inside", "warn", f"{name} has no address (DHCP?)")
                else:
                    yield Finding("inside", "ok", name)
            if guest.default_devices():
                yield Finding("inside", "ok", "default route")
            else:
                yield Finding(
                    "inside", "warn", "no default route inside", "set --gw, or let DHCP give one"
                )
    finally:
        os.close(fd)


def _drops(server: Server, net: ContainerNet) -> Iterator[Finding]:
    for name in (net.venet, *(adapter.host_ifname for adapter in net.adapters)):
        for reason, packets in guard.drops(server.nft, name).items():
            yield Finding(
                "guard",
                "warn",
                f"{packets} packets from {name} were dropped: {reason}",
                "the container sends from addresses that are not its own",
            )


def _private(paths: Paths, net: ContainerNet) -> Iterator[Finding]:
    defined = privnet.load_all(paths)
    for ip in net.ips:
        member = privnet.of_address(defined, ip.address)
        if member is not None and not member.weak:
            yield Finding(
                "private network",
                "warn",
                f"{ip.address} is in {member.name}: it reaches that network's members only",
                "psrvctl privnet list",
            )


def _dns(config: Mapping[str, str], ctid: int) -> Iterator[Finding]:
    servers = guestcfg.name_servers(config)["NAMESERVER"]
    if servers:
        yield Finding("dns", "ok", servers)
    else:
        yield Finding(
            "dns",
            "warn",
            "no DNS server is configured",
            f"pctl set {ctid} --nameserver ADDRESS --save (or inherit)",
        )
