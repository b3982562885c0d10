"""The server's side of the network: what has to be there once, whichever container comes.

A ``Server`` is one act in one network namespace: the sockets are opened when first used and
closed at its end. The configuration files are the record, the kernel is a cache: ``ensure`` puts
back what is missing, ``reconcile`` also removes what belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property

from runtime import locks, state
from runtime.config import Config, ConfigFile
from runtime.defaults import DEFAULTS
from runtime.errors import ConfigMissing, VzError
from runtime.net import (
    accounting,
    bridges,
    classes,
    dhcp,
    guard,
    names,
    netdevs,
    networks,
    privnet,
    rates,
    routed,
    shaping,
    slots,
    taps,
)
from runtime.net.bridged import port_of
from runtime.net.contexts import Closing
from runtime.net.links import Links
from runtime.net.model import ContainerNet
from runtime.net.nft import Nft
from runtime.net.routed import Uplink
from runtime.net.shaping_rules import Shaped
from runtime.paths import Paths

_LOCK_S = 30.0


def server_file(paths: Paths) -> ConfigFile:
    """Return vz.conf, empty when there is none."""
    try:
        return ConfigFile.read(paths.global_config)
    except ConfigMissing:
        return ConfigFile()


def server_config(paths: Paths) -> Config:
    """Return the effective configuration of the server itself."""
    return Config(ctid=0, server=server_file(paths), defaults=DEFAULTS)


def container_config(paths: Paths, ctid: int) -> Config:
    """Return the effective configuration of a container; raises ConfigMissing."""
    file = ConfigFile.read(paths.ct_conf(ctid))
    return Config(ctid=ctid, container=file, server=server_file(paths), defaults=DEFAULTS)


class Server(Closing):
    """The host's network in this namespace; use it in a ``with``."""

    def __init__(self, paths: Paths) -> None:
        """Work for the system at ``paths``."""
        self.paths = paths
        self._stack = ExitStack()

    def close(self) -> None:
        """Close the sockets."""
        self._stack.close()

    @cached_property
    def host(self) -> Links:
        """The route socket of the host's namespace."""
        return self._stack.enter_context(Links())

    @cached_property
    def nft(self) -> Nft:
        """The context of nftables in the host's namespace."""
        return self._stack.enter_context(Nft())

    @cached_property
    def config(self) -> Config:
        """The server's own configuration."""
        return server_config(self.paths)

    @cached_property
    def uplinks(self) -> tuple[Uplink, ...]:
        """The uplinks of the moment."""
        return routed.uplinks(self.host, self.config)

    @property
    def accounts(self) -> bool:
        """Whether traffic is to be accounted."""
        return self.config.get("TRAFFIC_ACCOUNTING", "yes") != "no"

    @property
    def shapes(self) -> bool:
        """Whether traffic is to be shaped."""
        return self.config.get("TRAFFIC_SHAPING", "no") == "yes"

    @property
    def shapes_incoming(self) -> bool:
        """Whether the incoming direction is to be shaped too (opt-in)."""
        return self.config.get("TRAFFIC_SHAPING_INCOMING", "no") == "yes"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock under which addresses are given out; raises Locked."""
        with locks.environment(self.paths, "net", "network", timeout_s=_LOCK_S):
            yield

    def ensure(self) -> None:
        """Have guards, accounting, private networks, forwarding and shaping in place.

        Cheap when they are: one listing of nftables' tables. Call it with the lock held.
        """
        tables = self.nft.tables()
        if not guard.present(tables):
            self.nft.run(guard.host_script())
            self._restore_ports()
        if self.accounts and not accounting.is_in(tables):
            accounting.load(self.nft, self.paths, classes.read(self.paths))
        if ("inet", names.TABLE_PRIVATE) not in tables:
            defined = privnet.load_all(self.paths)
            if defined:
                privnet.apply(self.nft, defined)
        routed.prepare_host(self.uplinks)
        if self.shapes and ("inet", names.TABLE_SHAPING) not in tables:
            self.shape()

    def _restore_ports(self) -> None:
        script = ""
        for net in self.running():
            script += "".join(guard.port_script(port_of(adapter)) for adapter in net.adapters)
        script += "".join(guard.port_script(tap.port) for tap in taps.load(self.paths) if tap.port)
        if script:
            self.nft.run(script)
        present = self.host.names()
        guard.set_host_only(
            self.nft,
            [
                network.bridge
                for network in networks.load_all(self.paths).values()
                if network.type == networks.HOST_ONLY and network.bridge in present
            ],
        )

    def running(self) -> Iterator[ContainerNet]:
        """Yield the network of every container that runs, as configured."""
        for ctid in state.present(self.paths):
            with suppress(VzError):
                yield ContainerNet.of(ctid, container_config(self.paths, ctid))

    # virtual networks

    def network(self, name: str) -> int:
        """Have the bridge of a virtual network and return its index; raises ConfigMissing."""
        network = networks.find(self.paths, name)
        reservations = self.reservations(name) if network.dhcp else []
        index = bridges.apply(self.paths, self.host, network, reservations)
        if network.type == networks.HOST_ONLY:
            self._restore_host_only()
        return index

    def _restore_host_only(self) -> None:
        present = self.host.names()
        found = networks.load_all(self.paths).values()
        guard.set_host_only(
            self.nft,
            [n.bridge for n in found if n.type == networks.HOST_ONLY and n.bridge in present],
        )

    def reservations(self, name: str) -> list[dhcp.Reservation]:
        """Return the addresses that configurations give to adapters in a network."""
        from runtime import registry

        found = []
        for ctid in registry.configured(self.paths):
            with suppress(VzError):
                net = ContainerNet.of(ctid, container_config(self.paths, ctid))
                found += [
                    dhcp.Reservation(adapter.mac, str(ip.address))
                    for adapter in net.adapters
                    if adapter.network == name
                    for ip in adapter.ips[:1]
                    if ip.version == 4
                ]
        return found

    def bridges_for(self, net: ContainerNet) -> dict[str, int]:
        """Have every network a container's adapters join; return network → index."""
        found = {}
        for adapter in net.adapters:
            if adapter.network and adapter.network not in found:
                try:
                    found[adapter.network] = self.network(adapter.network)
                except ConfigMissing:
                    continue  # named by bridged.apply, with what to do
        return found

    # shaping

    def plans(self) -> tuple[rates.Plan, ...]:
        """Return the plan of every device to shape; raises BandwidthUnset, TotalRateUnset, …"""
        return rates.plans(self.config, tuple(up.name for up in self.uplinks[:1]))

    def shaped(self, ctid: int, config: Mapping[str, str], plans: tuple[rates.Plan, ...]) -> Shaped:
        """Return what shaping needs to know of a container; raises RateUnset, ShapingFailed."""
        net = ContainerNet.of(ctid, config)
        return Shaped(
            slots.get(self.paths, str(ctid)),
            (net.venet, *(adapter.host_ifname for adapter in net.adapters)),
            tuple(str(ip.address) for ip in net.ips),
            {plan.device: rates.shares(config, plan) for plan in plans},
            tuple(adapter.mac for adapter in net.adapters),
        )

    def shape(self) -> None:
        """Shape as configured, every running container included; raises ShapingFailed."""
        plans = self.plans()
        environments = []
        for ctid in state.present(self.paths):
            with suppress(ConfigMissing):
                environments.append(self.shaped(ctid, container_config(self.paths, ctid), plans))
        environments += [
            tap.shaped(self.paths, self.config, plans) for tap in taps.load(self.paths)
        ]
        shaping.apply(
            self.host,
            self.nft,
            plans,
            classes.read(self.paths),
            environments,
            incoming=self.shapes_incoming,
        )

    def shape_one(self, ctid: int, config: Mapping[str, str]) -> None:
        """Shape one container in a server that is shaped; nothing where it is not."""
        if not self.shapes:
            return
        if not shaping.is_on(self.nft):
            self.shape()
        plans = self.plans()
        shaping.add(
            self.host,
            self.nft,
            plans,
            self.shaped(ctid, config, plans),
            incoming=self.shapes_incoming,
        )

    def unshape_one(self, ctid: int) -> None:
        """Remove the classes of one container; nothing where shaping is off."""
        if shaping.is_on(self.nft):
            slot = slots.get(self.paths, str(ctid))
            shaping.drop(self.host, self.nft, self.plans(), slot, incoming=self.shapes_incoming)

    def shaping_off(self) -> None:
        """Detach shaping; twice is success."""
        shaping.remove(self.host, self.nft)

    # the whole

    def reconcile(self) -> None:
        """Bring the host's side in line with the records: today's uplinks, no strays.

        Call it after the uplinks changed, and when the service starts.
        """
        with self.locked():
            self.ensure()
            running = set(state.present(self.paths))
            for name in self.host.names():
                ctid = names.owner(name)
                if ctid is not None and ctid not in running:
                    self.host.delete(name)
                    if not name.endswith(".0"):
                        self.nft.run(guard.remove_port_script(name))
            for ctid in netdevs.borrowers(self.paths).keys() - running:
                netdevs.give_back(self.paths, self.host, ctid)
            routed.repair_proxies(self.host, self.uplinks)


def tick(paths: Paths) -> None:
    """Save the traffic counters and put back what a foreign ``flush ruleset`` removed.

    Call it every minute: at most what was counted since the last call can be lost.
    """
    with Server(paths) as server:
        if not server.accounts:
            return
        with server.locked():
            server.ensure()
            accounting.tick(paths, server.nft, classes.read(paths))
