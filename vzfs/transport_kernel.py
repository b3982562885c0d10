"""The transport which speaks the protocol of /dev/fuse itself, with passthrough.

One thread reads a request, runs the operation, writes the reply. `Later` parks the request until
the job's thread is done. The request buffer is an anonymous mapping: pages of it which no request
ever reached cost nothing.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import stat
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vzfs import protocol
from vzfs.attributes import Change
from vzfs.inodes import Directory, File, Node
from vzfs.listing import DOT, DOTDOT
from vzfs.naming import Caller
from vzfs.overlay import NANO, Job, Later, failure
from vzfs.protocol import OUT_HEADER, OUT_SIZE, Op

if TYPE_CHECKING:
    from vzfs.operations import Operations

_MAX_WRITE = 1 << 20
_WANTED = (
    protocol.ASYNC_READ
    | protocol.ATOMIC_O_TRUNC
    | protocol.BIG_WRITES
    | protocol.DONT_MASK
    | protocol.DO_READDIRPLUS
    | protocol.ASYNC_DIO
    | protocol.PARALLEL_DIROPS
    | protocol.POSIX_ACL
    | protocol.MAX_PAGES
    | protocol.CACHE_SYMLINKS
    | protocol.NO_OPENDIR_SUPPORT
    | protocol.EXPLICIT_INVAL_DATA
    | protocol.HANDLE_KILLPRIV_V2
    | protocol.SETXATTR_EXT
    | protocol.DIRECT_IO_ALLOW_MMAP
    | protocol.HAS_RESEND
    | protocol.ALLOW_IDMAP
)
#: Requests which make a name, and where it is in them.
_MAKES = {Op.MKNOD: 16, Op.MKDIR: 8, Op.SYMLINK: 0, Op.LINK: 8, Op.CREATE: 16}
#: What nobody needs to be told of when the reply cannot be delivered any more.
_GONE = (errno.ENOENT, errno.EINTR, errno.EAGAIN)
#: Backing files kept registered after the last open, for the next one.
_BACKINGS = 128
_IN = protocol.IN_SIZE

Handler = Callable[[int, int, memoryview, int], None]


class _Unmounted(Exception):
    """The connection ended."""


class KernelTransport:
    """Serves one connection."""

    def __init__(self, fd: int, core: Operations, flags: int = 0) -> None:
        """Serve ``core`` on a /dev/fuse descriptor; ``flags`` are those of a former server."""
        self.fd = fd
        self.core = core
        self.flags = flags
        timeout = core.options.timeout_s
        self.seconds = int(timeout)
        self.nanoseconds = int((timeout - int(timeout)) * NANO)
        #: Called when INIT was answered, with the flags agreed on.
        self.on_init: Callable[[int], None] | None = None
        self._wake = -1
        self._parked: dict[Job, list[bytes]] = {}
        self._finished: deque[Job] = deque()
        #: Registered backing files nobody has open, oldest first: node id → node.
        self._idle: dict[int, File] = {}
        self._tick = 0.0
        #: Requests served when the kernel may be asked to prune again.
        self._pruned = 0
        self._handlers: list[Handler] = [self._unknown] * 128
        for op, handler in self._table().items():
            self._handlers[op] = handler
        core.invalidate = self._invalidate  # type: ignore[method-assign] # the core's way out
        if flags:
            self._settle(flags)

    def _table(self) -> dict[Op, Handler]:
        return {
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._setattr,
            Op.READLINK: self._readlink,
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.LINK: self._link,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.STATFS: self._statfs,
            Op.RELEASE: self._release,
            Op.FSYNC: self._fsync,
            Op.FSYNCDIR: self._fsync,
            Op.SETXATTR: self._setxattr,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.REMOVEXATTR: self._removexattr,
            Op.INIT: self._init,
            Op.READDIR: self._readdir,
            Op.RELEASEDIR: self._ok,
            Op.CREATE: self._create,
            Op.INTERRUPT: self._ignore,
            Op.DESTROY: self._destroy,
            Op.IOCTL: self._ioctl,
            Op.BATCH_FORGET: self._batch_forget,
            Op.FALLOCATE: self._fallocate,
            Op.READDIRPLUS: self._readdirplus,
            Op.RENAME2: self._rename2,
            Op.LSEEK: self._lseek,
            Op.COPY_FILE_RANGE: self._copy_file_range,
            Op.TMPFILE: self._tmpfile,
            Op.STATX: self._statx,
        }

    # the loop

    def serve(self) -> None:
        """Answer requests until the file system is unmounted."""
        buffer = mmap.mmap(-1, _MAX_WRITE + 8192)
        view = memoryview(buffer)
        buffers = [buffer]
        start = protocol.IN_START.unpack_from
        handlers, fd, core, readv = self._handlers, self.fd, self.core, os.readv
        served, limit = 0, core.options.node_limit
        if core.resumed:
            self._ask_again()
        while True:
            if self._parked or core.written:
                self._wait()
            try:
                size = readv(fd, buffers)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    break
                raise
            _, op, unique, nid = start(buffer, 0)
            try:
                handlers[op](unique, nid, view, size)
            except OSError as error:
                if not (unique & protocol.UNIQUE_RESEND and self._was_done(view, size, error)):
                    self._error(unique, error.errno or errno.EIO)
            except Later as later:
                self._park(later.job, bytes(view[:size]))
            except _Unmounted:
                break
            except Exception:
                traceback.print_exc(file=sys.stderr)
                self._error(unique, errno.EIO)
            served += 1
            if core.ledger is not None or not served & 31:
                core.trim()
            if len(core.table.nodes) > limit and served > self._pruned:
                self._prune()
                self._pruned = served + limit // 4  # what was asked for comes one by one

    def _ask_again(self) -> None:
        """Have the kernel send what the former server took and did not answer, Linux 6.9."""
        try:
            os.write(self.fd, OUT_HEADER.pack(OUT_SIZE, protocol.NOTIFY_RESEND, 0))
        except OSError as error:
            print(f"vzfs: unanswered requests are lost: {error.strerror}", file=sys.stderr)

    def _was_done(self, view: memoryview, size: int, error: OSError) -> bool:
        """Answer a repeated request that failed because it was done before; else return False."""
        _, op, unique, nid = protocol.IN_START.unpack_from(view, 0)
        core = self.core
        try:
            if error.errno == errno.EEXIST and op in _MAKES:
                name = bytes(view[_IN + _MAKES[Op(op)] : size]).partition(b"\0")[0]
                node, st = core.lookup(core.directory(nid), name)
                if op != Op.CREATE:
                    self._entry(unique, node, st)
                elif isinstance(node, File):
                    flags = protocol.CREATE_IN.unpack_from(view, _IN)[0]
                    self._created(unique, node, st, core.open_file(node, os.O_RDWR), flags)
                return True
            if error.errno == errno.ENOENT and op in (Op.RENAME, Op.RENAME2):
                head = 8 if op == Op.RENAME else 16
                (to,) = protocol.RENAME_IN.unpack_from(view, _IN)
                core.lookup(core.directory(to), self._names(view, _IN + head, size)[1])
        except (OSError, Later):
            return False
        done = {Op.UNLINK: errno.ENOENT, Op.RMDIR: errno.ENOENT, Op.RENAME: errno.ENOENT}
        done |= {Op.RENAME2: errno.ENOENT, Op.SETXATTR: errno.EEXIST}
        done |= {Op.REMOVEXATTR: errno.ENODATA}
        if done.get(op) != error.errno:
            return False
        self._send(OUT_HEADER.pack(OUT_SIZE, 0, unique))
        return True

    def _dispatch(self, request: bytes) -> None:
        """Run a parked request again."""
        _, op, unique, nid = protocol.IN_START.unpack_from(request, 0)
        try:
            self._handlers[op](unique, nid, memoryview(request), len(request))
        except OSError as error:
            self._error(unique, error.errno or errno.EIO)
        except Later as later:
            self._park(later.job, request)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._error(unique, errno.EIO)

    def _park(self, job: Job, request: bytes) -> None:
        waiting = self._parked.get(job)
        if waiting is not None:
            waiting.append(request)
            return
        self._parked[job] = [request]
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

        def run() -> None:
            job.run()
            self._finished.append(job)
            os.eventfd_write(self._wake, 1)

        threading.Thread(target=run, daemon=True).start()

    def _wait(self) -> None:
        """Wait for a request, finishing jobs and measuring written files meanwhile."""
        while True:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            if self._wake >= 0:
                poll.register(self._wake, select.POLLIN)
            timeout = 1000 if self.core.written else None
            ready = poll.poll(timeout)
            if self.core.written and time.monotonic() - self._tick > 1:
                self.core.tick()
                self._tick = time.monotonic()
            if any(fd == self._wake for fd, _ in ready):
                os.eventfd_read(self._wake)
                while self._finished:
                    self._complete(self._finished.popleft())
            if any(fd == self.fd for fd, _ in ready):
                return

    def _complete(self, job: Job) -> None:
        waiting = self._parked.pop(job)
        try:
            job.finish()
        except OSError as error:
            job.error = job.error or error
        for request in waiting:
            if job.error is not None:
                unique = protocol.IN_START.unpack_from(request, 0)[2]
                self._error(unique, job.error.errno or errno.EIO)
            else:
                self._dispatch(request)

    def _prune(self) -> None:
        """Ask the kernel to let go of inodes nobody uses, so that our memory stays bounded."""
        nodes = [n.nid for n in self.core.table.nodes.values() if isinstance(n, File)]
        for start in range(0, len(nodes), 4096):
            part = nodes[start : start + 4096]
            head = protocol.PRUNE.pack(
                OUT_SIZE + 16 + 8 * len(part), protocol.NOTIFY_PRUNE, 0, len(part), 0, 0
            )
            try:
                os.write(self.fd, head + struct.pack(f"<{len(part)}Q", *part))
            except OSError:
                return

    def _invalidate(self, node: Node) -> None:
        head = protocol.INVAL_INODE.pack(
            OUT_SIZE + 24, protocol.NOTIFY_INVAL_INODE, 0, node.nid, -1, 0
        )
        self._send(head)

    # replies

    def _send(self, data: bytes) -> None:
        try:
            os.write(self.fd, data)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _error(self, unique: int, number: int) -> None:
        try:
            os.write(self.fd, OUT_HEADER.pack(OUT_SIZE, -number, unique))
        except OSError as error:
            if error.errno not in (*_GONE, errno.ENODEV):
                traceback.print_exc(file=sys.stderr)

    def _reply(self, unique: int, data: bytes) -> None:
        self._send(OUT_HEADER.pack(OUT_SIZE + len(data), 0, unique) + data)

    def _ok(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._send(OUT_HEADER.pack(OUT_SIZE, 0, unique))

    def _entry(self, unique: int, node: Node, st: os.stat_result) -> None:
        node.lookups += 1
        seconds, nanoseconds = self.seconds, self.nanoseconds
        if isinstance(node, File) and node.magic and stat.S_ISLNK(st.st_mode):
            seconds = nanoseconds = 0  # made as a link; the next lookup shows the file
        self._send(
            protocol.ENTRY_REPLY.pack(
                144,
                0,
                unique,
                node.nid,
                0,
                seconds,
                seconds,
                nanoseconds,
                nanoseconds,
                *self.core.attributes(node, st),
            )
        )

    def _attr(self, unique: int, node: Node, st: os.stat_result) -> None:
        # What another node changes as well must be asked for every time.
        shared = isinstance(node, File) and node.twin is not None
        self._send(
            protocol.ATTR_REPLY.pack(
                120,
                0,
                unique,
                0 if shared else self.seconds,
                0 if shared else self.nanoseconds,
                0,
                *self.core.attributes(node, st),
            )
        )

    def _caller(self, view: memoryview, umask: int) -> Caller:
        uid, gid, pid = protocol.IN_CALLER.unpack_from(view, 24)
        shift = self.core.shift
        if shift is not None:
            uid, gid = shift.inward(uid), shift.inward(gid)
        return Caller(uid, gid, umask, pid)

    @staticmethod
    def _names(view: memoryview, start: int, size: int) -> list[bytes]:
        return bytes(view[start : size - 1]).split(b"\0")

    # session

    def _init(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, minor, readahead, flags, flags2 = protocol.INIT_IN.unpack_from(view, _IN)
        offered = flags | (flags2 << 32 if flags & protocol.INIT_EXT else 0)
        wanted = _WANTED | protocol.INIT_EXT
        depth = 0
        if self.core.options.passthrough:
            wanted |= protocol.PASSTHROUGH
        agreed = offered & wanted
        if agreed & protocol.PASSTHROUGH:
            depth = 1
        out = protocol.INIT_OUT.pack(
            protocol.MAJOR,
            min(minor, protocol.MINOR),
            readahead,
            agreed & 0xFFFFFFFF,
            64,
            48,
            _MAX_WRITE,
            1,
            _MAX_WRITE // 4096,
            0,
            agreed >> 32,
            depth,
            0,
        )
        self._reply(unique, out)
        self._settle(agreed)
        if self.on_init is not None:
            self.on_init(agreed)

    def _settle(self, flags: int) -> None:
        self.flags = flags
        self.core.passthrough = bool(flags & protocol.PASSTHROUGH)

    def _destroy(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._send(OUT_HEADER.pack(OUT_SIZE, 0, unique))
        raise _Unmounted

    def _ignore(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        return

    def _unknown(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        raise failure(errno.ENOSYS)

    # names

    def _lookup(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        name = bytes(view[_IN : size - 1])
        core = self.core
        try:
            node, st = core.lookup(core.directory(nid), name)
        except FileNotFoundError:
            # Node id 0: nothing there, and the kernel may remember that.
            head = (144, 0, unique, 0, 0, self.seconds, 0, self.nanoseconds, 0)
            self._send(protocol.ENTRY_REPLY.pack(*head, *(0,) * 16))
            return
        self._entry(unique, node, st)

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

    def _mknod(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        mode, device, umask, _ = protocol.MKNOD_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 16 : size - 1])
        core = self.core
        caller = self._caller(view, umask)
        self._entry(unique, *core.mknod(core.directory(nid), name, mode, device, caller))

    def _mkdir(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        mode, umask = protocol.MKDIR_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 8 : size - 1])
        core = self.core
        self._entry(unique, *core.mkdir(core.directory(nid), name, mode, self._caller(view, umask)))

    def _symlink(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        name, target = self._names(view, _IN, size)
        core = self.core
        caller = self._caller(view, 0)
        self._entry(unique, *core.symlink(core.directory(nid), name, target, caller))

    def _link(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        (old,) = protocol.LINK_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 8 : size - 1])
        core = self.core
        self._entry(unique, *core.link(core.node(old), core.directory(nid), name))

    def _unlink(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self.core.unlink(self.core.directory(nid), bytes(view[_IN : size - 1]))
        self._ok(unique, nid, view, size)

    def _rmdir(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self.core.rmdir(self.core.directory(nid), bytes(view[_IN : size - 1]))
        self._ok(unique, nid, view, size)

    def _rename(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        (to,) = protocol.RENAME_IN.unpack_from(view, _IN)
        self._move(unique, nid, to, 0, self._names(view, _IN + 8, size))

    def _rename2(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        to, flags, _ = protocol.RENAME2_IN.unpack_from(view, _IN)
        self._move(unique, nid, to, flags, self._names(view, _IN + 16, size))

    def _move(self, unique: int, nid: int, to: int, flags: int, names: list[bytes]) -> None:
        core = self.core
        core.rename(core.directory(nid), names[0], core.directory(to), names[1], flags)
        self._send(OUT_HEADER.pack(OUT_SIZE, 0, unique))

    def _readlink(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._reply(unique, self.core.readlink(self.core.node(nid)))

    # attributes

    def _getattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        core = self.core
        node = core.node(nid)
        self._attr(unique, node, core.stat(node))

    def _setattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        fields = protocol.SETATTR_IN.unpack_from(view, _IN)
        valid, _, _, length, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = (
            fields
        )
        shift = self.core.shift
        if shift is not None:
            uid, gid = shift.inward(uid), shift.inward(gid)
        change = Change(
            valid, mode, uid, gid, length, atime * NANO + atime_ns, mtime * NANO + mtime_ns
        )
        node = self.core.node(nid)
        self._attr(unique, node, self.core.setattr(node, change, self._caller(view, 0)))

    def _statx(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        node = self.core.node(nid)
        real = self.core.statx(node)
        shown = self.core.attributes(node, self.core.stat(node))
        ino, length, blocks = shown[:3]
        mode, links, uid, gid, rdev = shown[9:14]
        # The kernel takes ids, link count and mode from here; attributes stay the backing file's.
        body = protocol.STATX_BODY.pack(
            real[0] & 0xFFF,
            4096,
            real[2],
            links,
            uid,
            gid,
            mode,
            ino,
            length,
            blocks,
            real[10],
            *real[11:19],
            os.major(rdev),
            os.minor(rdev),
            0,
            0,
        )
        head = protocol.STATX_REPLY_HEAD.pack(
            OUT_SIZE + 32 + len(body), 0, unique, self.seconds, self.nanoseconds, 0, 0, 0
        )
        self._send(head + body)

    def _statfs(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        v = self.core.statfs()
        self._send(
            protocol.STATFS_REPLY.pack(
                96,
                0,
                unique,
                v.f_blocks,
                v.f_bfree,
                v.f_bavail,
                v.f_files,
                v.f_ffree,
                v.f_bsize,
                255,
                v.f_frsize,
                0,
            )
        )

    def _setxattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        if self.flags & protocol.SETXATTR_EXT:
            length, flags, extra, _ = protocol.SETXATTR_EXT_IN.unpack_from(view, _IN)
            start = _IN + 16
        else:
            length, flags = protocol.SETXATTR_IN.unpack_from(view, _IN)
            start, extra = _IN + 8, 0
        rest = bytes(view[start:size])
        end = rest.index(b"\0")
        value = rest[end + 1 : end + 1 + length]
        kill = bool(extra & protocol.SETXATTR_ACL_KILL_SGID)
        if self.core.shift is not None:
            value = self.core.shift.value_inward(rest[:end], value)
        self.core.setxattr(self.core.node(nid), rest[:end], value, flags, kill)
        self._ok(unique, nid, view, size)

    def _getxattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        (room, _) = protocol.GETXATTR_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 8 : size - 1])
        value = self.core.getxattr(self.core.node(nid), name)
        if self.core.shift is not None:
            value = self.core.shift.value_outward(name, value)
        self._xattr(unique, room, value)

    def _listxattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        (room, _) = protocol.GETXATTR_IN.unpack_from(view, _IN)
        # Unshifted: the root of a container is not the host's.
        uid, gid, pid = protocol.IN_CALLER.unpack_from(view, 24)
        names = self.core.listxattr(self.core.node(nid), Caller(uid, gid, 0, pid))
        self._xattr(unique, room, names)

    def _xattr(self, unique: int, room: int, value: bytes) -> None:
        if not room:
            self._send(protocol.XATTR_SIZE_REPLY.pack(24, 0, unique, len(value), 0))
        elif len(value) > room:
            raise failure(errno.ERANGE)
        else:
            self._reply(unique, value)

    def _removexattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self.core.removexattr(self.core.node(nid), bytes(view[_IN : size - 1]))
        self._ok(unique, nid, view, size)

    def _ioctl(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, _, command, _, length, room = protocol.IOCTL_IN.unpack_from(view, _IN)
        data = bytes(view[_IN + 32 : _IN + 32 + length])
        result = self.core.ioctl(self.core.node(nid), command, data)[:room]
        self._reply(unique, protocol.IOCTL_OUT.pack(0, 0, 0, 0) + result.ljust(room, b"\0"))

    # files

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
        if core.passthrough and stat.S_ISREG(node.kind):
            backing = self._backing(node, fd)
            if backing:
                how = protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_NOFLUSH
                if flags & os.O_ACCMODE != os.O_RDONLY and self._must_count(node):
                    how |= protocol.FOPEN_DIRECT_IO
                return 0, how, backing
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
            request = bytearray(protocol.BACKING_MAP.pack(fd, 0, 0))
            node.backing = fcntl.ioctl(self.fd, protocol.DEV_IOC_BACKING_OPEN, request)
            node.backing_private = node.private
        except OSError as error:
            # A layer the kernel will not pass through (another FUSE, a stack too deep).
            if error.errno not in (errno.ELOOP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
                raise
            return 0
        finally:
            if own:
                os.close(fd)
        return node.backing

    def _close_backing(self, node: File) -> None:
        self._idle.pop(node.nid, None)
        backing, node.backing = node.backing, 0
        try:
            fcntl.ioctl(self.fd, protocol.DEV_IOC_BACKING_CLOSE, struct.pack("<I", backing))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

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
                0,
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
            if error.errno not in _GONE:
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
        data_only = bool(flags & protocol.FSYNC_FDATASYNC)
        self.core.fsync(self.core.node(nid), data_only=data_only)
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

    # directories

    def _readdir(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._list(unique, nid, view, plus=False)

    def _readdirplus(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._list(unique, nid, view, plus=True)

    def _list(self, unique: int, nid: int, view: memoryview, *, plus: bool) -> None:
        _, offset, room, *_ = protocol.READ_IN.unpack_from(view, _IN)
        core = self.core
        directory = core.directory(nid)
        parts: list[bytes] = []
        used = 0
        entry_size = 128 if plus else 0
        for position, name in ((DOT, b"."), (DOTDOT, b"..")):
            if offset < position:
                parts.append(self._dot(directory, name, position, plus=plus))
                used += len(parts[-1])
        listing, number = core.position(directory, offset)
        names, cookies = listing.names, listing.cookies
        seconds, nanoseconds = self.seconds, self.nanoseconds
        dirent, entry_out, attributes = (
            protocol.DIRENT.pack,
            protocol.ENTRY_OUT.pack,
            core.attributes,
        )
        while number < len(names):
            name = names[number]
            length = (24 + len(name) + 7) & ~7
            if used + entry_size + length > room:
                break
            try:
                node, st = core.lookup(directory, name)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EIO):
                    raise
                number += 1
                continue
            shown = attributes(node, st)
            if plus:
                node.lookups += 1
                parts.append(
                    entry_out(node.nid, 0, seconds, seconds, nanoseconds, nanoseconds, *shown)
                )
            head = dirent(shown[0], cookies[number], len(name), shown[9] >> 12)
            parts.append((head + name).ljust(length, b"\0"))
            if not plus:
                core.discard(node)
            used += entry_size + length
            number += 1
        self._reply(unique, b"".join(parts))

    def _dot(self, directory: Directory, name: bytes, position: int, *, plus: bool) -> bytes:
        node = directory if name == b"." else directory.parent or directory
        entry = bytes(128) if plus else b""
        head = protocol.DIRENT.pack(node.ino, position, len(name), stat.S_IFDIR >> 12)
        return entry + (head + name).ljust((24 + len(name) + 7) & ~7, b"\0")
