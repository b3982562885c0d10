"""Places the quota commands for users and groups inside a container, and takes them away.

They stand in ``/usr/local``, so the distribution's own package stays what it is and is found again
when they are removed. The tree belongs to the container: it is walked by ``openat2`` below its
root, and nothing in it is followed out.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

from vzfs import syscalls

SCRIPT = Path(__file__).with_name("guest") / "vzfs-quota"
#: Where the script stands in the container, and under which names it is called.
_HOME = b"usr/local/lib"
_PLACE = b"vzfs-quota"
_NAMES = {
    b"usr/local/bin": (b"quota",),
    b"usr/local/sbin": (
        b"setquota",
        b"repquota",
        b"edquota",
        b"quotaon",
        b"quotaoff",
        b"warnquota",
    ),
}
_TARGET = b"../lib/vzfs-quota"
_RESOLVE_IN_ROOT = 0x10  # linux/openat2.h


def install(root: Path) -> None:
    """Place the commands in the tree at ``root``; raises OSError. Idempotent."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        home = _directory(top, _HOME)
        try:
            _write(home, SCRIPT.read_bytes())
        finally:
            os.close(home)
        for where, names in _NAMES.items():
            directory = _directory(top, where)
            try:
                for name in names:
                    _link(directory, name)
            finally:
                os.close(directory)
    finally:
        os.close(top)


def remove(root: Path) -> None:
    """Take the commands away from the tree at ``root``; raises OSError. Absent is success."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for where, names in _NAMES.items():
            with suppress(FileNotFoundError):
                directory = _open(top, where)
                try:
                    for name in names:
                        if _is_ours(directory, name):
                            os.unlink(name, dir_fd=directory)
                finally:
                    os.close(directory)
        with suppress(FileNotFoundError):
            home = _open(top, _HOME)
            try:
                os.unlink(_PLACE, dir_fd=home)
            finally:
                os.close(home)
    finally:
        os.close(top)


def _open(top: int, path: bytes) -> int:
    return syscalls.openat2(top, path, os.O_PATH | os.O_DIRECTORY, _RESOLVE_IN_ROOT)


def _directory(top: int, path: bytes) -> int:
    """Return a descriptor of a directory of the tree, making what is missing of it."""
    at = os.dup(top)
    done = b""
    for name in path.split(b"/"):
        done = done + b"/" + name if done else name
        try:
            below = _open(top, done)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=at)
            below = _open(top, done)
        except BaseException:
            os.close(at)
            raise
        os.close(at)
        at = below
    return at


def _write(directory: int, data: bytes) -> None:
    spare = b".vzfs-quota.new"
    with suppress(FileNotFoundError):
        os.unlink(spare, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(spare, flags, 0o755, dir_fd=directory)
    try:
        os.write(fd, data)
        os.fchmod(fd, 0o755)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(spare, _PLACE, src_dir_fd=directory, dst_dir_fd=directory)


def _is_ours(directory: int, name: bytes) -> bool:
    try:
        return os.readlink(name, dir_fd=directory) == _TARGET
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return False
        raise


def _link(directory: int, name: bytes) -> None:
    """Make the link unless the administrator has put something of his own there."""
    if not _is_ours(directory, name):
        with suppress(FileExistsError):
            os.symlink(_TARGET, name, dir_fd=directory)


def main(argv: list[str] | None = None) -> int:
    """Install into (or with ``--remove`` remove from) the trees given; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    action = remove if words[:1] == ["--remove"] else install
    for word in words:
        if word != "--remove":
            action(Path(word))
    return 0


if __name__ == "__main__":
    sys.exit(main())
