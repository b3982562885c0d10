"""How much memory a configuration gives a container: VSwap, SLM or beancounters, made one.

Conversions: ctid.conf(5); for old configurations those of the OpenVZ 6 upgrade (SLM: RAM is the
SLM limit; beancounters alone: RAM is the barrier of PRIVVMPAGES, its limit what may be allocated).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from runtime import ubc
from runtime.units import PAGE, UNLIMITED, Pair

#: What SLM let a container allocate, as a multiple of its memory.
_SLM_OVERCOMMIT = 1.5


class Scheme(StrEnum):
    """Which keys of a configuration say how much memory there is."""

    VSWAP = "vswap"
    SLM = "slm"
    UBC = "ubc"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one container, in bytes; UNLIMITED where there is no limit."""

    scheme: Scheme
    ram_bytes: int = UNLIMITED
    swap_bytes: int = UNLIMITED
    #: What may be allocated in all (VM_OVERCOMMIT, PRIVVMPAGES).
    alloc_bytes: int = UNLIMITED
    #: What is kept for it when the server runs short.
    guarantee_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """RAM and swap together."""
        return min(self.ram_bytes + self.swap_bytes, UNLIMITED)

    @property
    def overcommit(self) -> float | None:
        """The factor between RAM + swap and what may be allocated; None without a limit."""
        if UNLIMITED in (self.alloc_bytes, self.ram_bytes) or not self.total_bytes:
            return None
        return self.alloc_bytes / self.total_bytes


def scheme_of(config: Mapping[str, str]) -> Scheme:
    """Return which keys of ``config`` decide, the newest kind first."""
    physpages = ubc.lenient("PHYSPAGES", config.get("PHYSPAGES"))
    if physpages is not None and physpages.limit < UNLIMITED:
        return Scheme.VSWAP
    if config.get("SLMMODE", "").lower() in ("slm", "all") and _slm_limit(config) < UNLIMITED:
        return Scheme.SLM
    privvmpages = ubc.lenient("PRIVVMPAGES", config.get("PRIVVMPAGES"))
    if privvmpages is not None and privvmpages.barrier < UNLIMITED:
        return Scheme.UBC
    return Scheme.NONE


def memory_of(config: Mapping[str, str]) -> Memory:
    """Return the memory ``config`` gives; unreadable values count as unset."""
    scheme = scheme_of(config)
    limits = ubc.limits(config)
    swap = limits.get("SWAPPAGES")
    swap_bytes = UNLIMITED if swap is None else pages(swap.limit)
    if scheme is Scheme.VSWAP:
        ram_bytes = pages(limits["PHYSPAGES"].limit)
        # A configuration with RAM and without a word on swap has none (vswap samples).
        swap_bytes = 0 if swap is None else swap_bytes
        alloc_bytes = UNLIMITED
        factor = _factor(config.get("VM_OVERCOMMIT"))
        if factor is not None and swap_bytes < UNLIMITED:
            alloc_bytes = min(int((ram_bytes + swap_bytes) * factor), UNLIMITED)
    elif scheme is Scheme.SLM:
        ram_bytes, swap_bytes = _slm_limit(config), 0
        alloc_bytes = int(ram_bytes * _SLM_OVERCOMMIT)
    elif scheme is Scheme.UBC:
        ram_bytes, swap_bytes = pages(limits["PRIVVMPAGES"].barrier), 0
        alloc_bytes = pages(limits["PRIVVMPAGES"].limit)
    else:
        ram_bytes, alloc_bytes = UNLIMITED, UNLIMITED
    return Memory(
        scheme,
        ram_bytes,
        swap_bytes,
        alloc_bytes,
        _guarantee(config, limits, ram_bytes),
    )


def pages(count: int) -> int:
    """Return the bytes in ``count`` pages, UNLIMITED staying so."""
    return UNLIMITED if count >= UNLIMITED // PAGE else count * PAGE


def _guarantee(config: Mapping[str, str], limits: dict[str, Pair], ram_bytes: int) -> int:
    text = config.get("MEMGUARANTEE", "").rstrip("%")
    if text.isdecimal() and ram_bytes < UNLIMITED:
        return ram_bytes * min(int(text), 100) // 100
    # The stronger of the two old promises; nobody is promised more than there is.
    promised = [
        pages(limits[key].barrier)
        for key in ("VMGUARPAGES", "OOMGUARPAGES")
        if key in limits and limits[key].barrier < UNLIMITED
    ]
    return min(max(promised, default=0), ram_bytes)


def _factor(text: str | None) -> float | None:
    try:
        factor = float(text) if text else 0.0
    except ValueError:
        return None
    return factor if 0 < factor < float("inf") else None


def _slm_limit(config: Mapping[str, str]) -> int:
    # SLMMEMORYLIMIT is "limit" or "quality:limit" in bytes (vz-slm(5)).
    word = config.get("SLMMEMORYLIMIT", "").rpartition(":")[2]
    value = int(word) if word.isdecimal() else UNLIMITED
    return UNLIMITED if ubc.unlimited(value) else value
