"""What a server and its containers and machines do right now: two looks at the kernel's counters.

One pass over /proc serves every number of processes; everything else comes from the containers'
cgroups. Machines are their QEMU processes: nothing here needs libvirt.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime import registry, status, ubc
from runtime.config import Config
from runtime.figures import CpuFigures, IoFigures, MemoryFigures
from runtime.membership import container_of
from runtime.memory import Memory, memory_of
from runtime.paths import Paths
from runtime.sizing import parse_meminfo
from runtime.usage import Usage

if TYPE_CHECKING:
    from tools._command import Context

_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
_SECTOR = 512


@dataclass(slots=True)
class Counts:
    """Processes by state; threads are not told apart."""

    total: int = 0
    running: int = 0
    sleeping: int = 0
    uninterruptible: int = 0
    zombie: int = 0
    stopped: int = 0

    def add(self, letter: str) -> None:
        """Count a process in the state ``letter`` of proc_pid_stat(5)."""
        self.total += 1
        if letter == "R":
            self.running += 1
        elif letter == "D":
            self.uninterruptible += 1
        elif letter == "Z":
            self.zombie += 1
        elif letter in "Tt":
            self.stopped += 1
        else:
            self.sleeping += 1


@dataclass(frozen=True, slots=True)
class Guest:
    """One container or machine at one moment; counters run since its start."""

    name: str
    #: 0 for a machine.
    ctid: int
    kind: str
    config: Config | None
    memory: MemoryFigures
    allowed: Memory
    cpu: CpuFigures
    io: IoFigures
    processes: Counts
    process_limit: int | None
    sockets: int
    failures: int
    #: Microseconds something in it waited for memory and for disks.
    memory_wait_us: int
    io_wait_us: int
    address: str
    priority: str = "-"


@dataclass(frozen=True, slots=True)
class Node:
    """The server at one moment; counters run since its boot."""

    #: user, nice, system, idle, iowait, irq, softirq, steal in ticks (proc_stat(5)).
    cpu_ticks: tuple[int, ...]
    cpus: int
    load: tuple[str, ...]
    uptime_s: float
    users: int
    processes: Counts
    memory: dict[str, int]
    swapped_in: int
    swapped_out: int
    #: Bytes and packets in, bytes and packets out, errors and drops.
    network: tuple[int, int, int, int, int]
    #: Bytes read and written.
    disks: tuple[int, int]
    #: Microseconds something waited for cpu, memory, io.
    waits_us: dict[str, int]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at everything."""

    at_s: float
    node: Node
    guests: dict[str, Guest] = field(default_factory=dict)
    #: Configured containers that do not run.
    stopped: int = 0


def look(context: Context, only: frozenset[int] = frozenset()) -> Look:
    """Look at the server and its running guests, or at the containers ``only``."""
    counts, node_counts = _processes(context.paths)
    guests: dict[str, Guest] = {}
    idle = 0
    for record, file in registry.records(context.paths):
        if only and record.ctid not in only:
            continue
        config = context.config(record.ctid, file)
        private = context.paths.area(config["VE_PRIVATE"])
        if not status.status(context.paths, record.ctid, private).running:
            idle += 1
            continue
        guest = _container(context.paths, record, config, counts.get(record.ctid, Counts()))
        guests[guest.name] = guest
    if not only:
        for guest in _machines(context.paths):
            guests[guest.name] = guest
    return Look(time.monotonic(), _node(node_counts), guests, idle)


def _container(paths: Paths, record: registry.Record, config: Config, processes: Counts) -> Guest:
    usage = Usage(paths, record.ctid)
    memory, tasks = usage.memory, usage.tasks
    figures = usage.figures
    addresses = config.get("IP_ADDRESS", "").split()
    tcp, other = usage.held("numtcpsock").now or 0, usage.held("numothersock").now or 0
    return Guest(
        str(record.ctid),
        record.ctid,
        "ct",
        config,
        memory,
        memory_of(config),
        figures.cpu(),
        figures.io(),
        processes,
        _limit(config),
        tcp + other,
        tasks.failures + memory.oom_kills,
        figures.stalled_us("memory") or 0,
        figures.stalled_us("io") or 0,
        addresses[0].partition("/")[0] if addresses else "",
        config.get("IOPRIO", "4"),
    )


def _limit(config: Config) -> int | None:
    numproc = ubc.lenient("NUMPROC", config.get("NUMPROC"))
    return None if numproc is None or ubc.unlimited(numproc.limit) else numproc.limit


