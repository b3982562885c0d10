"""Machines when the server starts and stops: who starts by itself, in which order, what happens."""

from __future__ import annotations

import time
from collections.abc import Callable

from runtime import locks
from runtime.errors import VzError
from runtime.paths import Paths
from runtime.progress import Progress
from vmm import registry, status, upkeep
from vmm.connection import Hypervisor
from vmm.domain import Domain
from vmm.machine import STOP_S, Machine
from vmm.registry import MachineRecord
from vmm.status import State


def start_all(paths: Paths, hypervisor: Hypervisor, progress: Progress) -> list[str]:
    """Start what starts with the server; return the names of those that failed.

    "yes" starts always, "auto" only what ran when the server stopped. A machine's delay is waited
    before it, so that a storm of starts can be spread.
    """
    failed = []
    for record, domain in _described(paths):
        wanted = domain.setting("onboot", "no")
        was_running = domain.setting("ran") == "yes" or status.saved(record)
        if wanted == "yes" or (wanted == "auto" and was_running):
            time.sleep(float(domain.setting("autostart-delay", "0")))
            if not _act(paths, record, hypervisor, progress, "start", _start):
                failed.append(record.name)
    return failed


def _start(machine: Machine) -> None:
    if not machine.state().active:
        machine.start()
    _note(machine, ran=False)


def stop_all(paths: Paths, hypervisor: Hypervisor, progress: Progress) -> list[str]:
    """Stop what runs, each as its autostop setting wants; return the names of those that failed."""
    failed = []
    for record, _domain in _described(paths):
        runs = status.state(paths, record).active
        if runs and not _act(paths, record, hypervisor, progress, "stop", _stop):
            failed.append(record.name)
    return failed


def _stop(machine: Machine) -> None:
    _note(machine, ran=True)
    way = machine.read_domain().setting("autostop", "shutdown")
    if way == "suspend" and machine.state() in (State.RUNNING, State.PAUSED):
        machine.suspend()
        return
    if way == "stop" or machine.state() is not State.RUNNING:
        machine.stop(fast=True)
        return
    try:
        machine.stop(timeout_s=STOP_S)
    except VzError as error:
        # The server goes down: what does not react is not waited for any longer.
        machine.progress.warn(error.message)
        machine.stop(fast=True)


def _note(machine: Machine, *, ran: bool) -> None:
    """Remember whether the machine ran when the server stopped ("auto")."""
    domain = machine.current().copy()
    if domain.setting("onboot") == "auto" and (domain.setting("ran") == "yes") != ran:
        domain.set_setting("ran", "yes" if ran else None)
        machine.commit(domain)


def _described(paths: Paths) -> list[tuple[MachineRecord, Domain]]:
    return [
        (record, Domain.load(record.config))
        for record in registry.records(paths)
        if record.config.is_file()
    ]


def _act(
    paths: Paths,
    record: MachineRecord,
    hypervisor: Hypervisor,
    progress: Progress,
    purpose: str,
    action: Callable[[Machine], None],
) -> bool:
    """Do something with one machine; a failure is told and keeps nobody else from their turn."""
    try:
        with locks.environment(paths, record.uuid, purpose, timeout_s=30):
            machine = Machine(paths, record, hypervisor, progress)
            upkeep.repair(machine)
            action(machine)
    except VzError as error:
        progress.warn(f"{record.name}: {error.message}")
        return False
    return True
