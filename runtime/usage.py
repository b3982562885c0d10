"""What a running container holds of each counted resource, and the most it held.

The names are those of user beancounters; what the kernel of today does not count per container
is None, never a guess.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from runtime import state
from runtime.figures import Figures, MemoryFigures, TaskFigures
from runtime.paths import Paths
from runtime.units import KIB, PAGE


@dataclass(frozen=True, slots=True)
class Held:
    """One resource: held now, the most held, how often it was refused; None: not counted."""

    now: int | None = None
    peak: int | None = None
    failures: int | None = None


class Usage:
    """The usage of one container; what costs something is looked up when it is asked for."""

    def __init__(self, paths: Paths, ctid: int) -> None:
        """Look at ``ctid``."""
        self.paths = paths
        self.ctid = ctid
        self.figures = Figures(paths.tag, ctid)
        self._memory: MemoryFigures | None = None
        self._tasks: TaskFigures | None = None
        self._sockets: dict[str, int] | None = None

    @property
    def memory(self) -> MemoryFigures:
        """Its memory, read once."""
        if self._memory is None:
            self._memory = self.figures.memory()
        return self._memory

    @property
    def tasks(self) -> TaskFigures:
        """Its tasks, read once."""
        if self._tasks is None:
            self._tasks = self.figures.tasks()
        return self._tasks

    @property
    def sockets(self) -> dict[str, int]:
        """Its sockets in use by kind (TCP, UDP, RAW, UNIX …), counted once."""
        if self._sockets is None:
            self._sockets = _sockstat(self.init_pid())
        return self._sockets

    def held(self, resource: str) -> Held:
        """Return what it holds of ``resource`` (a beancounter, diskspace or diskinodes)."""
        counter = _COUNTERS.get(resource)
        return counter(self) if counter is not None else Held()

    def init_pid(self) -> int | None:
        """Return the host id of its init; None when it does not run."""
        run = state.load(self.paths, self.ctid)
        return run.init.pid if run is not None and run.init is not None else None


def current(paths: Paths, ctid: int, resource: str) -> int | None:
    """Return what ``ctid`` holds of ``resource``; ``.m`` after it: the most, ``.f``: refusals."""
    name, _, part = resource.partition(".")
    held = Usage(paths, ctid).held(name)
    return {"m": held.peak, "f": held.failures}.get(part, held.now)


def on_disk(paths: Paths, ctid: int, resource: str) -> int | None:
    """Return the diskspace (KiB) or diskinodes of a container that is not mounted, as recorded.

    None when it never had a quota. Cheap: one read of its quota file.
    """
    from vzfs import quotastate

    found = quotastate.read_usage(paths.quota_file(ctid))
    if found is None:
        return None
    counted = found[0]
    return counted.inodes if resource == "diskinodes" else (counted.blocks + 1) // 2


def load_average(paths: Paths, ctid: int) -> str | None:
    """Return the load averages of ``ctid`` as "1.00/0.50/0.25"; None when it does not run.

    They are kept by what shows the container its own /proc. Where nothing does, the number of
    tasks that run or wait uninterruptibly right now, "n.nn", which an average would approach.
    """
    with suppress(OSError), open(paths.run / "procview" / str(ctid) / "loadavg", "rb") as file:
        return "/".join(file.read(64).decode("ascii", "replace").split()[:3])
    pids = Figures(paths.tag, ctid).pids()
    return f"{active(pids):.2f}" if pids else None


def active(pids: Iterable[int]) -> int:
    """Return how many threads of ``pids`` run or wait uninterruptibly (proc_pid_stat(5))."""
    count = 0
    for pid in pids:
        with suppress(OSError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
            place = line.rindex(b")") + 2
            count += line[place : place + 1] in (b"R", b"D")
    return count


def _physpages(usage: Usage) -> Held:
    memory = usage.memory
    peak = None if memory.peak is None else memory.peak // PAGE
    return Held(memory.used // PAGE, peak, memory.limit_hits)


def _both(usage: Usage) -> Held:
    return Held((usage.memory.used + usage.memory.swap) // PAGE, None, usage.memory.oom_kills)


def _private(usage: Usage) -> Held:
    memory = usage.memory
    return Held((memory.anonymous + memory.shared + memory.swap) // PAGE)


def _kernel(usage: Usage) -> Held:
    return Held(usage.memory.kernel)


def _shared(usage: Usage) -> Held:
    return Held(usage.memory.shared // PAGE)


def _swap(usage: Usage) -> Held:
    return Held(usage.memory.swap // PAGE)


def _processes(usage: Usage) -> Held:
    return Held(usage.tasks.now, usage.tasks.peak, usage.tasks.failures)


def _locked(usage: Usage) -> Held:
    total = 0
    for pid in usage.figures.pids():
        for line in _lines(f"/proc/{pid}/status"):
            if line.startswith("VmLck:"):
                total += int(line.split()[1]) * 1024 // PAGE
                break
    return Held(total)


def _files(usage: Usage) -> Held:
    total = 0
    for pid in usage.figures.pids():
        with suppress(OSError):
            # Since Linux 6.2 the size of the directory is the number of open files.
            total += os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))
    return Held(total)


def _locks(usage: Usage) -> Held:
    pids = set(usage.figures.pids())
    # proc_locks(5): "1: POSIX ADVISORY WRITE PID …"
    words = [line.split() for line in _lines("/proc/locks")]
    return Held(
        sum(len(word) > 4 and word[4].isdecimal() and int(word[4]) in pids for word in words)
    )


def _sockstat(pid: int | None) -> dict[str, int]:
    """Return sockets in use by kind, of the network namespace of process ``pid``."""
    found: dict[str, int] = {}
    for name in ("sockstat", "sockstat6"):
        for line in _lines(f"/proc/{pid}/net/{name}"):
            kind, _, rest = line.partition(":")
            words = rest.split()
            if words[:1] == ["inuse"]:
                kind = kind.removesuffix("6")
                found[kind] = found.get(kind, 0) + int(words[1])
    found["UNIX"] = max(sum(1 for _ in _lines(f"/proc/{pid}/net/unix")) - 1, 0)
    return found


def _tcp_sockets(usage: Usage) -> Held:
    return Held(usage.sockets.get("TCP", 0))


def _other_sockets(usage: Usage) -> Held:
    found = usage.sockets
    return Held(sum(found.get(kind, 0) for kind in ("UDP", "UDPLITE", "RAW", "UNIX")))


def _terminals(usage: Usage) -> Held:
    """Count the pseudo-terminals that have an open master, over all its processes."""
    masters: set[str] = set()
    for pid in usage.figures.pids():
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(entry.path).endswith("/ptmx"):
                        masters |= {
                            line
                            for line in _lines(f"/proc/{pid}/fdinfo/{entry.name}")
                            if line.startswith("tty-index:")
                        }
    return Held(len(masters))


def _disk(usage: Usage, *, inodes: bool) -> Held:
    """Return 1-KiB blocks or inodes, as its quota counts them, else as its mount tells."""
    from vzfs import quotaerror, quotastate

    with suppress(OSError, quotaerror.QuotaError):
        counted = quotastate.snapshot(usage.paths.quota_file(usage.ctid)).usage
        return Held(counted.inodes if inodes else (counted.blocks + 1) // 2)
    with suppress(OSError):
        stats = os.statvfs(usage.paths.ct_root(usage.ctid))
        if inodes:
            return Held(stats.f_files - stats.f_ffree)
        return Held((stats.f_blocks - stats.f_bfree) * stats.f_frsize // KIB)
    return Held()


_COUNTERS: dict[str, Callable[[Usage], Held]] = {
    "numproc": _processes,
    "physpages": _physpages,
    "oomguarpages": _both,
    "privvmpages": _private,
    "kmemsize": _kernel,
    "shmpages": _shared,
    "swappages": _swap,
    "lockedpages": _locked,
    "numfile": _files,
    "numflock": _locks,
    "numtcpsock": _tcp_sockets,
    "numothersock": _other_sockets,
    "numpty": _terminals,
    "diskspace": lambda usage: _disk(usage, inodes=False),
    "diskinodes": lambda usage: _disk(usage, inodes=True),
}


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
