"""Requests which a killed server had taken and not answered.

Since Linux 6.9 the kernel has them still and sends them again when it is asked. Before that they
are lost, and who made them waits for ever, unless the server that died left them where the next one
finds them: in a `Hand`.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator

from vzfs import protocol
from vzfs.protocol import IN_START, OUT_HEADER, OUT_SIZE

#: The most bytes of one write(2) that arrive in one request.
MAX_WRITE = 1 << 20
#: Bytes of a request without data: two names, or one and the longest target of a link.
PLAIN = 8192
#: Bytes of the longest request.
LONGEST = MAX_WRITE + PLAIN
#: A place for one parked request: its size (native, 8 bytes; 0: free) and itself.
_PLACE = 8 + PLAIN
_PLACES = 64
_MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h, since Linux 5.14


class Hand:
    """Memory which every server of a mount has: the request in hand, and the parked ones.

    Made by the one who forks the servers, before the first of them. Pages which no request ever
    reached cost nothing. Only one server uses it at a time.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, LONGEST + _PLACES * _PLACE)  # MAP_SHARED
        #: Where requests are read into.
        self.buffer = memoryview(self._memory)[:LONGEST]
        self._present = 0

    def expect(self, size: int) -> None:
        """Have the pages present into which requests of up to ``size`` bytes are copied.

        Waiting for memory ends when a process is killed. The kernel then fails the request it was
        copying (EIO, fs/fuse/dev.c), and does not keep it for the next server.
        """
        if size > self._present:
            self._memory.madvise(_MADV_POPULATE_WRITE, 0, size)
            self._present = size

    def park(self, request: bytes) -> bool:
        """Keep a request that is answered later; False: it is too long, or there are too many."""
        if any(request == parked for _place, parked in self._parked()):
            return True
        if len(request) > PLAIN:
            return False
        for place in range(LONGEST, len(self._memory), _PLACE):
            if not self._size(place):
                self._memory[place + 8 : place + 8 + len(request)] = request
                # One store, and the last: a place is whole or free.
                self._memory[place : place + 8] = len(request).to_bytes(8, sys.byteorder)
                return True
        return False

    def unpark(self, unique: int) -> None:
        """Give up the place of a request, if it has one."""
        for place, request in self._parked():
            if IN_START.unpack_from(request)[2] == unique:
                self._memory[place : place + 8] = bytes(8)

    def left(self) -> list[bytes]:
        """Return what a former server may have left unanswered, in the order they came in.

        The one in hand may be among them though it was answered: see `is_waiting`.
        """
        requests = [request for _place, request in self._parked()]
        size, _op, unique, _nid = IN_START.unpack_from(self.buffer)
        if size and unique not in {IN_START.unpack_from(request)[2] for request in requests}:
            requests.append(bytes(self.buffer[:size]))
        return sorted(requests, key=lambda request: int(IN_START.unpack_from(request)[2]))

    def _size(self, place: int) -> int:
        return int.from_bytes(self._memory[place : place + 8], sys.byteorder)

    def _parked(self) -> Iterator[tuple[int, bytes]]:
        for place in range(LONGEST, len(self._memory), _PLACE):
            if size := self._size(place):
                yield place, self._memory[place + 8 : place + 8 + size]


def is_waiting(fd: int, unique: int) -> bool:
    """Tell whether a request of the kernel behind ``fd`` was taken and is not answered yet.

    It is asked by an answer to its interruption which is too long: EINVAL, or ENOENT when there is
    no such request (``fuse_dev_do_write()``). Nothing changes by it.
    """
    unfit = OUT_HEADER.pack(OUT_SIZE + 8, 0, unique | protocol.INT_REQ_BIT) + bytes(8)
    try:
        os.write(fd, unfit)
    except OSError as error:
        return error.errno == errno.EINVAL
    raise AssertionError("the kernel takes an answer that is none")


def ask(fd: int) -> None:
    """Have the kernel behind ``fd`` send them again, Linux 6.9 (``fuse_notify_resend()``).

    An older one refuses. A line on stderr tells so; all that is asked from then on is served.
    """
    try:
        os.write(fd, OUT_HEADER.pack(OUT_SIZE, protocol.NOTIFY_RESEND, 0))
    except OSError as error:
        print(f"vzfs: unanswered requests are lost: {error.strerror}", file=sys.stderr)