def _machines(paths: Paths) -> list[Guest]:
    """Return the running machines: QEMU's processes, by libvirt's pid files."""
    states = paths.run / "libvirt" / "run" / "qemu"
    try:
        names = [name for name in os.listdir(states) if name.endswith(".pid")]
    except OSError:
        return []
    found = []
    for name in names:
        with suppress(OSError, ValueError):
            pid = int((states / name).read_text())
            fields = _stat(pid)
            resident = int(_text(f"/proc/{pid}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
            io = dict(line.split(": ", 1) for line in _text(f"/proc/{pid}/io").splitlines() if line)
            ticks = int(fields[11]), int(fields[12])
            counts = Counts()
            counts.add(fields[0])
            found.append(
                Guest(
                    name.removesuffix(".pid"),
                    0,
                    "vm",
                    None,
                    MemoryFigures(used=resident, anonymous=resident),
                    Memory(memory_of({}).scheme),
                    CpuFigures(sum(ticks) * _TICK_NS, ticks[0] * _TICK_NS, ticks[1] * _TICK_NS),
                    IoFigures(
                        int(io["read_bytes"]),
                        int(io["write_bytes"]),
                        int(io["syscr"]),
                        int(io["syscw"]),
                    ),
                    counts,
                    None,
                    0,
                    0,
                    0,
                    0,
                    "",
                )
            )
    return found


def _processes(paths: Paths) -> tuple[dict[int, Counts], Counts]:
    """Return the processes of each container (0: the host's own) and of all, by state."""
    each: dict[int, Counts] = {}
    everything = Counts()
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            letter = _stat(int(name))[0]
        except (OSError, ValueError):
            continue
        everything.add(letter)
        ctid = container_of(paths, int(name))
        if ctid is not None:
            each.setdefault(ctid, Counts()).add(letter)
    return each, everything


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; raises OSError."""
    with open(f"/proc/{pid}/stat", "rb", 0) as file:
        line = file.read(1024).decode("ascii", "replace")
    return line[line.rindex(")") + 2 :].split()


def _node(processes: Counts) -> Node:
    first = _text("/proc/stat").partition("\n")[0]
    vm = dict(line.split() for line in _text("/proc/vmstat").splitlines())
    page = os.sysconf("SC_PAGE_SIZE")
    return Node(
        cpu_ticks=tuple(map(int, first.split()[1:9])),
        cpus=os.cpu_count() or 1,
        load=tuple(_text("/proc/loadavg").split()[:3]),
        uptime_s=float(_text("/proc/uptime").split()[0]),
        users=_users(),
        processes=processes,
        memory=parse_meminfo(_text("/proc/meminfo")),
        swapped_in=int(vm.get("pswpin", 0)) * page,
        swapped_out=int(vm.get("pswpout", 0)) * page,
        network=_network(),
        disks=_disks(),
        waits_us={name: _waited(name) for name in ("cpu", "memory", "io")},
    )


def _users() -> int:
    """Return how many are logged in: USER_PROCESS records of utmp(5), 384 bytes each."""
    with suppress(OSError), open("/run/utmp", "rb") as file:
        data = file.read()
        return sum(data[at] == 7 for at in range(0, len(data) - 383, 384))
    return 0


def _network() -> tuple[int, int, int, int, int]:
    """Return the traffic of interfaces that lead out: those with a device below them."""
    totals = [0, 0, 0, 0, 0]
    for line in _text("/proc/net/dev").splitlines()[2:]:
        name, _, rest = line.partition(":")
        words = list(map(int, rest.split()))
        if not os.path.exists(f"/sys/class/net/{name.strip()}/device"):
            continue
        totals[0] += words[0]
        totals[1] += words[1]
        totals[2] += words[8]
        totals[3] += words[9]
        totals[4] += words[2] + words[3] + words[10] + words[11]
    return (totals[0], totals[1], totals[2], totals[3], totals[4])


def _disks() -> tuple[int, int]:
    """Return the traffic of whole disks (proc_diskstats: sectors read and written)."""
    read = written = 0
    for line in _text("/proc/diskstats").splitlines():
        words = line.split()
        name = words[2]
        # Partitions and stacked devices would count the same bytes again.
        if os.path.exists(f"/sys/block/{name}/device"):
            read += int(words[5]) * _SECTOR
            written += int(words[9]) * _SECTOR
    return read, written


def _waited(name: str) -> int:
    for line in _text(f"/proc/pressure/{name}").splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2])
    return 0


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
