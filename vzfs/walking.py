"""Visit every directory of a tree which an enemy may have filled.

No path is built, so neither depth nor names matter; two descriptors are open at most.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def directories(area: Path | str) -> Iterator[tuple[int, list[os.DirEntry[str]]]]:
    """Yield a descriptor and the entries of each directory, ``area`` itself first.

    The descriptor is good until the next one is asked for. Raises OSError: EXDEV when another file
    system is mounted inside or the tree moved, ENOTDIR, EIO, ….
    """
    fd = os.open(area, _DIRECTORY)
    try:
        top = os.fstat(fd)
        entries = _entries(fd)
        yield fd, entries
        # Per level: the names of directories still to be visited, and the level's own inode.
        levels = [(_folders(entries), top.st_ino)]
        while levels:
            names, _ = levels[-1]
            if not names:
                levels.pop()
                if levels:
                    fd = _swap(fd, "..", top.st_dev, levels[-1][1])
                continue
            fd = _swap(fd, names.pop(), top.st_dev, None)
            inode = os.fstat(fd).st_ino
            entries = _entries(fd)
            yield fd, entries
            levels.append((_folders(entries), inode))
    finally:
        os.close(fd)


def _entries(fd: int) -> list[os.DirEntry[str]]:
    with os.scandir(fd) as found:
        return list(found)


def _folders(entries: list[os.DirEntry[str]]) -> list[str]:
    return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _swap(fd: int, name: str, device: int, inode: int | None) -> int:
    """Return a descriptor of ``name`` in ``fd``, which is closed; check what was reached."""
    new = os.open(name, _DIRECTORY, dir_fd=fd)
    status = os.fstat(new)
    if status.st_dev != device or (inode is not None and status.st_ino != inode):
        os.close(new)
        raise OSError(errno.EXDEV, "the tree crosses a mount point or moved while scanned", name)
    os.close(fd)
    return new
