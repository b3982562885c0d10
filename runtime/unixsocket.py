"""Unix sockets at paths of any length.

An address holds 107 bytes (unix(7)); a deep ``--root`` is longer. Going through the descriptor of
the directory keeps the address short wherever the directory is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def _short(path: Path) -> Iterator[str]:
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def listen(path: Path, *, backlog: int = 64) -> socket.socket:
    """Return a listening stream socket at ``path``, readable by root alone; raises OSError.

    A socket file that is there already is replaced; whoever finds the new one is answered.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with _short(fresh) as address:
        sock.bind(address)
    os.chmod(fresh, 0o600)
    sock.listen(backlog)
    os.rename(fresh, path)
    return sock


def connect(path: Path) -> socket.socket:
    """Return a stream socket connected to ``path``; raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _short(path) as address:
            sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock
