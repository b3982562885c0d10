"""A stopped machine's partitions, mounted on the server: read-only unless asked otherwise.

What was mounted is noted in the run directory before it is relied upon, so that ``umount`` finds
it, and a server that died leaves nothing that looks mounted.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import files
from runtime.errors import ImageMountFailed, ImageUmountFailed, NotMounted, VzError
from runtime.paths import Paths
from vmm import devices, diskview, loopdevice, partitions
from vmm.machine import Machine
from vmm.partitions import BadTable, Partition
from vmm.registry import MachineRecord
from vzfs import syscalls

_MIB = 1 << 20
#: What a guest's file system may bring must not be trusted here.
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV
_MOUNTABLE = ("ext4", "ext3", "ext2", "xfs", "btrfs", "vfat", "iso9660", "ntfs")
#: mount(8) names → the kernel's: ext4 serves its predecessors.
_DRIVER = {"ext2": "ext4", "ext3": "ext4", "ntfs": "ntfs3"}


@dataclass(frozen=True, slots=True)
class Place:
    """One mounted partition."""

    disk: str
    number: int
    file_system: str
    size_bytes: int
    point: Path

    def __str__(self) -> str:
        return f"{self.disk} partition {self.number} ({self.file_system}) on {self.point}"


def point(paths: Paths, record: MachineRecord) -> Path:
    """Return the directory below which a machine's partitions are mounted."""
    return paths.vz / "mnt" / record.uuid


def describe(machine: Machine) -> list[str]:
    """Return one line per partition: place, size, file system, where it is mounted."""
    noted = _noted(machine)
    if noted is not None:
        return [place["text"] for place in noted["places"]]
    machine.stopped("look into the disks of")
    lines = []
    with tempfile.TemporaryDirectory(prefix=diskview.SCRATCH, dir=scratch(machine)) as work:
        for disk in devices.disks(machine.read_domain()):
            path = Path(disk.image)
            with diskview.opened(path, disk.format, Path(work)) as view:
                lines += [_line(disk.name, part) for part in _read(view, path)]
    return lines


def _line(name: str, part: Partition) -> str:
    return (
        f"{name} partition {part.number}: {part.size_bytes // _MIB} Mb at "
        f"{part.start_bytes // _MIB} Mb, {part.file_system or 'no known file system'}"
    )


def mount(machine: Machine, *, writable: bool) -> list[Place]:
    """Mount every partition with a known file system; raises AlreadyRunning, ImageMountFailed."""
    machine.stopped("mount the disks of")
    if _noted(machine) is not None:
        raise ImageMountFailed(
            f"machine {machine.label} is mounted", hint=f"pctl umount {machine.label}"
        )
    if writable:
        machine.check_dependents("mount the disks for writing of")
    base = point(machine.paths, machine.record)
    notes: dict[str, Any] = {"views": [], "places": [], "whole": False}
    places: list[Place] = []
    try:
        for disk in devices.disks(machine.read_domain()):
            if not disk.image:
                continue
            path = Path(disk.image)
            view = path
            if disk.format != "raw":
                view = diskview.start(path, disk.format, scratch(machine), writable=writable)
                notes["views"].append(str(view))
                _note(machine, notes)
            for part in _read(view, path):
                if part.file_system in _MOUNTABLE:
                    target = base / f"{disk.name}.{part.number}"
                    place = Place(disk.name, part.number, part.file_system, part.size_bytes, target)
                    notes["places"].append({"point": str(target), "text": str(place)})
                    _note(machine, notes)
                    _mount(place, view, part, writable=writable)
                    places.append(place)
        if not places:
            raise ImageMountFailed(
                f"no disk of {machine.label} has a file system this server can mount"
            )
        _note(machine, {**notes, "whole": True})
    except BaseException:
        _undo(machine, notes)
        raise
    return places


def _read(view: Path, image: Path) -> list[Partition]:
    with open(view, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            return partitions.read(file, size)
        except BadTable as error:
            raise ImageMountFailed(f"{image}: {error}") from error


def _mount(place: Place, view: Path, part: Partition, *, writable: bool) -> None:
    target = place.point
    target.mkdir(parents=True, exist_ok=True)
    kind = _DRIVER.get(part.file_system, part.file_system)
    flags = _FLAGS | (0 if writable else syscalls.MS_RDONLY)
    try:
        name, device = loopdevice.attach(
            os.fspath(view), offset=part.start_bytes, size_bytes=part.size_bytes, writable=writable
        )
        try:
            try:
                syscalls.mount(name, target, kind, flags, "")
            except OSError:
                if writable or kind != "ext4":
                    raise
                # A read-only device with a journal to replay: show it as it is.
                syscalls.mount(name, target, kind, flags, "noload")
        finally:
            os.close(device)
    except OSError as error:
        with suppress(OSError):
            target.rmdir()
        raise ImageMountFailed(
            f"cannot mount partition {part.number} of {place.disk} ({part.file_system}): {error.strerror}"
        ) from error


def umount(machine: Machine) -> None:
    """Unmount what ``mount`` mounted; raises NotMounted, ImageUmountFailed (something is open)."""
    noted = _noted(machine)
    if noted is None:
        raise NotMounted(f"machine {machine.label} is not mounted")
    _undo(machine, noted)


def _undo(machine: Machine, notes: dict[str, Any]) -> None:
    for place in reversed(notes["places"]):
        target = Path(place["point"])
        if os.path.ismount(target):
            try:
                syscalls.umount(target)
            except OSError as error:
                raise ImageUmountFailed(
                    f"cannot unmount {target}: {error.strerror}", hint="close what is open in it"
                ) from error
        with suppress(OSError):
            target.rmdir()
    for view in notes["views"]:
        diskview.stop(Path(view))
    with suppress(OSError):
        point(machine.paths, machine.record).rmdir()
    _notes_file(machine).unlink(missing_ok=True)


def repair(machine: Machine) -> None:
    """End what killed commands left at the machine's images; raises as ``diskview.sweep``.

    Call it with the machine's lock held.
    """
    place = machine.paths.run / "machines" / machine.record.uuid
    if _noted(machine) is None and (place.is_dir() or loopdevice.backings()):
        disks = devices.disks(machine.read_domain())
        diskview.sweep(place, [Path(disk.image) for disk in disks if disk.image])


def check_unmounted(machine: Machine, doing: str) -> None:
    """Raise VzError when the machine's disks are mounted here."""
    if _noted(machine) is not None:
        raise ImageBusyHere(
            f"cannot {doing} machine {machine.label}: its disks are mounted",
            hint=f"pctl umount {machine.label}",
        )


class ImageBusyHere(VzError):
    """The machine's disks are mounted on the server."""

    code = 41


def scratch(machine: Machine) -> Path:
    """Return the directory in which the machine's images are shown as plain files."""
    place = machine.paths.run / "machines" / machine.record.uuid
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _notes_file(machine: Machine) -> Path:
    return machine.paths.run / "machines" / f"{machine.record.uuid}.mounted.json"


def _note(machine: Machine, notes: dict[str, Any]) -> None:
    file = _notes_file(machine)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace(file, json.dumps(notes).encode(), mode=0o600, durable=False)


def _noted(machine: Machine) -> dict[str, Any] | None:
    try:
        notes: dict[str, Any] = json.loads(_notes_file(machine).read_bytes())
    except (OSError, ValueError):
        return None
    if notes["whole"] and any(os.path.ismount(place["point"]) for place in notes["places"]):
        return notes
    # Left by a command that was killed, or by a server that died.
    _undo(machine, notes)
    return None
