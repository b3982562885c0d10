"""What a server has, and what its containers use and were promised of it.

The ratios are those of vzcalc(8) and vzmemcheck(8): memory of the kernel for a container ("low
memory"), RAM, RAM and swap together, and what may be allocated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from runtime import ubc
from runtime.memory import Scheme, memory_of, pages
from runtime.units import UNLIMITED

#: Part of the low memory that containers may be promised (vzmemcheck(8)).
LOW_MEMORY_SHARE = 0.4
#: Memory which the server keeps for itself when it is split, in bytes (vzsplit(8)).
SYSTEM_RESERVE = 50 << 20

_KERNEL_KEYS = ("KMEMSIZE", "TCPRCVBUF", "TCPSNDBUF", "DGRAMRCVBUF", "OTHERSOCKBUF")


@dataclass(frozen=True, slots=True)
class Server:
    """The resources of a server; sizes in bytes."""

    ram_bytes: int
    swap_bytes: int
    #: RAM the kernel can use for itself: all of it but on 32-bit systems.
    low_bytes: int
    threads_max: int
    cpus: int
    #: Sum of the processors' bogomips.
    bogomips: float

    @property
    def both_bytes(self) -> int:
        """RAM and swap together."""
        return self.ram_bytes + self.swap_bytes

    @property
    def power(self) -> float:
        """CPU units this server can be divided into (vzcpucheck(8): bogomips times 25)."""
        return self.bogomips * 25


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the sizes of /proc/meminfo in bytes, by name."""
    found = {}
    for match in re.finditer(r"^([^:\n]+):\s*(\d+)( kB)?", text, re.MULTILINE):
        found[match[1]] = int(match[2]) * (1024 if match[3] else 1)
    return found


def server() -> Server:
    """Read what this server has; raises OSError without /proc."""
    meminfo = parse_meminfo(_read("/proc/meminfo"))
    mips = re.findall(r"^bogomips\s*:\s*([0-9.]+)", _read("/proc/cpuinfo"), re.M | re.I)
    return Server(
        ram_bytes=meminfo["MemTotal"],
        swap_bytes=meminfo.get("SwapTotal", 0),
        low_bytes=meminfo.get("LowTotal") or meminfo["MemTotal"],
        threads_max=int(_read("/proc/sys/kernel/threads-max")),
        cpus=os.cpu_count() or 1,
        bogomips=sum(float(word) for word in mips),
    )


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


class Demand(NamedTuple):
    """Bytes a container uses, or was promised; infinite where nothing limits it."""

    low: float = 0.0
    ram: float = 0.0
    both: float = 0.0
    alloc: float = 0.0
    alloc_limit: float = 0.0

    def relative(self, to: Server) -> Demand:
        """Return the same as parts of what the server has (1.0: all of it)."""
        return Demand(
            self.low / (to.low_bytes * LOW_MEMORY_SHARE),
            self.ram / to.ram_bytes,
            self.both / to.both_bytes,
            self.alloc / to.both_bytes,
            self.alloc_limit / to.both_bytes,
        )


def total(demands: Iterable[Demand]) -> Demand:
    """Return the sum of ``demands``."""
    return Demand(*(sum(column) for column in zip(Demand(), *demands, strict=True)))


def promised(config: Mapping[str, str]) -> Demand:
    """Return what ``config`` promises a container, and the most it may allocate.

    With VSwap and SLM, beancounters are derived: oomguarpages is the RAM, vmguarpages RAM and
    swap, privvmpages what may be allocated; memory of the kernel is part of the RAM.
    """
    memory = memory_of(config)
    if memory.scheme in (Scheme.VSWAP, Scheme.SLM):
        return Demand(
            low=0.0,
            ram=_size(memory.ram_bytes),
            both=_size(memory.ram_bytes),
            alloc=_size(memory.total_bytes),
            alloc_limit=_size(memory.alloc_bytes),
        )
    limits = ubc.limits(config)
    kernel = sum(_size(limits[key].limit) for key in _KERNEL_KEYS if key in limits)

    def barrier(key: str) -> float:
        return _size(pages(limits[key].barrier)) if key in limits else 0.0

    most = limits.get("PRIVVMPAGES")
    return Demand(
        low=kernel,
        ram=_size(memory.ram_bytes),
        both=barrier("OOMGUARPAGES") + kernel,
        alloc=barrier("VMGUARPAGES") + kernel,
        alloc_limit=_size(pages(most.limit)) + kernel if most else float("inf"),
    )


def used(kernel_bytes: int, ram_bytes: int, swap_bytes: int, alloc_bytes: int) -> Demand:
    """Return what a running container uses: the kernel's part of it, RAM (that part included)."""
    return Demand(
        low=float(kernel_bytes),
        ram=float(ram_bytes),
        both=float(ram_bytes + swap_bytes),
        alloc=float(alloc_bytes + kernel_bytes),
    )


def _size(size_bytes: int) -> float:
    return float("inf") if size_bytes >= UNLIMITED else float(size_bytes)
