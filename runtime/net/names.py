"""How links, groups and tables of ours are called: every module of this package agrees here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.paths import Paths

#: Interface groups (netdevice group, ip-link(8)): rules match a group, never a list of names.
GROUP_ROUTED = 5050
GROUP_BRIDGED = 5051
GROUP_BRIDGE = 5052
#: Routes and neighbour entries of ours carry this protocol, so strays can be told and collected
#: (rt_protos of iproute2 gives numbers from 128 on to routing daemons; 181 is in nobody's list).
PROTOCOL = 181

#: Tables of nftables: one a purpose, so that each is replaced alone and atomically.
TABLE_GUARD = "pyvz_guard"
TABLE_PRIVATE = "pyvz_private"
TABLE_ACCOUNTING = "pyvz_acct"
TABLE_SHAPING = "pyvz_shape"

VENET = "venet0"
#: The keys of a configuration that give a container something of the network.
KEYS = ("IP_ADDRESS", "NETIF", "NETDEV")
_IFNAMSIZ = 15
_HOST_END = re.compile(r"(?:veth|v)(\d{1,10})\.(\d{1,3})")


def wanted(config: Mapping[str, str]) -> bool:
    """Whether a container is to have any network."""
    return any(config.get(key, "").strip() for key in KEYS)


def host_end(ctid: int, number: int) -> str:
    """Return the name of the host's end of adapter ``number`` (0 is venet0) of a container."""
    name = f"veth{ctid}.{number}"
    return name if len(name) <= _IFNAMSIZ else f"v{ctid}.{number}"


def fitting(host_ifname: str) -> str:
    """Return a configured ``vethCTID.N`` in the short spelling where the long one is too long."""
    match = _HOST_END.fullmatch(host_ifname)
    return host_end(int(match[1]), int(match[2])) if match else host_ifname


def owner(ifname: str) -> int | None:
    """Return the container whose adapter the host's interface ``ifname`` is, or None."""
    match = _HOST_END.fullmatch(ifname)
    return int(match[1]) if match else None


def bridge(network: str) -> str:
    """Return the name of the bridge behind a virtual network.

    A network's name may be longer than an interface's, or hold characters of its own: then a
    digest stands for it.
    """
    plain = f"vbr-{network}"
    if len(plain) <= _IFNAMSIZ and re.fullmatch(r"[A-Za-z0-9_.-]+", network):
        return plain
    return f"vbr-{hashlib.sha256(network.encode()).hexdigest()[:8]}"


def ifb(uplink: str) -> str:
    """Return the name of the device through which an uplink's incoming traffic is shaped."""
    plain = f"ifb{uplink}"
    if len(plain) <= _IFNAMSIZ:
        return plain
    return f"ifb{hashlib.sha256(uplink.encode()).hexdigest()[:8]}"


def venet_mac(ctid: int) -> str:
    """Return the address both ends of a container's venet0 have (locally administered)."""
    return f"02:18:51:{ctid >> 16 & 255:02x}:{ctid >> 8 & 255:02x}:{ctid & 255:02x}"


def mark(paths: Paths, ctid: int) -> Path:
    """Return the file that exists while a container may have something in the host's network.

    Its links may be gone, and its configuration of that moment too, when it is to be taken down.
    """
    return paths.run / "net" / f"ct{ctid}"
