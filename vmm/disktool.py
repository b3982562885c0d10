"""What prl_disk_tool does with a disk: sizes, partitions, compaction, change of type.

A disk which a machine uses is worked on only while the machine is stopped, and the machine's
description follows. Every conversion writes a new image beside the old one and replaces it when
complete.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime import files, journal
from runtime.errors import (
    ImageConvertFailed,
    ImageResizeFailed,
    InvalidOption,
    NoKernelSupport,
)
from runtime.progress import Progress
from vmm import devices, diskview, images, loopdevice, partitions, snapshots, undo
from vmm.machine import Machine
from vmm.partitions import BadTable, Partition
from vzfs import syscalls

#: linux/fs.h: struct fstrim_range (start, length, minimal length)
_FITRIM = 0xC0185879
#: The act in the journal while a machine's disk has two images.
CONVERT = "convert-disk"
_EXT = ("ext2", "ext3", "ext4")
_MIB = 1 << 20
_SPARE_SECTORS = 34


@dataclass(frozen=True, slots=True)
class Hdd:
    """A disk image, and the machine which uses it, if one does."""

    path: Path
    format: str
    #: Where its content may be shown.
    scratch: Path
    machine: Machine | None

    def check_idle(self, doing: str) -> None:
        """Raise VzError when it is in use or has snapshots."""
        if self.machine is not None:
            from vmm.hostmount import check_unmounted

            self.machine.stopped(doing)
            check_unmounted(self.machine, doing)
            self.machine.check_dependents(doing)
            undo.check_settled(self.machine, self.machine.read_domain(), "changing a disk")
            if snapshots.exist(self.machine.record):
                raise ImageResizeFailed(
                    f"machine {self.machine.label} has snapshots, which hold the disk as it is",
                    hint=f"pctl snapshot-delete {self.machine.label} -i ID",
                )
        found = images.info(self.path)
        if found.snapshots:
            raise ImageResizeFailed(f"{self.path} holds {len(found.snapshots)} snapshots")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What ``resize --info`` tells; in bytes."""

    size_bytes: int
    minimum_bytes: int
    actual_bytes: int
    type: str
    partitions: tuple[Partition, ...]


def info(hdd: Hdd) -> Sizes:
    """Return the sizes of a disk and the least it could be shrunk to; raises VzError."""
    found = images.info(hdd.path)
    parts: tuple[Partition, ...] = ()
    minimum = found.virtual_bytes
    with _content(hdd, writable=False) as view:
        parts = tuple(_partitions(view, hdd.path))
        last = _last(parts)
        if last is None:
            minimum = images.SMALLEST if not parts else minimum
        elif last.file_system in _EXT:
            minimum = _end(last, last.start_bytes + _least_ext(view, last))
        else:
            minimum = _end(last, last.end_bytes)
    kind = "expanding" if found.format == "qcow2" else "plain"
    return Sizes(
        found.virtual_bytes, min(minimum, found.virtual_bytes), found.actual_bytes, kind, parts
    )


def resize(hdd: Hdd, size_bytes: int, progress: Progress, *, partition: bool) -> None:
    """Change the size of a disk, and with ``partition`` of its last file system.

    Raises ImageResizeFailed with the reason; the content is never cut.
    """
    hdd.check_idle("resize the disk of")
    images.check_size(size_bytes)
    before = images.info(hdd.path).virtual_bytes
    images.check(hdd.path, hdd.format)
    if size_bytes < before:
        _shrink(hdd, size_bytes, partition=partition)
    else:
        images.resize(hdd.path, size_bytes, hdd.format)
        if partition:
            _grow_partition(hdd, size_bytes)
    progress.say("The disk has been successfully resized.")


def _grow_partition(hdd: Hdd, size_bytes: int) -> None:
    with _content(hdd, writable=True) as view:
        last = _resizable(view, hdd.path)
        spare = _SPARE_SECTORS * partitions.SECTOR if last.table == "gpt" else 0
        end = (size_bytes - spare) // _MIB * _MIB if last.number else size_bytes
        end = max(end, last.end_bytes)
        _set_end(view, last, end, size_bytes)
        with loopdevice.attached(
            os.fspath(view), offset=last.start_bytes, size_bytes=end - last.start_bytes,
            writable=True,
        ) as device:  # fmt: skip
            _check_ext(device)
            _e2fs(["resize2fs", device])


