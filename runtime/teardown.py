"""Undoing what a start did, by its supervisor or, when that is dead, by the next command.

Every step is idempotent: undoing what is not there succeeds.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import mounts, syscalls
from runtime.errors import UmountFailed
from runtime.net import names
from runtime.state import Process

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.paths import Paths

_SERVER_TIMEOUT_S = 2.0


def unmount(target: Path, *, patience_s: float = 0.2) -> bool:
    """Unmount everything at ``target``; return whether somebody on the host still used it.

    What is in use is detached: it disappears from the tree now and for good with its last user.
    Raises UmountFailed.
    """
    deadline = time.monotonic() + patience_s
    busy = False
    while mounts.is_mount_point(target):
        try:
            syscalls.umount(str(target), syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                break
            if error.errno != errno.EBUSY:
                raise UmountFailed(f"cannot unmount {target}: {error.strerror}") from error
            if time.monotonic() < deadline:
                # A dying process of the container may hold its last reference for a moment.
                time.sleep(0.005)
                continue
            busy = True
            syscalls.umount(str(target), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    return busy


def wait_or_kill(pidfd: int, *, timeout_s: float = _SERVER_TIMEOUT_S) -> None:
    """Wait for the process ``pidfd`` names to end, kill it when it does not."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(timeout_s * 1000):
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
        poller.poll(timeout_s * 1000)


def end_process(process: Process | None, *, timeout_s: float = 5.0) -> None:
    """Kill a process that is not our child, if it is still the one meant, and wait for its end."""
    if process is None or not process.alive:
        return
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    wait_for_end(process, timeout_s)


def wait_for_end(process: Process, timeout_s: float) -> bool:
    """Wait for a process that is not our child; return whether it ended in time."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    with mounts.closing(pidfd):
        if not process.alive:
            return True
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000))


def network(paths: Paths, ctid: int, config: Config) -> None:
    """Take down what the container had of the host's network."""
    # Addresses given to the running container may never have been saved.
    configured = names.wanted(config) or names.mark(paths, ctid).exists()
    if configured or any(names.owner(name) == ctid for _index, name in socket.if_nameindex()):
        from runtime.net import attach

        attach.teardown(paths, ctid, config)
