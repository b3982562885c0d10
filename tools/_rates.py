"""From two looks at the counters to rates, and from rates to OK, WARN and CRIT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from runtime.config import ConfigFile
from runtime.errors import BadConfig, ConfigMissing
from runtime.paths import Paths
from runtime.units import UNLIMITED
from tools._monitor import Guest, Look


class Level(StrEnum):
    """How much attention a line of the screen wants."""

    OK = "OK"
    WARN = "WARN"
    CRIT = "CRIT"


#: Threshold → (WARN, CRIT) where pstat.conf says nothing. Percent of the time or of what there
#: is; *_WAIT: percent of the time in which something waited (Documentation/accounting/psi.rst).
_USUAL = {
    "CPU": (80.0, 95.0),
    "CPU_WAIT": (40.0, 80.0),
    "MEM": (90.0, 97.0),
    "MEM_WAIT": (5.0, 20.0),
    "SWAP": (50.0, 90.0),
    "NET_ERRORS": (1.0, 100.0),
    "DISK_WAIT": (20.0, 60.0),
}


class Thresholds:
    """When a number is bad: ``NAME_WARN`` and ``NAME_CRIT`` of /etc/vz/pstat.conf."""

    def __init__(self, paths: Paths) -> None:
        """Read the file; raises BadConfig for what is no number."""
        path = paths.etc / "pstat.conf"
        try:
            file = ConfigFile.read(path)
        except ConfigMissing:
            file = ConfigFile()
        self._levels = {}
        for name, usual in _USUAL.items():
            pair = []
            for word, value in zip(("WARN", "CRIT"), usual, strict=True):
                text = file.get(f"{name}_{word}")
                try:
                    pair.append(float(text) if text else value)
                except ValueError:
                    raise BadConfig(f"{path}: {name}_{word} is not a number: {text!r}") from None
            self._levels[name] = (pair[0], pair[1])

    def judge(self, **values: float) -> Level:
        """Return the worst level of the named values."""
        worst = Level.OK
        for name, value in values.items():
            warn, crit = self._levels[name]
            if value >= crit:
                return Level.CRIT
            if value >= warn:
                worst = Level.WARN
        return worst


@dataclass(frozen=True, slots=True)
class GuestRates:
    """One guest between two looks."""

    guest: Guest
    #: Percent of one processor.
    cpu: float
    read_per_s: float
    written_per_s: float
    #: Percent of the time something in it waited.
    io_wait: float
    memory_wait: float
    #: Percent of RAM and swap, and the kernel's part of the RAM; None without a limit.
    memory: float | None
    kernel: float | None

    @property
    def io_per_s(self) -> float:
        """Bytes read and written."""
        return self.read_per_s + self.written_per_s


@dataclass(frozen=True, slots=True)
class NodeRates:
    """The server between two looks; percents of all processors' time."""

    seconds: float
    user: float
    system: float
    idle: float
    containers: float
    own: float
    cpu_wait: float
    memory_wait: float
    io_wait: float
    swap_in_per_s: float
    swap_out_per_s: float
    #: Bytes and packets in, bytes and packets out, errors and drops, each per second.
    network: tuple[float, ...]
    read_per_s: float
    written_per_s: float
    memory_used: float
    swap_used: float


def rates(before: Look, after: Look) -> tuple[NodeRates, list[GuestRates]]:
    """Return what happened between two looks; guests that started in between are left out."""
    seconds = max(after.at_s - before.at_s, 0.001)
    guests = [
        _guest(before.guests[name], guest, seconds)
        for name, guest in after.guests.items()
        if name in before.guests and before.guests[name].cpu.total_ns <= guest.cpu.total_ns
    ]
    return _node(before, after, seconds, guests), guests


def _guest(before: Guest, after: Guest, seconds: float) -> GuestRates:
    limit = after.allowed.total_bytes
    ram = after.allowed.ram_bytes
    used = after.memory.used + after.memory.swap
    return GuestRates(
        after,
        cpu=(after.cpu.total_ns - before.cpu.total_ns) / 1e7 / seconds,
        read_per_s=(after.io.read_bytes - before.io.read_bytes) / seconds,
        written_per_s=(after.io.written_bytes - before.io.written_bytes) / seconds,
        io_wait=(after.io_wait_us - before.io_wait_us) / 1e4 / seconds,
        memory_wait=(after.memory_wait_us - before.memory_wait_us) / 1e4 / seconds,
        memory=None if limit >= UNLIMITED else 100 * used / limit,
        kernel=None if ram >= UNLIMITED else 100 * after.memory.kernel / ram,
    )


def _node(before: Look, after: Look, seconds: float, guests: list[GuestRates]) -> NodeRates:
    ticks = [
        now - then for now, then in zip(after.node.cpu_ticks, before.node.cpu_ticks, strict=True)
    ]
    whole = max(sum(ticks), 1)
    user = 100 * (ticks[0] + ticks[1]) / whole
    idle = 100 * (ticks[3] + ticks[4]) / whole
    system = max(100 - user - idle, 0.0)
    mine = sum(guest.cpu for guest in guests) / after.node.cpus
    waits = {
        name: (value - before.node.waits_us[name]) / 1e4 / seconds
        for name, value in after.node.waits_us.items()
    }
    memory = after.node.memory
    swap = memory.get("SwapTotal", 0)

    def per_s(now: float, then: float) -> float:
        return (now - then) / seconds

    return NodeRates(
        seconds=seconds,
        user=user,
        system=system,
        idle=idle,
        containers=mine,
        own=max(user + system - mine, 0.0),
        cpu_wait=waits["cpu"],
        memory_wait=waits["memory"],
        io_wait=waits["io"],
        swap_in_per_s=per_s(after.node.swapped_in, before.node.swapped_in),
        swap_out_per_s=per_s(after.node.swapped_out, before.node.swapped_out),
        network=tuple(
            per_s(now, then)
            for now, then in zip(after.node.network, before.node.network, strict=True)
        ),
        read_per_s=per_s(after.node.disks[0], before.node.disks[0]),
        written_per_s=per_s(after.node.disks[1], before.node.disks[1]),
        memory_used=100 * (1 - _available(memory) / memory["MemTotal"]),
        swap_used=100 * (swap - memory.get("SwapFree", 0)) / swap if swap else 0.0,
    )


def _available(memory: Mapping[str, int]) -> int:
    return memory.get("MemAvailable", memory.get("MemFree", 0))
