"""A new name for a machine; its bundle keeps its directory."""

from __future__ import annotations

from runtime import journal, locks
from vmm import registry, snapshots, upkeep
from vmm.domain import Domain
from vmm.machine import Machine
from vmm.registry import MachineRecord


def check(machine: Machine, name: str) -> None:
    """Raise what ``rename`` would, NameFailed or AlreadyRunning; nothing is changed."""
    machine.stopped("rename")
    registry.check_new(machine.paths, name)


def rename(machine: Machine, name: str) -> None:
    """Rename a stopped machine; raises NameFailed, AlreadyRunning.

    libvirt refuses a second name for one UUID, and to rename a machine with snapshots; so the
    machine is forgotten and defined anew, which the bundle makes safe at every point.
    """
    raw = machine.stopped("rename")
    old = machine.record
    with locks.registry(machine.paths), journal.intention(machine.paths, old.uuid, "rename"):
        name, _ = registry.check_new(machine.paths, name)
        domain = machine.current().copy()
        machine.save()
        upkeep.undefine(raw)
        domain.name = name
        machine.record = MachineRecord(old.uuid, name, old.home)
        try:
            made = machine.commit(domain)
            snapshots.redefine(machine.record, made)
            registry.save(machine.paths, machine.record)
        except BaseException:
            machine.record = old
            undo(machine)
            raise
    machine.progress.say(f"Set the name to {name}")


def undo(machine: Machine) -> None:
    """Give a machine whose renaming failed or was killed the name it is registered by."""
    domain = Domain.load(machine.record.config)
    known = machine.hypervisor.find(machine.record.uuid)
    if domain.name == machine.record.name and known is not None and known.name() == domain.name:
        return
    if known is not None:
        upkeep.undefine(known)
    domain.name = machine.record.name
    snapshots.redefine(machine.record, machine.commit(domain))
