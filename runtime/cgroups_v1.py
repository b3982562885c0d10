"""Limits and figures in cgroup v1 directories (Documentation/admin-guide/cgroup-v1)."""

from __future__ import annotations

import os
from contextlib import suppress

from runtime.cgroup_limits import Limits
from runtime.errors import NoKernelSupport
from runtime.units import UNLIMITED

_PERIOD_US = 100_000


def write(directory: str, name: str, value: str) -> None:
    """Write a control file; raises OSError with its path."""
    path = f"{directory}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def read(directory: str, name: str) -> str:
    """Return the content of a control file; raises OSError."""
    with open(f"{directory}/{name}", encoding="ascii") as file:
        return file.read().strip()


def inherit_cpuset(directory: str) -> None:
    """Give a new cpuset its parent's processors and nodes: nothing can join an empty one."""
    parent = os.path.dirname(directory)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read(directory, name):
            write(directory, name, read(parent, name))


def set_cpu(directory: str, limits: Limits) -> None:
    """Apply weight and quota."""
    if limits.cpu_units is not None:
        # 1024 shares is the default of everything else, as 1000 units are.
        write(directory, "cpu.shares", str(max(2, limits.cpu_units * 1024 // 1000)))
    if limits.cpu_quota is not None:
        quota = int(limits.cpu_quota * _PERIOD_US) if limits.cpu_quota else -1
        write(directory, "cpu.cfs_period_us", str(_PERIOD_US))
        write(directory, "cpu.cfs_quota_us", str(quota))


def set_cpuset(directory: str, limits: Limits) -> None:
    """Apply processors and memory nodes."""
    parent = os.path.dirname(directory)
    for name, value in (("cpuset.cpus", limits.cpus), ("cpuset.mems", limits.nodes)):
        if value is not None:
            write(directory, name, value or read(parent, name))


def set_memory(directory: str, limits: Limits) -> None:
    """Apply memory and swap; v1 limits their sum, which must never be below the memory limit.

    v1 knows no guarantee; its soft limit comes nearest: groups above theirs are reclaimed first.
    """
    if limits.guarantee_bytes is not None:
        soft = _bytes(limits.guarantee_bytes) if limits.guarantee_bytes else "-1"
        write(directory, "memory.soft_limit_in_bytes", soft)
    if limits.memory_bytes is None and limits.swap_bytes is None:
        return
    swap_known = os.path.exists(f"{directory}/memory.memsw.limit_in_bytes")
    now = int(read(directory, "memory.limit_in_bytes"))
    memory = limits.memory_bytes if limits.memory_bytes is not None else now
    if not swap_known:
        if limits.swap_bytes not in (None, 0, UNLIMITED):
            raise NoKernelSupport(
                "this kernel does not account swap", hint="boot it with swapaccount=1"
            )
        write(directory, "memory.limit_in_bytes", _bytes(memory))
        return
    sum_now = int(read(directory, "memory.memsw.limit_in_bytes"))
    if limits.swap_bytes is not None:
        swap = limits.swap_bytes
    else:
        swap = UNLIMITED if sum_now >= UNLIMITED // 2 else max(0, sum_now - now)
    total = UNLIMITED if UNLIMITED in (memory, swap) else memory + swap
    steps = [("memory.memsw.limit_in_bytes", total), ("memory.limit_in_bytes", memory)]
    if total < sum_now:
        steps.reverse()
    for name, value in steps:
        write(directory, name, _bytes(value))


def _bytes(value: int) -> str:
    return "-1" if value >= UNLIMITED else str(value)


def set_pids(directory: str, limits: Limits) -> None:
    """Apply the number of tasks."""
    if limits.tasks is not None:
        write(directory, "pids.max", "max" if limits.tasks >= UNLIMITED else str(limits.tasks))


def set_io(directory: str, limits: Limits) -> None:
    """Apply weight and rates; a weight needs a scheduler that offers one (bfq)."""
    if limits.io_weight is not None:
        for name in ("blkio.bfq.weight", "blkio.weight"):
            if os.path.exists(f"{directory}/{name}"):
                write(directory, name, str(limits.io_weight))
                break
        else:
            if limits.io_weight != 100:
                raise NoKernelSupport(
                    "no I/O scheduler of this kernel offers weights", hint="use bfq, or --iolimit"
                )
    rates = (("bps", limits.io_bytes_per_s), ("iops", limits.io_operations_per_s))
    for unit, rate in rates:
        if rate is None or (rate == 0 and limits.io_device is None):
            continue
        if limits.io_device is None:
            raise NoKernelSupport("the private area is on no block device whose I/O can be limited")
        for direction in ("read", "write"):
            line = f"{limits.io_device.major}:{limits.io_device.minor} {rate}"
            write(directory, f"blkio.throttle.{direction}_{unit}_device", line)


def set_devices(directory: str, limits: Limits) -> None:
    """Apply the list of devices: everything else is denied."""
    if limits.devices is None:
        return
    write(directory, "devices.deny", "a")
    for rule in limits.devices:
        major = "*" if rule.major is None else rule.major
        minor = "*" if rule.minor is None else rule.minor
        write(directory, "devices.allow", f"{rule.kind} {major}:{minor} {rule.access}")


def figures(family: str, directory: str) -> dict[str, int]:
    """Return usage figures of one controller: bytes, nanoseconds, items."""
    found: dict[str, int] = {}
    sources = {
        "memory": {
            "memory_bytes": "memory.usage_in_bytes",
            "memory_and_swap_bytes": "memory.memsw.usage_in_bytes",
        },
        "pids": {"tasks": "pids.current"},
        "cpuacct": {"cpu_ns": "cpuacct.usage"},
    }
    for key, name in sources.get(family, {}).items():
        with suppress(OSError):
            found[key] = int(read(directory, name))
    return found
