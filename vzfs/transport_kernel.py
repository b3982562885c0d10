"""The transport which speaks the protocol of /dev/fuse itself, with passthrough.

One thread reads a request, runs the operation, writes the reply. `Later` parks the request until
the job's thread is done.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vzfs import protocol, resend, resting
from vzfs.inodes import File, Node
from vzfs.kernelfiles import FileRequests
from vzfs.kernelnames import NameRequests
from vzfs.kernelreplies import GONE
from vzfs.overlay import Job, Later, failure
from vzfs.protocol import OUT_HEADER, OUT_SIZE, Op
from vzfs.resend import MAX_WRITE, Hand

if TYPE_CHECKING:
    from vzfs.operations import Operations

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
#: The most frequent requests which change nothing.
_READ_ONLY = frozenset((Op.LOOKUP, Op.GETATTR, Op.GETXATTR))
#: Requests which make a name, and where it is in them.
_MAKES = {Op.MKNOD: 16, Op.MKDIR: 8, Op.SYMLINK: 0, Op.LINK: 8, Op.CREATE: 16}
_IN = protocol.IN_SIZE


class _Unmounted(Exception):
    """The connection ended."""


class KernelTransport(NameRequests, FileRequests):
    """Serves one connection."""

    def __init__(self, fd: int, core: Operations, flags: int = 0, hand: Hand | None = None) -> None:
        """Serve ``core`` on a /dev/fuse descriptor; ``flags`` are those of a former server.

        What is not answered yet lies in ``hand`` for the next server; None: the kernel has it.
        """
        super().__init__(fd, core, flags, hand or Hand())
        self._keeps = hand is not None
        #: Called when INIT was answered, with the flags agreed on.
        self.on_init: Callable[[int], None] | None = None
        #: Hands on what a server that rests leaves (see ``resting``); None: this one never does.
        self.rest: Callable[[list[int]], bool] | None = None
        self._wake = -1
        self._parked: dict[Job, list[bytes]] = {}
        self._finished: deque[Job] = deque()
        self._tick = 0.0
        #: Requests served when the kernel may be asked to prune again.
        self._pruned = 0
        core.invalidate = self._invalidate  # type: ignore[method-assign] # the core's way out
        core.release_backing = self._release_backing  # type: ignore[method-assign]  # the same
        if flags:
            self._settle(flags)

    # the loop

    def serve(self, *, went_on: bool = False) -> bool:
        """Answer requests until the file system is unmounted, or, returning True, this rests.

        ``went_on``: the former server rested.
        """
        view = self.hand.buffer
        buffers = [view]
        start = protocol.IN_START.unpack_from
        handlers, fd, core, readv = _HANDLERS, self.fd, self.core, os.readv
        served, limit, end = 0, core.options.node_limit, core.end_request
        if core.resumed and not went_on:
            self._take_over()
        if self.rest is not None:
            self._look_for_rest()
        while True:
            if self._parked or core.written:
                self._wait()
            try:
                size = readv(fd, buffers)
            except OSError as error:
                if error.errno == errno.EAGAIN and self._leave():
                    return True
                if error.errno in GONE:
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return False
                raise
            _, op, unique, nid = start(view, 0)
            try:
                handlers[op](self, unique, nid, view, size)
            except OSError as error:
                self._failed(view, size, error)
            except Later as later:
                self._park(later.job, bytes(view[:size]))
            except _Unmounted:
                return False
            except Exception:
                traceback.print_exc(file=sys.stderr)
                self._error(unique, errno.EIO)
            served += 1
            if self._left and not served & 31:
                self.close_left_backings()
            if end is not None and op not in _READ_ONLY:
                end()
            if not served & 31:
                core.trim()
            if len(core.table.nodes) > limit and served > self._pruned:
                self._prune()
                self._pruned = served + limit // 4  # what was asked for comes one by one

    def _look_for_rest(self) -> None:
        """From now on, when nothing was asked for, have the next read return without a request.

        A signal only sets that; what follows is decided between two requests.
        """
        last, request = b"", self.hand.buffer

        def look(_number: int, _frame: object) -> None:
            nonlocal last
            now = bytes(request[8:16])
            if now == last:
                os.set_blocking(self.fd, False)
            last = now

        signal.signal(signal.SIGALRM, look)
        period_s = self.core.options.rest_s
        signal.setitimer(signal.ITIMER_REAL, period_s, period_s)

    def _leave(self) -> bool:
        """Hand on what another server needs to go on; False: this one has to."""
        os.set_blocking(self.fd, True)
        if self._left:
            self.close_left_backings()
        if self.rest is None or self._parked or self._left or self.core.busy:
            return False
        for node in list(self._idle.values()):
            self._close_backing(node)
        fds = resting.leave(self.core)
        if fds is None:
            return False
        with open(fds[0], "rb"):
            return self.rest(fds)

    def _take_over(self) -> None:
        """Do what a former server left undone."""
        if self.core.passthrough:
            self.find_left_backings()
        if not self._keeps:
            resend.ask(self.fd)
            return
        for request in self.hand.left():
            unique = protocol.IN_START.unpack_from(request)[2]
            if resend.is_waiting(self.fd, unique):
                self.left.add(unique)
                self._dispatch(request)
            else:
                self.hand.unpark(unique)

    def _failed(self, view: memoryview, size: int, error: OSError) -> None:
        """Answer a request that cannot be done."""
        unique = protocol.IN_START.unpack_from(view, 0)[2]
        if not (self.is_repeated(unique) and self._was_done(view, size, error)):
            self._error(unique, error.errno or errno.EIO)

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
        """Run a parked request again, or one of a former server."""
        _, op, unique, nid = protocol.IN_START.unpack_from(request, 0)
        view = memoryview(request)
        try:
            _HANDLERS[op](self, unique, nid, view, len(request))
        except OSError as error:
            self._failed(view, len(request), error)
        except Later as later:
            self._park(later.job, request)
            return
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._error(unique, errno.EIO)
        if self._keeps:
            self.hand.unpark(unique)

    def _park(self, job: Job, request: bytes) -> None:
        """Dispatch ``request`` when ``job`` is done."""
        waiting = self._parked.get(job)
        if waiting is not None:
            waiting.append(request)
        else:
            self._parked[job] = [request]
            self._run(job)
        if self._keeps and not self.hand.park(request):
            # The next server would not find it: the others have to wait for it.
            while job in self._parked:
                select.select([self._wake], [], [])
                self._complete_finished()

    def _run(self, job: Job) -> None:
        """Start the thread of a job."""
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
                self._complete_finished()
            if any(fd == self.fd for fd, _ in ready):
                return

    def _complete_finished(self) -> None:
        os.eventfd_read(self._wake)
        while self._finished:
            self._complete(self._finished.popleft())

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
                if self._keeps:
                    self.hand.unpark(unique)
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
            MAX_WRITE,
            1,
            MAX_WRITE // 4096,
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


Handler = Callable[[KernelTransport, int, int, memoryview, int], None]
#: By number. Made here, before any server is forked: it is shared by all of them.
_HANDLERS: list[Handler] = [KernelTransport._unknown] * 128
_TABLE: dict[Op, Handler] = {
    Op.LOOKUP: KernelTransport._lookup,
    Op.FORGET: KernelTransport._forget,
    Op.GETATTR: KernelTransport._getattr,
    Op.SETATTR: KernelTransport._setattr,
    Op.READLINK: KernelTransport._readlink,
    Op.SYMLINK: KernelTransport._symlink,
    Op.MKNOD: KernelTransport._mknod,
    Op.MKDIR: KernelTransport._mkdir,
    Op.UNLINK: KernelTransport._unlink,
    Op.RMDIR: KernelTransport._rmdir,
    Op.RENAME: KernelTransport._rename,
    Op.LINK: KernelTransport._link,
    Op.OPEN: KernelTransport._open,
    Op.READ: KernelTransport._read,
    Op.WRITE: KernelTransport._write,
    Op.STATFS: KernelTransport._statfs,
    Op.RELEASE: KernelTransport._release,
    Op.FSYNC: KernelTransport._fsync,
    Op.FSYNCDIR: KernelTransport._fsync,
    Op.SETXATTR: KernelTransport._setxattr,
    Op.GETXATTR: KernelTransport._getxattr,
    Op.LISTXATTR: KernelTransport._listxattr,
    Op.REMOVEXATTR: KernelTransport._removexattr,
    Op.INIT: KernelTransport._init,
    Op.READDIR: KernelTransport._readdir,
    Op.RELEASEDIR: KernelTransport._ok,
    Op.CREATE: KernelTransport._create,
    Op.INTERRUPT: KernelTransport._ignore,
    Op.DESTROY: KernelTransport._destroy,
    Op.IOCTL: KernelTransport._ioctl,
    Op.BATCH_FORGET: KernelTransport._batch_forget,
    Op.FALLOCATE: KernelTransport._fallocate,
    Op.READDIRPLUS: KernelTransport._readdirplus,
    Op.RENAME2: KernelTransport._rename2,
    Op.LSEEK: KernelTransport._lseek,
    Op.COPY_FILE_RANGE: KernelTransport._copy_file_range,
    Op.TMPFILE: KernelTransport._tmpfile,
    Op.STATX: KernelTransport._statx,
}
for _op, _handler in _TABLE.items():
    _HANDLERS[_op] = _handler
