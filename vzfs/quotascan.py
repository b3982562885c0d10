"""Count what an area uses: blocks and inodes, in all and by owner, hard links once.

What ``du`` counts, and what the ledger must agree with; whiteouts, which take no block and which
their users do not see, are left out. Made for trees which an enemy filled: no
path is built, so neither depth nor names matter, and two descriptors are open at most.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Scan:
    """What was counted; blocks of 512 bytes. ``users`` and ``groups``: id → [blocks, inodes]."""

    blocks: int = 0
    inodes: int = 0
    users: dict[int, list[int]] = field(default_factory=dict)
    groups: dict[int, list[int]] = field(default_factory=dict)
    #: Blocks of those inodes which were asked for: inode number → blocks.
    found: dict[int, int] = field(default_factory=dict)


def scan(area: Path | str, wanted: Collection[int] = (), index: Path | str = "") -> Scan:
    """Return what the tree at ``area`` uses, the directory itself included.

    Files in the directory ``index`` which have no name in the area count too. Raises OSError:
    EXDEV when another file system is mounted inside, ENOTDIR, EIO, ….
    """
    total = Scan()
    linked: set[int] = set()
    fd = os.open(area, _DIRECTORY)
    try:
        top = os.fstat(fd)
        _add(total, top, wanted)
        # Per level: the names of directories still to be visited, and the level's own inode.
        levels = [(_read(fd, top.st_dev, total, linked, wanted), top.st_ino)]
        while levels:
            names, _ = levels[-1]
            if not names:
                levels.pop()
                if levels:
                    fd = _swap(fd, "..", top.st_dev, levels[-1][1])
                continue
            fd = _swap(fd, names.pop(), top.st_dev, None)
            inode = os.fstat(fd).st_ino
            levels.append((_read(fd, top.st_dev, total, linked, wanted), inode))
    finally:
        os.close(fd)
    if index:
        fd = os.open(index, _DIRECTORY)
        try:
            _read(fd, top.st_dev, total, linked, wanted)
        finally:
            os.close(fd)
    return total


def _swap(fd: int, name: str, device: int, inode: int | None) -> int:
    """Return a descriptor of ``name`` in ``fd``, which is closed; check what was reached."""
    new = os.open(name, _DIRECTORY, dir_fd=fd)
    status = os.fstat(new)
    if status.st_dev != device or (inode is not None and status.st_ino != inode):
        os.close(new)
        raise OSError(errno.EXDEV, "the tree crosses a mount point or moved while scanned", name)
    os.close(fd)
    return new


def _read(
    fd: int, device: int, total: Scan, linked: set[int], wanted: Collection[int]
) -> list[str]:
    below: list[str] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if status.st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), entry.name)
            if stat.S_ISDIR(status.st_mode):
                below.append(entry.name)
            elif stat.S_ISCHR(status.st_mode) and not status.st_rdev:
                # A whiteout hides a name of a lower layer; to its users it is no file at all.
                continue
            elif status.st_nlink > 1:
                if status.st_ino in linked:
                    continue
                linked.add(status.st_ino)
            _add(total, status, wanted)
    return below


def _add(total: Scan, status: os.stat_result, wanted: Collection[int]) -> None:
    blocks = status.st_blocks
    total.blocks += blocks
    total.inodes += 1
    for owners, ident in ((total.users, status.st_uid), (total.groups, status.st_gid)):
        found = owners.get(ident)
        if found is None:
            owners[ident] = [blocks, 1]
        else:
            found[0] += blocks
            found[1] += 1
    if status.st_ino in wanted:
        total.found[status.st_ino] = blocks
