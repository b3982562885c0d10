"""The processes of the server with the container of each: what vztop shows."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from runtime.membership import container_of
from runtime.paths import Paths

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment (proc_pid_stat(5)); sizes in bytes, times in seconds."""

    pid: int
    ctid: int
    uid: int
    state: str
    priority: int
    nice: int
    virtual: int
    resident: int
    shared: int
    cpu_s: float
    started_ticks: int
    name: str
    command: str


@dataclass(frozen=True, slots=True)
class Row:
    """One process between two looks."""

    process: Process
    cpu_percent: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All processes at one moment."""

    at_s: float
    processes: dict[int, Process]


def snapshot(paths: Paths, ctid: int | None = None) -> Snapshot:
    """Return the processes of ``ctid`` (0: the server's own), or all."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                process = _read(paths, int(name), ctid)
                if process is not None:
                    found[process.pid] = process
    return Snapshot(time.monotonic(), found)


def _read(paths: Paths, pid: int, wanted: int | None) -> Process | None:
    ctid = container_of(paths, pid)
    if ctid is None or (wanted is not None and ctid != wanted):
        return None
    with open(f"/proc/{pid}/stat", "rb", 0) as file:
        line = file.read(1024).decode("utf-8", "replace")
    close = line.rindex(")")
    name = line[line.index("(") + 1 : close]
    fields = line[close + 2 :].split()
    with open(f"/proc/{pid}/statm", "rb", 0) as file:
        pages = file.read(128).split()
    with open(f"/proc/{pid}/cmdline", "rb", 0) as file:
        words = file.read(512).replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return Process(
        pid,
        ctid,
        os.stat(f"/proc/{pid}").st_uid,
        fields[0],
        int(fields[15]),
        int(fields[16]),
        int(pages[0]) * _PAGE,
        int(pages[1]) * _PAGE,
        int(pages[2]) * _PAGE,
        (int(fields[11]) + int(fields[12])) * _TICK_S,
        int(fields[19]),
        printable(name),
        printable(words) or f"[{printable(name)}]",
    )


def printable(text: str) -> str:
    """Return ``text`` without characters a terminal would act upon."""
    return "".join(char if char.isprintable() else "?" for char in text)


def rows(before: Snapshot, after: Snapshot) -> list[Row]:
    """Return the processes of the newer look with their use of processors since the older."""
    seconds = max(after.at_s - before.at_s, 0.001)
    found = []
    for pid, process in after.processes.items():
        old = before.processes.get(pid)
        same = old is not None and old.started_ticks == process.started_ticks
        since = process.cpu_s - old.cpu_s if same and old is not None else 0.0
        found.append(Row(process, 100 * since / seconds))
    return found


#: Key of the screen → its heading and what rows are sorted by, largest first.
ORDERS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "P": ("%CPU", lambda row: row.cpu_percent),
    "M": ("%MEM", lambda row: row.process.resident),
    "T": ("TIME+", lambda row: row.process.cpu_s),
    "N": ("PID", lambda row: row.process.pid),
    "E": ("CTID", lambda row: row.process.ctid),
}


def user(uid: int) -> str:
    """Return the server's name for ``uid``, or the number: containers have ids of their own."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
