"""A machine's serial console on our terminal, through a stream of libvirt's (works remotely too).

A serial line carries no window size: the guest agent sets it inside, at the beginning and whenever
the window changes. Without an agent the guest keeps the size it has.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from runtime import console
from runtime.errors import VzError
from vmm.agent import Agent
from vmm.faults import translated

if TYPE_CHECKING:
    import libvirt

    from vmm.machine import Machine

_ESCAPE = b"\x1b"
_LEAVE = _ESCAPE + b"."
#: The console of a guest is its first serial port, by whatever name its processor's kernel has it.
_RESIZE = (
    'for t in /dev/ttyS0 /dev/ttyAMA0; do [ -c $t ] && stty -F $t rows "$0" cols "$1"; done; :'
)
_SIZE = b"s"
_END = b"e"


class Keys:
    """Looks for Esc . in what is typed; everything else goes on, a lone Esc with the next key."""

    def __init__(self) -> None:
        """Start without a pending Esc."""
        self._pending = b""

    def take(self, typed: bytes) -> tuple[bytes, bool]:
        """Return what to send, and whether to leave."""
        typed, self._pending = self._pending + typed, b""
        before, leave, _after = typed.partition(_LEAVE)
        if leave:
            return before, True
        if typed.endswith(_ESCAPE):
            typed, self._pending = typed[:-1], _ESCAPE
        return typed, False


def attach(machine: Machine) -> int:
    """Join the terminal to the console until Esc . or the machine's end; raises NotRunning.

    The event loop must run (connection.start_events). Returns 0, however it was left.
    """
    import libvirt

    raw = machine.running()
    machine.progress.say(f"Attached to the console of {machine.label}; Esc . leaves")
    with translated(f"console of {machine.label}"):
        stream = machine.hypervisor.raw.newStream(libvirt.VIR_STREAM_NONBLOCK)
        raw.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
    with _events() as (wake_read, wake_write):
        _listen(stream, wake_write)
        sizes = _Sizes(Agent(raw, machine.label))
        with _window_changes(wake_write), console.raw(sys.stdin.fileno()):
            sizes.tell()
            left = _type(stream, wake_read, sizes)
        if left:
            # The machine may have ended at the same moment, and its stream with it.
            with suppress(libvirt.libvirtError):
                stream.eventRemoveCallback()
                stream.abort()
        sizes.close()
    print()
    if not left:
        machine.progress.say(f"The console of {machine.label} was closed")
    return 0


def _listen(stream: libvirt.virStream, wake: int) -> None:
    """Let libvirt's event loop write what arrives; the end is told through ``wake``."""
    import libvirt

    def arrived(_stream: object, events: int, _opaque: object) -> None:
        data: bytes | int | None = None
        if events & libvirt.VIR_STREAM_EVENT_READABLE:
            try:
                data = stream.recv(4096)
            except libvirt.libvirtError:
                data = b""
            if isinstance(data, bytes) and data:
                console.write_all(sys.stdout.fileno(), data)
        if data == b"" or events & (
            libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP
        ):
            stream.eventRemoveCallback()
            os.write(wake, _END)

    wanted = (
        libvirt.VIR_STREAM_EVENT_READABLE
        | libvirt.VIR_STREAM_EVENT_ERROR
        | libvirt.VIR_STREAM_EVENT_HANGUP
    )
    stream.eventAddCallback(wanted, arrived, None)


def _type(stream: libvirt.virStream, wake: int, sizes: _Sizes) -> bool:
    """Send what is typed; return True when the user leaves, False when the console ends."""
    terminal = sys.stdin.fileno()
    keys = Keys()
    while True:
        ready, _, _ = select.select([terminal, wake], [], [])
        if wake in ready:
            told = os.read(wake, 64)
            if _END in told:
                return False
            sizes.tell()
        if terminal in ready:
            typed = os.read(terminal, 1024)
            if not typed:
                return True  # the terminal is gone
            typed, leave = keys.take(typed)
            if not _send(stream, typed, wake):
                return False
            if leave:
                return True


def _send(stream: libvirt.virStream, data: bytes, wake: int) -> bool:
    """Send all of ``data``; return False when the console ended meanwhile."""
    import libvirt

    while data:
        try:
            sent = stream.send(data)
        except libvirt.libvirtError:
            return False
        if sent > 0:
            data = data[sent:]
        elif select.select([wake], [], [], 0.02)[0]:
            # -2: the pipe to the machine is full for the moment; the end may have come instead.
            told = os.read(wake, 64)
            if _END in told:
                return False
    return True


class _Sizes:
    """Tells the guest the size of our window; in a thread, because an agent may take its time."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._wanted = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="console-size", daemon=True)
        self._thread.start()

    def tell(self) -> None:
        """Set the size inside to what it is now, soon."""
        self._wanted.set()

    def close(self) -> None:
        """Set nothing any more; a question to the agent is not waited for longer than a second."""
        self._ended = True
        self._wanted.set()
        self._thread.join(1)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._ended:
                return
            try:
                size = os.get_terminal_size(sys.stdin.fileno())
            except OSError:
                continue
            if size.lines and size.columns:
                with suppress(VzError):
                    words = ["/bin/sh", "-c", _RESIZE, str(size.lines), str(size.columns)]
                    self._agent.run(words, timeout_s=2)


@contextmanager
def _events() -> Iterator[tuple[int, int]]:
    """Give a pipe that wakes us: it ended, the window changed."""
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC)
    try:
        yield wake_read, wake_write
    finally:
        os.close(wake_read)
        os.close(wake_write)


@contextmanager
def _window_changes(wake: int) -> Iterator[None]:
    def changed(_number: int, _frame: object) -> None:
        with suppress(OSError):
            os.write(wake, _SIZE)

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
