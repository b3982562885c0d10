"""Programs run in a container for us: their status and all they print, nothing of ours given away."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import exec as exec_module
from runtime import mounts
from runtime.errors import ExecTimeout
from runtime.exec import SCRIPT_FD, Command

if TYPE_CHECKING:
    from runtime.container import Container


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended: its status (128+N for signal N) and what it printed."""

    status: int
    output: str


def run(
    ct: Container,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | int = b"",
    script: bytes | None = None,
    timeout_s: float = 3600.0,
    on_line: Callable[[str], None] | None = None,
    keep_bytes: int = 4 << 20,
) -> Done:
    """Run ``argv`` in the running container ``ct``; its output and errors come back together.

    ``stdin`` is what it reads, or a descriptor it reads from. ``script`` is text the program finds at ``/proc/self/fd/3``; ``on_line`` gets each line as it
    comes; output beyond ``keep_bytes`` is dropped, lest a container fill our memory. A program that cannot be executed has status 126 or 127. Raises NotRunning,
    SystemFailure, ExecTimeout after ``timeout_s`` (it is killed then).
    """
    out_r, out_w = os.pipe2(os.O_CLOEXEC)
    source = _memory(stdin) if isinstance(stdin, bytes) else os.dup(stdin)
    held = _memory(script) if script is not None else -1
    try:
        command = Command(
            tuple(argv), dict(environment or {}), stdio=(source, out_w, out_w), script_fd=held
        )
        try:
            started = exec_module.spawn(ct.paths, ct.ctid, command)
        except exec_module.Failed as error:
            os.close(out_r)
            return Done(error.status, str(error))
        except BaseException:
            os.close(out_r)
            raise
    finally:
        for fd in (out_w, source, held):
            if fd >= 0:
                os.close(fd)
    with mounts.closing(out_r):
        try:
            text = _collect(out_r, time.monotonic() + timeout_s, on_line, keep_bytes)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            _reap(started.pid)
            raise
    return Done(_reap(started.pid), text)


def run_script(
    ct: Container,
    text: bytes,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 600.0,
) -> Done:
    """Run a shell script's ``text`` in the running container; raises as ``run``."""
    place = f"/proc/self/fd/{SCRIPT_FD}"
    return run(ct, ["/bin/sh", place], environment=environment, script=text, timeout_s=timeout_s)


def _memory(data: bytes) -> int:
    fd = os.memfd_create("pyvz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _collect(
    fd: int, deadline: float, on_line: Callable[[str], None] | None, keep_bytes: int
) -> str:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    kept = bytearray()
    partial = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise ExecTimeout("the program inside the container did not end in time")
        piece = os.read(fd, 65536)
        if not piece:
            break
        if len(kept) < keep_bytes:
            kept += piece
        if on_line is not None:
            *lines, partial = (partial + piece).split(b"\n")
            partial = partial[-65536:]
            for line in lines:
                on_line(line.decode("utf-8", "replace"))
    return kept.decode("utf-8", "replace")


def _reap(pid: int) -> int:
    try:
        _pid, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return 0
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