def _shrink(hdd: Hdd, size_bytes: int, *, partition: bool) -> None:
    least = info(hdd)
    last = _last(least.partitions)
    cut = last is not None and _end(last, last.end_bytes) > size_bytes
    if cut and not partition:
        raise ImageResizeFailed(
            f"the last partition ends behind {size_bytes // _MIB} MB",
            hint="--resize_partition makes it smaller (ext4 only)",
        )
    if size_bytes < least.minimum_bytes:
        raise ImageResizeFailed(
            f"the data need {-(-least.minimum_bytes // _MIB)} MB",
            hint="prl_disk_tool resize --info shows the minimum",
        )
    if last is not None:
        with _content(hdd, writable=True) as view:
            if cut:
                last = _resizable(view, hdd.path)
                end = _inner_end(last, size_bytes)
                with loopdevice.attached(
                    os.fspath(view), offset=last.start_bytes, size_bytes=last.size_bytes,
                    writable=True,
                ) as device:  # fmt: skip
                    _check_ext(device)
                    _e2fs(["resize2fs", device, f"{(end - last.start_bytes) // 1024}K"])
            else:
                end = last.end_bytes
            _set_end(view, last, end, size_bytes)
    images.resize(hdd.path, size_bytes, hdd.format, shrink=True)


def _inner_end(last: Partition, size_bytes: int) -> int:
    """Return where the last partition of a disk of ``size_bytes`` ends, on a block of 4 KiB."""
    spare = _SPARE_SECTORS * partitions.SECTOR if last.table == "gpt" else 0
    end = size_bytes - spare
    return last.start_bytes + (end - last.start_bytes) // 4096 * 4096


def _end(last: Partition, end_bytes: int) -> int:
    """Return how large a disk is on which the last partition ends at ``end_bytes``."""
    return end_bytes + (_SPARE_SECTORS * partitions.SECTOR if last.table == "gpt" else 0)


def _set_end(view: Path, last: Partition, end_bytes: int, disk_bytes: int) -> None:
    with open(view, "r+b") as file:
        try:
            partitions.set_end(file, last, end_bytes, disk_bytes)
        except BadTable as error:
            raise ImageResizeFailed(str(error)) from error
        file.flush()
        os.fsync(file.fileno())


def _resizable(view: Path, image: Path) -> Partition:
    last = _last(_partitions(view, image))
    if last is None:
        raise ImageResizeFailed(f"{image} has no partition", hint="leave out --resize_partition")
    if last.file_system not in _EXT:
        raise ImageResizeFailed(
            f"the last partition holds {last.file_system or 'an unknown file system'}, "
            "which cannot be resized from outside",
            hint="leave out --resize_partition, and resize it in the guest",
        )
    return last


def compact(hdd: Hdd, progress: Progress) -> tuple[int, int]:
    """Give back what the guest's file systems do not use; return bytes before and after.

    Raises ImageConvertFailed for a plain disk.
    """
    if hdd.format != "qcow2":
        raise ImageConvertFailed(
            f"{hdd.path} is a plain disk: its size is fixed", hint="convert --expanding first"
        )
    hdd.check_idle("compact the disk of")
    before = images.info(hdd.path).actual_bytes
    images.check(hdd.path, hdd.format)
    with _content(hdd, writable=True) as view:
        for part in _partitions(view, hdd.path):
            if part.file_system in _EXT:
                _trim(view, part)
    if images.backing_file(hdd.path) is None:
        _replace(hdd.path, hdd, "qcow2", progress)
    after = images.info(hdd.path).actual_bytes
    progress.say(f"The disk has been successfully compacted: {before // _MIB} → {after // _MIB} MB")
    return before, after


def _trim(view: Path, part: Partition) -> None:
    point = view.with_name(f"{view.name}.{part.number}")
    point.mkdir()
    with loopdevice.attached(
        os.fspath(view), offset=part.start_bytes, size_bytes=part.size_bytes, writable=True
    ) as device:
        # Blocks of an unclean file system must not be judged free.
        _check_ext(device)
        syscalls.mount(device, point, "ext4", syscalls.MS_NOSUID | syscalls.MS_NODEV, "")
        try:
            fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(fd, _FITRIM, struct.pack("<QQQ", 0, 2**64 - 1, 0))
            finally:
                os.close(fd)
        finally:
            syscalls.umount(point)
    point.rmdir()


