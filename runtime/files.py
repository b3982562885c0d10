"""Durable changes on disk: the only module that replaces files."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = ".tmp-"


def fsync_directory(path: Path) -> None:
    """Make the names in directory ``path`` durable (fsync(2), NOTES)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Give ``path`` the content ``data``: whole old or whole new after a crash, never a mixture.

    ``durable=False`` skips the fsyncs, for state that a reboot empties anyway. Raises OSError; the
    old file is then untouched.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        fsync_directory(path.parent)


def replace_symlink(path: Path, target: str) -> None:
    """Point the symbolic link ``path`` at ``target`` in one step; raises OSError."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    fsync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file durably; a file that is not there is success."""
    with suppress(FileNotFoundError):
        os.unlink(path)
        fsync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory tree of ours, which nothing may be mounted in; absent is success.

    The tree is first renamed, so that a crash leaves either the whole tree or a leftover which
    ``sweep_temporaries`` removes, never half a tree under its name.
    """
    doomed = path.with_name(f"{_TEMPORARY}{path.name}.{os.getpid()}")
    try:
        os.rename(path, doomed)
    except (FileNotFoundError, NotADirectoryError):
        return
    fsync_directory(path.parent)
    _rmtree(doomed)


#: Directories a removal is in at once; each holds a descriptor and a frame of the interpreter.
_DEEPEST = 100


#: How long a killed writer may take to end, in seconds.
_ENDING_S = 2.0


def _rmtree(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a tree of any depth, which shutil.rmtree cannot: what is inside may be hostile."""
    deadline = time.monotonic() + _ENDING_S
    while True:
        try:
            _remove_all(path)
            return
        except OSError as error:
            # The program of a killed command dies after the command's locks are free.
            if error.errno == errno.ENOTEMPTY and time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            if not ignore_errors:
                raise
            return


def _remove_all(path: Path) -> None:
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while _empty(top, top, 0):
            pass
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(directory: int, top: int, depth: int) -> bool:
    """Empty a directory; return whether what lies too deep was moved up to ``top`` instead."""
    moved = False
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        if depth == _DEEPEST:
            _move_up(name, directory, top)
            moved = True
            continue
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        child = os.open(name, flags, dir_fd=directory)
        try:
            moved = _empty(child, top, depth + 1) or moved
        finally:
            os.close(child)
        os.rmdir(name, dir_fd=directory)
    return moved


def _move_up(name: str, directory: int, top: int) -> None:
    for number in itertools.count():
        try:
            os.rename(name, f"{_TEMPORARY}{number}", src_dir_fd=directory, dst_dir_fd=top)
            return
        except OSError as error:
            # A name somebody inside has chosen.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def sweep_temporaries(directory: Path) -> int:
    """Remove what crashed writers left in ``directory``; return how many things.

    A temporary carries its writer's process id; those of living writers stay.
    """
    swept = 0
    for leftover in directory.glob(f"{_TEMPORARY}*"):
        owner = leftover.name.rpartition(".")[2]
        if owner.isdecimal() and Path(f"/proc/{owner}").exists():
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            _rmtree(leftover, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                leftover.unlink()
        swept += 1
    return swept


@contextmanager
def new_directory(path: Path, *, mode: int = 0o755) -> Iterator[Path]:
    """Build directory ``path`` beside its place and rename it in when the block succeeds.

    On any error, nothing remains. Raises OSError (FileExistsError or ENOTEMPTY when ``path`` is
    taken).
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}.{os.getpid()}")
    if temporary.exists():
        _rmtree(temporary)
    temporary.mkdir(mode=mode)
    os.chmod(temporary, mode)
    try:
        yield temporary
        fsync_directory(temporary)
        os.rename(temporary, path)
        fsync_directory(path.parent)
    except BaseException:
        _rmtree(temporary, ignore_errors=True)
        raise
