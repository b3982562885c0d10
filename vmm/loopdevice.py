"""Loop devices (loop(4), linux/loop.h): a part of a file as a block device."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_READ_ONLY = 1
_AUTOCLEAR = 4
_MAJOR = 7
#: struct loop_config: fd, block size, loop_info64, reserved. Of the info: device inode rdevice
#: offset sizelimit, number encrypt-type key-size flags, names, key, init.
_CONFIG = struct.Struct("<II QQQQQ IIII 64s 64s 32s QQ 64s")
_TRIES = 20


def attach(path: str, *, offset: int, size_bytes: int, writable: bool) -> tuple[str, int]:
    """Return the name of a loop device for part of ``path`` and a descriptor of it.

    It vanishes with its last user: the descriptor, or a mount. Raises OSError.
    """
    flags = _AUTOCLEAR | (0 if writable else _READ_ONLY)
    backing = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            name = f"/dev/loop{number}"
            if not os.path.exists(name):
                # Without devtmpfs nobody makes the node.
                os.mknod(name, stat.S_IFBLK | 0o660, os.makedev(_MAJOR, number))
            device = os.open(name, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            config = _CONFIG.pack(
                backing, 0, 0, 0, 0, offset, size_bytes, 0, 0, 0, flags,
                os.fsencode(path)[-63:], b"", b"", 0, 0, b"",
            )  # fmt: skip
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                # Somebody else was faster: ask for another.
                if error.errno == errno.EBUSY:
                    continue
                raise
            return name, device
        raise OSError(errno.EBUSY, "no loop device is free", path)
    finally:
        os.close(control)
        os.close(backing)


def backings() -> dict[str, str]:
    """Return device → file of every loop device that vanishes with its last user, as ours do."""
    found = {}
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it went meanwhile
            if entry.with_name("autoclear").read_text().strip() != "1":
                continue
            found[f"/dev/{entry.parent.parent.name}"] = entry.read_text().rstrip("\n")
    return found


@contextmanager
def attached(path: str, *, offset: int, size_bytes: int, writable: bool) -> Iterator[str]:
    """Give the name of a loop device for part of ``path``; raises OSError."""
    name, device = attach(path, offset=offset, size_bytes=size_bytes, writable=writable)
    try:
        yield name
        if writable:
            os.fsync(device)
    finally:
        with suppress(OSError):
            fcntl.ioctl(device, _LOOP_CLR_FD)
        os.close(device)
