"""Which network an adapter joins, and what the server makes for it.

A network is one of the virtual networks ("Bridged", "Host-Only", those an administrator made), the
name of a bridge of the server, "Routed" (the server routes the machine's addresses), or "Shared":
QEMU's own address translation, which needs nothing.

For virtual and routed networks the server's end is a tap which ``runtime.net.taps`` makes and puts
in its place, with the same guards and counters as a container's; libvirt only opens it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lxml.builder import E

from runtime.errors import VethFailed
from runtime.net import networks as virtual
from runtime.net import taps
from runtime.net.taps import Tap
from runtime.paths import Paths
from vmm import devices, macs
from vmm.devices import Adapter
from vmm.domain import Domain, drop

SHARED = "Shared"
ROUTED = "Routed"
BRIDGED = "Bridged"
HOST_ONLY = "Host-Only"
_BY_TYPE = {"shared": SHARED, "routed": ROUTED, "bridged": BRIDGED, "host-only": HOST_ONLY}


def for_type(kind: str) -> str:
    """Return the network that ``--type`` means; raises VethFailed."""
    found = _BY_TYPE.get(kind)
    if found is None:
        raise VethFailed(f"unknown type of adapter: {kind!r}", hint=", ".join(_BY_TYPE))
    return found


def default(paths: Paths) -> str:
    """Return the network of a new machine's first adapter: bridged where that leads out."""
    network = virtual.load_all(paths).get(BRIDGED)
    return BRIDGED if network is not None and network.ports else SHARED


def adapter(paths: Paths, network: str, *, card: str = "virtio", mac: str | None = None) -> Adapter:
    """Return a new adapter of a network; raises VethFailed."""
    made = Adapter.new("shared", mac=mac or macs.new(), card=card)
    move(paths, made, network)
    return made


def move(paths: Paths, device: Adapter, network: str) -> None:
    """Let an adapter join another network; raises VethFailed."""
    known = virtual.load_all(paths)
    if network == SHARED:
        device.join("shared")
    elif network == ROUTED or network in known:
        device.join("routed")
    elif "/" not in network and Path(f"/sys/class/net/{network}/bridge").is_dir():
        device.join("bridged", network)
    else:
        raise VethFailed(
            f"there is no network {network!r}", hint=f"there are: {', '.join([*known, SHARED])}"
        )


def remember(domain: Domain, name: str, network: str | None) -> None:
    """Note which network the adapter ``name`` is on."""
    domain.set_setting(f"{name}.network", network)


def of(domain: Domain, device: Adapter) -> str:
    """Return the network of an adapter."""
    noted = domain.setting(f"{device.name}.network")
    return noted or {"shared": SHARED, "routed": ROUTED}.get(device.type, device.bridge)


def kind(paths: Paths, domain: Domain, device: Adapter) -> str:
    """Return the type of an adapter in the product's words."""
    network = of(domain, device)
    for word, name in _BY_TYPE.items():
        if network == name:
            return word
    found = virtual.load_all(paths).get(network)
    return found.type if found is not None else "bridged"


def fit(domain: Domain) -> None:
    """Name the tap of every adapter that has one: names follow from machine and number."""
    for device in devices.adapters(domain):
        drop(device.element, "target")
        if device.type == "routed":
            device.element.append(
                E.target(dev=taps.name_for(domain.uuid, device.number), managed="no")
            )


def wanted(domain: Domain) -> Iterator[Tap]:
    """Yield the taps that must be there when the machine starts."""
    for device in devices.adapters(domain):
        found = tap(domain, device)
        if found is not None:
            yield found


def tap(domain: Domain, device: Adapter) -> Tap | None:
    """Return the tap of an adapter, None when it needs none."""
    if device.type != "routed":
        return None
    network = of(domain, device)
    return Tap(
        taps.name_for(domain.uuid, device.number),
        domain.uuid,
        device.mac.lower(),
        "" if network == ROUTED else network,
        tuple(domain.setting(f"{device.name}.ips").split()),
        mac_filter=domain.setting(f"{device.name}.macfilter") != "no",
        ip_filter=domain.setting(f"{device.name}.ipfilter") == "yes",
        sealed=domain.setting(f"{device.name}.preventpromisc") == "yes",
        rate=domain.setting("rate"),
        rate_bound=domain.setting("ratebound"),
    )


def attach(paths: Paths, found: list[Tap]) -> None:
    """Make taps and put them into their networks; raises VzError."""
    if found:
        from runtime.net.server import Server

        with Server(paths) as server:
            for one in found:
                taps.attach(server, one)


def detach(paths: Paths, uuid: str, names: list[str] | None = None) -> None:
    """Remove the taps of a machine, or those called ``names``; absent is success."""
    mine = [one.ifname for one in taps.load(paths) if one.machine == uuid]
    doomed = [name for name in mine if names is None or name in names]
    if doomed:
        from runtime.net.server import Server

        with Server(paths) as server:
            for name in doomed:
                taps.detach(server, name)
