"""What a container uses of each controller, read from its cgroup directories, v1 or v2.

Sources: Documentation/admin-guide/cgroup-v1/{memory,blkio-controller,cpuacct}.rst and
cgroup-v2.rst. A figure the kernel does not give is None; nothing here raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from runtime.cgroups import hierarchies

#: Nearly every control file fits into the first; lists of processes need the second.
_USUAL = 4000
_LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Memory of a container, in bytes; failures are counts since its start."""

    used: int = 0
    peak: int | None = None
    limit: int | None = None
    swap: int = 0
    swap_limit: int | None = None
    anonymous: int = 0
    #: Page cache, shared memory included.
    cache: int = 0
    shared: int = 0
    mapped: int = 0
    active_anonymous: int = 0
    inactive_anonymous: int = 0
    active_file: int = 0
    inactive_file: int = 0
    unevictable: int = 0
    dirty: int = 0
    writeback: int = 0
    #: The kernel's own for it: slab, stacks, page tables, socket buffers.
    kernel: int = 0
    slab_reclaimable: int = 0
    page_faults: int = 0
    #: How often the limit was hit, and processes killed for it.
    limit_hits: int = 0
    oom_kills: int = 0


@dataclass(frozen=True, slots=True)
class CpuFigures:
    """Processor time of a container since its start, in nanoseconds."""

    total_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    throttled_ns: int = 0
    throttled_periods: int = 0


