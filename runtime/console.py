"""The caller's terminal, joined to one inside a container: raw mode, resizing, leaving keys."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from runtime import exec as exec_module
from runtime import rootfs

_ESCAPE = b"\x1b"


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Put a terminal into raw mode for the block; anything else is left alone."""
    if not os.isatty(fd):
        yield
        return
    saved = termios.tcgetattr(fd)
    try:
        # What was typed ahead stays: the shell inside shall read it.
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def current_size(fd: int) -> bytes:
    """Return the window size of a terminal, 24 by 80 of anything else."""
    try:
        return rootfs.size_of(fd)
    except OSError:
        return exec_module.winsize(24, 80)


class Relay:
    """Copies bytes between standard input and output and a terminal's master."""

    def __init__(self, master: int, *, leave_with_escape: bool = False) -> None:
        """Relay ``master``; with ``leave_with_escape`` the keys Esc and . end it."""
        self._master = master
        self._escape = leave_with_escape
        self._pending = b""
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Relay until the terminal inside is closed, or the user leaves."""
        resized = signal.signal(signal.SIGWINCH, self._resize)
        try:
            with raw(0):
                self._resize(0, None)
                self._copy()
        finally:
            signal.signal(signal.SIGWINCH, resized)
            os.close(self._wake_r)
            os.close(self._wake_w)

    def end(self) -> None:
        """End ``run`` soon; for signal handlers."""
        with suppress(OSError):
            os.write(self._wake_w, b"e")

    def _resize(self, _number: int, _frame: object) -> None:
        with suppress(OSError):
            rootfs.set_size(self._master, rootfs.size_of(0))

    def _copy(self) -> None:
        poller = select.poll()
        for fd in (self._master, self._wake_r, 0):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, _events in poller.poll():
                if fd == self._wake_r:
                    return
                if fd == self._master:
                    data = self._read(fd)
                    if not data:
                        return
                    write_all(1, data)
                else:
                    data = self._read(0)
                    if not data:
                        poller.unregister(0)
                        # End of input is a key on a terminal: Ctrl-D.
                        write_all(self._master, b"\x04")
                    elif self._left(data):
                        return

    def _read(self, fd: int) -> bytes:
        try:
            return os.read(fd, 65536)
        except OSError as error:
            if error.errno in (errno.EIO, errno.EAGAIN):
                return b""
            raise

    def _left(self, data: bytes) -> bool:
        """Pass typed bytes on; return whether they ask to leave."""
        if not self._escape:
            write_all(self._master, data)
            return False
        data, self._pending = self._pending + data, b""
        if _ESCAPE + b"." in data:
            return True
        if data.endswith(_ESCAPE):
            data, self._pending = data[:-1], _ESCAPE
        write_all(self._master, data)
        return False


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``, waiting where the descriptor does not block; raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def say(message: str) -> None:
    """Tell the user something between two screens."""
    print(message, file=sys.stderr, flush=True)
