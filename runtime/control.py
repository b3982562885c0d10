"""Asking a supervisor: one JSON line each way over its unix socket, which only root can reach.

``stopping`` (umount): a command is about to halt the container, do not restart it.
``release``: unmount a container that is only mounted, and end.
``console`` (number): hand over a console's master; it is the asker's until the connection closes.
What the console said last follows the answer's line.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from runtime import unixsocket
from runtime.paths import Paths

_TIMEOUT_S = 5.0
_LONGEST = 1 << 16


def path(paths: Paths, ctid: int) -> Path:
    """Return where the supervisor of ``ctid`` listens."""
    return paths.run / "ct" / f"{ctid}.sock"


def ask(paths: Paths, ctid: int, op: str, **fields: Any) -> bool:
    """Tell the supervisor of ``ctid``; return whether it agreed. Raises OSError without one."""
    with unixsocket.connect(path(paths, ctid)) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
        return connection.recv(_LONGEST).startswith(b'{"ok"')


def take_console(paths: Paths, ctid: int, number: int) -> tuple[socket.socket, int, bytes] | None:
    """Return the connection, the console's master and its last output; None when it is not free.

    Raises OSError without a supervisor.
    """
    connection = unixsocket.connect(path(paths, ctid))
    connection.settimeout(_TIMEOUT_S)
    connection.sendall(json.dumps({"op": "console", "number": number}).encode() + b"\n")
    data, fds, _flags, _address = socket.recv_fds(connection, _LONGEST, 1)
    if not data.startswith(b'{"ok"') or not fds:
        connection.close()
        return None
    os.set_inheritable(fds[0], False)
    return connection, fds[0], data.partition(b"\n")[2]


def read_request(connection: socket.socket) -> dict[str, Any]:
    """Return one request; raises ValueError or OSError for anything else."""
    connection.settimeout(_TIMEOUT_S)
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(_LONGEST)
        if not piece or len(data) > _LONGEST:
            raise ValueError("not a request")
        data += piece
    request = json.loads(data)
    if not isinstance(request, dict):
        raise ValueError("not a request")
    return request


def answer(connection: socket.socket, *, agreed: bool, fd: int = -1, more: bytes = b"") -> None:
    """Answer a request, with a descriptor if ``fd`` is one, and ``more``; raises OSError."""
    data = (b'{"ok": true}\n' if agreed else b'{"refused": true}\n') + more
    if fd >= 0:
        socket.send_fds(connection, [data], [fd])
    else:
        connection.sendall(data)
