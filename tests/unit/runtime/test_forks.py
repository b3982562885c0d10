"""Forks without what modules registered, where nobody else can hold a lock."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_HOOKED = """
import os, sys, threading
from runtime import syscalls

ran = []
os.register_at_fork(after_in_child=lambda: ran.append(1))
held = threading.Event()
if sys.argv[2] == "two":
    threading.Thread(target=held.wait, daemon=True).start()
pid = syscalls.fork() if sys.argv[1] == "fork" else syscalls.clone3(0)
if pid == 0:
    # A thread of the child's own works either way.
    done = []
    if sys.argv[1] == "fork":
        worker = threading.Thread(target=done.append, args=(1,))
        worker.start()
        worker.join()
    os._exit(10 * len(ran) + len(done))
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(
    ("call", "threads", "status"),
    [("fork", "one", 1), ("fork", "two", 11), ("clone3", "one", 0), ("clone3", "two", 10)],
)
def test_hooks_run_only_beside_other_threads(call: str, threads: str, status: int) -> None:
    command = [sys.executable, "-c", _HOOKED, call, threads]
    assert subprocess.run(command, check=False).returncode == status


def test_a_fork_that_fails_tells_why() -> None:
    script = (
        "import os, resource\n"
        "from runtime import syscalls\n"
        "os.setresuid(54321, 54321, 54321)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "try:\n"
        "    syscalls.fork()\n"
        "except BlockingIOError as error:\n"
        "    print(error.strerror)\n"
    )
    if os.geteuid():
        pytest.skip("limits do not hold root; it becomes somebody else")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "Resource temporarily unavailable\n"
