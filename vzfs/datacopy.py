"""Copying the contents of a file, and what has to be waited for before the copy may count.

A power cut must leave the old file or the new one. So the data have to be on the disk before the
change of metadata which makes them count (a rename, a mark removed); that change itself need not
be. fdatasync(2), which kernel overlayfs uses, does more: it commits the journal and flushes the
disk's cache, milliseconds on an ordinary disk. With a journal the order is enough: sizes and
extents enter it before the writing of the pages ends (fs/ext4/page-io.c), changes enter it in the
order they are made, and a commit flushes the disk's cache first (fs/jbd2/commit.c).
"""

from __future__ import annotations

import errno
import functools
import os

from vzfs import syscalls

_CHUNK = 16 << 20


def copy_data(source: int, target: int, size: int) -> None:
    """Copy the first ``size`` bytes, keeping holes; shares extents where the kernel can.

    Raises OSError (ENOSPC, EDQUOT, EIO).
    """
    if os.fstat(target).st_size:
        os.ftruncate(target, 0)
    if size == os.fstat(source).st_size:
        try:
            syscalls.ficlone(target, source)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
                raise
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(source, position, os.SEEK_HOLE), size)
        while position < end:
            count = _copy_range(source, target, position, min(end - position, _CHUNK))
            if not count:
                return
            position += count


def _copy_range(source: int, target: int, position: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, position, position)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return os.pwrite(target, os.pread(source, min(count, 1 << 20), position), position)


def settle(fd: int) -> None:
    """Wait until no power cut can bring metadata changed from now on without the file's data."""
    if keeps_order(os.fstat(fd).st_dev):
        syscalls.write_out(fd)
    else:
        os.fdatasync(fd)


@functools.cache
def keeps_order(device: int, sysfs: str = "/sys") -> bool:
    """Tell whether a file system commits changes of metadata in order: ext4 with a journal.

    XFS does, too, but its handling of file sizes differs between versions; btrfs does not.
    """
    block = f"{sysfs}/dev/block/{os.major(device)}:{os.minor(device)}"
    name = os.path.basename(os.path.realpath(block))
    try:
        with open(f"{sysfs}/fs/ext4/{name}/journal_task", encoding="ascii") as file:
            return file.read().strip().isdigit()  # "<none>" without a journal
    except OSError:
        return False
