"""pnetcfg, vznetcfg: interfaces, VLANs, bridges and virtual networks of the server (guide §6.1)."""

from __future__ import annotations

import argparse
import errno
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.errors import InvalidValue, NoKernelSupport, VethFailed
from tools._command import JSON, Context, Program, Verb, option
from tools._command import main as run_program
from tools.verbs_net import group, table

if TYPE_CHECKING:
    from runtime.net.links import Link

_IF = option("ifname", help="an interface of the server", metavar="IF")
_NET = option("network", help="a virtual network", metavar="NETWORK")


def _kind(link: Link) -> str:
    if link.kind in ("veth", "bridge", "vlan"):
        from runtime.net.names import GROUP_ROUTED

        return "venet" if link.kind == "veth" and link.group == GROUP_ROUTED else link.kind
    return link.kind or "nic"


def if_list(context: Context, args: argparse.Namespace) -> None:
    """List the server's interfaces."""
    from runtime.net import networks
    from runtime.net.links import Links

    defined = networks.load_all(context.paths).values()
    by_bridge = {network.bridge: network.name for network in defined}
    rows = []
    with Links() as host:
        links = host.all()
        names = {link.index: link.name for link in links}
        for link in links:
            if link.name == "lo":
                continue
            bridge = link.name if link.name in by_bridge else names.get(link.master, "")
            addresses = sorted(f"{a}/{n}" for a, n in host.addresses(link.index))
            rows.append((link.name, _kind(link), by_bridge.get(bridge, ""), ",".join(addresses)))
    if args.json:
        keys = ("name", "type", "network", "addresses")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
        return
    table(("Name", "Type", "Network ID", "Addresses"), rows)


def net_list(context: Context, args: argparse.Namespace) -> None:
    """List the virtual networks with what is in them."""
    from runtime.net import networks
    from runtime.net.links import Links

    rows = []
    with Links() as host:
        links = host.all()
    by_name = {link.name: link for link in links}
    for network in networks.load_all(context.paths).values():
        bridge = by_name.get(network.bridge)
        slaves = [link.name for link in links if bridge and link.master == bridge.index]
        master = network.ports[0] if network.ports else ""
        status = "active" if bridge is not None and bridge.up else "configured"
        rows.append(
            (network.name, status, master, ",".join(name for name in slaves if name != master))
        )
    if args.json:
        keys = ("network", "status", "master", "slaves")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
        return
    table(("Network ID", "Status", "Master Interface", "Slave Interfaces"), rows)


def net_new(context: Context, args: argparse.Namespace) -> None:
    """Define a bridged network."""
    from runtime.net import networks
    from runtime.net.server import Server

    if args.network in networks.load_all(context.paths):
        raise InvalidValue(f"the network {args.network} exists already")
    network = networks.check(context.paths, networks.VirtualNetwork(args.network))
    with Server(context.paths) as server, server.locked():
        server.ensure()
        networks.store(context.paths, network)
        server.network(network.name)


def net_del(context: Context, args: argparse.Namespace) -> None:
    """Remove a network; raises VethFailed while it has slaves."""
    from runtime.net import networks
    from tools.psrvctl_net import net_del as remove

    slaves = networks.find(context.paths, args.network).ports
    if slaves:
        raise VethFailed(
            f"network {args.network} has interfaces: {', '.join(slaves)}",
            hint=f"pnetcfg net delif {slaves[0]}",
        )
    args.ident = args.network
    remove(context, args)


def net_change(context: Context, args: argparse.Namespace) -> None:
    """Rename a network; adapters of containers follow in their configurations."""
    from runtime import registry
    from runtime.net import bridges, netif, networks
    from runtime.net.server import Server

    old = networks.find(context.paths, args.network)
    if args.new in networks.load_all(context.paths):
        raise InvalidValue(f"the network {args.new} exists already")
    new = replace(old, name=args.new)
    netif.check_network(new.name)
    with Server(context.paths) as server, server.locked():
        bridges.remove(context.paths, server.host, old)
        networks.store(context.paths, new)
        networks.delete(context.paths, old.name)
        server.ensure()
        server.network(new.name)
    for record, file in registry.records(context.paths):
        stored = file.get("NETIF")
        pattern = rf"(?<![^,;])network={re.escape(old.name)}(?=[,;]|$)"
        text = re.sub(pattern, f"network={new.name}", stored or "")
        if stored and text != stored:
            file.set("NETIF", text)
            file.save(record.conf)


def net_addif(context: Context, args: argparse.Namespace) -> None:
    """Put an interface of the server, or a container's adapter, into a network."""
    _ports(context, args.network, add=args.ifname)


def net_delif(context: Context, args: argparse.Namespace) -> None:
    """Take an interface of the server out of its network."""
    from runtime.net import networks

    for network in networks.load_all(context.paths).values():
        if args.ifname in network.ports:
            _ports(context, network.name, remove=args.ifname)
            return
    raise VethFailed(f"{args.ifname} is in no network", hint="pnetcfg net list shows them")


