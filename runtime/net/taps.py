"""Adapters of virtual machines on the same networks: taps with the same guards and counters.

A machine's hypervisor makes the tap (or takes one that is there); ``attach`` gives it its place:
in a bridge, or host-routed with the machine's addresses routed to it. What was attached is
recorded, so that guards can be put back and traffic be told whose it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import files
from runtime.errors import VzError
from runtime.net import guard, names, rates, shaping, slots
from runtime.net.addresses import Ip, parse
from runtime.net.links import IFF_UP, Links, set_sysctl
from runtime.net.shaping_rules import Shaped
from runtime.paths import Paths

if TYPE_CHECKING:
    from runtime.net.server import Server


@dataclass(frozen=True, slots=True)
class Tap:
    """An adapter of a machine on the host: whose, its name, its MAC and addresses."""

    ifname: str
    machine: str
    mac: str
    #: Virtual network; empty: host-routed.
    network: str = ""
    addresses: tuple[str, ...] = ()
    mac_filter: bool = True
    ip_filter: bool = False
    #: Whether it hears only what is for it.
    sealed: bool = False
    #: RATE and RATEBOUND of the machine; empty: those of the server hold.
    rate: str = ""
    rate_bound: str = ""

    @property
    def ips(self) -> tuple[Ip, ...]:
        """Its addresses taken apart."""
        return tuple(parse(text) for text in self.addresses)

    @property
    def port(self) -> guard.Port | None:
        """What the bridge guard lets it do, None for a host-routed one."""
        if not self.network:
            return None
        own = tuple(ip.address for ip in self.ips) if self.ip_filter else ()
        return guard.Port(self.ifname, self.mac, own, guarded=self.mac_filter, sealed=self.sealed)

    def shaped(
        self, paths: Paths, config: Mapping[str, str], plans: tuple[rates.Plan, ...]
    ) -> Shaped:
        """Return what traffic shaping needs to know of it; raises RateUnset, ShapingFailed."""
        own = {"RATE": self.rate or config.get("RATE", ""),
               "RATEBOUND": self.rate_bound or config.get("RATEBOUND", "no")}  # fmt: skip
        return Shaped(
            slots.get(paths, self.machine),
            (self.ifname,),
            tuple(str(ip.address) for ip in self.ips),
            {plan.device: rates.shares(own, plan) for plan in plans},
            (self.mac,),
        )


def name_for(machine: str, number: int) -> str:
    """Return the name of a machine's tap: its UUID is longer than an interface's name may be."""
    return f"vme{hashlib.sha256(machine.encode()).hexdigest()[:8]}.{number}"


def _file(paths: Paths) -> Path:
    return paths.lib / "net" / "taps.json"


def load(paths: Paths) -> list[Tap]:
    """Return the taps that are attached."""
    try:
        raw = json.loads(_file(paths).read_bytes())
        return [Tap(**{**entry, "addresses": tuple(entry["addresses"])}) for entry in raw]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _save(paths: Paths, taps: list[Tap]) -> None:
    import dataclasses

    target = _file(paths)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps([dataclasses.asdict(tap) for tap in taps]).encode()
    files.replace(target, data, mode=0o600)


def owners(paths: Paths) -> dict[str, str]:
    """Return tap → machine."""
    return {tap.ifname: tap.machine for tap in load(paths)}


def make(host: Links, name: str) -> int:
    """Make a persistent tap where there is none and return its index; raises SystemFailure."""
    index = host.index(name)
    if index is not None:
        return index
    host.route.link("add", ifname=name, kind="tuntap", mode="tap")
    return host.need(name)


def attach(server: Server, tap: Tap) -> None:
    """Give a tap its place in the network; may be repeated. Raises ConfigMissing, SystemFailure."""
    with server.locked():
        server.ensure()
        index = make(server.host, tap.ifname)
        alias = f"machine {tap.machine}"
        others = [other for other in load(server.paths) if other.ifname != tap.ifname]
        _save(server.paths, [*others, tap])
        if tap.network:
            bridge = server.network(tap.network)
            server.host.change(index, group=names.GROUP_BRIDGED, ifalias=alias)
            port = tap.port
            assert port is not None
            server.nft.run(guard.port_script(port))
            server.host.change(index, master=bridge)
        else:
            _route(server, index, tap, alias)
        server.host.flags(index, IFF_UP)
        if server.shapes:
            # Classes are few and replaced in place: the whole is the simplest that is right.
            server.shape()


def _route(server: Server, index: int, tap: Tap, alias: str) -> None:
    """Host-routed: the machine has its addresses with any gateway, the host answers for all."""
    host = server.host
    for name, value in (("proxy_arp", "1"), ("rp_filter", "1"), ("forwarding", "1")):
        set_sysctl(f"ipv4/conf/{tap.ifname}/{name}", value)
    set_sysctl(f"ipv4/neigh/{tap.ifname}/proxy_delay", "0")
    set_sysctl(f"ipv6/conf/{tap.ifname}/accept_ra", "0", missing_ok=True)
    set_sysctl(f"ipv6/conf/{tap.ifname}/forwarding", "1", missing_ok=True)
    host.change(index, group=names.GROUP_ROUTED, ifalias=alias)
    host.flags(index, IFF_UP)
    for ip in tap.ips:
        host.set_route(f"{ip.address}/{ip.interface.max_prefixlen}", index)
        for up in server.uplinks:
            if up.ethernet:
                host.set_proxy(str(ip.address), up.index)


def detach(server: Server, ifname: str) -> None:
    """Remove a tap and everything that was made for it; absent is success."""
    with server.locked():
        server.host.delete(ifname)
        if ("bridge", names.TABLE_GUARD) in server.nft.tables():
            server.nft.run(guard.remove_port_script(ifname))
        _save(server.paths, [tap for tap in load(server.paths) if tap.ifname != ifname])
        if server.shapes and shaping.is_on(server.nft):
            # A vz.conf that cannot be followed must not keep a machine from stopping.
            with suppress(VzError):
                server.shape()
        from runtime.net import routed

        routed.sweep(server.host, server.uplinks)
