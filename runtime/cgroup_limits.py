"""What a cgroup can be limited to, in units of this program; no kernel interface here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple


class DeviceRule(NamedTuple):
    """A device a container may use: kind ``c`` or ``b``, numbers (None: all), some of ``rwm``."""

    kind: str
    major: int | None
    minor: int | None
    access: str = "rwm"


class BlockDevice(NamedTuple):
    """The numbers of a whole block device."""

    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one container; None leaves what the kernel has.

    ``units.UNLIMITED`` lifts a limit in bytes or items; 0 lifts a rate or a quota.
    """

    #: CPUUNITS: weight 8…500000 where 1000 is everybody's default.
    cpu_units: int | None = None
    #: Processors' worth of time: 0.5 is half of one.
    cpu_quota: float | None = None
    #: Processors, "0,2-5"; "" for all.
    cpus: str | None = None
    #: Memory nodes, same form.
    nodes: str | None = None
    memory_bytes: int | None = None
    #: Swap on top of ``memory_bytes``.
    swap_bytes: int | None = None
    #: What reclaim leaves it while others can still give.
    guarantee_bytes: int | None = None
    #: Processes and threads.
    tasks: int | None = None
    #: 10…1000, default 100.
    io_weight: int | None = None
    #: Reads and writes each, on ``io_device``.
    io_bytes_per_s: int | None = None
    io_operations_per_s: int | None = None
    #: The block device under the private area; without one rates cannot be limited.
    io_device: BlockDevice | None = None
    devices: tuple[DeviceRule, ...] | None = None

    def asked(self, family: str) -> bool:
        """Whether any limit of ``family`` (see ``FAMILIES``) is given."""
        return any(getattr(self, name) is not None for name in FAMILIES[family])


#: Controller in its v2 name → the limits it enforces.
FAMILIES: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu_units", "cpu_quota"),
    "cpuset": ("cpus", "nodes"),
    "memory": ("memory_bytes", "swap_bytes", "guarantee_bytes"),
    "pids": ("tasks",),
    "io": ("io_weight", "io_bytes_per_s", "io_operations_per_s"),
    "devices": ("devices",),
}
assert {name for names in FAMILIES.values() for name in names} | {"io_device"} == {
    field.name for field in fields(Limits)
}