def convert(hdd: Hdd, progress: Progress, *, plain: bool) -> Path:
    """Make a disk plain or expanding; return its image's new path. Raises ImageConvertFailed."""
    wanted = "raw" if plain else "qcow2"
    if hdd.format == wanted:
        raise ImageConvertFailed(f"{hdd.path} is {'plain' if plain else 'expanding'} already")
    hdd.check_idle("convert the disk of")
    suffix = ".raw" if plain else ".qcow2"
    # Never the name it has: between the new file and the new description each must name its own.
    swaps = hdd.path.suffix in (".raw", ".qcow2") and hdd.path.suffix != suffix
    target = hdd.path.with_suffix(suffix) if swaps else Path(f"{hdd.path}{suffix}")
    if target.exists():
        raise ImageConvertFailed(f"{target} exists", hint="remove or rename it first")
    if hdd.machine is None:
        _replace(target, hdd, wanted, progress)
        files.remove(hdd.path)
    else:
        machine = hdd.machine
        entry = journal.record(
            machine.paths, machine.record.uuid, CONVERT, images=[str(hdd.path), str(target)]
        )
        try:
            _replace(target, hdd, wanted, progress)
            domain = machine.current().copy()
            for disk in devices.disks(domain):
                if Path(disk.image) == hdd.path:
                    disk.image, disk.format = str(target), wanted
            machine.commit(domain)
        finally:
            settle_conversion(machine, [hdd.path, target])
            entry.clear()
    progress.say("The disk has been successfully converted.")
    return target


def settle_conversion(machine: Machine, pair: list[Path]) -> None:
    """Keep that one of a converted disk's two images which the machine's description names."""
    machine.save()
    named = {Path(disk.image) for disk in devices.disks(machine.current()) if disk.image}
    if named.isdisjoint(pair):
        return
    for image in pair:
        if image not in named:
            files.remove(image)


def merge(hdd: Hdd, progress: Progress) -> None:
    """Make a linked disk independent of its base; raises ImageConvertFailed."""
    if images.backing_file(hdd.path) is None:
        raise ImageConvertFailed(f"{hdd.path} stands alone: there is nothing to merge")
    hdd.check_idle("merge the disk of")
    _replace(hdd.path, hdd, "qcow2", progress)
    progress.say("The disk has been successfully merged.")


def _replace(target: Path, hdd: Hdd, to: str, progress: Progress) -> None:
    """Write the content into a new image, which takes the name ``target`` when it is whole."""
    temporary = target.with_name(f".tmp-{target.name}.{os.getpid()}")
    owner = hdd.path.stat()
    images.convert(
        hdd.path, temporary, to=to, source_format=hdd.format,
        progress=lambda percent: progress.amount(f"Converting {hdd.path.name}", percent, 100),
    )  # fmt: skip
    fd = os.open(temporary, os.O_RDONLY)
    try:
        os.fchmod(fd, owner.st_mode & 0o777)
        os.fchown(fd, owner.st_uid, owner.st_gid)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, target)
    files.fsync_directory(target.parent)


@contextmanager
def _content(hdd: Hdd, *, writable: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=diskview.SCRATCH, dir=hdd.scratch) as work:
        with diskview.opened(hdd.path, hdd.format, Path(work), writable=writable) as view:
            yield view


def _partitions(view: Path, image: Path) -> list[Partition]:
    with open(view, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            return partitions.read(file, size)
        except BadTable as error:
            raise ImageResizeFailed(f"{image}: {error}") from error


def _last(parts: tuple[Partition, ...] | list[Partition]) -> Partition | None:
    return max(parts, key=lambda part: part.end_bytes, default=None)


def _least_ext(view: Path, part: Partition) -> int:
    with loopdevice.attached(
        os.fspath(view), offset=part.start_bytes, size_bytes=part.size_bytes, writable=False
    ) as device:
        blocks = re.search(r": *(\d+)", _e2fs(["resize2fs", "-P", device]))
        size = re.search(r"Block size: *(\d+)", _e2fs(["dumpe2fs", "-h", device]))
    if blocks is None or size is None:
        raise ImageResizeFailed("resize2fs tells no minimum")
    return int(blocks[1]) * int(size[1])


def _check_ext(device: str) -> None:
    _e2fs(["e2fsck", "-f", "-p", device], good=(0, 1))


def _e2fs(argv: list[str], good: tuple[int, ...] = (0,)) -> str:
    """Run a program of e2fsprogs; return what it printed. Raises ImageResizeFailed."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise NoKernelSupport(
            f"{argv[0]} is not installed", hint="apt-get install e2fsprogs"
        ) from None
    if done.returncode not in good:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ImageResizeFailed(f"{argv[0]}: {lines[-1] if lines else done.returncode}")
    return done.stdout


def size_of(text: str) -> int:
    """Return ``N[K|M|G|T]`` in bytes, a bare number counting megabytes; raises InvalidOption."""
    from runtime import units

    match = re.fullmatch(r"[0-9]+(\.[0-9]+)?[kKmMgGtT]?", text)
    if match is None:
        raise InvalidOption(f"not a size: {text!r}", hint="write 10G, or a number of megabytes")
    size = units.amount(text, unit=_MIB) * _MIB if text[-1].isdigit() else units.amount(text)
    return size // partitions.SECTOR * partitions.SECTOR
