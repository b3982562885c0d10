"""Since when a machine runs, for people: they can begin to count anew (``pctl reset-uptime``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.state import start_ticks
from vmm import status
from vmm.domain import Domain

if TYPE_CHECKING:
    from vmm.machine import Machine

_KEY = "uptime-reset"


def seconds(domain: Domain, pid: int | None) -> float | None:
    """Return since how many seconds the machine of QEMU process ``pid`` runs, None without one."""
    found = status.uptime_s(pid) if pid is not None else None
    if found is None:
        return None
    # Of another process, it was of a start before this one.
    owner, _, offset = domain.setting(_KEY).partition(" ")
    return max(found - float(offset), 0.0) if owner == _mark(pid) and offset else found


def reset(machine: Machine) -> None:
    """Begin to count anew; raises NotRunning."""
    machine.running()
    _, pid = status.process(machine.paths, machine.record)
    passed = status.uptime_s(pid) if pid is not None else None
    domain = machine.current().copy()
    domain.set_setting(_KEY, f"{_mark(pid)} {passed:.2f}" if passed is not None else None)
    machine.commit(domain)
    machine.progress.say("The uptime of the VM has been successfully reset.")


def _mark(pid: int | None) -> str:
    """Return what tells this process from any other since the server booted."""
    return f"{pid}:{start_ticks(pid)}" if pid is not None else ""
