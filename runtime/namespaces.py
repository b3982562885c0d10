"""Making and entering the namespaces of a container (namespaces(7)); knows no configuration."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from dataclasses import dataclass

from runtime import syscalls
from runtime.errors import NoKernelSupport

#: What a container's init is born into. The cgroup namespace is left out: its root is the cgroup
#: at the moment it is made, so init makes it after having joined; the time namespace is prepared
#: by the parent, whose children are born into it.
OF_INIT = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWPID
)
#: What a process that enters joins in one step; the pid namespace is joined before its fork.
_JOINED = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWCGROUP
)
_NEEDED = ("user", "mnt", "uts", "ipc", "net", "pid", "cgroup")

_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


@dataclass(frozen=True, slots=True)
class IdRange:
    """Ids 0…``count``-1 of a user namespace are ``first``… of the host."""

    first: int
    count: int = 65536


def check() -> None:
    """Check that the kernel has the namespaces a container needs; raises NoKernelSupport."""
    missing = [name for name in _NEEDED if not os.path.exists(f"/proc/self/ns/{name}")]
    if missing:
        raise NoKernelSupport(f"the kernel lacks namespaces: {', '.join(missing)}")
    try:
        with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
            most = int(file.read())
    except FileNotFoundError:
        return
    if most == 0:
        raise NoKernelSupport(
            "user namespaces are turned off", hint="sysctl user.max_user_namespaces=65536"
        )


def fork(flags: int = 0, *, cgroup_fd: int = -1) -> int:
    """Fork into new namespaces ``flags`` and the v2 cgroup ``cgroup_fd``; returns as os.fork.

    Born there, the child costs no move between cgroups (5–7 ms, an RCU grace period). Raises
    OSError.
    """
    return syscalls.clone3(flags, cgroup_fd=cgroup_fd)


def write_maps(pid: int, ids: IdRange) -> None:
    """Give the user namespace of ``pid`` its ids, user_namespaces(7); raises OSError."""
    text = f"0 {ids.first} {ids.count}\n".encode()
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)


def become_root() -> None:
    """Become uid and gid 0 of this user namespace, without other groups; raises OSError."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def new_time_for_children() -> bool:
    """Let children born from now on count their uptime from now, time_namespaces(7).

    Returns False where the kernel has no time namespaces: uptime is the host's then.
    """
    if not os.path.exists("/proc/self/ns/time_for_children"):
        return False
    syscalls.unshare(syscalls.CLONE_NEWTIME)
    lines = []
    for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME)):
        now = time.clock_gettime_ns(clock)
        # Rounded towards the past: a clock below zero is refused.
        lines.append(f"{name} -{now // 10**9} 0")
    with open("/proc/self/timens_offsets", "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
    return True


def prepare_entering(pidfd: int) -> None:
    """Let the next child of this process be born in the pid namespace of ``pidfd``'s process."""
    syscalls.setns(pidfd, syscalls.CLONE_NEWPID)


def end_entering() -> None:
    """Let children be born in this process's own pid namespace again."""
    fd = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWPID)
    finally:
        os.close(fd)


def enter(pidfd: int) -> None:
    """Join every other namespace of ``pidfd``'s process; raises OSError.

    Root and working directory are then those of its mount namespace (setns(2)).
    """
    flags = _JOINED
    if os.path.exists("/proc/self/ns/time"):
        flags |= syscalls.CLONE_NEWTIME
    try:
        syscalls.setns(pidfd, flags)
    except OSError as error:
        # A privileged container has this process's own user namespace, which none joins again.
        if error.errno != errno.EINVAL:
            raise
        syscalls.setns(pidfd, flags & ~syscalls.CLONE_NEWUSER)


def loopback_up() -> None:
    """Bring ``lo`` of this network namespace up; raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
