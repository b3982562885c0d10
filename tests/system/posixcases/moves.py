"""Random acts upon a tree, as values: what a differential test plays on two file systems."""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from . import calls
from .frame import DEVICE, TYPE_BITS

Argument = int | str | bytes


@dataclass(frozen=True)
class Move:
    """One act: the name of a method of `Player` and its arguments."""

    name: str
    arguments: tuple[Argument, ...] = ()


@dataclass
class Player:
    """Plays moves on one tree and says what came of each: a value, or the name of an error."""

    root: str
    slots: dict[int, int] = field(default_factory=dict)

    def play(self, move: Move) -> object:
        """Return what the move returned; an OSError is a result like any other."""
        act: Callable[..., object] = getattr(self, move.name)
        try:
            return act(*move.arguments)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))

    def close(self) -> None:
        """Close what is open."""
        for descriptor in self.slots.values():
            os.close(descriptor)
        self.slots.clear()

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    # Names

    def create(self, path: str, data: bytes) -> None:
        """Create or overwrite a file."""
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK
        descriptor = os.open(self._at(path), flags, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def mkdir(self, path: str) -> None:
        """Make a folder."""
        os.mkdir(self._at(path), 0o755)

    def node(self, path: str, kind: str) -> None:
        """Make a fifo, socket or device."""
        os.mknod(
            self._at(path), TYPE_BITS[kind] | 0o640, DEVICE if kind in ("char", "block") else 0
        )

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        os.symlink(target, self._at(path))

    def link(self, old: str, new: str) -> None:
        """Make a hard link."""
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        """Remove a folder."""
        os.rmdir(self._at(path))

    def rename(self, old: str, new: str, flags: int) -> None:
        """Rename with renameat2 flags."""
        calls.renameat2(self._at(old), self._at(new), flags)

    # Attributes

    def chmod(self, path: str, mode: int) -> None:
        """Set the mode."""
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Set the owner of the object itself."""
        os.lchown(self._at(path), uid, gid)

    def times(self, path: str, seconds: int) -> None:
        """Set both times."""
        moment = (seconds, seconds % 999)
        calls.utimensat(self._at(path), moment, moment, calls.AT_SYMLINK_NOFOLLOW)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        """Set an attribute."""
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        """Remove an attribute."""
        os.removexattr(self._at(path), name, follow_symlinks=False)

    # Content

    def truncate(self, path: str, size: int) -> None:
        """Set the size."""
        os.truncate(self._at(path), size)

    def write(self, path: str, offset: int, data: bytes) -> int:
        """Write at an offset."""
        descriptor = os.open(self._at(path), os.O_WRONLY | os.O_NONBLOCK)
        try:
            return os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)

    def append(self, path: str, data: bytes) -> int:
        """Write at the end."""
        descriptor = os.open(self._at(path), os.O_RDWR | os.O_APPEND | os.O_NONBLOCK)
        try:
            return os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def allocate(self, path: str, mode: int, offset: int, length: int) -> None:
        """Allocate, punch or zero a range."""
        descriptor = os.open(self._at(path), os.O_RDWR | os.O_NONBLOCK)
        try:
            calls.fallocate(descriptor, mode, offset, length)
        finally:
            os.close(descriptor)

    def copy(self, old: str, new: str, length: int, offset: int) -> int:
        """Copy a range of one file into another."""
        if os.stat(self._at(old)).st_ino == os.stat(self._at(new)).st_ino:
            return 0  # whether overlapping ranges are noticed depends on what is open besides
        source = os.open(self._at(old), os.O_RDONLY | os.O_NONBLOCK)
        try:
            target = os.open(self._at(new), os.O_WRONLY | os.O_NONBLOCK)
            try:
                return os.copy_file_range(source, target, length, 0, offset)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def read(self, path: str) -> bytes:
        """Return the content."""
        descriptor = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b""
            return os.read(descriptor, 1 << 20)
        finally:
            os.close(descriptor)

    def listing(self, path: str) -> list[str]:
        """Return the names in a folder."""
        return sorted(os.listdir(self._at(path)))

    def look(self, path: str) -> tuple[object, ...]:
        """Return what stat tells, times left out."""
        status = os.lstat(self._at(path))
        folder = stat.S_ISDIR(status.st_mode)
        size = None if folder else (status.st_size, status.st_nlink)
        return oct(status.st_mode), status.st_uid, status.st_gid, size, status.st_rdev

    # Descriptors which stay open while the tree changes

    def open(self, slot: int, path: str, flags: int) -> None:
        """Open for reading and writing, and keep it open."""
        self.shut(slot)
        self.slots[slot] = os.open(self._at(path), os.O_RDWR | os.O_NONBLOCK | flags, 0o600)

    def shut(self, slot: int) -> None:
        """Close a kept descriptor."""
        if slot in self.slots:
            os.close(self.slots.pop(slot))

    def put(self, slot: int, offset: int, data: bytes) -> int | None:
        """Write through a kept descriptor."""
        return os.pwrite(self.slots[slot], data, offset) if self._regular(slot) else None

    def get(self, slot: int) -> bytes | None:
        """Read through a kept descriptor."""
        return os.pread(self.slots[slot], 1 << 20, 0) if self._regular(slot) else None

    def cut(self, slot: int, size: int) -> None:
        """Set the size through a kept descriptor."""
        if self._regular(slot):
            os.ftruncate(self.slots[slot], size)

    def change(self, slot: int, mode: int) -> tuple[str, int] | None:
        """Set the mode through a kept descriptor; return mode and link count."""
        if slot not in self.slots:
            return None
        os.fchmod(self.slots[slot], mode)
        status = os.fstat(self.slots[slot])
        return oct(status.st_mode), status.st_nlink

    def _regular(self, slot: int) -> bool:
        return slot in self.slots and stat.S_ISREG(os.fstat(self.slots[slot]).st_mode)
