"""What state machines are in, read from libvirt's state files: works without asking any daemon.

The QEMU driver keeps NAME.xml (``<domstatus state= reason= pid=>``) for each running machine below
its run directory; whether that process lives tells the rest.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path

from runtime.paths import Paths
from runtime.state import start_ticks
from vmm.registry import MachineRecord

SAVED = "suspended.sav"
#: QEMU_SAVE_MAGIC of a complete image (libvirt src/qemu/qemu_saveimage.h).
_COMPLETE = b"LibvirtQemudSave"
_HEAD = re.compile(rb"<domstatus state='(\w+)' reason='([^']*)' pid='(\d+)'")
_SYSTEM_STATES = Path("/run/libvirt/qemu")


class State(StrEnum):
    """The states the product tells of."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    STARTING = "starting"
    STOPPING = "stopping"
    CRASHED = "crashed"
    UNKNOWN = "unknown"

    @property
    def active(self) -> bool:
        """Whether a QEMU process exists."""
        return self in (State.RUNNING, State.PAUSED, State.STARTING, State.STOPPING, State.CRASHED)


#: libvirt's words for virDomainState.
WORDS = {
    "running": State.RUNNING,
    "blocked": State.RUNNING,
    "paused": State.PAUSED,
    "shutdown": State.STOPPING,
    "shutoff": State.STOPPED,
    "crashed": State.CRASHED,
    "pmsuspended": State.PAUSED,
}


def state(paths: Paths, record: MachineRecord) -> State:
    """Return the state of a machine."""
    return process(paths, record)[0]


def process(paths: Paths, record: MachineRecord) -> tuple[State, int | None]:
    """Return the state of a machine and the id of its QEMU process, if it has one."""
    places = [paths.run / "libvirt" / "run" / "qemu"]
    if paths.is_default:
        places.append(_SYSTEM_STATES)
    for place in places:
        found = _read(place / f"{record.name}.xml", record.uuid)
        if found is not None:
            return found
    return (State.SUSPENDED if saved(record) else State.STOPPED), None


def saved(record: MachineRecord) -> bool:
    """Whether the machine is suspended to disk; an image cut short by a crash does not count."""
    try:
        with open(record.home / SAVED, "rb") as file:
            return file.read(len(_COMPLETE)) == _COMPLETE
    except OSError:
        return False


def uptime_s(pid: int) -> float | None:
    """Return since how many seconds a process runs."""
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    with open("/proc/uptime", encoding="ascii") as file:
        now = float(file.read().split()[0])
    return now - ticks / os.sysconf("SC_CLK_TCK")


def _read(path: Path, uuid: str) -> tuple[State, int] | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    match = _HEAD.search(data)
    if match is None or f"<uuid>{uuid}</uuid>".encode() not in data:
        return None
    pid = int(match[3])
    if start_ticks(pid) is None:
        return None
    found = WORDS.get(match[1].decode(), State.UNKNOWN)
    if found is State.PAUSED and match[2] == b"starting-up":
        found = State.STARTING
    return found, pid