@dataclass(frozen=True, slots=True)
class IoFigures:
    """Disk I/O of a container since its start, on all devices."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """Processes and threads of a container; failures are refused forks since its start."""

    now: int = 0
    peak: int | None = None
    limit: int | None = None
    failures: int = 0


class Figures:
    """The figures of one container; each property reads the kernel anew."""

    def __init__(self, tag: str, ctid: int, *, keep_open: bool = False) -> None:
        """Look at container ``ctid`` of the system with ``tag`` (``Paths.tag``).

        ``keep_open`` keeps control files open: for who reads them again and again.
        """
        self._open: dict[str, int] | None = {} if keep_open else None
        hosts = hierarchies()
        name = f"pyvz{tag}/{ctid}"
        self._v1 = {controller: f"{mount}/{name}" for controller, mount in hosts.v1.items()}
        self._v2 = None if hosts.v2 is None else f"{hosts.v2}/{name}"

    @property
    def exists(self) -> bool:
        """Whether the container has cgroups, which it does while it runs."""
        return any(os.path.isdir(place) for place in self._directories())

    def _directories(self) -> Iterator[str]:
        yield from self._v1.values()
        if self._v2 is not None:
            yield self._v2

    def pids(self) -> list[int]:
        """Return the host ids of its processes, unsorted."""
        place = self._v2 or next(self._directories())
        found: list[int] = []
        waiting = [place]
        while waiting:
            directory = waiting.pop()
            found += map(int, self._text(f"{directory}/cgroup.procs").split())
            with suppress(OSError), os.scandir(directory) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir()]
        return found

    def memory(self, *, now_only: bool = False) -> MemoryFigures:
        """Return its memory; ``now_only`` leaves out limits, peak and failures."""
        if "memory" in self._v1:
            return self._memory_v1(self._v1["memory"], now_only=now_only)
        return self._memory_v2(self._v2 or "", now_only=now_only)

    def _memory_v1(self, place: str, *, now_only: bool) -> MemoryFigures:
        stat = self._pairs(f"{place}/memory.stat")
        used = self._number(f"{place}/memory.usage_in_bytes") or 0
        both = self._number(f"{place}/memory.memsw.usage_in_bytes")
        limit, swap_limit = (None, None) if now_only else self.memory_limits()
        return MemoryFigures(
            used=used,
            peak=None if now_only else self._number(f"{place}/memory.max_usage_in_bytes"),
            limit=limit,
            swap=max(both - used, 0) if both is not None else stat.get("total_swap", 0),
            swap_limit=swap_limit,
            anonymous=stat.get("total_rss", 0),
            cache=stat.get("total_cache", 0),
            shared=stat.get("total_shmem", 0),
            mapped=stat.get("total_mapped_file", 0),
            active_anonymous=stat.get("total_active_anon", 0),
            inactive_anonymous=stat.get("total_inactive_anon", 0),
            active_file=stat.get("total_active_file", 0),
            inactive_file=stat.get("total_inactive_file", 0),
            unevictable=stat.get("total_unevictable", 0),
            dirty=stat.get("total_dirty", 0),
            writeback=stat.get("total_writeback", 0),
            kernel=self._number(f"{place}/memory.kmem.usage_in_bytes") or 0,
            page_faults=stat.get("total_pgfault", 0),
            limit_hits=0 if now_only else self._number(f"{place}/memory.failcnt") or 0,
            oom_kills=0
            if now_only
            else self._pairs(f"{place}/memory.oom_control").get("oom_kill", 0),
        )

    def _memory_v2(self, place: str, *, now_only: bool) -> MemoryFigures:
        stat = self._pairs(f"{place}/memory.stat")
        events = {} if now_only else self._pairs(f"{place}/memory.events")
        limit, swap_limit = (None, None) if now_only else self.memory_limits()
        kernel = stat.get("kernel")
        if kernel is None:  # before Linux 5.18
            kernel = sum(stat.get(key, 0) for key in ("slab", "kernel_stack", "pagetables"))
        return MemoryFigures(
            used=self._number(f"{place}/memory.current") or 0,
            peak=None if now_only else self._number(f"{place}/memory.peak"),
            limit=limit,
            swap=self._number(f"{place}/memory.swap.current") or 0,
            swap_limit=swap_limit,
            anonymous=stat.get("anon", 0),
            cache=stat.get("file", 0),
            shared=stat.get("shmem", 0),
            mapped=stat.get("file_mapped", 0),
            active_anonymous=stat.get("active_anon", 0),
            inactive_anonymous=stat.get("inactive_anon", 0),
            active_file=stat.get("active_file", 0),
            inactive_file=stat.get("inactive_file", 0),
            unevictable=stat.get("unevictable", 0),
            dirty=stat.get("file_dirty", 0),
            writeback=stat.get("file_writeback", 0),
            kernel=kernel + stat.get("sock", 0),
            slab_reclaimable=stat.get("slab_reclaimable", 0),
            page_faults=stat.get("pgfault", 0),
            limit_hits=events.get("max", 0),
            oom_kills=events.get("oom_kill", 0),
        )

    def memory_limits(self) -> tuple[int | None, int | None]:
        """Return its limits of RAM and of swap in bytes; None: no limit."""
        if "memory" in self._v1:
            place = self._v1["memory"]
            ram = _limit(self._number(f"{place}/memory.limit_in_bytes"))
            both = _limit(self._number(f"{place}/memory.memsw.limit_in_bytes"))
            return ram, None if ram is None or both is None else both - ram
        return (
            _limit(self._number(f"{self._v2}/memory.max")),
            _limit(self._number(f"{self._v2}/memory.swap.max")),
        )

    def cpu(self) -> CpuFigures:
        """Return its processor time."""
        found = self._pairs(f"{self._v2}/cpu.stat") if self._v2 is not None else {}
        throttle = self._pairs(f"{self._v1['cpu']}/cpu.stat") if "cpu" in self._v1 else found
        throttled_ns = throttle.get("throttled_time", throttle.get("throttled_usec", 0) * 1000)
        # v2 keeps times without its controller too; only v1 alone needs cpuacct.
        if "usage_usec" in found:
            return CpuFigures(
                found["usage_usec"] * 1000,
                found["user_usec"] * 1000,
                found["system_usec"] * 1000,
                throttled_ns,
                throttle.get("nr_throttled", 0),
            )
        place = self._v1.get("cpuacct", "")
        return CpuFigures(
            self._number(f"{place}/cpuacct.usage") or 0,
            self._number(f"{place}/cpuacct.usage_user") or 0,
            self._number(f"{place}/cpuacct.usage_sys") or 0,
            throttled_ns,
            throttle.get("nr_throttled", 0),
        )

    def cpus(self) -> str | None:
        """Return the processors it may run on, as a list like ``0,2-5``; None if unknown."""
        if "cpuset" in self._v1:
            return self._text(f"{self._v1['cpuset']}/cpuset.cpus").strip() or None
        return self._text(f"{self._v2}/cpuset.cpus.effective").strip() or None

    def tasks(self) -> TaskFigures:
        """Return its processes and threads."""
        place = self._v1.get("pids", self._v2 or "")
        return TaskFigures(
            self._number(f"{place}/pids.current") or 0,
            self._number(f"{place}/pids.peak"),
            _limit(self._number(f"{place}/pids.max")),
            self._refused_forks(place),
        )

    def _refused_forks(self, place: str) -> int:
        """Return how many forks the limit of ``place`` refused.

        Before Linux 6.11, which brought ``pids.events.local``, v2 counts where the process that
        forked is, not where the limit is.
        """
        if "pids" in self._v1 or self._text(f"{place}/pids.events.local"):
            return self._pairs(f"{place}/pids.events").get("max", 0)
        return sum(self._pairs(f"{group}/pids.events").get("max", 0) for group in _groups(place))

    def stalled_us(self, resource: str) -> int | None:
        """Return for how long something waited for ``cpu``, ``memory`` or ``io``, in µs.

        Pressure stall information (Documentation/accounting/psi.rst), the "some" line.
        """
        for line in self._text(f"{self._v2}/{resource}.pressure").splitlines():
            if line.startswith("some "):
                return int(line.rpartition("total=")[2])
        return None

    def threads(self) -> list[int]:
        """Return the host ids of its threads, unsorted."""
        name = "tasks" if self._v2 is None else "cgroup.threads"
        found: list[int] = []
        for directory in _groups(self._v2 or next(self._directories())):
            found += map(int, self._text(f"{directory}/{name}").split())
        return found

    def cpu_of_each(self) -> list[tuple[int, int]] | None:
        """Return user and system time in ns of each possible processor; None where v2 counts."""
        place = self._v1.get("cpuacct")
        if place is None:
            return None
        user = self._text(f"{place}/cpuacct.usage_percpu_user").split()
        system = self._text(f"{place}/cpuacct.usage_percpu_sys").split()
        return [(int(u), int(s)) for u, s in zip(user, system, strict=True)] or None

    def io_of_each(self) -> dict[str, IoFigures]:
        """Return its disk I/O by device, "MAJOR:MINOR"."""
        found: dict[str, list[int]] = {}
        if "blkio" in self._v1:
            place = self._v1["blkio"]
            for first, name in enumerate(("io_service_bytes", "io_serviced")):
                text = self._text(f"{place}/blkio.throttle.{name}_recursive")
                for line in text.splitlines():
                    words = line.split()
                    if len(words) == 3 and words[1] in ("Read", "Write"):
                        row = found.setdefault(words[0], [0, 0, 0, 0])
                        row[2 * first + (words[1] == "Write")] += int(words[2])
        else:
            for line in self._text(f"{self._v2}/io.stat").splitlines():
                device, *words = line.split()
                values = dict(word.partition("=")[::2] for word in words)
                found[device] = [
                    int(values.get(key, 0)) for key in ("rbytes", "wbytes", "rios", "wios")
                ]
        return {device: IoFigures(*row) for device, row in found.items()}

    def io(self) -> IoFigures:
        """Return its disk I/O on all devices."""
        rows = list(self.io_of_each().values())
        return IoFigures(
            sum(row.read_bytes for row in rows),
            sum(row.written_bytes for row in rows),
            sum(row.reads for row in rows),
            sum(row.writes for row in rows),
        )

    def _text(self, path: str) -> str:
        """Return the content of a control file, empty when there is none."""
        try:
            if self._open is None:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    return _all(fd)
                finally:
                    os.close(fd)
            kept = self._open.get(path)
            if kept is None:
                kept = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return _all(kept)
        except OSError:
            return ""

    def _number(self, path: str) -> int | None:
        word = self._text(path).strip()
        return int(word) if word.lstrip("-").isdecimal() else None

    def _pairs(self, path: str) -> dict[str, int]:
        """Return the numbers of a file of lines "KEY NUMBER", empty when it is another."""
        words = self._text(path).split()
        try:
            return dict(zip(words[::2], map(int, words[1::2]), strict=True))
        except ValueError:
            return {}


def _limit(value: int | None) -> int | None:
    """Return None for v1's way to write no limit: LONG_MAX rounded down to pages, or -1."""
    return None if value is None or value < 0 or value >= 1 << 62 else value


def _all(fd: int) -> str:
    """Return what a control file holds now; raises OSError."""
    # A small buffer first: allocating a large one costs more than most files' reading.
    data = os.pread(fd, _USUAL, 0)
    if len(data) == _USUAL:
        data += os.pread(fd, _LARGEST, _USUAL)
    return data.decode("ascii", "replace")


def _groups(top: str) -> Iterator[str]:
    """Yield ``top`` and the directories below."""
    waiting = [top]
    while waiting:
        yield (directory := waiting.pop())
        with suppress(OSError), os.scandir(directory) as entries:
            waiting += [entry.path for entry in entries if entry.is_dir()]
