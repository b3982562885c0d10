"""Kernel calls the standard library of Python 3.11 lacks: namespaces, new mount API, clone3, bpf.

One function per call, named after it; each raises OSError with the path it was about. Numbers of
calls newer than Linux 5.0 are the same on every architecture (asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any

from vzfs import syscalls as of_files

# A separate handle, so that nobody else's signatures mix with ours; PyDLL keeps the GIL, which a
# call that returns twice (clone3) needs and short calls do not miss.
_libc = ctypes.PyDLL(None, use_errno=True)

# linux/sched.h
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_IDMAP = 0x00100000

# fcntl.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

# sys/inotify.h
IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200

# linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING = 1

# linux/bpf.h
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2

_NUMBERS = {  # name: (x86_64, generic)
    "pivot_root": (155, 41),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "pidfd_send_signal": (424, 424),
}
_COLUMN = 0 if platform.machine() == "x86_64" else 1

_int, _uint, _long, _ulong = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_ulong
_char_p, _void_p, _size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t


def _function(name: str, *arguments: Any) -> Any:
    function = getattr(_libc, name)
    function.restype = _int
    function.argtypes = list(arguments)
    return function


def _call(name: str, *arguments: Any) -> Callable[..., int]:
    """Return syscall(2) with its own signature, the number already bound."""
    function: Any = _libc["syscall"]  # by item: an object of its own each time
    function.restype = _long
    function.argtypes = [_long, *arguments]
    number = _NUMBERS[name][_COLUMN]

    def call(*given: Any) -> int:
        return int(function(number, *given))

    return call


_unshare = _function("unshare", _int)
_setns = _function("setns", _int, _int)
_mount = _function("mount", _char_p, _char_p, _char_p, _ulong, _void_p)
_umount2 = _function("umount2", _char_p, _int)
_sethostname = _function("sethostname", _char_p, _size)
_syncfs = _function("syncfs", _int)
_fork = _function("fork")
_inotify_init1 = _function("inotify_init1", _int)
_inotify_add_watch = _function("inotify_add_watch", _int, _char_p, _uint)
_prctl = _function("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_pivot_root = _call("pivot_root", _char_p, _char_p)
_keyctl = _call("keyctl", _int, _char_p, _ulong, _ulong, _ulong)
_bpf = _call("bpf", _int, _char_p, _uint)
_open_tree = _call("open_tree", _int, _char_p, _uint)
_move_mount = _call("move_mount", _int, _char_p, _int, _char_p, _uint)
_fsopen = _call("fsopen", _char_p, _uint)
_fsconfig = _call("fsconfig", _int, _uint, _char_p, _char_p, _int)
_fsmount = _call("fsmount", _int, _uint, _uint)
_clone3 = _call("clone3", _void_p, _size)
_close_range = _call("close_range", _uint, _uint, _uint)
_mount_setattr = _call("mount_setattr", _int, _char_p, _uint, _char_p, _size)
_pidfd_send_signal = _call("pidfd_send_signal", _int, _int, _void_p, _uint)


# Private interface of CPython that os.fork itself is made of (Include/internal, exported): without
# these the interpreter in the child would think its locks are held by threads that are gone.
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _hook in (_before_fork, _after_fork_parent, _after_fork_child):
    _hook.restype = None
    _hook.argtypes = []

#: struct clone_args, linux/sched.h: flags, pidfd, child_tid, parent_tid, exit_signal, stack,
#: stack_size, tls, set_tid, set_tid_size, cgroup.
_CLONE_ARGS = struct.Struct("<11Q")
_SIGCHLD = 17


def _failed(path: bytes | str | int | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def _alone() -> bool:
    """Whether this process has one thread of Python's: nobody else can hold the locks of a child.

    Then a fork can do without what modules registered with os.register_at_fork: threading, random
    and logging write to half a megabyte, which every child would have for itself, in half a
    millisecond. No child of ours takes numbers from ``random``'s generator.
    """
    return len(sys._current_frames()) == 1


def fork() -> int:
    """Fork as os.fork does, quicker where that is possible; raises OSError."""
    if not _alone():
        return os.fork()
    pid: int = _fork()
    if pid < 0:
        raise _failed("fork")
    return pid


def clone3(flags: int, *, cgroup_fd: int = -1) -> int:
    """Fork with ``flags``; return 0 in the child, its process id in the parent, clone3(2).

    With ``cgroup_fd`` the child is born in that v2 cgroup. glibc's own preparations for fork(2) are
    skipped: another thread might hold the lock of malloc. Raises OSError.
    """
    into = 0
    if cgroup_fd >= 0:
        flags |= CLONE_INTO_CGROUP
        into = cgroup_fd
    # A sibling's end is told to the parent as our own is: no signal may be named (clone3(2)).
    signal = 0 if flags & CLONE_PARENT else _SIGCHLD
    packed = _CLONE_ARGS.pack(flags, 0, 0, 0, signal, 0, 0, 0, 0, 0, into)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    address = ctypes.addressof(buffer)
    if _alone():
        pid = _clone3(address, _CLONE_ARGS.size)
        error = _failed("clone3") if pid < 0 else None
    else:
        _before_fork()
        pid = _clone3(address, _CLONE_ARGS.size)
        if pid == 0:
            _after_fork_child()
            return 0
        error = _failed("clone3") if pid < 0 else None
        _after_fork_parent()
    if error is not None:
        raise error
    return pid


def unshare(flags: int) -> None:
    """Leave namespaces, unshare(2)."""
    if _unshare(flags):
        raise _failed()


def setns(fd: int, flags: int) -> None:
    """Join the namespace(s) of ``fd``, a namespace file or a pidfd, setns(2)."""
    if _setns(fd, flags):
        raise _failed()


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace, sethostname(2)."""
    raw = os.fsencode(name)
    if _sethostname(raw, len(raw)):
        raise _failed(raw)


