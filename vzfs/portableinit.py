"""The first exchange with the kernel, INIT, on behalf of libfuse (see ``transport_pyfuse3``)."""

from __future__ import annotations

import errno
import os

from vzfs import protocol
from vzfs.protocol import OUT_HEADER, OUT_SIZE, Op
from vzfs.resend import MAX_WRITE

_FLAGS = (
    protocol.ASYNC_READ
    | protocol.ATOMIC_O_TRUNC
    | protocol.BIG_WRITES
    | protocol.DONT_MASK
    | protocol.DO_READDIRPLUS
    | protocol.PARALLEL_DIROPS
    | protocol.POSIX_ACL
    | protocol.MAX_PAGES
    | protocol.CACHE_SYMLINKS
    | protocol.EXPLICIT_INVAL_DATA
    | protocol.ALLOW_IDMAP
)
#: The newest protocol libfuse 3.14 was written for.
_MINOR = 36


def answer_init(fd: int) -> int:
    """Agree with the kernel; returns the flags."""
    request = os.read(fd, protocol.IN_SIZE + MAX_WRITE)
    _, op, unique, _ = protocol.IN_START.unpack_from(request)
    if op != Op.INIT:
        raise OSError(errno.EPROTO, "the first request is not INIT")
    _, minor, readahead, low, high = protocol.INIT_IN.unpack_from(request, protocol.IN_SIZE)
    offered = low | (high << 32 if low & protocol.INIT_EXT else 0)
    flags: int = offered & (_FLAGS | protocol.INIT_EXT)
    out = protocol.INIT_OUT.pack(
        protocol.MAJOR,
        min(minor, _MINOR),
        readahead,
        flags & 0xFFFFFFFF,
        64,
        48,
        MAX_WRITE,
        1,
        MAX_WRITE // 4096,
        0,
        flags >> 32,
        0,
        0,
    )
    os.write(fd, OUT_HEADER.pack(OUT_SIZE + len(out), 0, unique) + out)
    return flags


def own_init(flags: int) -> bytes:
    """Return the INIT request libfuse is shown."""
    body = protocol.INIT_IN.pack(protocol.MAJOR, _MINOR, 128 << 10, flags, 0) + bytes(44)
    head = protocol.IN_HEADER.pack(protocol.IN_SIZE + len(body), Op.INIT, 1, 0, 0, 0, 0, 0)
    return head + body
