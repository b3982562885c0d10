"""The data of regular files: open, read, write, sync, allocate, seek, copy.

With passthrough the kernel reads and writes the backing file itself and only open, release and
the rarer calls arrive here. What does arrive takes its descriptor from a cache by node, not from
a handle: so a server which replaces a killed one goes on serving files that are open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict

from vzfs import syscalls
from vzfs.attributes import Attributes, keeps_setid, loses_setgid
from vzfs.inodes import File, Node
from vzfs.naming import SELF, Caller
from vzfs.overlay import failure, proc_directory

_CACHED = 256


class Files(Attributes):
    """The operations on the contents of files."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type] # handed through unchanged
        self._descriptors: OrderedDict[tuple[int, bool], int] = OrderedDict()
        #: Files somebody may write to, by node id, for the ledger's timer.
        self.written: dict[int, File] = {}

    @property
    def busy(self) -> bool:
        """Whether something is under way, or may change, that another server would not know of."""
        return bool(self.written) or super().busy

    def prepare_open(self, node: Node, flags: int, caller: Caller = SELF) -> File:
        """Make a file ready for open(2) with ``flags``; returns it.

        Raises `Later` while data are copied; ESTALE when the name has to be looked up again.
        """
        if not isinstance(node, File):
            raise failure(errno.EISDIR)
        if node.twin is not None:
            raise failure(errno.ESTALE)
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            return node
        truncates = bool(flags & os.O_TRUNC)
        self.own_data(node, size=0 if truncates else None)
        if node.twin is not None:
            raise failure(errno.ESTALE)
        self._check_protected(node, flags)
        if truncates:
            self._truncate(node, 0)
            self._clear_setid(node, caller)
        return node

    def _check_protected(self, node: File, flags: int) -> None:
        """Enforce what chattr(1) set; with passthrough nobody else would."""
        protection = self.flags(node)
        if protection & syscalls.FS_IMMUTABLE_FL:
            raise failure(errno.EPERM)
        if protection & syscalls.FS_APPEND_FL and (not flags & os.O_APPEND or flags & os.O_TRUNC):
            raise failure(errno.EPERM)

    def _clear_setid(self, node: File, caller: Caller) -> None:
        """Take setuid and setgid away from a file truncated at open by an ordinary user."""
        st = self.stat(node)
        mode = stat.S_IMODE(st.st_mode)
        if not mode & (stat.S_ISUID | stat.S_ISGID) or keeps_setid(caller):
            return
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP or loses_setgid(st, caller):
            kept &= ~stat.S_ISGID
        if kept != mode:
            os.chmod(self.path(node), kept)

    def opened(self, node: File, flags: int) -> None:
        """Count an open file."""
        node.opens += 1
        if flags & os.O_ACCMODE != os.O_RDONLY:
            if not node.writers and self.ledger is not None:
                node.charged = self.stat(node).st_blocks
                self.written[node.nid] = node
            node.writers += 1

    def closed(self, node: File, flags: int) -> None:
        """Count a file closed; called once for every `opened`."""
        if node.opens:
            node.opens -= 1
        if flags & os.O_ACCMODE != os.O_RDONLY and node.writers:
            node.writers -= 1
            if self.ledger is not None:
                self.measure(node)
                if not node.writers:
                    self.written.pop(node.nid, None)
        if not node.opens and node.nid in self.orphans:
            self.orphans.discard(node.nid)
            self._discharge(self.stat(node))

    def measure(self, node: File) -> None:
        """Tell the ledger what a file being written uses by now."""
        if self.ledger is None:
            return
        st = self.stat(node)
        delta = st.st_blocks - node.charged
        node.charged = st.st_blocks
        if delta > 0:
            self.record(st.st_uid, st.st_gid, delta)
        elif delta < 0:
            self.ledger.release(st.st_uid, st.st_gid, -delta, 0)

    # descriptors

    def descriptor(self, node: Node, *, write: bool) -> int:
        """Return a descriptor of the file's data, valid until the request ends."""
        if not isinstance(node, File):
            raise failure(errno.EISDIR)
        if node.twin is not None and write:
            node = node.twin
        key = (node.nid, write)
        fd = self._descriptors.get(key, -1)
        if fd >= 0:
            self._descriptors.move_to_end(key)
            return fd
        if write and not node.private:
            self.own_data(node)
        fd = self._open_data(node, write)
        self._descriptors[key] = fd
        return fd

    def _open_data(self, node: File, write: bool) -> int:
        if not write:
            return self.open_file(node, os.O_RDONLY)
        try:
            return self.open_file(node, os.O_RDWR)
        except PermissionError:
            # chattr(1) +a; the kernel has seen to it that who writes appends.
            return self.open_file(node, os.O_RDWR | os.O_APPEND)

    def drop_descriptors(self, node: File) -> None:
        """Close what the cache holds of a file."""
        for write in (False, True):
            fd = self._descriptors.pop((node.nid, write), -1)
            if fd >= 0:
                os.close(fd)

    def data_changed(self, node: File) -> None:
        """Let readers see the copy instead of the lower file."""
        super().data_changed(node)
        self.drop_descriptors(node)

    def retire(self, node: Node) -> None:
        """Release what a forgotten node held."""
        if isinstance(node, File) and self._descriptors:
            self.drop_descriptors(node)
        super().retire(node)

    def trim(self) -> None:
        """Bound what is held; called between requests."""
        super().trim()
        while len(self._descriptors) > _CACHED:
            _, fd = self._descriptors.popitem(last=False)
            os.close(fd)

    # data

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        return os.pread(self.descriptor(node, write=False), size, offset)

    def write(self, node: Node, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``; returns the count. Raises ENOSPC, EDQUOT, EFBIG."""
        fd = self.descriptor(node, write=True)
        if self.ledger is None or not isinstance(node, File):
            return os.pwrite(fd, data, offset)
        real = node.twin or node
        before = os.fstat(fd)
        if not real.writers:
            real.charged = before.st_blocks
        wanted = self._growth(before, offset, len(data))
        if wanted:
            self.ledger.reserve(before.st_uid, before.st_gid, wanted, 0)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            if wanted:
                self.ledger.release(before.st_uid, before.st_gid, wanted, 0)
            after = os.fstat(fd)
            delta = after.st_blocks - real.charged
            real.charged = after.st_blocks
            if delta > 0:
                self.record(after.st_uid, after.st_gid, delta)
            elif delta < 0:
                self.ledger.release(after.st_uid, after.st_gid, -delta, 0)

    @staticmethod
    def _growth(st: os.stat_result, offset: int, length: int) -> int:
        """Return the most blocks of 512 bytes a write can add."""
        unit = st.st_blksize
        first, last = offset // unit, (offset + length + unit - 1) // unit
        allocated = st.st_blocks * 512
        if st.st_size <= allocated and last * unit <= allocated:
            return 0  # no holes, inside what there is
        if st.st_size <= allocated:
            return max(0, last * unit - max(allocated, first * unit)) // 512
        return (last - first) * unit // 512

    def fsync(self, node: Node, *, data_only: bool) -> None:
        """Make a file or directory durable."""
        if isinstance(node, File):
            real = node.twin or node
            if not real.has_copy:
                return
            fd = self.open_file(real, os.O_RDONLY, data=False)
        else:
            fd = os.open(self.path(node), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if data_only:
                os.fdatasync(fd)
            else:
                os.fsync(fd)
        finally:
            os.close(fd)

    def sync_all(self) -> None:
        """Make everything in the private layer durable."""
        fd = os.open(proc_directory(self.stack.upper.root.fd), os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)

    def fallocate(self, node: Node, mode: int, offset: int, length: int) -> None:
        """Do fallocate(2) of any mode."""
        fd = self.descriptor(node, write=True)
        if self.ledger is None or not isinstance(node, File):
            syscalls.fallocate(fd, mode, offset, length)
            return
        before = os.fstat(fd)
        releases = mode & (syscalls.FALLOC_FL_PUNCH_HOLE | 0x08)
        wanted = 0 if releases else self._growth(before, offset, length)
        if wanted:
            self.ledger.reserve(before.st_uid, before.st_gid, wanted, 0)
        try:
            syscalls.fallocate(fd, mode, offset, length)
        finally:
            if wanted:
                self.ledger.release(before.st_uid, before.st_gid, wanted, 0)
            self.recharge(node.twin or node, before, os.fstat(fd))

    def lseek(self, node: Node, offset: int, whence: int) -> int:
        """Return where the next data or hole is, lseek(2)."""
        return os.lseek(self.descriptor(node, write=False), offset, whence)

    def copy_range(
        self,
        source: Node,
        source_offset: int,
        target: Node,
        target_offset: int,
        length: int,
    ) -> int:
        """Copy bytes between files in the kernel; returns the count."""
        target_fd = self.descriptor(target, write=True)
        source_fd = self.descriptor(source, write=False)
        before = os.fstat(target_fd)
        length = min(length, 1 << 30)
        wanted = 0
        if self.ledger is not None:
            wanted = self._growth(before, target_offset, length)
            self.ledger.reserve(before.st_uid, before.st_gid, wanted, 0)
        try:
            return os.copy_file_range(source_fd, target_fd, length, source_offset, target_offset)
        finally:
            if self.ledger is not None and isinstance(target, File):
                self.ledger.release(before.st_uid, before.st_gid, wanted, 0)
                self.recharge(target.twin or target, before, os.fstat(target_fd))

    def tick(self) -> None:
        """Measure the files being written; called about once a second."""
        for node in list(self.written.values()):
            try:
                self.measure(node)
            except OSError:
                self.written.pop(node.nid, None)
