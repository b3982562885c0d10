"""The screens of pstat and vztop on a terminal of their own."""

from __future__ import annotations

import os
import pty
import select
import time

import pytest

from tests.system.conftest import BIN

pytestmark = pytest.mark.root


def drive(argv, root, keys):
    """Run a screen, press ``keys`` whenever it has been still; return its status and output."""
    pid, fd = pty.fork()
    if pid == 0:
        environment = {
            "TERM": "xterm",
            "VZ_ROOT": str(root),
            "VZ_SERVICE": "no",
            "PATH": "/usr/bin",
        }
        os.execve(argv[0], argv, environment)
    out, waiting, deadline = b"", list(keys), time.monotonic() + 40
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 0.4)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:
                break
            if not data:
                break
            out += data
        elif waiting:
            os.write(fd, waiting.pop(0).encode())
    os.close(fd)
    if time.monotonic() >= deadline:
        os.kill(pid, 9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out


@pytest.mark.parametrize(
    ("command", "keys", "words"),
    [
        ("pstat", "vaigbstq", (b"CTNum", b"Disks", b"IOPRIO", b"WRITES")),
        ("vztop", "MTPNEcetq", (b"Tasks:", b"COMMAND", b"Mem")),
    ],
)
def test_a_screen_follows_its_keys_and_leaves_with_q(system, command, keys, words):
    code, out = drive([str(BIN / command)], system.root, keys)
    assert code == 0
    assert b"Traceback" not in out
    for word in words:
        assert word in out