def syncfs(fd: int) -> None:
    """Make everything of the file system ``fd`` is on durable (syncfs(2))."""
    if _syncfs(fd) < 0:
        raise _failed(fd)


def prctl(option: int, argument: int = 0, second: int = 0) -> int:
    """Control this process, prctl(2)."""
    result = int(_prctl(option, argument, second, 0, 0))
    if result < 0:
        raise _failed()
    return result


def set_name(name: str) -> None:
    """Name this process for ps(1), prctl(2) PR_SET_NAME."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def load_seccomp(program: bytes) -> None:
    """Install a BPF filter for this process and its children, seccomp(2)."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: unsigned short len; struct sock_filter *filter (8 bytes each).
    header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    packed = ctypes.create_string_buffer(header, len(header))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(packed))


def join_new_keyring() -> None:
    """Take a new session keyring of our own, keyctl(2): nothing of the old one stays possessed."""
    if _keyctl(KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0) < 0:
        raise _failed("session keyring")


def mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    """Mount, mount(2)."""
    raw = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    if _mount(raw[0], raw[1], raw[2], flags, None):
        raise _failed(target)


def umount(target: str, flags: int = 0) -> None:
    """Unmount, umount2(2)."""
    if _umount2(os.fsencode(target), flags):
        raise _failed(target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root of this mount namespace, pivot_root(2)."""
    if _pivot_root(os.fsencode(new_root), os.fsencode(put_old)):
        raise _failed(new_root)


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """Return a descriptor of a mount, or of a detached copy of it, open_tree(2)."""
    fd = _open_tree(dir_fd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise _failed(path)
    return fd


def move_mount(from_fd: int, to_fd: int, to_path: str = "") -> None:
    """Attach the mount ``from_fd`` at ``to_path`` below ``to_fd``, move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH
    if not to_path:
        flags |= MOVE_MOUNT_T_EMPTY_PATH
    if _move_mount(from_fd, b"", to_fd, os.fsencode(to_path), flags):
        raise _failed(to_path or to_fd)


def fsopen(kind: str) -> int:
    """Return a context in which to configure a new file system, fsopen(2)."""
    fd = _fsopen(kind.encode(), FSOPEN_CLOEXEC)
    if fd < 0:
        raise _failed(kind)
    return fd


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """Set a parameter of a file system context, or create it, fsconfig(2)."""
    raw = [None if word is None else os.fsencode(word) for word in (key, value)]
    if _fsconfig(fd, command, raw[0], raw[1], 0):
        raise _failed(key)


def fsmount(fd: int, attributes: int) -> int:
    """Return a detached mount of a created file system context, fsmount(2)."""
    mount_fd = _fsmount(fd, FSMOUNT_CLOEXEC, attributes)
    if mount_fd < 0:
        raise _failed()
    return mount_fd


def mount_setattr(
    fd: int,
    *,
    add: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    """Change attributes and ``propagation`` (0: as it is) of the mount ``fd``, mount_setattr(2)."""
    packed = struct.pack("<QQQQ", add, clear, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _mount_setattr(fd, b"", flags, packed, len(packed)):
        raise _failed(fd)


#: The file system's own, with what is to be done about a lost race.
openat2 = of_files.openat2


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """Close every descriptor from ``first`` to ``last``, close_range(2)."""
    if _close_range(first, last, 0):
        raise _failed()


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Send a signal to the process of ``pidfd``, pidfd_send_signal(2).

    Unlike signal.pidfd_send_signal it takes real-time signals of a halt by number alone.
    """
    if _pidfd_send_signal(pidfd, number, None, 0):
        raise _failed(pidfd)


def inotify_watch(paths: Iterable[str | os.PathLike[str]], events: int) -> int:
    """Return a descriptor that tells ``events`` of files and directories, inotify(7).

    It never waits and is closed on exec.
    """
    fd = int(_inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        raise _failed()
    for path in paths:
        if _inotify_add_watch(fd, os.fsencode(path), events) < 0:
            error = _failed(os.fspath(path))
            os.close(fd)
            raise error
    return fd


def bpf_load_device_program(instructions: bytes) -> int:
    """Return the descriptor of a device-access program, bpf(2) BPF_PROG_LOAD."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQ",
        BPF_PROG_TYPE_CGROUP_DEVICE,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
    ).ljust(72, b"\0")
    fd = _bpf(BPF_PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        raise _failed("bpf")
    return fd


def bpf_attach_device_program(cgroup_fd: int, program_fd: int, flags: int = 0) -> None:
    """Let a program decide about the devices of a v2 cgroup, bpf(2) BPF_PROG_ATTACH."""
    attributes = struct.pack("<IIII", cgroup_fd, program_fd, BPF_CGROUP_DEVICE, flags)
    if _bpf(BPF_PROG_ATTACH, attributes, len(attributes)):
        raise _failed("bpf")
