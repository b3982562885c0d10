"""Server processes beside a container: forked, named, cut off from whoever started them."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from runtime import syscalls

#: Where the first of the kept descriptors is in the child.
FIRST_FD = 3


def fork_server(name: str, keep: Sequence[int], body: Callable[[], None]) -> int:
    """Fork a process that runs ``body`` and ends; return its id. Raises OSError.

    It has the descriptors ``keep`` as 3, 4, … and no others; its standard ones lead nowhere, so
    that nobody who reads a command's output waits for it.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with suppress(BaseException):
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        syscalls.set_name(name)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        _arrange(keep)
        body()
        status = 0
    os._exit(status)


def _arrange(keep: Sequence[int]) -> None:
    above = FIRST_FD + len(keep)
    # First out of the range they go to, so that none lands on another.
    spare = [_move_up(fd, above) for fd in keep]
    for target, fd in enumerate(spare, start=FIRST_FD):
        os.dup2(fd, target, inheritable=False)
    syscalls.close_range(above)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _move_up(fd: int, least: int) -> int:
    return fd if fd >= least else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
