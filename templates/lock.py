"""Locks of the template area: kept in it, since several systems may share one area."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import LockDirUnset, Locked

_POLL_S = 0.1


@contextmanager
def area(
    path: Path, what: str, *, timeout_s: float = 3600.0, shared: bool = False
) -> Iterator[bool]:
    """Hold the lock ``what`` of the template area ``path``; the value is whether it was waited for.

    Lock order: a template's name, "trees" (shared by those who begin to use one), "store",
    "recipes". Raises Locked after ``timeout_s``.
    """
    directory = path / ".lock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / what, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LockDirUnset(f"cannot lock {path}: {error.strerror}") from error
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    waited = False
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(fd, operation | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = True
                if time.monotonic() >= deadline:
                    raise Locked(
                        f"another command works on the template area ({what})",
                        hint="wait for it to finish",
                    ) from None
                time.sleep(_POLL_S)
        yield waited
    finally:
        os.close(fd)
