"""``pctl enter``: a machine's serial console on a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.machines import Lab

pytest_plugins = ("tests.system.machines",)
pytestmark = pytest.mark.kvm


class Terminal:
    """A terminal whose session leader is a command of ours, as a shell would have started it."""

    def __init__(self, lab: Lab, *words: str, rows: int, columns: int) -> None:
        """Start the command on it."""
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.resize(rows, columns)

        def lead() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process: subprocess.Popen[bytes] = lab.popen(
            *words, stdin=slave, stdout=slave, stderr=slave, preexec_fn=lead
        )
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        """Give the window a size; the kernel tells the foreground process."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        """Press keys."""
        os.write(self.master, data)

    def expect(self, wanted: bytes, timeout_s: float = 20) -> None:
        """Wait until ``wanted`` has been shown, and forget what was shown before it."""
        deadline = time.monotonic() + timeout_s
        while wanted not in self.seen:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{wanted!r} is not in {self.seen!r}"
            if select.select([self.master], [], [], min(left_s, 1))[0]:
                self.seen += os.read(self.master, 65536)
        self.seen = self.seen.partition(wanted)[2]

    def ask(self, script: bytes, wanted: bytes, timeout_s: float = 20) -> None:
        """Run a command in the shell until it prints a line."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.type(script + b"\r")
            try:
                return self.expect(b"\n" + wanted, 2)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def cooked(self) -> bool:
        """Whether the terminal is as it was found."""
        return termios.tcgetattr(self.slave) == self.before


@contextmanager
def console(lab: Lab) -> Iterator[Terminal]:
    """Have ``pctl enter demo`` on a terminal."""
    terminal = Terminal(lab, "pctl", "enter", "demo", rows=31, columns=97)
    try:
        terminal.expect(b"Esc . leaves")
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
        os.close(terminal.slave)


def test_the_console_is_a_shell_of_the_size_of_the_window(running: Lab) -> None:
    with console(running) as terminal:
        terminal.ask(b"echo $((40+2)) $(hostname)", b"42 golden")
        assert not terminal.cooked()
        terminal.ask(b"stty size", b"31 97")
        terminal.resize(52, 133)
        terminal.ask(b"stty size", b"52 133")
        # Ctrl-C goes to the program inside, not to ours.
        terminal.type(b"sleep 1000\r")
        terminal.expect(b"sleep 1000")
        time.sleep(0.3)
        terminal.type(b"\x03")
        terminal.ask(b"echo still $((1+1))", b"still 2")
        # A lone Esc goes on with the next key; Esc . leaves.
        terminal.type(b"\x1b")
        terminal.type(b".")
        assert terminal.process.wait(10) == 0
        assert terminal.cooked()
    # Left, the console is free for the next.
    with console(running) as terminal:
        terminal.ask(b"echo again $((2+3))", b"again 5")
        terminal.type(b"echo x\x1b.")
        assert terminal.process.wait(10) == 0


def test_the_console_ends_with_its_machine(running: Lab) -> None:
    with console(running) as terminal:
        terminal.ask(b"echo $((40+2))", b"42")
        running.vm("stop", "demo", "--kill")
        terminal.expect(b"was closed")
        assert terminal.process.wait(10) == 0
        assert terminal.cooked()


def test_a_long_paste_arrives_whole(running: Lab) -> None:
    with console(running) as terminal:
        terminal.ask(b"stty -echo; echo $((40+2))", b"42")
        terminal.type(b"wc -c <<'END'\r" + b"0123456789abcdef\r" * 500 + b"END\r")
        terminal.expect(b"8500", 60)


def test_the_console_needs_a_terminal_and_a_running_machine(stopped: Lab) -> None:
    assert "terminal" in stopped.fails(20, "pctl", "enter", "demo", stdin=b"")
    terminal = Terminal(stopped, "pctl", "enter", "demo", rows=24, columns=80)
    terminal.expect(b"not running")
    assert terminal.process.wait(10) == 31
    assert terminal.cooked()
