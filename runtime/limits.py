"""From a container's configuration to the limits of its control groups."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from runtime import ubc
from runtime.cgroup_limits import BlockDevice, DeviceRule, Limits
from runtime.memory import memory_of
from runtime.units import UNLIMITED

#: IOPRIO 0…7 → weight; 4 is what everybody has.
_IO_WEIGHTS = (10, 25, 50, 75, 100, 250, 500, 1000)


def of(config: Mapping[str, str], private: Path, devices: tuple[DeviceRule, ...]) -> Limits:
    """Return the limits of the container with ``config`` and its private area at ``private``.

    Keys without a value ask for nothing, so that a kernel without that controller will do.
    """
    memory = memory_of(config)
    limited = memory.ram_bytes < UNLIMITED
    processes = ubc.lenient("NUMPROC", config.get("NUMPROC"))
    rates = {key: _number(config.get(key)) for key in ("IOLIMIT", "IOPSLIMIT")}
    return Limits(
        cpu_units=_number(config.get("CPUUNITS")),
        cpu_quota=_quota(config),
        cpus=_mask(config.get("CPUMASK")),
        nodes=_mask(config.get("NODEMASK")),
        memory_bytes=memory.ram_bytes if limited else None,
        swap_bytes=memory.swap_bytes if limited else None,
        tasks=None if processes is None or processes.limit >= UNLIMITED else processes.limit,
        io_weight=_weight(config.get("IOPRIO")),
        io_bytes_per_s=rates["IOLIMIT"] or None,
        io_operations_per_s=rates["IOPSLIMIT"] or None,
        io_device=block_device(private) if any(rates.values()) else None,
        devices=devices,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _mask(text: str | None) -> str | None:
    return None if text in (None, "", "all", "auto") else text


def _weight(text: str | None) -> int | None:
    number = _number(text)
    if number is None or number >= len(_IO_WEIGHTS) or _IO_WEIGHTS[number] == 100:
        return None
    return _IO_WEIGHTS[number]


def _quota(config: Mapping[str, str]) -> float | None:
    """Return the processors' worth of time that CPULIMIT and CPUS allow together."""
    quotas = []
    percent = _number((config.get("CPULIMIT") or "").rstrip("%"))
    if percent:
        quotas.append(percent / 100)
    megahertz = _number(config.get("CPULIMIT_MHZ"))
    if megahertz:
        quotas.append(megahertz / cpu_megahertz())
    count = _number(config.get("CPUS"))
    if count:
        quotas.append(float(count))
    return min(quotas, default=None)


def cpu_megahertz() -> float:
    """Return the clock rate of the server's first processor in MHz (proc_cpuinfo(5))."""
    try:
        with open(
            "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", encoding="ascii"
        ) as file:
            return int(file.read()) / 1000
    except (OSError, ValueError):
        pass
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("cpu MHz"):
                return float(line.partition(":")[2])
    return 1000.0


def block_device(path: Path) -> BlockDevice | None:
    """Return the whole disk that holds ``path``, None when that is no single block device."""
    try:
        number = os.stat(path).st_dev
    except OSError:
        return None
    place = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if not os.path.exists(place):
        return None
    if os.path.exists(f"{place}/partition"):
        # Throttling works on the request queue, which partitions share with their disk.
        place = os.path.dirname(os.path.realpath(place))
    with open(f"{place}/dev", encoding="ascii") as file:
        major, _, minor = file.read().strip().partition(":")
    return BlockDevice(int(major), int(minor))
