"""Consoles nobody looks at: drained, so that the container never blocks on them; the end is kept."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from runtime import rootfs

_KEPT_BYTES = 8192


@dataclass(slots=True)
class _Console:
    master: int
    #: The other end, held open: a master without one reports a hang-up all the time.
    peer: int
    tail: bytearray = field(default_factory=bytearray)
    #: The connection it is lent to.
    borrower: socket.socket | None = None


class Consoles:
    """The masters of a container's consoles, lent out one at a time."""

    def __init__(self) -> None:
        """Begin without consoles."""
        self._consoles: list[_Console] = []

    def replace(self, masters: Sequence[int]) -> None:
        """Close the consoles there were and keep ``masters``; console N is the Nth."""
        for console in self._consoles:
            if console.borrower is not None:
                console.borrower.close()
            os.close(console.master)
            os.close(console.peer)
        self._consoles = [_Console(fd, rootfs.peer(fd)) for fd in masters]
        for console in self._consoles:
            os.set_blocking(console.master, False)

    def descriptors(self) -> list[int]:
        """Return what to wait for: masters that are here, connections of those lent."""
        return [
            console.master if console.borrower is None else console.borrower.fileno()
            for console in self._consoles
        ]

    def handle(self, fd: int) -> None:
        """Drain a master, or take one back whose connection closed."""
        for console in self._consoles:
            if console.borrower is not None and console.borrower.fileno() == fd:
                console.borrower.close()
                console.borrower = None
                # Non-blocking is a flag of the description, which the borrower shared.
                os.set_blocking(console.master, False)
            elif console.master == fd:
                self._drain(console)

    def _drain(self, console: _Console) -> None:
        try:
            data = os.read(console.master, 4096)
        except BlockingIOError:
            return
        except OSError:
            # Hung up from inside (vhangup(2)): our end of it too.
            os.close(console.peer)
            console.peer = rootfs.peer(console.master)
            return
        console.tail += data
        del console.tail[:-_KEPT_BYTES]

    def lend(self, number: int, connection: socket.socket) -> tuple[int, bytes]:
        """Lend console ``number`` until ``connection`` closes; return its master and last output.

        The master is -1 when there is no such console or it is lent already.
        """
        if not 1 <= number <= len(self._consoles):
            return -1, b""
        console = self._consoles[number - 1]
        if console.borrower is not None:
            return -1, b""
        with suppress(OSError):
            self._drain(console)
        console.borrower = connection
        return console.master, bytes(console.tail)
