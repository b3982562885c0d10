"""Kernel calls the standard library lacks: mounts, openat2, renameat2, statx, fallocate, handles.

Every function raises OSError with the path. Numbers are the generic ones of 64-bit Linux
(asm-generic/unistd.h) where all architectures agree, else looked up by machine.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import platform
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000  # linux/fcntl.h
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR__ATIME = 0x70

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
FICLONE = 0x40049409
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
#: What chattr(1) sets for one file: s, u, S, i, a, d, A.
FS_PERSONAL_FLAGS = 0xFB
FS_XFLAG_IMMUTABLE = 0x8
FS_XFLAG_APPEND = 0x10

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

# linux/falloc.h
SYNC_FILE_RANGE_WRITE_AND_WAIT = 7
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02

# linux/fanotify.h
FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_CLASS_PRE_CONTENT = 0x8
FAN_REPORT_TID = 0x100
FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_MARK_MOUNT = 0x10
FAN_MARK_IGNORED_SURV_MODIFY = 0x40
FAN_MARK_IGNORE = 0x400
#: Before content is read, written or mapped; since Linux 6.14.
FAN_MODIFY = 0x2
FAN_PRE_ACCESS = 0x00100000
FAN_ALLOW = 0x1
FAN_DENY = 0x2

# linux/stat.h
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
#: struct statx up to stx_dev_minor: mask, blksize, attributes, nlink, uid, gid, mode, ino, size,
#: blocks, attributes_mask, four timestamps (sec, nsec), rdev major and minor, dev major and minor.
STATX = struct.Struct("<IIQIIIHxxQQQQ" + "qIxxxx" * 4 + "IIII")

_NUMBERS = {  # name: (x86_64, generic)
    "renameat2": (316, 276),
    "statx": (332, 291),
    "open_tree": (428, 428),
    "mount_setattr": (442, 442),
    "openat2": (437, 437),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
}
#: How often a restricted resolution is begun again when something was renamed meanwhile.
_RACES = 1000
_COLUMN = 0 if platform.machine() == "x86_64" else 1


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., int]:
    function = getattr(_libc, name)
    function.restype = result
    function.argtypes = list(arguments)
    wrapped: Callable[..., int] = function
    return wrapped


def _call(name: str, *arguments: Any) -> Callable[..., int]:
    """Return syscall(2) with a prototype of its own, the number already bound."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *arguments, use_errno=True)
    return functools.partial(prototype(("syscall", _libc)), _NUMBERS[name][_COLUMN])


_int, _uint, _char_p, _void_p = ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_void_p
_size, _long, _ulong = ctypes.c_size_t, ctypes.c_long, ctypes.c_ulong

