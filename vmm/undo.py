"""Undo disks: what a session writes goes to overlays, dropped at its end or asked about.

With the mode "discard" or "ask" a start puts an overlay (hdd0.undo.qcow2) before every disk and the
description names the overlays, so that whatever kills the session, the disks are as they were.
"discard" drops them as soon as the machine is found stopped; with "ask" they stay, and further
starts go on with them, until ``pctl stop --undo keep|discard`` decides.

The settings ``undo.NAME`` (original image, relative to the bundle when it is in it) and
``undo.NAME.format`` are there exactly as long as overlays are in place; ``undo.keeping`` is set
before the first block is written back, and from then on nothing can be discarded any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import DevicesFailed, SnapshotFailed
from vmm import devices, images, status
from vmm.domain import Domain
from vmm.words import choice

if TYPE_CHECKING:
    from vmm.change import Change
    from vmm.machine import Machine

MODES = ("off", "discard", "ask")
_SUFFIX = ".undo.qcow2"
_KEEPING = "undo.keeping"


def set_mode(change: Change, text: str) -> None:
    """Set what becomes of what a session writes; raises InvalidValue, AlreadyRunning."""
    from vmm import snapshots

    mode = choice(text.strip().lower(), MODES, "undo-disks")
    machine = change.machine
    machine.stopped("change the undo disks of")
    check_settled(machine, change.domain, "changing its undo disks")
    if mode != "off" and snapshots.exist(machine.record):
        raise SnapshotFailed(
            f"machine {machine.label} has snapshots, which exclude undo disks",
            hint="delete the snapshots first",
        )
    change.domain.set_setting("undo-disks", mode if mode != "off" else None)
    change.say(f"Set the undo-disks parameter to {mode}")


def mode(domain: Domain) -> str:
    """Return off, discard or ask."""
    return domain.setting("undo-disks", "off")


def originals(domain: Domain, home: Path) -> dict[str, Path]:
    """Return disk → image below its overlay; empty when no overlays are in place.

    Raises DevicesFailed for a name that leads out of the bundle: a bundle may come from anywhere.
    """
    found = {}
    for disk in devices.disks(domain):
        word = domain.setting(f"undo.{disk.name}")
        if word:
            if not word.startswith("/") and "/" in word:
                raise DevicesFailed(f"the image below {disk.image} is not in the bundle: {word}")
            found[disk.name] = home / word
    return found


def pending(domain: Domain) -> bool:
    """Whether overlays are in place: a session runs, or has not been decided about."""
    return any(domain.setting(f"undo.{disk.name}") for disk in devices.disks(domain))


def check_settled(machine: Machine, domain: Domain, doing: str) -> None:
    """Raise DevicesFailed while what the last session wrote waits for a decision."""
    if pending(domain):
        raise DevicesFailed(
            f"what machine {machine.label} wrote is neither kept nor discarded: before {doing}",
            hint=f"pctl stop {machine.label} --undo keep, or discard",
        )


def begin(machine: Machine, domain: Domain) -> bool:
    """Put overlays before the disks; return whether ``domain`` was changed. Raises VzError."""
    if mode(domain) == "off":
        return False
    if pending(domain):
        machine.progress.warn(
            "the machine goes on with what it wrote before: it is neither kept nor discarded"
        )
        return False
    home = machine.record.home
    for disk in devices.disks(domain):
        if not disk.image:
            continue
        base, overlay = Path(disk.image), home / f"{disk.name}{_SUFFIX}"
        # A start that was killed before the description named it may have left one.
        overlay.unlink(missing_ok=True)
        inside = base.parent == home
        images.create_linked(overlay, Path(base.name) if inside else base, disk.format)
        domain.set_setting(f"undo.{disk.name}", base.name if inside else str(base))
        domain.set_setting(f"undo.{disk.name}.format", disk.format)
        disk.image, disk.format = str(overlay), "qcow2"
    return True


def ended(machine: Machine) -> None:
    """Do what the mode wants with a session that is over; call it when the machine is stopped."""
    domain = machine.current()
    if status.saved(machine.record):
        return
    if not pending(domain):
        # What a command left that was killed before it removed them, or before it named them.
        for overlay in machine.record.home.glob(f"*{_SUFFIX}"):
            overlay.unlink(missing_ok=True)
    elif domain.setting(_KEEPING):
        keep(machine)
    elif mode(domain) == "discard":
        discard(machine)


def discard(machine: Machine) -> None:
    """Return the disks to what they were at the start; raises AlreadyRunning, DevicesFailed."""
    machine.stopped("discard what was written by")
    if machine.current().setting(_KEEPING):
        raise DevicesFailed(
            "keeping the changes has begun: they can no longer be discarded",
            hint=f"pctl stop {machine.label} --undo keep finishes it",
        )
    _take_out(machine)
    machine.progress.say("The changes of the disks have been discarded.")


def keep(machine: Machine) -> None:
    """Write what the session wrote into the disks; raises AlreadyRunning, VzError."""
    machine.stopped("keep what was written by")
    domain = machine.current().copy()
    if not domain.setting(_KEEPING):
        domain.set_setting(_KEEPING, "yes")
        machine.commit(domain)
    for name in originals(domain, machine.record.home):
        # Repeated after a crash it writes the same blocks again.
        images.commit(Path(_disk(domain, name).image))
    _take_out(machine)
    machine.progress.say("The changes of the disks have been kept.")


def _take_out(machine: Machine) -> None:
    domain = machine.current().copy()
    overlays = []
    for name, image in originals(domain, machine.record.home).items():
        disk = _disk(domain, name)
        overlays.append(Path(disk.image))
        disk.image = str(image)
        disk.format = domain.setting(f"undo.{name}.format", "qcow2")
        domain.set_setting(f"undo.{name}", None)
        domain.set_setting(f"undo.{name}.format", None)
    domain.set_setting(_KEEPING, None)
    machine.commit(domain)
    for overlay in overlays:
        overlay.unlink(missing_ok=True)


def _disk(domain: Domain, name: str) -> devices.Disk:
    found = devices.named(domain, name)
    assert isinstance(found, devices.Disk)
    return found
