"""What runs: one small file per container in the run directory, written before it is relied upon.

A process is named by its id and its start time, so that a reused id is never taken for it
(proc_pid_stat(5), field 22).
"""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from runtime import files
from runtime.paths import Paths


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this boot: id and start time in clock ticks since boot."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the live process ``pid``, or None when there is none."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid, ticks)

    @property
    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        return start_ticks(self.pid) == self.start_ticks


def start_ticks(pid: int) -> int | None:
    """Return when ``pid`` started, in clock ticks since boot; None if dead or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may hold spaces and parentheses: the fields start after the last ')'.
    fields = line[line.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


@cache
def boot_id() -> str:
    """Return the identity of this boot of the kernel (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class Phase(StrEnum):
    """Where in its life a container is, as its supervisor last wrote it."""

    MOUNTED = "mounted"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class RunState:
    """The run state of one container; ``extra`` holds what single mechanisms keep here."""

    ctid: int
    phase: Phase
    boot: str = field(default_factory=boot_id)
    supervisor: Process | None = None
    server: Process | None = None
    init: Process | None = None
    #: The fork of the supervisor which starts or ends it.
    worker: Process | None = None
    #: CLOCK_REALTIME of the start, in seconds; 0 when only mounted.
    started_s: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def served(self) -> bool:
        """Whether its files are served, or will be again by its supervisor."""
        return any(
            process is not None and process.alive for process in (self.server, self.supervisor)
        )

    def save(self, paths: Paths) -> None:
        """Write the state in one step (not fsynced: a reboot empties the run directory)."""
        target = paths.ct_state(self.ctid)
        data = json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()
        try:
            files.replace(target, data, mode=0o600, durable=False)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            files.replace(target, data, mode=0o600, durable=False)


_FIELDS = frozenset(field.name for field in dataclasses.fields(RunState))


def load(paths: Paths, ctid: int) -> RunState | None:
    """Return the run state of ``ctid``; None when it has none, or only one of an earlier boot."""
    try:
        with open(paths.ct_state(ctid), "rb") as file:
            raw = json.load(file)
    except (FileNotFoundError, ValueError):
        return None
    if raw.get("boot") != boot_id():
        return None
    for name in ("supervisor", "server", "init", "worker"):
        if raw.get(name) is not None:
            raw[name] = Process(**raw[name])
    raw["phase"] = Phase(raw["phase"])
    # Written by an older or newer version of us: what is not known here is passed over.
    return RunState(**{name: value for name, value in raw.items() if name in _FIELDS})


def forget(paths: Paths, ctid: int) -> None:
    """Remove the run state of ``ctid``; absent is success."""
    with suppress(FileNotFoundError):
        os.unlink(paths.ct_state(ctid))


def present(paths: Paths) -> list[int]:
    """Return the ids that have a run state, sorted."""
    try:
        names = os.listdir(paths.run / "ct")
    except FileNotFoundError:
        return []
    return sorted(
        int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal()
    )
