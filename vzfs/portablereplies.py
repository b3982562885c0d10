"""How the portable transport runs an operation and answers (see ``transport_pyfuse3``)."""

from __future__ import annotations

import errno
import os
import stat
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pyfuse3
import trio

from vzfs.inodes import Directory, File, Node
from vzfs.naming import Caller
from vzfs.overlay import Job, Later

if TYPE_CHECKING:
    from vzfs.operations import Operations

_Result = TypeVar("_Result")


def _fail(error: OSError) -> NoReturn:
    raise pyfuse3.FUSEError(error.errno or errno.EIO) from None


class Replies(pyfuse3.Operations):
    """What the handlers of requests share."""

    def __init__(self, core: Operations) -> None:
        """Answer with what ``core`` does."""
        super().__init__()
        self.core = core
        self._waiting: dict[Job, trio.Event] = {}

    async def _do(self, function: Callable[..., _Result], *arguments: Any, **named: Any) -> _Result:
        """Run an operation, again after the job it has to wait for."""
        while True:
            try:
                result = function(*arguments, **named)
                self.core.trim()
                return result
            except OSError as error:
                _fail(error)
            except Later as later:
                try:
                    await self._wait(later.job)
                except OSError as error:
                    _fail(error)
            except pyfuse3.FUSEError:
                raise
            except Exception:
                # Like the kernel transport: one request fails, and the log says why.
                traceback.print_exc(file=sys.stderr)
                raise pyfuse3.FUSEError(errno.EIO) from None

    async def _do_once(
        self, function: Callable[[], _Result], done: int, again: Callable[[], _Result]
    ) -> _Result:
        """Run an operation on a name which a killed server may have done without answering.

        The library does not say which requests are sent again. But the kernel asks for a new name
        only where it knows of none, and to take away what it knows is there, and nobody but the
        servers changes names: the error ``done`` means that it was done. ``again`` answers then.
        """

        def attempt() -> _Result:
            try:
                return function()
            except OSError as error:
                if error.errno != done or not self.core.resumed:
                    raise
                return again()

        return await self._do(attempt)

    async def _make(
        self,
        parent: int,
        name: bytes,
        make: Callable[[Directory], tuple[Node, os.stat_result]],
    ) -> pyfuse3.EntryAttributes:
        """Make a name by an operation on its directory."""
        core = self.core
        return await self._do_once(
            lambda: self._given(*make(core.directory(parent))),
            errno.EEXIST,
            lambda: self._given(*core.lookup(core.directory(parent), name)),
        )

    async def _wait(self, job: Job) -> None:
        event = self._waiting.get(job)
        if event is None:
            event = self._waiting[job] = trio.Event()
            await trio.to_thread.run_sync(job.run)
            try:
                job.finish()
            except OSError as error:
                job.error = job.error or error
            del self._waiting[job]
            event.set()
        else:
            await event.wait()
        if job.error is not None:
            raise job.error

    def _entry(self, node: Node, st: os.stat_result) -> pyfuse3.EntryAttributes:
        shown = self.core.attributes(node, st)
        entry = pyfuse3.EntryAttributes()
        # pyfuse3 knows one number for both: st_ino is the node id.
        entry.st_ino = node.nid
        entry.generation = node.generation or 0
        entry.entry_timeout = entry.attr_timeout = self.core.options.timeout_s
        entry.st_size, entry.st_blocks = shown[1], shown[2]
        entry.st_atime_ns = shown[3] * 10**9 + shown[6]
        entry.st_mtime_ns = shown[4] * 10**9 + shown[7]
        entry.st_ctime_ns = shown[5] * 10**9 + shown[8]
        entry.st_mode, entry.st_nlink = shown[9], shown[10]
        entry.st_uid, entry.st_gid, entry.st_rdev = shown[11], shown[12], shown[13]
        entry.st_blksize = shown[14]
        return entry

    def _given(self, node: Node, st: os.stat_result) -> pyfuse3.EntryAttributes:
        """Return an entry the kernel takes a reference to."""
        self.core.generation(node)
        entry = self._entry(node, st)
        if isinstance(node, File) and node.magic and stat.S_ISLNK(st.st_mode):
            entry.entry_timeout = entry.attr_timeout = 0  # the next lookup shows the file
        node.lookups += 1
        return entry

    def _caller(self, ctx: pyfuse3.RequestContext, *, shifted: bool = True) -> Caller:
        uid, gid = ctx.uid & 0xFFFFFFFF, ctx.gid & 0xFFFFFFFF
        shift = self.core.shift
        if shift is not None and shifted:
            uid, gid = shift.inward(uid), shift.inward(gid)
        return Caller(uid, gid, ctx.umask, ctx.pid)
