"""Requests of /dev/fuse on the contents of files, and the backing files the kernel reads itself."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from typing import TYPE_CHECKING

from vzfs import protocol
from vzfs.inodes import File
from vzfs.kernelreplies import GONE, Replies
from vzfs.options import SESSION
from vzfs.protocol import OUT_HEADER, OUT_SIZE
from vzfs.resend import LONGEST, PLAIN, Hand

if TYPE_CHECKING:
    from vzfs.operations import Operations

_IN = protocol.IN_SIZE
#: Backing files kept registered after the last open, for the next one.
_BACKINGS = 128
#: How long ids of a former server stay: a reply of its may not have been taken in yet.
_LEFT_S = 2.0
#: How many of them are closed between two requests.
_CLOSED_AT_A_TIME = 1024


class FileRequests(Replies):
    """Handlers of open files."""

    def __init__(self, fd: int, core: Operations, flags: int, hand: Hand) -> None:
        super().__init__(fd, core, flags)
        #: Registered backing files nobody has open, oldest first: node id → node.
        self._idle: dict[int, File] = {}
        #: The highest id a former server may have left registered, 0 when none is left.
        self._left = 0
        self._left_until_s = 0.0
        #: Where requests arrive.
        self.hand = hand
        hand.expect(LONGEST if core.resumed else PLAIN)

    def find_left_backings(self) -> None:
        """Find out what the former server had registered: it pins deleted files.

        The kernel gives ids out in turn (fs/fuse/backing.c), so all below a fresh one are its.
        What was open stays open, that does not depend on the id.
        """
        fd = os.open(SESSION, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.core.stack.work)
        try:
            self._left = self._register(fd)
        finally:
            os.close(fd)
        self._left_until_s = time.monotonic() + _LEFT_S

    def close_left_backings(self) -> None:
        """Close some of them, the newest first; call it between requests."""
        if time.monotonic() < self._left_until_s:
            return
        last = max(0, self._left - _CLOSED_AT_A_TIME)
        for number in range(self._left, last, -1):
            self._unregister(number)
        self._left = last

    def _open(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        flags, _ = protocol.OPEN_IN.unpack_from(view, _IN)
        core = self.core
        known = core.table.nodes.get(nid)
        if (
            not flags & (os.O_ACCMODE | os.O_TRUNC)
            and isinstance(known, File)
            and known.backing
            and known.twin is None
            and (known.opens or known.backing_private == known.private)
        ):
            # Opened for reading before: nothing to prepare.
            known.opens += 1
            self._idle.pop(nid, None)
            how = protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_NOFLUSH
            self._send(protocol.OPEN_REPLY.pack(32, 0, unique, 0, how, known.backing))
            return
        node = core.prepare_open(core.node(nid), flags, self._caller(view, 0))
        fh, how, backing = self._answer_open(node, flags)
        core.opened(node, flags)
        self._send(protocol.OPEN_REPLY.pack(32, 0, unique, fh, how, backing))

    def _answer_open(self, node: File, flags: int, fd: int = -1) -> tuple[int, int, int]:
        """Return (fh, FOPEN flags, backing id) for an open file."""
        core = self.core
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if core.passthrough and stat.S_ISREG(node.kind):
            backing = self._backing(node, fd)
            if backing:
                how = protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_NOFLUSH
                if writes and self._must_count(node):
                    how |= protocol.FOPEN_DIRECT_IO
                    self.hand.expect(LONGEST)
                return 0, how, backing
        if writes:
            self.hand.expect(LONGEST)
        # A control file has other contents at every read.
        how = protocol.FOPEN_KEEP_CACHE if node.kind else protocol.FOPEN_DIRECT_IO
        return 0, how | protocol.FOPEN_NOFLUSH, 0

    def _must_count(self, node: File) -> bool:
        ledger = self.core.ledger
        if ledger is None or self.core.guard is not None:
            return False
        st = self.core.stat(node)
        return ledger.near_limit(st.st_uid, st.st_gid)

    def _backing(self, node: File, fd: int = -1) -> int:
        """Return the id of the node's backing file, registering it when needed."""
        if node.backing:
            if node.opens or node.backing_private == node.private:
                self._idle.pop(node.nid, None)
                return node.backing
            self._close_backing(node)
        own = fd < 0
        if own:
            fd = self.core.open_file(node, os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK)
        try:
            node.backing = self._register(fd)
            node.backing_private = node.private
        finally:
            if own:
                os.close(fd)
        return node.backing

    def _register(self, fd: int) -> int:
        """Return a new id of a backing file, 0 when the kernel will not pass through to it."""
        request = bytearray(protocol.BACKING_MAP.pack(fd, 0, 0))
        try:
            backing: int = fcntl.ioctl(self.fd, protocol.DEV_IOC_BACKING_OPEN, request)
        except OSError as error:
            # Another FUSE, a stack too deep.
            if error.errno not in (errno.ELOOP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
                raise
            return 0
        return backing

    def _unregister(self, backing: int) -> None:
        try:
            fcntl.ioctl(self.fd, protocol.DEV_IOC_BACKING_CLOSE, struct.pack("<I", backing))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _release_backing(self, node: File) -> None:
        if node.backing:
            self._close_backing(node)

    def _close_backing(self, node: File) -> None:
        self._idle.pop(node.nid, None)
        backing, node.backing = node.backing, 0
        self._unregister(backing)

    def _release(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, flags, _, _ = protocol.RELEASE_IN.unpack_from(view, _IN)
        node = self.core.table.nodes.get(nid)
        self._ok(unique, nid, view, size)
        if isinstance(node, File):
            self.core.closed(node, flags)
            if not node.opens and node.backing:
                if node.parent is None or node.twin is not None:
                    self._close_backing(node)
                else:
                    self._keep_backing(node)

    def _keep_backing(self, node: File) -> None:
        idle = self._idle
        idle[node.nid] = node
        if len(idle) > _BACKINGS:
            self._close_backing(idle[next(iter(idle))])

    def _create(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 16 : size - 1])
        core = self.core
        node, st, fd = core.create(core.directory(nid), name, mode, self._caller(view, umask))
        self._created(unique, node, st, fd, flags)

    def _tmpfile(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(view, _IN)
        core = self.core
        node, st, fd = core.tmpfile(core.directory(nid), mode, self._caller(view, umask))
        core.orphans.add(node.nid)
        self._created(unique, node, st, fd, flags)

    def _created(self, unique: int, node: File, st: os.stat_result, fd: int, flags: int) -> None:
        try:
            fh, how, backing = self._answer_open(node, flags, fd)
        finally:
            os.close(fd)
        self.core.opened(node, flags)
        node.lookups += 1
        seconds, nanoseconds = self.seconds, self.nanoseconds
        self._send(
            protocol.CREATE_REPLY.pack(
                160,
                0,
                unique,
                node.nid,
                self.core.generation(node),
                seconds,
                seconds,
                nanoseconds,
                nanoseconds,
                *self.core.attributes(node, st),
                fh,
                how,
                backing,
            )
        )

    def _read(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, offset, length, *_ = protocol.READ_IN.unpack_from(view, _IN)
        data = self.core.read(self.core.node(nid), offset, length)
        try:
            os.writev(self.fd, (OUT_HEADER.pack(OUT_SIZE + len(data), 0, unique), data))
        except OSError as error:
            if error.errno not in GONE:
                raise

    def _write(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, offset, length, how, *_ = protocol.WRITE_IN.unpack_from(view, _IN)
        data = view[_IN + 40 : _IN + 40 + length]
        node = self.core.node(nid)
        if how & protocol.WRITE_KILL_SUIDGID:
            self.core.strip_for_write(node, self._caller(view, 0))
        count = self.core.write(node, offset, data)
        self._send(protocol.WRITE_REPLY.pack(24, 0, unique, count, 0))

    def _fsync(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, flags, _ = protocol.FSYNC_IN.unpack_from(view, _IN)
        core = self.core
        try:
            core.fsync(core.node(nid), data_only=bool(flags & protocol.FSYNC_FDATASYNC))
        except OSError as error:
            if error.errno != errno.ESTALE or not core.resumed:
                raise
            # Open since before the former server died, and not to be found any more.
            core.sync_all()
        self._ok(unique, nid, view, size)

    def _fallocate(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(view, _IN)
        self.core.fallocate(self.core.node(nid), mode, offset, length)
        self._ok(unique, nid, view, size)

    def _lseek(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, offset, whence, _ = protocol.LSEEK_IN.unpack_from(view, _IN)
        found = self.core.lseek(self.core.node(nid), offset, whence)
        self._send(protocol.LSEEK_REPLY.pack(24, 0, unique, found))

    def _copy_file_range(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        fields = protocol.COPY_FILE_RANGE_IN.unpack_from(view, _IN)
        _, offset, target, _, target_offset, length, _ = fields
        core = self.core
        source = core.node(nid)
        count = core.copy_range(source, offset, core.node(target), target_offset, length)
        self._send(protocol.WRITE_REPLY.pack(24, 0, unique, count, 0))

    def _forget(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._drop(nid, int.from_bytes(view[_IN : _IN + 8], "little"))

    def _batch_forget(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        count = int.from_bytes(view[_IN : _IN + 4], "little")
        for number in range(count):
            self._drop(*protocol.FORGET_ONE.unpack_from(view, _IN + 8 + 16 * number))

    def _drop(self, nid: int, count: int) -> None:
        node = self.core.table.nodes.get(nid)
        if isinstance(node, File) and node.backing and node.lookups <= count:
            self._close_backing(node)
        self.core.forget(nid, count)