_mount = _function("mount", _int, _char_p, _char_p, _char_p, _ulong, _char_p)
_umount2 = _function("umount2", _int, _char_p, _int)
_fallocate = _function("fallocate", _int, _int, _int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _function("sync_file_range", _int, _int, ctypes.c_int64, ctypes.c_int64, _uint)
_syncfs = _function("syncfs", _int, _int)
_mallopt = _function("mallopt", _int, _int, _int)
_prctl = _function("prctl", _int, _int, _ulong, _ulong, _ulong, _ulong)
_linkat = _function("linkat", _int, _int, _char_p, _int, _char_p, _int)
_renameat2 = _call("renameat2", _int, _char_p, _int, _char_p, _uint)
_statx = _call("statx", _int, _char_p, _int, _uint, _char_p)
_open_tree = _call("open_tree", _int, _char_p, _uint)
_mount_setattr = _call("mount_setattr", _int, _char_p, _uint, _char_p, _size)
_openat2 = _call("openat2", _int, _char_p, _char_p, _size)
_fanotify_init = _function("fanotify_init", _int, _uint, _uint)
_fanotify_mark = _function("fanotify_mark", _int, _int, _uint, ctypes.c_uint64, _int, _char_p)
_name_to_handle_at = _call("name_to_handle_at", _int, _char_p, _char_p, _void_p, _int)
_open_by_handle_at = _call("open_by_handle_at", _int, _char_p, _int)


def _failed(path: bytes | str | int | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def mount(source: str, target: str | os.PathLike[str], kind: str, flags: int, data: str) -> None:
    """Mount, mount(2)."""
    where = os.fsencode(target)
    if _mount(os.fsencode(source), where, kind.encode(), flags, data.encode()):
        raise _failed(where)


def umount(target: str | os.PathLike[str], flags: int = 0) -> None:
    """Unmount, umount2(2)."""
    where = os.fsencode(target)
    if _umount2(where, flags):
        raise _failed(where)


def clone_mount(path: str | os.PathLike[str], *, read_only: bool, no_atime: bool = False) -> int:
    """Return a descriptor of a detached bind mount of the directory ``path``, open_tree(2).

    It is private: what is mounted below ``path`` later is not seen through it. Read-only means that
    nothing opened through it can be written, whatever flags the opener gave, and that access times
    stay, which is also what ``no_atime`` means. Raises EPERM without CAP_SYS_ADMIN, ENOSYS before
    Linux 5.12.
    """
    where = os.fsencode(path)
    fd = _open_tree(AT_FDCWD, where, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise _failed(where)
    added = MOUNT_ATTR_RDONLY if read_only else 0
    if read_only or no_atime:
        added |= MOUNT_ATTR_NOATIME
    # Where systemd shares all mounts a clone would be the peer of what it was made of.
    attributes = struct.pack("<QQQQ", added, MOUNT_ATTR__ATIME if added else 0, MS_PRIVATE, 0)
    if _mount_setattr(fd, b"", AT_EMPTY_PATH, attributes, len(attributes)):
        error = _failed(where)
        os.close(fd)
        raise error
    return int(fd)


def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """Rename with flags, renameat2(2)."""
    if _renameat2(old_dir, old, new_dir, new, flags):
        raise _failed(old)


def link_followed(path: bytes, new_dir: int, new: bytes) -> None:
    """Link what ``path`` (a /proc/self/fd name) refers to, linkat(2) with AT_SYMLINK_FOLLOW."""
    if _linkat(AT_FDCWD, path, new_dir, new, AT_SYMLINK_FOLLOW):
        raise _failed(new)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, punch, zero, collapse or insert a range of bytes, fallocate(2)."""
    if _fallocate(fd, mode, offset, length):
        raise _failed(fd)


def write_out(fd: int) -> None:
    """Write the dirty pages of a file to the disk and wait for them, sync_file_range(2).

    Neither the disk's own cache nor the file system's journal is flushed.
    """
    if _sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE_AND_WAIT):
        raise _failed(fd)


def syncfs(fd: int) -> None:
    """Make the whole file system of ``fd`` durable, syncfs(2)."""
    if _syncfs(fd):
        raise _failed(fd)


def statx(dir_fd: int, path: bytes, flags: int, mask: int) -> tuple[int, ...]:
    """Return the fields of struct statx as `STATX` unpacks them, statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    if _statx(dir_fd, path, flags, mask, buffer):
        raise _failed(path)
    return STATX.unpack_from(buffer)


def openat2(dir_fd: int, path: bytes | str, flags: int, resolve: int) -> int:
    """Open with restricted resolution, openat2(2)."""
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, 0, resolve)
    raw = os.fsencode(path)
    for _attempt in range(_RACES):
        fd = _openat2(dir_fd, raw, how, len(how))
        if fd >= 0:
            return int(fd)
        # EAGAIN: a rename or mount anywhere on the server came between; "try again" is meant.
        if ctypes.get_errno() != errno.EAGAIN:
            break
    raise _failed(path)


class Handle(NamedTuple):
    """A file handle: what name_to_handle_at(2) says of a file."""

    kind: int
    data: bytes


def name_to_handle(dir_fd: int, path: bytes) -> Handle:
    """Return the handle of a file; an empty path means ``dir_fd`` itself."""
    buffer = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    if _name_to_handle_at(dir_fd, path, buffer, ctypes.addressof(mount_id), AT_EMPTY_PATH):
        raise _failed(path)
    length, kind = struct.unpack_from("<Ii", buffer)
    return Handle(kind, buffer.raw[8 : 8 + length])


def open_by_handle(mount_fd: int, handle: Handle, flags: int) -> int:
    """Open a file by its handle, open_by_handle_at(2); ESTALE when it is gone."""
    packed = struct.pack("<Ii", len(handle.data), handle.kind) + handle.data
    fd = _open_by_handle_at(mount_fd, packed, flags | os.O_CLOEXEC)
    if fd < 0:
        raise _failed(mount_fd)
    return int(fd)


def fanotify_init(flags: int, event_flags: int) -> int:
    """Return a new notification group, fanotify_init(2)."""
    fd = _fanotify_init(flags, event_flags)
    if fd < 0:
        raise _failed()
    return int(fd)


def fanotify_mark(group: int, flags: int, mask: int, path: bytes) -> None:
    """Add, remove or change a mark of a group, fanotify_mark(2)."""
    if _fanotify_mark(group, flags, mask, AT_FDCWD, path):
        raise _failed(path)


def ficlone(target: int, source: int) -> None:
    """Make ``target`` share every extent of ``source``, ioctl_ficlone(2)."""
    fcntl.ioctl(target, FICLONE, source)


def get_flags(fd: int) -> int:
    """Return the inode flags chattr(1) shows, ioctl_iflags(2)."""
    return int(struct.unpack("<I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0" * 8)[:4])[0])


def set_flags(fd: int, flags: int) -> None:
    """Set the inode flags, ioctl_iflags(2)."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("<II", flags, 0))


def set_name(name: str) -> None:
    """Name this process for ps(1), prctl(2) PR_SET_NAME."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(15, ctypes.addressof(buffer), 0, 0, 0)


def touch_allocations() -> None:
    """Have malloc(3) write to whatever it hands out, so that its pages are present.

    mallopt(3) M_PERTURB: what is allocated and freed is filled with a byte.
    """
    _mallopt(-6, 0x55)
