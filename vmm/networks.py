"""Which network an adapter joins, and the bridge of the server behind it.

A network is called by its id ("Bridged", "Host-Only", those an administrator made) or by the name
of a bridge of the server. "Shared" is QEMU's own address translation and needs nothing.
"""

from __future__ import annotations

from pathlib import Path

from runtime.errors import VethFailed
from runtime.paths import Paths
from vmm import devices
from vmm.domain import Domain

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
    """Return the network of a new machine's first adapter: bridged where there is a bridge."""
    return BRIDGED if _bridge(paths, BRIDGED) else SHARED


def bridge(paths: Paths, network: str) -> str:
    """Return the bridge of a network; raises VethFailed when it has none."""
    found = _bridge(paths, network)
    if found is None:
        raise VethFailed(
            f"the network {network!r} does not exist or has no bridge",
            hint="psrvctl net list shows the networks",
        )
    return found


def adapter(
    paths: Paths, network: str, *, card: str = "virtio", mac: str | None = None
) -> devices.Adapter:
    """Return a new adapter of a network; raises VethFailed."""
    address = mac or devices.new_mac()
    if network == SHARED:
        return devices.Adapter.new("shared", mac=address, card=card)
    if network == ROUTED:
        return devices.Adapter.new("routed", mac=address, card=card)
    return devices.Adapter.new("bridged", bridge=bridge(paths, network), mac=address, card=card)


def move(paths: Paths, device: devices.Adapter, network: str) -> None:
    """Let an adapter join another network; raises VethFailed."""
    if network == SHARED:
        device.join("shared")
    elif network == ROUTED:
        device.join("routed")
    else:
        device.join("bridged", bridge(paths, network))


def remember(domain: Domain, name: str, network: str | None) -> None:
    """Note which network the adapter ``name`` is on."""
    domain.set_setting(f"{name}.network", network)


def of(domain: Domain, device: devices.Adapter) -> str:
    """Return the network of an adapter."""
    noted = domain.setting(f"{device.name}.network")
    return noted or {"shared": SHARED, "routed": ROUTED}.get(device.type, device.bridge)


def _bridge(paths: Paths, network: str) -> str | None:
    if Path(f"/sys/class/net/{network}/bridge").is_dir() and "/" not in network:
        return network
    return None
