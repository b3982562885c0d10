"""Answers to the requests of /dev/fuse, and what every handler of them needs."""

from __future__ import annotations

import errno
import os
import stat
import sys
import traceback
from typing import TYPE_CHECKING

from vzfs import protocol
from vzfs.inodes import File, Node
from vzfs.naming import Caller
from vzfs.overlay import NANO
from vzfs.protocol import OUT_HEADER, OUT_SIZE

if TYPE_CHECKING:
    from vzfs.operations import Operations

#: What nobody needs to be told of when the reply cannot be delivered any more.
GONE = (errno.ENOENT, errno.EINTR, errno.EAGAIN)


class Replies:
    """The way back of one connection."""

    def __init__(self, fd: int, core: Operations, flags: int) -> None:
        """Answer on a /dev/fuse descriptor; ``flags`` are those agreed on, 0 for none yet."""
        self.fd = fd
        self.core = core
        self.flags = flags
        #: Requests a former server took, told by what it left.
        self.left: set[int] = set()
        timeout = core.options.timeout_s
        self.seconds = int(timeout)
        self.nanoseconds = int((timeout - int(timeout)) * NANO)

    def is_repeated(self, unique: int) -> bool:
        """Tell whether a former server took a request too: it may be done already."""
        return bool(unique & protocol.UNIQUE_RESEND) or unique in self.left

    def _send(self, data: bytes) -> None:
        try:
            os.write(self.fd, data)
        except OSError as error:
            if error.errno not in GONE:
                raise

    def _error(self, unique: int, number: int) -> None:
        try:
            os.write(self.fd, OUT_HEADER.pack(OUT_SIZE, -number, unique))
        except OSError as error:
            if error.errno not in (*GONE, errno.ENODEV):
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
                self.core.generation(node),
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
