"""A container's tree as its processes see it: /proc, /sys, /dev, masks; built by its first process.

Everything is attached by descriptor inside the new root before that becomes the root (see
``mounts``). The container owns its mount namespace and may undo masks: they hide what is of no
use inside; what protects the host is that no file behind them belongs to an id of the container.
"""

from __future__ import annotations

import array
import fcntl
import os
import termios
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from runtime import mounts, syscalls
from runtime.mounts import NOSUID_NODEV_NOEXEC, READ_ONLY, closing

#: Hidden, as in the OCI runtimes' default (runc, crun): figures of the host, hardware.
MASKED = (
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
)
READ_ONLY_PATHS = ("proc/bus", "proc/fs", "proc/irq", "proc/sysrq-trigger")
#: What only the ids of the server's root may write to.
_PRIVILEGED_READ_ONLY = ("proc/sys",)
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
#: gid of "tty" in every distribution: what may write to other people's terminals.
_TTY_GROUP = "5"
# asm-generic/ioctls.h
_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
_TIOCGPTPEER = 0x5441


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory to show at ``target`` inside; its detached mount travels separately."""

    target: str


@dataclass(frozen=True, slots=True)
class View:
    """What the tree gets besides its own files."""

    nodes: Sequence[str]
    binds: Sequence[Bind]
    #: Names below /dev of nodes whose detached mounts travel separately.
    own_nodes: Sequence[str] = ()
    #: Number of consoles: 1 is /dev/console and tty1, 2 is tty2.
    consoles: int = 2
    #: Largest number of pseudo-terminals (NUMPTY).
    terminals: int = 1024
    #: Containers inside may mount /proc and /sys of their own.
    nesting: bool = False
    #: Its root is the server's.
    privileged: bool = False


@dataclass(frozen=True, slots=True)
class Console:
    """A pseudo-terminal made in the container's own devpts."""

    master: int
    number: int


def build(
    root_fd: int,
    view: View,
    bind_fds: Sequence[int],
    node_fds: Sequence[int] = (),
    *,
    legacy_cgroups: bool = False,
) -> list[Console]:
    """Mount what ``view`` says below ``root_fd`` (attached already); return the consoles.

    ``legacy_cgroups``: also mount the v1 hierarchy of systemd, for those that know no other.
    Call it as root of the container's user namespace, in its namespaces, before ``mounts.pivot``.
    Raises OSError.
    """
    proc = mounts.new("proc", {}, NOSUID_NODEV_NOEXEC)
    mounts.attach(proc, root_fd, "proc")
    mounts.attach(mounts.new("sysfs", {}, NOSUID_NODEV_NOEXEC | READ_ONLY), root_fd, "sys")
    _cgroups(root_fd, legacy=legacy_cgroups)
    consoles = _devices(root_fd, view)
    for name, fd in zip(view.own_nodes, node_fds, strict=True):
        mounts.attach(fd, root_fd, f"dev/{name}", directory=False)
    if view.nesting:
        _allow_nesting(root_fd)
    for bind, fd in zip(view.binds, bind_fds, strict=True):
        mounts.attach(fd, root_fd, bind.target)
    mounts.cover(root_fd, MASKED)
    mounts.protect(root_fd, READ_ONLY_PATHS)
    if view.privileged:
        mounts.protect(root_fd, _PRIVILEGED_READ_ONLY)
    return consoles


def _cgroups(root_fd: int, *, legacy: bool) -> None:
    if not legacy:
        # Without v2 on the host there is nothing to show; an init that needs it says so.
        with suppress(OSError):
            group = mounts.new("cgroup2", {"nsdelegate": None}, NOSUID_NODEV_NOEXEC)
            mounts.attach(group, root_fd, "sys/fs/cgroup")
        return
    mounts.attach(
        mounts.new("tmpfs", {"mode": "0755", "size": "64k"}, NOSUID_NODEV_NOEXEC),
        root_fd,
        "sys/fs/cgroup",
    )
    with suppress(OSError):
        group = mounts.new("cgroup2", {}, NOSUID_NODEV_NOEXEC)
        mounts.attach(group, root_fd, "sys/fs/cgroup/unified")
    with suppress(OSError):
        named = mounts.new("cgroup", {"none": None, "name": "systemd"}, NOSUID_NODEV_NOEXEC)
        mounts.attach(named, root_fd, "sys/fs/cgroup/systemd")


def _allow_nesting(root_fd: int) -> None:
    """Mount /proc and /sys once more, with nothing over them, where nobody looks.

    A user namespace may only mount what is fully visible already (mount_too_revealing() in
    fs/namespace.c): masks and files of our own over /proc would forbid it to those inside.
    """
    for kind, flags in (("proc", 0), ("sysfs", READ_ONLY)):
        fd = mounts.new(kind, {}, NOSUID_NODEV_NOEXEC | flags)
        mounts.attach(fd, root_fd, f"dev/.nesting/{kind}")


def _devices(root_fd: int, view: View) -> list[Console]:
    options: dict[str, str | None] = {"mode": "0755", "size": "4m", "nr_inodes": "4096"}
    mounts.attach(
        mounts.new("tmpfs", options, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC),
        root_fd,
        "dev",
    )
    with closing(mounts.open_inside(root_fd, "dev")) as dev:
        for node in view.nodes:
            mounts.attach(mounts.clone(f"/dev/{node}"), dev, node, directory=False)
        for name, target in _LINKS:
            os.symlink(target, name, dir_fd=dev)
        terminals = {
            "newinstance": None,
            "ptmxmode": "0666",
            "mode": "0620",
            "gid": _TTY_GROUP,
            "max": str(view.terminals),
        }
        noexec_nosuid = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
        mounts.attach(mounts.new("devpts", terminals, noexec_nosuid), dev, "pts")
        shared = mounts.new(
            "tmpfs",
            {"mode": "1777"},
            syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV,
        )
        mounts.attach(shared, dev, "shm")
        with suppress(OSError):  # CONFIG_POSIX_MQUEUE may be off
            mounts.attach(mounts.new("mqueue", {}, NOSUID_NODEV_NOEXEC), dev, "mqueue")
        consoles = []
        with closing(mounts.open_inside(dev, "pts", os.O_RDONLY | os.O_DIRECTORY)) as pts:
            for number in range(1, view.consoles + 1):
                console = open_terminal(pts)
                for name in ("console", "tty1") if number == 1 else (f"tty{number}",):
                    mounts.attach(
                        mounts.clone(str(console.number), dir_fd=pts), dev, name, directory=False
                    )
                consoles.append(console)
    return consoles


def open_terminal(pts_fd: int) -> Console:
    """Return a new, unlocked pseudo-terminal of the devpts at ``pts_fd``; raises OSError."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open("ptmx", flags, dir_fd=pts_fd)
    fcntl.ioctl(master, _TIOCSPTLCK, array.array("i", [0]))
    number = array.array("i", [0])
    fcntl.ioctl(master, _TIOCGPTN, number)
    return Console(master, number[0])


def peer(master: int) -> int:
    """Return the other end of ``master`` without following any path; raises OSError."""
    return int(fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))


def set_size(fd: int, size: bytes) -> None:
    """Set the window size (struct winsize) of a terminal."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, size)


def size_of(fd: int) -> bytes:
    """Return the window size (struct winsize) of a terminal; raises OSError."""
    return fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8)


def control(fd: int) -> None:
    """Make a terminal the controlling one of this session, TIOCSCTTY."""
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
