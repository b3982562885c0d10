"""The network verbs of psrvctl(8): ``net``, ``privnet``, ``tc``."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.errors import InvalidValue, VethFailed
from tools._command import JSON, Context, Option, Verb, option
from tools.verbs_net import group, table

if TYPE_CHECKING:
    from runtime.net.networks import VirtualNetwork

_ID = option("ident", help="the network's name", metavar="ID")


def _network_options() -> tuple[Option, ...]:
    return (
        _ID,
        option("-i", "--ifname", help="interface of the server to bind to", metavar="IF"),
        option("-m", "--mac", help="the same, by its MAC address", metavar="MAC"),
        option("-t", "--type", help="kind of network", choices=("bridged", "host-only")),
        option("-d", "--description", help="text shown in lists", metavar="TEXT"),
        option("--ip", help="the server's address in it", metavar="ADDRESS/MASK"),
        option("--ip6", help="the server's IPv6 address in it", metavar="ADDRESS/MASK"),
        option("--dhcp-server", help="serve addresses by DHCP", choices=("on", "off")),
        option("--dhcp-ip", help="accepted; the server's address answers", metavar="ADDRESS"),
        option("--ip-scope-start", help="first address to give out", metavar="ADDRESS"),
        option("--ip-scope-end", help="last address to give out", metavar="ADDRESS"),
    )


def _from(args: argparse.Namespace, network: VirtualNetwork) -> VirtualNetwork:
    changes: dict[str, object] = {}
    for option_name, name in (
        ("ifname", "interface"),
        ("mac", "mac"),
        ("type", "type"),
        ("description", "description"),
        ("ip", "ip"),
        ("ip6", "ip6"),
        ("ip_scope_start", "scope_start"),
        ("ip_scope_end", "scope_end"),
    ):
        value = getattr(args, option_name)
        if value is not None:
            changes[name] = value
    if args.dhcp_server is not None:
        changes["dhcp"] = args.dhcp_server == "on"
    elif args.ip_scope_start or args.ip_scope_end:
        changes["dhcp"] = True
    if args.mac is not None and args.ifname is None:
        changes["interface"] = _by_mac(args.mac)
    return replace(network, **changes)  # type: ignore[arg-type]  # field names and their types


def _by_mac(mac: str) -> str:
    from runtime.net.links import Links
    from runtime.net.netif import check_mac

    wanted = check_mac(mac)
    with Links() as host:
        for link in host.all():
            if link.mac == wanted and not link.kind:
                return link.name
    raise VethFailed(f"no interface of the server has the MAC address {wanted}")


def net_add(context: Context, args: argparse.Namespace) -> None:
    """Define a virtual network and make its bridge."""
    from runtime.net import networks

    if args.ident in networks.load_all(context.paths):
        raise InvalidValue(f"the network {args.ident} exists already")
    _apply(context, _from(args, networks.VirtualNetwork(args.ident)))
    print(f"The network {args.ident} has been successfully created.")


def net_set(context: Context, args: argparse.Namespace) -> None:
    """Change a virtual network."""
    from runtime.net import networks

    _apply(context, _from(args, networks.find(context.paths, args.ident)))
    print(f"The network {args.ident} has been successfully configured.")


def _apply(context: Context, network: VirtualNetwork) -> None:
    from runtime.net import bridges, networks
    from runtime.net.server import Server

    checked = networks.check(context.paths, network)
    before = networks.load_all(context.paths).get(network.name)
    with Server(context.paths) as server, server.locked():
        for port in checked.ports:
            server.host.need(port)
        server.ensure()
        if before is not None:
            for port in set(before.ports) - set(checked.ports):
                bridges.release(server.host, port)
        networks.store(context.paths, checked)
        server.network(checked.name)


def net_del(context: Context, args: argparse.Namespace) -> None:
    """Remove a virtual network that nobody uses."""
    from runtime import registry
    from runtime.net import bridges, netif, networks
    from runtime.net.server import Server, container_config

    network = networks.find(context.paths, args.ident)
    for ctid in registry.configured(context.paths):
        adapters = netif.parse(container_config(context.paths, ctid).get("NETIF"), ctid)
        if any(adapter.network == network.name for adapter in adapters):
            raise VethFailed(
                f"network {network.name} is in use by container {ctid}",
                hint="--ifname … --network '' disconnects its adapter",
            )
    with Server(context.paths) as server, server.locked():
        bridges.remove(context.paths, server.host, network)
        networks.delete(context.paths, network.name)
    print(f"The network {args.ident} has been successfully removed.")


def net_list(context: Context, args: argparse.Namespace) -> None:
    """List the virtual networks."""
    from runtime.net import networks

    found = networks.load_all(context.paths).values()
    if args.json:
        print(json.dumps([_facts(network) for network in found], indent=2))
        return
    table(
        ("Network ID", "Type", "Bound To", "Bridge"),
        [(n.name, n.type, " ".join(n.ports), n.bridge) for n in found],
    )


def _facts(network: VirtualNetwork) -> dict[str, object]:
    return {
        "id": network.name,
        "type": network.type,
        "bound_to": list(network.ports),
        "bridge": network.bridge,
        "description": network.description,
        "ip": network.ip,
        "ip6": network.ip6,
        "dhcp": network.dhcp,
        "scope_start": network.scope_start,
        "scope_end": network.scope_end,
    }


def net_info(context: Context, args: argparse.Namespace) -> None:
    """Show one virtual network."""
    from runtime.net import dhcp, networks

    network = networks.find(context.paths, args.ident)
    if args.json:
        print(json.dumps(_facts(network), indent=2))
        return
    print(f"Network ID: {network.name}")
    print(f"Type: {network.type}")
    print(f"Description: {network.description}")
    print(f"Bound To: {' '.join(network.ports)}")
    print(f"Bridge: {network.bridge}")
    for head, value in (("IPv4", network.ip), ("IPv6", network.ip6)):
        if value:
            print(f"Server {head} address: {value}")
    if network.dhcp:
        state = "running" if dhcp.running(context.paths, network.bridge) else "not running"
        print(f"DHCP server: {state}, {network.scope_start} – {network.scope_end}")


def net_reconcile(context: Context, args: argparse.Namespace) -> None:
    """Follow changed uplinks and remove what belongs to nobody."""
    from runtime.net.server import Server

    with Server(context.paths) as server:
        server.reconcile()


def privnet_add(context: Context, args: argparse.Namespace) -> None:
    """Define a private network."""
    from runtime.net import privnet

    if any(network.name == args.ident for network in privnet.load_all(context.paths)):
        raise InvalidValue(f"the private network {args.ident} exists already")
    network = privnet.parse(args.ident, args.ipadd or [], is_global=args.is_global or False)
    privnet.store(context.paths, network)
    _enforce(context)
    print(f"The private network {args.ident} has been successfully created.")


def privnet_set(context: Context, args: argparse.Namespace) -> None:
    """Add to and take from a private network."""
    from runtime.net import privnet

    network = privnet.find(context.paths, args.ident)
    added = privnet.parse(args.ident, args.ipadd or [])
    removed = privnet.parse(args.ident, args.ipdel or [])
    missing = set(removed.words) - set(network.words)
    if missing:
        raise InvalidValue(f"{sorted(missing)[0]} is not in private network {args.ident}")
    words = [w for w in (*network.words, *added.words) if w not in removed.words]
    is_global = network.is_global if args.is_global is None else args.is_global
    privnet.store(context.paths, privnet.parse(args.ident, words, is_global=is_global))
    _enforce(context)
    print(f"The private network {args.ident} has been successfully configured.")


def privnet_del(context: Context, args: argparse.Namespace) -> None:
    """Forget a private network."""
    from runtime.net import privnet

    privnet.delete(context.paths, args.ident)
    _enforce(context)
    print(f"The private network {args.ident} has been successfully removed.")


def _enforce(context: Context) -> None:
    from runtime.net import privnet
    from runtime.net.server import Server

    with Server(context.paths) as server, server.locked():
        privnet.apply(server.nft, privnet.load_all(context.paths))


def privnet_list(context: Context, args: argparse.Namespace) -> None:
    """List the private networks."""
    from runtime.net import privnet

    found = privnet.load_all(context.paths)
    if args.json:
        facts = [{"id": n.name, "global": n.is_global, "ip": list(n.words)} for n in found]
        print(json.dumps(facts, indent=2))
        return
    table(
        ("Private network ID", "Global?", "IP"),
        [(n.name, "yes" if n.is_global else "no", " ".join(n.words)) for n in found],
    )


def tc(context: Context, args: argparse.Namespace) -> None:
    """Turn traffic shaping off, on, or read its configuration again."""
    from runtime.errors import ShapingFailed
    from runtime.net import shaping
    from runtime.net.server import Server

    with Server(context.paths) as server:
        if args.verb == "status":
            attached = shaping.is_on(server.nft)
            print(f"traffic shaping is {'on' if attached else 'off'}")
            return
        with server.locked():
            server.shaping_off()
            if args.verb == "off":
                return
            if not server.shapes:
                if args.verb == "on":
                    raise ShapingFailed(
                        "TRAFFIC_SHAPING is not yes",
                        hint=f"set it in {context.paths.global_config}",
                    )
                return
            server.ensure()
            if not shaping.is_on(server.nft):
                server.shape()


_GLOBAL = (
    option("--global", dest="is_global", help="reached by all others", action="store_true",
           default=None),
    option("--no-global", dest="is_global", help="not reached by all others",
           action="store_false", default=None),
)  # fmt: skip
_ADD = option("-a", "--ipadd", help="a subnet, or '*': weak", action="append", metavar="IP/MASK")
_DEL = option("-d", "--ipdel", help="a subnet to remove", action="append", metavar="IP/MASK")

NET = (
    Verb("add", "define a virtual network", net_add, _network_options),
    Verb("set", "change a virtual network", net_set, _network_options),
    Verb("del", "remove a virtual network", net_del, (_ID,)),
    Verb("info", "show a virtual network", net_info, (_ID, JSON), changes=False),
    Verb("list", "list the virtual networks", net_list, (JSON,), changes=False),
    Verb("reconcile", "follow changed uplinks, collect strays", net_reconcile),
)
PRIVNET = (
    Verb("add", "define a private network", privnet_add, (_ID, _ADD, *_GLOBAL)),
    Verb("set", "change a private network", privnet_set, (_ID, _ADD, _DEL, *_GLOBAL)),
    Verb("del", "remove a private network", privnet_del, (_ID,)),
    Verb("list", "list the private networks", privnet_list, (JSON,), changes=False),
)
TC = (
    Verb("restart", "read the configuration of traffic shaping again", tc),
    Verb("on", "turn traffic shaping on", tc),
    Verb("off", "turn traffic shaping off until the next start", tc),
    Verb("status", "tell whether traffic is shaped", tc, changes=False),
)
VERBS: tuple[Verb, ...] = (
    group("net", "virtual networks", NET, program="psrvctl"),
    group("privnet", "private networks", PRIVNET, program="psrvctl"),
    group("tc", "traffic shaping", TC, program="psrvctl"),
)
