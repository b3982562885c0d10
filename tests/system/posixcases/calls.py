"""Kernel calls the cases need and `os` lacks.

They are bound here and not taken from the file layer: a ruler that belongs to the thing it
measures would bend with it. Each raises OSError.
"""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100  # linux/fcntl.h
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4  # linux/fs.h
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # linux/stat.h
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2  # linux/falloc.h
FALLOC_COLLAPSE_RANGE, FALLOC_ZERO_RANGE, FALLOC_INSERT_RANGE = 8, 16, 32
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18  # linux/mount.h
MNT_DETACH = 2
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602  # linux/fs.h
FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL = 0x10, 0x20, 0x40
STATX_BTIME = 0x800  # linux/stat.h


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _bind(name: str, *types: object) -> "ctypes._NamedFuncPointer":
    function = getattr(_libc, name)
    function.argtypes = list(types)
    function.restype = ctypes.c_long if name in ("syscall", "pwrite", "pread") else ctypes.c_int
    return function  # type: ignore[no-any-return]  # CDLL attributes are untyped


_renameat2 = _bind(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_utimensat = _bind(
    "utimensat", ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Timespec * 2), ctypes.c_int
)
_futimens = _bind("futimens", ctypes.c_int, ctypes.POINTER(_Timespec * 2))
_linkat = _bind(
    "linkat", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int
)
_fallocate = _bind("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_mount = _bind(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
)
_umount2 = _bind("umount2", ctypes.c_char_p, ctypes.c_int)
_faccessat = _bind("faccessat", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
_statx = _bind("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
_ioctl = _bind("ioctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p)


def _check(result: int, path: object = None) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def renameat2(old: str, new: str, flags: int) -> None:
    """renameat2(2) relative to the current directory."""
    _check(_renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), old)


def exchange(old: str, new: str) -> None:
    """Swap two names."""
    renameat2(old, new, RENAME_EXCHANGE)


def noreplace(old: str, new: str) -> None:
    """Rename unless the new name exists."""
    renameat2(old, new, RENAME_NOREPLACE)


def utimensat(
    path: str | int, atime: tuple[int, int] | None, mtime: tuple[int, int] | None, flags: int = 0
) -> None:
    """utimensat(2), or futimens(3) for a descriptor; times are (seconds, nanoseconds)."""
    times = None
    if atime is not None and mtime is not None:
        times = ctypes.byref((_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime)))
    if isinstance(path, int):
        _check(_futimens(path, times))
    else:
        _check(_utimensat(AT_FDCWD, os.fsencode(path), times, flags), path)


def linkat(old: str, new: str, flags: int = 0, directory: int = AT_FDCWD) -> None:
    """linkat(2); `directory` is where `old` starts."""
    _check(_linkat(directory, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), old)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), offsets in bytes."""
    _check(_fallocate(descriptor, mode, offset, length))


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data))
    _check(_mount(*arguments), target)


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _check(_umount2(os.fsencode(target), flags), target)


def eaccess(path: str, mode: int) -> None:
    """Check access with the effective ids (faccessat2(2) with AT_EACCESS)."""
    _check(_faccessat(AT_FDCWD, os.fsencode(path), mode, 0x200), path)


def birth_time(path: str) -> tuple[int, int] | None:
    """Return the birth time as (seconds, nanoseconds), None where there is none."""
    buffer = ctypes.create_string_buffer(256)
    _check(_statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, STATX_BTIME, buffer), path)
    (mask,) = struct.unpack_from("<I", buffer, 0)
    if not mask & STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("<qI", buffer, 80)
    return seconds, nanoseconds


def get_flags(path: str | int) -> int:
    """Return the inode flags lsattr shows."""
    return _with_descriptor(path, _flags_of)


def _flags_of(descriptor: int) -> int:
    buffer = ctypes.create_string_buffer(8)
    _check(_ioctl(descriptor, FS_IOC_GETFLAGS, buffer))
    return int(struct.unpack_from("<I", buffer)[0])


def set_flags(path: str | int, flags: int) -> None:
    """Set the inode flags chattr sets."""

    def act(descriptor: int) -> int:
        _check(_ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("<q", flags)))
        return 0

    _with_descriptor(path, act)


def _with_descriptor(path: str | int, act: Callable[[int], int]) -> int:
    if isinstance(path, int):
        return act(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return act(descriptor)
    finally:
        os.close(descriptor)


_syncfs = _bind("syncfs", ctypes.c_int)


def syncfs(descriptor: int) -> None:
    """syncfs(2)."""
    _check(_syncfs(descriptor))


_unshare = _bind("unshare", ctypes.c_int)
_setns = _bind("setns", ctypes.c_int, ctypes.c_int)
CLONE_NEWNS = 0x20000  # linux/sched.h


@contextmanager
def own_mounts() -> Iterator[None]:
    """Mount in a namespace of this process alone, and come back.

    Mount namespaces others make meanwhile would keep copies of our mounts, and with them servers
    and upper directories in use. Needs a process with one thread.
    """
    here = os.getcwd()
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        _check(_unshare(CLONE_NEWNS))
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        os.chdir(here)
        yield
    finally:
        _check(_setns(before, CLONE_NEWNS))
        os.close(before)
        os.chdir(here)


_inotify_init1 = _bind("inotify_init1", ctypes.c_int)
_inotify_add_watch = _bind("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


@contextmanager
def watch(path: str) -> Iterator[int]:
    """Watch a path for everything with inotify(7)."""
    descriptor = _inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    _check(descriptor)
    try:
        _check(_inotify_add_watch(descriptor, os.fsencode(path), 0xFFF), path)
        yield descriptor
    finally:
        os.close(descriptor)
