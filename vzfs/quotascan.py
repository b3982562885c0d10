"""Count what an area uses: blocks and inodes, in all and by owner, hard links once.

What ``du`` counts, and what the ledger must agree with; whiteouts, which take no block and which
their users do not see, are left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vzfs.walking import directories


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
    device = -1
    for fd, entries in directories(area):
        if device < 0:
            top = os.fstat(fd)
            device = top.st_dev
            _add(total, top, wanted)
        _count(entries, device, total, linked, wanted)
    if index:
        with os.scandir(index) as found:
            _count(found, device, total, linked, wanted)
    return total


def _count(
    entries: Iterable[os.DirEntry[str]],
    device: int,
    total: Scan,
    linked: set[int],
    wanted: Collection[int],
) -> None:
    for entry in entries:
        status = entry.stat(follow_symlinks=False)
        if status.st_dev != device:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), entry.name)
        if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            # A whiteout hides a name of a lower layer; to its users it is no file at all.
            continue
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in linked:
                continue
            linked.add(status.st_ino)
        _add(total, status, wanted)


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