def _ports(context: Context, name: str, *, add: str = "", remove: str = "") -> None:
    from runtime.net import bridges, networks
    from runtime.net.server import Server

    network = networks.find(context.paths, name)
    if add and add not in network.ports:
        if network.interface:
            network = replace(network, slaves=(*network.slaves, add))
        else:
            network = replace(network, interface=add)
    if remove:
        network = replace(
            network,
            interface="" if network.interface == remove else network.interface,
            slaves=tuple(slave for slave in network.slaves if slave != remove),
        )
    network = networks.check(context.paths, network)
    with Server(context.paths) as server, server.locked():
        if add:
            server.host.need(add)
        server.ensure()
        if remove:
            bridges.release(server.host, remove)
        networks.store(context.paths, network)
        server.network(network.name)


def _vlan_id(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4094:
        raise InvalidValue(f"a VLAN's id is a number from 1 to 4094: {text[:20]!r}")
    return int(text)


def vlan_add(context: Context, args: argparse.Namespace) -> None:
    """Make the VLAN interface IF.ID."""
    from runtime.net.links import IFF_UP, LinkFailed, Links

    number = _vlan_id(args.id)
    name = f"{args.ifname}.{number}"
    if len(name) > 15:
        raise InvalidValue(f"{name} is too long for the name of an interface")
    with Links() as host:
        parent = host.need(args.ifname)
        if host.index(name) is not None:
            raise InvalidValue(f"{name} exists already")
        try:
            index = host.add(name, "vlan", link=parent, vlan_id=number)
        except LinkFailed as error:
            if error.errno == errno.EOPNOTSUPP:
                raise NoKernelSupport("this kernel has no 8021q", hint="modprobe 8021q") from None
            raise
        host.flags(index, IFF_UP)
    print(name)


def vlan_del(context: Context, args: argparse.Namespace) -> None:
    """Remove a VLAN interface; refused while it is in a network."""
    from runtime.net.links import Links

    with Links() as host:
        link = host.link(args.ifname)
        if link is None or link.kind != "vlan":
            raise InvalidValue(f"{args.ifname} is no VLAN interface")
        if link.master:
            raise VethFailed(
                f"{args.ifname} is in a network", hint=f"pnetcfg net delif {link.name}"
            )
        host.delete(link.name)


def br_list(context: Context, args: argparse.Namespace) -> None:
    """List the server's bridges and their ports."""
    from runtime.net.links import Links

    with Links() as host:
        links = host.all()
    table(
        ("Name", "Interfaces"),
        [
            (bridge.name, ",".join(link.name for link in links if link.master == bridge.index))
            for bridge in links
            if bridge.kind == "bridge"
        ],
    )


def device(context: Context, args: argparse.Namespace) -> None:
    """Bring an interface of the server up or down."""
    from runtime.net.links import IFF_UP, Links

    with Links() as host:
        index = host.need(args.ifname)
        if args.verb == "init":
            host.flags(index, IFF_UP)
        else:
            host.flags(index, 0, IFF_UP)


def program(name: str) -> Program:
    """Return the command under one of its names."""
    return Program(
        name,
        "Configure interfaces, VLANs and virtual networks of this server.",
        verbs=(
            group("if", "interfaces", (
                Verb("list", "list the interfaces", if_list, (JSON,), changes=False),
            ), program=name),
            group("net", "virtual networks", (
                Verb("new", "define a bridged network", net_new, (_NET,)),
                Verb("del", "remove a network", net_del, (_NET,)),
                Verb("change", "rename a network", net_change,
                     (_NET, option("new", help="new name", metavar="NEW"))),
                Verb("addif", "put an interface into a network", net_addif, (_IF, _NET)),
                Verb("delif", "take an interface out of its network", net_delif, (_IF,)),
                Verb("list", "list the networks", net_list, (JSON,), changes=False),
            ), program=name),
            group("vlan", "VLAN interfaces", (
                Verb("add", "make IF.ID", vlan_add,
                     (_IF, option("id", help="1–4094", metavar="ID"))),
                Verb("del", "remove IF.ID", vlan_del, (_IF,)),
            ), program=name),
            group("br", "bridges", (
                Verb("list", "list the bridges", br_list, changes=False),
                Verb("new", "define a network with a bridge of its own", net_new, (_NET,)),
                Verb("del", "remove such a network", net_del, (_NET,)),
                Verb("attach", "put an interface into it", net_addif, (_IF, _NET)),
                Verb("detach", "take an interface out", net_delif, (_IF,)),
            ), program=name),
            Verb("init", "bring an interface up", device, (_IF,)),
            Verb("down", "bring an interface down", device, (_IF,)),
        ),
    )  # fmt: skip


PROGRAM = program("pnetcfg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run pnetcfg; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
