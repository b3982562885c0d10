"""The two locks of a quota file, see ``quotafile``."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK_SERVER = 1 << 40
_LOCK_EDIT = (1 << 40) + 1
_FLOCK = struct.Struct("hhqqi4x")


class Locked:
    """An open file with a server lock and an edit lock."""

    __slots__ = ("_edit_depth", "fd", "path")

    def __init__(self, fd: int, path: Path) -> None:
        """Hold neither lock of the open file ``fd``."""
        self.fd = fd
        self.path = path
        self._edit_depth = 0

    def _lock(self, where: int, *, wait: bool) -> bool:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, where, 1, 0)
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _unlock(self, where: int) -> None:
        fcntl.fcntl(
            self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, where, 1, 0)
        )

    def take_server_lock(self) -> bool:
        """Become the server of this file; False when another one lives."""
        return self._lock(_LOCK_SERVER, wait=False)

    def drop_server_lock(self) -> None:
        """Stop being the server."""
        self._unlock(_LOCK_SERVER)

    @property
    def served(self) -> bool:
        """Whether a living server (not this description) holds the file."""
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCK_SERVER, 1, 0)
        answer = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, request)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def try_edit(self) -> bool:
        """Take the edit lock if it is free (the server must never wait for a command)."""
        return self._lock(_LOCK_EDIT, wait=False)

    def end_edit(self) -> None:
        """Give the edit lock back."""
        self._unlock(_LOCK_EDIT)

    @contextmanager
    def edit(self, timeout_s: float = 10.0) -> Iterator[None]:
        """Hold the edit lock; raises TimeoutError (ETIMEDOUT) when somebody keeps it."""
        if self._edit_depth:
            self._edit_depth += 1
            try:
                yield
            finally:
                self._edit_depth -= 1
            return
        deadline = time.monotonic() + timeout_s
        while not self.try_edit():
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the quota file is locked", str(self.path))
            time.sleep(0.01)
        self._edit_depth = 1
        try:
            yield
        finally:
            self._edit_depth = 0
            self.end_edit()
