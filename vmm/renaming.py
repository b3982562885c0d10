"""A new name for a machine; its bundle keeps its directory."""

from __future__ import annotations

from runtime import journal, locks
from vmm import registry, snapshots, upkeep
from vmm.machine import Machine
from vmm.registry import MachineRecord


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
            domain.name = old.name
            snapshots.redefine(old, machine.commit(domain))
            raise
    machine.progress.say(f"Set the name to {name}")
