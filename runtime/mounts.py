"""Mounts by descriptor: a path inside a container's tree is never followed blindly.

Everything that names a place in a container's root goes through ``openat2`` with the root as its
limit and without symbolic links, and is then attached to by descriptor: what the container left
there (a link ``/dev`` → ``/etc``, say) can neither redirect a mount nor win a race.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from runtime import syscalls

NOSUID_NODEV_NOEXEC = (
    syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
)
READ_ONLY = syscalls.MOUNT_ATTR_RDONLY
_INSIDE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
#: How mountinfo writes blanks and backslashes, proc_pid_mountinfo(5).
_ESCAPED = re.compile(rb"\\([0-7]{3})")


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close ``fd`` when the block ends."""
    try:
        yield fd
    finally:
        os.close(fd)


def new(kind: str, options: Mapping[str, str | None], attributes: int) -> int:
    """Return a detached mount of a new file system; raises OSError.

    An option with value None is a flag. The kernel takes the mounting process's namespaces: call
    it in those the mount is for.
    """
    with closing(syscalls.fsopen(kind)) as context:
        for key, value in options.items():
            command = syscalls.FSCONFIG_SET_FLAG if value is None else syscalls.FSCONFIG_SET_STRING
            syscalls.fsconfig(context, command, key, value)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, attributes)


def clone(
    path: str, *, dir_fd: int = syscalls.AT_FDCWD, attributes: int = 0, recursive: bool = False
) -> int:
    """Return a detached bind mount of ``path`` with ``attributes`` added; raises OSError.

    It is private. A copy of a shared mount, which all are where systemd runs, would be its peer:
    what a container mounts on it would show on the server, and it could become no root
    (pivot_root(2), EINVAL).
    """
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= syscalls.AT_EMPTY_PATH
    fd = syscalls.open_tree(dir_fd, path, flags)
    try:
        syscalls.mount_setattr(
            fd, add=attributes, propagation=syscalls.MS_PRIVATE, recursive=recursive
        )
    except OSError:
        os.close(fd)
        raise
    return fd


def open_inside(root_fd: int, path: str, flags: int = os.O_PATH) -> int:
    """Open ``path`` below ``root_fd``, following no link; raises OSError (ELOOP for a link)."""
    return syscalls.openat2(root_fd, path.lstrip("/") or ".", flags, _INSIDE)


def make_directory(root_fd: int, path: str, mode: int = 0o755) -> int:
    """Return an O_PATH descriptor of directory ``path`` below ``root_fd``, made if missing.

    Raises OSError; NotADirectoryError or ELOOP when something else is there.
    """
    flags = os.O_PATH | os.O_DIRECTORY
    with suppress(FileNotFoundError):
        return open_inside(root_fd, path, flags)
    parent, _, name = path.strip("/").rpartition("/")
    with closing(make_directory(root_fd, parent) if parent else os.dup(root_fd)) as parent_fd:
        with suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=parent_fd)
        return open_inside(parent_fd, name, flags)


def make_file(root_fd: int, path: str) -> int:
    """Return an O_PATH descriptor of ``path`` below ``root_fd``, an empty file if missing."""
    with suppress(FileNotFoundError):
        return open_inside(root_fd, path)
    parent, _, name = path.strip("/").rpartition("/")
    with closing(make_directory(root_fd, parent) if parent else os.dup(root_fd)) as parent_fd:
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
        with suppress(FileExistsError):
            os.close(os.open(name, flags, 0o644, dir_fd=parent_fd))
        return open_inside(parent_fd, name)


def attach(mount_fd: int, root_fd: int, path: str, *, directory: bool = True) -> None:
    """Attach a detached mount at ``path`` below ``root_fd``, made if missing; raises OSError.

    ``mount_fd`` is closed.
    """
    with closing(mount_fd):
        make = make_directory if directory else make_file
        with closing(make(root_fd, path)) as target:
            syscalls.move_mount(mount_fd, target)


def cover(root_fd: int, paths: Sequence[str], blank_file: str = "/dev/null") -> None:
    """Hide those of ``paths`` below ``root_fd`` that exist: files by ``blank_file``, directories
    by an empty read-only one. Raises OSError.
    """
    for path in paths:
        try:
            target = open_inside(root_fd, path)
        except FileNotFoundError:
            continue
        with closing(target):
            if stat.S_ISDIR(os.fstat(target).st_mode):
                blank = new(
                    "tmpfs", {"mode": "0555", "size": "4k"}, NOSUID_NODEV_NOEXEC | READ_ONLY
                )
            else:
                blank = clone(blank_file)
            with closing(blank):
                syscalls.move_mount(blank, target)


def protect(root_fd: int, paths: Sequence[str]) -> None:
    """Make those of ``paths`` below ``root_fd`` that exist read-only; raises OSError."""
    for path in paths:
        try:
            target = open_inside(root_fd, path)
        except FileNotFoundError:
            continue
        with closing(target):
            with closing(clone("", dir_fd=target, attributes=READ_ONLY, recursive=True)) as copy:
                syscalls.move_mount(copy, target)


def pivot(root_fd: int) -> None:
    """Make the mount ``root_fd`` the root of this mount namespace and forget the old one."""
    os.fchdir(root_fd)
    # The old root ends up stacked over the new one at the same place: no directory for it needed
    # (pivot_root(2), NOTES).
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")


def is_mount_point(path: str | os.PathLike[str]) -> bool:
    """Whether something is mounted at ``path``; a dead FUSE mount counts."""
    wanted = os.path.abspath(path)
    with open("/proc/self/mountinfo", "rb") as file:
        raw = os.fsencode(wanted)
        for old, new_text in (
            (b"\\", b"\\134"),
            (b" ", b"\\040"),
            (b"\t", b"\\011"),
            (b"\n", b"\\012"),
        ):
            raw = raw.replace(old, new_text)
        return any(line.split(b" ", 5)[4] == raw for line in file)


def points_of(sources: Collection[str]) -> list[str]:
    """Return where the devices ``sources`` are mounted in this namespace, the latest first."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            words = line.split()
            if os.fsdecode(words[words.index(b"-") + 2]) in sources:
                found.append(os.fsdecode(_ESCAPED.sub(lambda m: bytes([int(m[1], 8)]), words[4])))
    return found[::-1]
