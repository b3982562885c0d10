"""A machine's serial console on our terminal, through a stream of libvirt's (works remotely too)."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import TYPE_CHECKING

from vmm.faults import translated

if TYPE_CHECKING:
    from vmm.machine import Machine

_ESCAPE = 0x1B
_LEAVE = ord(".")


class Keys:
    """Looks for Esc . in what is typed; everything else goes on, Esc a moment later."""

    def __init__(self) -> None:
        """Start without a pending Esc."""
        self._escaped = False

    def take(self, typed: bytes) -> tuple[bytes, bool]:
        """Return what to send, and whether to leave."""
        out = bytearray()
        for byte in typed:
            if self._escaped:
                self._escaped = False
                if byte == _LEAVE:
                    return bytes(out), True
                out.append(_ESCAPE)
                if byte == _ESCAPE:
                    self._escaped = True
                    continue
            elif byte == _ESCAPE and len(typed) == 1:
                # An arrow key arrives as one piece; a lone Esc was typed by itself.
                self._escaped = True
                continue
            out.append(byte)
        return bytes(out), False


def attach(machine: Machine) -> int:
    """Join the terminal to the console until Esc . or the machine's end; raises NotRunning.

    The event loop must run (connection.start_events).
    """
    import libvirt

    raw = machine.running()
    machine.progress.say(f"Attached to the console of {machine.label}; Esc . leaves")
    with translated(f"console of {machine.label}"):
        stream = machine.hypervisor.raw.newStream(libvirt.VIR_STREAM_NONBLOCK)
        raw.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
    ended_read, ended_write = os.pipe2(os.O_CLOEXEC)

    def arrived(_stream: object, events: int, _opaque: object) -> None:
        data = None
        if events & libvirt.VIR_STREAM_EVENT_READABLE:
            data = stream.recv(4096)
            if isinstance(data, bytes) and data:
                os.write(sys.stdout.fileno(), data)
        if data == b"" or events & (
            libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP
        ):
            stream.eventRemoveCallback()
            os.write(ended_write, b"x")

    wanted = (
        libvirt.VIR_STREAM_EVENT_READABLE
        | libvirt.VIR_STREAM_EVENT_ERROR
        | libvirt.VIR_STREAM_EVENT_HANGUP
    )
    stream.eventAddCallback(wanted, arrived, None)
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    keys = Keys()
    try:
        leave = False
        while not leave:
            ready, _, _ = select.select([terminal, ended_read], [], [])
            if ended_read in ready:
                break
            typed, leave = keys.take(os.read(terminal, 1024))
            while typed:
                sent = stream.send(typed)
                # -2: the pipe to the machine is full for the moment
                typed = typed[sent:] if sent >= 0 else typed
        if leave:
            stream.eventRemoveCallback()
            stream.abort()
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        os.close(ended_read)
        os.close(ended_write)
    print()
    return 0
