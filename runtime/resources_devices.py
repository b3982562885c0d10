"""Devices of a running container follow DEVICES and DEVNODES: its control group and its /dev."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from runtime import devices, mounts, namespaces, syscalls
from runtime.cgroup_limits import Limits
from runtime.errors import DevicesFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from runtime.config import Config
    from runtime.container import Container


def apply(ct: Container, before: Config, after: Config) -> None:
    """Let a running container use the devices of ``after``; raises DevicesFailed."""
    old, new = devices.access(before), devices.access(after)
    added = [node for node in new.own if node not in old.own]
    removed = [node.name for node in old.own if node not in new.own]
    if added or removed:
        owner = int(ct.run_state().extra["first_id"])
        with ExitStack() as closing:
            fds = {}
            for node in added:
                try:
                    fds[node.name] = devices.made(ct.paths, ct.ctid, node, owner)
                except OSError as error:
                    raise DevicesFailed(f"/dev/{node.name}: {error.strerror}") from error
                closing.callback(os.close, fds[node.name])
            _change_nodes(ct.init_pid, fds, removed)
    if new.rules != old.rules:
        ct.cgroup.set(Limits(devices=new.rules))


def _change_nodes(pid: int, added: Mapping[str, int], removed: Collection[str]) -> None:
    """Attach and detach device nodes in the /dev of the container whose init is ``pid``."""
    pidfd = os.pidfd_open(pid)
    with mounts.closing(pidfd):
        child = syscalls.fork()
        if child == 0:
            status = 1
            try:
                namespaces.enter(pidfd)
                namespaces.become_root()
                _change_here(added, removed)
                status = 0
            except OSError as error:
                status = error.errno or 1
            except BaseException:
                traceback.print_exc(file=sys.stderr)
            finally:
                os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise DevicesFailed(f"/dev of the container cannot be changed: {os.strerror(abs(code))}")


def _change_here(added: Mapping[str, int], removed: Collection[str]) -> None:
    with mounts.closing(os.open("/", os.O_PATH | os.O_DIRECTORY)) as root:
        for node in removed:
            with suppress(OSError):
                syscalls.umount(f"/dev/{node}", syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
            with suppress(OSError):
                os.unlink(f"/dev/{node}")
        for node, fd in added.items():
            # ``attach`` closes what it is given: the copy of this process.
            mounts.attach(fd, root, f"dev/{node}", directory=False)
