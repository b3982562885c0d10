"""One command at a time per environment: flock(2) on a file which says who holds it and why.

The lock dies with its holder. Lock order, where several are needed: the registry lock first, then
environments by ascending id.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import LockDirUnset, Locked
from runtime.paths import Paths

_POLL_S = 0.05


@contextmanager
def environment(
    paths: Paths, ident: int | str, purpose: str, *, timeout_s: float = 0.0
) -> Iterator[None]:
    """Hold the lock of container ``ident`` (or machine name) while ``purpose`` is done.

    Raises Locked, naming the holder, when another command has it for longer than ``timeout_s``;
    LockDirUnset when the lock directory cannot be used.
    """
    fd = _open(paths.lock_dir / f"{ident}.lck")
    try:
        _take(fd, f"environment {ident}", timeout_s)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {purpose}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


@contextmanager
def registry(paths: Paths, *, timeout_s: float = 30.0) -> Iterator[None]:
    """Hold the lock under which ids and names are given out; raises Locked, LockDirUnset."""
    fd = _open(paths.lock_dir / "registry.lck")
    try:
        _take(fd, "the registry", timeout_s)
        yield
    finally:
        os.close(fd)


def holder(paths: Paths, ident: int | str) -> str | None:
    """Return "PID purpose" of whoever holds the lock of ``ident``, or None when it is free."""
    try:
        fd = os.open(paths.lock_dir / f"{ident}.lck", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _described(fd)
    finally:
        os.close(fd)
    return None


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LockDirUnset(f"cannot use lock file {path}: {error.strerror}") from error


def _take(fd: int, what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Locked(
                    f"{what} is locked by {_described(fd)}", hint="wait for that command to finish"
                ) from None
            time.sleep(_POLL_S)


def _described(fd: int) -> str:
    words = os.pread(fd, 200, 0).decode("utf-8", "replace").split(maxsplit=1)
    if len(words) < 2:
        return "another command"
    return f"process {words[0]} ({words[1].strip()})"
