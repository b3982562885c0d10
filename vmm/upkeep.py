"""Finishes what a killed command began, and takes machines out of libvirt and off the disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import files, journal
from runtime.errors import ConfigMissing, SystemFailure
from runtime.net import slots
from runtime.paths import Paths
from vmm import networks, registry, undo
from vmm.connection import Hypervisor
from vmm.faults import INVALID_ARGUMENT, translated
from vmm.registry import MachineRecord

if TYPE_CHECKING:
    import libvirt

    from vmm.machine import Machine

#: How long a job of libvirt's (saving, a snapshot) is waited for.
_SETTLE_S = 120.0
_POLL_S = 0.05


def repair(machine: Machine) -> None:
    """Finish what a killed command began; call it with the machine's lock held.

    Raises ConfigMissing when the machine is gone by that, or its bundle is missing.
    """
    from vmm import cloning, disktool, hostmount, renaming, snapshots

    begun = {entry.act: entry for entry in journal.pending(machine.paths, machine.record.uuid)}
    if (entry := begun.get("delete")) is not None:
        finish_delete(machine.paths, machine.record, machine.hypervisor)
        entry.clear()
        raise ConfigMissing(f"machine {machine.label} has been deleted")
    if (entry := begun.get("move")) is not None:
        old, home = Path(entry.details["old"]), Path(entry.details["home"])
        cloning.finish_move(machine, old, home)
        entry.clear()
    if not machine.record.home.is_dir():
        raise ConfigMissing(
            f"the bundle of machine {machine.label} is missing: {machine.record.home}",
            hint=f"mount its file system, or: pctl unregister {machine.label}",
        )
    if (entry := begun.get("rename")) is not None:
        renaming.undo(machine)
        entry.clear()
    hostmount.repair(machine)
    files.sweep_temporaries(machine.record.home)
    if (entry := begun.get(disktool.CONVERT)) is not None:
        disktool.settle_conversion(machine, [Path(image) for image in entry.details["images"]])
        entry.clear()
    _settle(machine)
    entry = begun.get("snapshots")
    if entry is not None and snapshots.settle(machine, entry.details):
        entry.clear()


def _settle(machine: Machine) -> None:
    """Wait for what libvirt still does for a command that was killed: it finishes jobs."""
    import libvirt

    raw = machine.hypervisor.find(machine.record.uuid)
    if raw is None or not raw.isActive():
        # It may have ended by itself, with nobody there to take its adapters down.
        networks.detach(machine.paths, machine.record.uuid)
        undo.ended(machine)
        return
    busy = {
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SAVE),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT),
    }
    deadline = time.monotonic() + _SETTLE_S
    with translated(f"machine {machine.label}"):
        while (
            tuple(raw.state()) in busy
            # A libvirtd that was killed has forgotten its job: the machine is merely paused.
            and raw.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
            and time.monotonic() < deadline
        ):
            time.sleep(_POLL_S)


def undefine(raw: libvirt.virDomain) -> None:
    """Let libvirt forget a machine, with what it keeps about it; raises SystemFailure."""
    import libvirt

    flags = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    )
    # The firmware's variables are in the bundle: only with it they go.
    more = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    with translated("undefining a machine", instead=SystemFailure):
        try:
            raw.undefineFlags(flags | more)
        except libvirt.libvirtError as error:
            # Drivers other than QEMU's have neither checkpoints nor firmware variables.
            if error.get_error_code() != INVALID_ARGUMENT:
                raise
            raw.undefineFlags(flags)


def finish_delete(paths: Paths, record: MachineRecord, hypervisor: Hypervisor) -> None:
    """Do the rest of a deletion, wherever it stopped."""
    raw = hypervisor.find(record.uuid)
    if raw is not None:
        undefine(raw)
    networks.detach(paths, record.uuid)
    slots.release(paths, record.uuid)
    files.remove_tree(record.home)
    if record.home.parent.is_dir():
        files.sweep_temporaries(record.home.parent)
    registry.remove(paths, record.uuid)
