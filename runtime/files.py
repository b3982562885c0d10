"""Durable changes on disk: the only module that replaces files."""

from __future__ import annotations

import os
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


def _rmtree(path: Path, *, ignore_errors: bool = False) -> None:
    import shutil  # 4 ms that a list of containers does not need

    shutil.rmtree(path, ignore_errors=ignore_errors)


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
