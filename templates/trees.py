"""Trees of containers' own files, seen from the host: walked and opened while those inside change them.

Nothing here follows a symbolic link or leaves the tree: a directory may become a link to anywhere
on the server between two calls.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vzfs import syscalls
from vzfs.layers import METACOPY, REDIRECT

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: Directories deeper than this cannot be opened by one path, and are left alone.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.ESTALE)
_MAGIC = "////"


def open_below(root: int, path: str, flags: int) -> int:
    """Open ``path`` below the directory ``root`` without following any link; raises OSError."""
    return syscalls.openat2(root, os.fsencode(path or "."), flags | os.O_NOFOLLOW, _RESOLVE)


def walk(root: Path) -> Iterator[tuple[int, str, str, os.stat_result]]:
    """Yield (descriptor of its directory, path, name, status) of whatever is not a directory.

    Paths are relative to ``root``. What disappears meanwhile is left out.
    """
    top = os.open(root, _DIRECTORY)
    try:
        pending = [""]
        while pending:
            place = pending.pop()
            try:
                fd = open_below(top, place, _DIRECTORY)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                continue
            try:
                for name in os.listdir(fd):
                    try:
                        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    path = f"{place}/{name}" if place else name
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(path)
                    else:
                        yield fd, path, name, status
            finally:
                os.close(fd)
    finally:
        os.close(top)


def magic_links(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (path below ``root``, target relative to the template area) of every magic link.

    A copy of metadata whose data are a magic link's counts as one, too.
    """
    for fd, path, name, status in walk(root):
        target = _target(fd, name, status)
        if target.startswith(_MAGIC):
            yield path, target.lstrip("/")


def _target(dir_fd: int, name: str, status: os.stat_result) -> str:
    with suppress(OSError):
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(name, dir_fd=dir_fd)
        if stat.S_ISREG(status.st_mode):
            path = f"/proc/self/fd/{dir_fd}/{name}"
            marks = os.listxattr(path, follow_symlinks=False)
            if METACOPY in marks and REDIRECT in marks:
                return os.fsdecode(os.getxattr(path, REDIRECT, follow_symlinks=False))
    return ""
