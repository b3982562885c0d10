"""What a container's own files are told of its network, by its distribution's scripts.

Addresses are set from outside at every start; the scripts keep the guest's own network tools from
undoing that, start DHCP clients, and write the name service's and the host's name. They get the
whole state besides what changed, so that one run makes the files right whatever they held.

Environment: what vzctl's scripts have always got (IP_ADDR, IPDELALL, VE_STATE, NAMESERVER,
SEARCHDOMAIN, DEV), and ALL_IP_ADDR, ALL_NETIF — an adapter a line:
``NAME|MAC|ADDRESS…|GW|GW6|DHCP|DHCP6|CONFIGURE``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import dists, files
from runtime.dists import Action
from runtime.errors import NoDistributionScript
from runtime.net.model import ContainerNet

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.container import Container
    from runtime.paths import Paths

_RESOLV_CONF = Path("/etc/resolv.conf")


def state_of(net: ContainerNet) -> dict[str, str]:
    """Return the environment that describes the whole network of a container."""

    def word(on: bool) -> str:
        return "yes" if on else "no"

    lines = [
        "|".join(
            (
                a.ifname,
                a.mac,
                " ".join(f"{ip.address}/{ip.prefix}" for ip in a.ips),
                a.gw,
                a.gw6,
                word(a.dhcp),
                word(a.dhcp6),
                a.configure,
            )
        )
        for a in net.adapters
    ]
    addresses = [f"{ip.address}/{net.guest_prefix(ip)}" for ip in net.ips]
    return {"ALL_IP_ADDR": " ".join(addresses), "ALL_NETIF": "\n".join(lines)}


def steps(
    old: ContainerNet, new: ContainerNet, *, running: bool
) -> list[tuple[Action, dict[str, str]]]:
    """Return the actions that lead from one state to the other, with their environments."""
    whole = {**state_of(new), "VE_STATE": "running" if running else "starting"}
    before, after = {ip.address for ip in old.ips}, {ip.address for ip in new.ips}
    added = [str(ip) for ip in new.ips if ip.address not in before]
    removed = [str(ip) for ip in old.ips if ip.address not in after]
    found: list[tuple[Action, dict[str, str]]] = []
    if removed:
        everything = "yes" if not new.ips else "no"
        found.append(
            (Action.DEL_IP, {**whole, "IP_ADDR": " ".join(removed), "IPDELALL": everything})
        )
    if added or (not running and new.ips):
        given = added if running else [str(ip) for ip in new.ips]
        found.append((Action.ADD_IP, {**whole, "IP_ADDR": " ".join(given), "IPDELALL": "no"}))
    known = {adapter.ifname: adapter for adapter in old.adapters}
    present = {adapter.ifname for adapter in new.adapters}
    found += [(Action.NETIF_DEL, {**whole, "DEV": name}) for name in known if name not in present]
    found += [
        (Action.NETIF_ADD, {**whole, "DEV": adapter.ifname})
        for adapter in new.adapters
        if not running or known.get(adapter.ifname) != adapter
    ]
    return found


def network(ct: Container, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Tell a running container that its addresses changed; raises ActionScriptFailed."""
    old, new = ContainerNet.of(ct.ctid, before), ContainerNet.of(ct.ctid, after)
    for action, environment in steps(old, new, running=True):
        with suppress(NoDistributionScript):
            dists.run(ct, action, environment)


def name_servers(config: Mapping[str, str]) -> dict[str, str]:
    """Return NAMESERVER and SEARCHDOMAIN with ``inherit`` replaced by the server's own."""
    servers = (config.get("NAMESERVER") or "").split()
    domains = (config.get("SEARCHDOMAIN") or "").split()
    if "inherit" in servers or "inherit" in domains:
        own_servers, own_domains = _own_resolver()
        if "inherit" in servers:
            servers = own_servers
        if "inherit" in domains or (not domains and servers == own_servers):
            domains = own_domains
    return {"NAMESERVER": " ".join(servers), "SEARCHDOMAIN": " ".join(domains)}


def _own_resolver() -> tuple[list[str], list[str]]:
    """Return the servers and domains of resolv.conf(5); a stub on loopback serves no container."""
    servers: list[str] = []
    domains: list[str] = []
    for path in (Path("/run/systemd/resolve/resolv.conf"), _RESOLV_CONF):
        with suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    if not words[1].startswith("127.") and words[1] != "::1":
                        servers.append(words[1])
                elif len(words) > 1 and words[0] in ("search", "domain"):
                    domains = words[1:]
        if servers:
            break
    return list(dict.fromkeys(servers)), domains


def dns(ct: Container, config: Mapping[str, str]) -> None:
    """Tell a running container its name servers; raises ActionScriptFailed."""
    with suppress(NoDistributionScript):
        dists.run(ct, Action.SET_DNS, name_servers(config))


def at_start(ct: Container, config: Config) -> None:
    """Tell a container that has just started what it has not been told before.

    The guest's files keep what an earlier start wrote, so mostly nothing has to be run. Raises
    ActionScriptFailed.
    """
    net = ContainerNet.of(ct.ctid, config)
    servers = name_servers(config)
    told = json.dumps([state_of(net), servers, config.get("HOSTNAME"), _tree_of(ct, config)])
    place = _told(ct.paths, ct.ctid)
    with suppress(OSError):
        if place.read_text() == told:
            return
    for action, environment in steps(ContainerNet(ct.ctid), net, running=False):
        with suppress(NoDistributionScript):
            dists.run(ct, action, environment)
    if any(servers.values()):
        dns(ct, config)
    if config.get("HOSTNAME"):
        addresses = " ".join(str(ip.address) for ip in net.ips)
        with suppress(NoDistributionScript):
            environment = {"HOSTNM": config["HOSTNAME"], "IP_ADDR": addresses}
            dists.run(ct, Action.SET_HOSTNAME, environment)
    place.parent.mkdir(parents=True, exist_ok=True)
    files.replace(place, told.encode(), mode=0o600, durable=False)


def _tree_of(ct: Container, config: Mapping[str, str]) -> int:
    """Return what tells a container's tree from the one before a reinstallation."""
    try:
        return (ct.paths.area(config["VE_PRIVATE"]) / "root").stat().st_ino
    except (OSError, KeyError):
        return 0


def _told(paths: Paths, ctid: int) -> Path:
    return paths.lib / "net" / f"guest.{ctid}"


def forget(paths: Paths, ctid: int) -> None:
    """Forget what a destroyed container was told; absent is success."""
    _told(paths, ctid).unlink(missing_ok=True)
