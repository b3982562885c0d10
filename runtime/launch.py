"""Process 1 of a container, seen by its supervisor: born, given ids and mounts, let go.

The other side of the conversation is ``boot``.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from runtime import boot, devices, init, mounts, namespaces, seccomp, syscalls
from runtime.cgroups import Cgroup
from runtime.errors import DevicesFailed, EnvironmentFailed, MountFailed, PrivateBroken, VzError
from runtime.net import netfilter
from runtime.plan import BindSource, Plan

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Child:
    """A first process that waits for its ids and mounts."""

    pid: int
    channel: socket.socket


def choose_init(plan: Plan) -> init.Init:
    """Return the init of a plan whose tree is mounted; raises OSError."""
    if plan.init is not None:
        return plan.init
    with mounts.closing(os.open(plan.target, os.O_PATH | os.O_DIRECTORY)) as root:
        return init.detect(root)


def fork(plan: Plan, cgroup: Cgroup) -> Child:
    """Fork the first process into its namespaces and control group; raises OSError.

    It is a child of this process's parent, the supervisor, which outlives this one.
    """
    disabled = netfilter.level(plan.config) is netfilter.Level.DISABLED
    filter_ = seccomp.program(netfilter=not disabled, clock=plan.sets_clock)
    flags = namespaces.OF_INIT | syscalls.CLONE_PARENT
    if plan.view.privileged:
        flags &= ~syscalls.CLONE_NEWUSER
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    entrance = cgroup.entrance()
    try:
        pid = namespaces.fork(flags, cgroup_fd=entrance.v2_fd)
        if pid == 0:
            ours.close()
            boot.first_process(theirs, entrance, plan, filter_)
    finally:
        entrance.close()
        theirs.close()
    ours.settimeout(_TIMEOUT_S)
    return Child(pid, ours)


def bring_up(
    child: Child,
    plan: Plan,
    ids: namespaces.IdRange | None,
    files: Sequence[int],
    chosen: init.Init,
) -> list[int]:
    """Give the first process what it waits for; return the masters of its consoles.

    ``ids`` are those of its user namespace, if it has one; ``files`` are detached mounts of its own
    /proc files, which are closed. Raises EnvironmentFailed, MountFailed, DevicesFailed,
    PrivateBroken, or what the network raises.
    """
    channel, pid = child.channel, child.pid
    with ExitStack() as closing:
        closing.callback(channel.close)
        for fd in files:
            closing.callback(os.close, fd)
        userns = None
        if ids is not None:
            namespaces.write_maps(pid, ids)
            userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            closing.callback(os.close, userns)
        fds = [_tree(plan, userns)]
        closing.callback(os.close, fds[0])
        for source in plan.binds:
            fds.append(_bind(source, userns))
            closing.callback(os.close, fds[-1])
        for node in plan.access.own:
            fds.append(_node(plan, node, ids.first if ids is not None else 0))
            closing.callback(os.close, fds[-1])
        socket.send_fds(channel, [boot.GO, pickle.dumps(chosen)], [*fds, *files])
        if plan.wants_network:
            from runtime.net import attach

            attach.setup(plan.paths, plan.ctid, plan.config, pid)
        masters: list[int] = []
        try:
            word, masters, _flags, _address = socket.recv_fds(channel, 4096, 16)
            consoles = word.startswith(boot.CONSOLES)
            if consoles:
                channel.send(boot.EXECUTE)
                word = channel.recv(4096)
        except OSError as error:
            _close(masters)
            raise EnvironmentFailed(f"process 1 does not answer: {error}") from error
        if word.startswith(boot.FAILED):
            _close(masters)
            raise _failure(word[1:])
        if not consoles:
            raise EnvironmentFailed("process 1 died while it was started")
        return masters


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _tree(plan: Plan, userns: int | None) -> int:
    """Return the container's own detached view of the mount: ids shifted, setuid bits alive."""
    fd = mounts.clone(str(plan.target))
    # Where the kernel cannot shift ids on such a mount, the file server does.
    shifted = userns if not plan.options.first_id else None
    idmap = syscalls.MOUNT_ATTR_IDMAP if shifted is not None else 0
    try:
        syscalls.mount_setattr(
            fd,
            add=idmap | syscalls.MOUNT_ATTR_NODEV,
            clear=syscalls.MOUNT_ATTR_NOSUID,
            userns_fd=shifted or 0,
        )
    except OSError as error:
        os.close(fd)
        raise MountFailed(f"the mount's ids cannot be shifted: {error.strerror}") from error
    return fd


def _bind(source: BindSource, userns: int | None) -> int:
    """Return a detached bind mount with the container's ids where its file system can."""
    attributes = {
        "nosuid": syscalls.MOUNT_ATTR_NOSUID,
        "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    }
    added = syscalls.MOUNT_ATTR_NODEV
    for name in source.flags:
        added |= attributes.get(name, 0)
    if source.read_only:
        added |= syscalls.MOUNT_ATTR_RDONLY
    fd = mounts.clone(source.source, attributes=added)
    if userns is not None:
        with suppress(OSError):
            syscalls.mount_setattr(fd, add=syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns)
    return fd


def _node(plan: Plan, node: devices.Node, owner: int) -> int:
    try:
        return devices.made(plan.paths, plan.ctid, node, owner)
    except OSError as error:
        raise DevicesFailed(f"cannot make /dev/{node.name}: {error.strerror}") from error


def _failure(report: bytes) -> VzError:
    stage, number, path = json.loads(report)
    reason = os.strerror(number) if number else "unknown error"
    text = f"{stage}: {reason}" + (f" ({path})" if path else "")
    if stage.startswith("executing"):
        return PrivateBroken(text, hint="the private area holds no system that can be started")
    if number in (errno.ELOOP, errno.ENOTDIR):
        return PrivateBroken(text, hint="/proc, /sys and /dev must be plain directories")
    return EnvironmentFailed(text)
