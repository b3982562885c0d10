"""Capabilities of a container's processes (capabilities(7)), by python-prctl.

A container's root holds capabilities in its own user namespace only: they act on what that
namespace owns (its mounts, its network, its processes, ids mapped into it), never on the host,
unless the container is privileged and has no such namespace. The
bounding set is the product's default list (guide §9.1.2) and what an unmodified distribution
needs of the namespaced rest, see ``NAMESPACED``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import prctl

from runtime.errors import CapabilityFailed

#: The guide's default mask, §9.1.2.
DEFAULT = frozenset(
    (
        "chown",
        "dac_override",
        "dac_read_search",
        "fowner",
        "fsetid",
        "kill",
        "setgid",
        "setuid",
        "net_bind_service",
        "net_broadcast",
        "net_raw",
        "ipc_lock",
        "ipc_owner",
        "sys_chroot",
        "sys_ptrace",
        "sys_pacct",
        "sys_boot",
        "sys_nice",
        "sys_resource",
        "sys_tty_config",
        "mknod",
        "lease",
    )
)
#: What the OpenVZ kernel virtualised under the names ve_admin and VE_NET_ADMIN: an init mounts
#: (/run, /tmp), configures its network, drops capabilities of its services and packages set file
#: capabilities. In a user namespace these reach no further than the container.
NAMESPACED = frozenset(("sys_admin", "net_admin", "setpcap", "setfcap", "audit_write"))
#: Capabilities which the kernel only asks of the initial namespace: granting them to a container
#: in a user namespace changes nothing, and a warning says so.
HOST_ONLY = frozenset(("sys_module", "sys_time", "linux_immutable"))
#: What a container without a user namespace gets on request only: looking into the server's own
#: processes that enter it, and at files by their handles.
_DANGEROUS = frozenset(("sys_ptrace", "dac_read_search"))
#: Names of the OpenVZ kernel that old files carry.
_OBSOLETE = frozenset(("setveid", "ve_admin"))

_NUMBERS: dict[str, int] = dict(zip(prctl.ALL_CAP_NAMES, prctl.ALL_CAPS, strict=True))


def bounding(requested: Mapping[str, bool], *, privileged: bool = False) -> frozenset[str]:
    """Return the names of the bounding set for CAPABILITY switches; raises CapabilityFailed."""
    names = set(DEFAULT | NAMESPACED)
    if privileged:
        names -= _DANGEROUS
    for name, on in requested.items():
        if name in _OBSOLETE:
            continue
        if name not in _NUMBERS:
            raise CapabilityFailed(f"this kernel knows no capability {name!r}")
        if on:
            names.add(name)
        else:
            names.discard(name)
    return frozenset(names & _NUMBERS.keys())


def without_effect(requested: Mapping[str, bool]) -> list[str]:
    """Return those of ``requested`` that are on and mean nothing in a user namespace, sorted."""
    return sorted(name for name, on in requested.items() if on and name in HOST_ONLY)


def numbers(names: Iterable[str]) -> frozenset[int]:
    """Return the kernel's numbers of capabilities."""
    return frozenset(_NUMBERS[name] for name in names)


def limit_bounding(keep: frozenset[int]) -> None:
    """Drop every capability but ``keep`` from the bounding set for good; raises OSError."""
    prctl.capbset.drop(*(number for number in _NUMBERS.values() if number not in keep))


def limit_own(keep: frozenset[int]) -> None:
    """Keep only ``keep`` in this process's own sets; what it executes inherits none of them.

    Raises OSError.
    """
    drop = [number for number in _NUMBERS.values() if number not in keep]
    prctl.cap_inheritable.drop(*_NUMBERS.values())
    if drop:
        prctl.cap_effective.drop(*drop)
        prctl.cap_permitted.drop(*drop)
