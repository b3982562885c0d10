"""A charge: an inode which may change unseen, and how it is found again by its number."""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import suppress

from vzfs import syscalls
from vzfs.quotalayout import C_FLAGS, C_HANDLE, C_INODE, HANDLE_MAX

#: FILEID_INO32_GEN (include/linux/exportfs.h): inode number, generation.
_INO32_GEN = 1


class Charge:
    """One inode that may change unseen, what was charged for it, and its place in the file."""

    __slots__ = (
        "at",
        "blocks",
        "closed_s",
        "fd",
        "gid",
        "inode",
        "orphan",
        "uid",
        "words",
        "writers",
    )

    def __init__(self, inode: int, uid: int, gid: int, blocks: int) -> None:
        self.inode = inode
        self.uid = uid
        self.gid = gid
        self.blocks = blocks
        self.writers = 0
        self.orphan = False
        #: When the last writer left (monotonic), 0 while there is one.
        self.closed_s = 0.0
        self.words: memoryview | None = None
        self.at = 0


class Handles:
    """Finds inodes of one file system by number: open_by_handle_at(2)."""

    __slots__ = ("_by_number", "_fd", "usable")

    def __init__(self, area: int | str) -> None:
        """Use the file system of directory ``area``; ``usable`` says whether that is possible."""
        path = f"/proc/self/fd/{area}/." if isinstance(area, int) else area
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.usable = False
        #: Whether the inode number alone is enough (ext4 takes generation 0 for "any").
        self._by_number = False
        try:
            inode = os.fstat(self._fd).st_ino
            handle = syscalls.name_to_handle(self._fd, b"")
            if len(handle.data) <= HANDLE_MAX:
                os.close(syscalls.open_by_handle(self._fd, handle, os.O_PATH))
                self.usable = True
            with suppress(OSError):
                self._by_number = self._stat(_numbered(inode)).st_ino == inode
        except OSError:
            pass

    def describe(self, fd: int) -> syscalls.Handle | None:
        """Return the handle to be recorded for ``fd``; None when the number is enough, or nothing."""
        if self._by_number or not self.usable or fd < 0:
            return None
        with suppress(OSError):
            return syscalls.name_to_handle(fd, b"")
        return None

    def open(self, words: memoryview, at: int) -> int:
        """Return an O_PATH descriptor of the inode of a recorded charge; raises OSError."""
        flags = words[at + C_FLAGS]
        length = flags >> 8 & 0xFF
        if length:
            raw = struct.pack("<4q", *words[at + C_HANDLE : at + C_HANDLE + 4])
            handle = syscalls.Handle(flags >> 32, raw[:length])
        elif self._by_number:
            handle = _numbered(words[at + C_INODE])
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return syscalls.open_by_handle(self._fd, handle, os.O_PATH)

    def stat(self, words: memoryview, at: int) -> os.stat_result | None:
        """Return the status of the inode of a recorded charge; None when it is gone."""
        try:
            fd = self.open(words, at)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOENT):
                return None
            raise
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return found if found.st_ino == words[at + C_INODE] else None

    def allocate(self, words: memoryview, at: int) -> None:
        """Have what was written to the inode of a charge allocated on the disk; raises OSError.

        Its data are written for that, and waited for, but nothing is made durable
        (sync_file_range(2)).
        """
        path = b"/proc/self/fd/%d"
        handle = self.open(words, at)
        try:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                fd = os.open(path % handle, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
                try:
                    syscalls.write_out(fd)
                finally:
                    os.close(fd)
        finally:
            os.close(handle)

    def _stat(self, handle: syscalls.Handle) -> os.stat_result:
        fd = syscalls.open_by_handle(self._fd, handle, os.O_PATH)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the directory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _numbered(inode: int) -> syscalls.Handle:
    if inode >> 32:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
    return syscalls.Handle(_INO32_GEN, struct.pack("<II", inode, 0))
