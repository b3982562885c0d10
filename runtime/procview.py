"""What a container's processes read in /proc and /sys about "the machine": their container.

One FUSE directory per container on the server's own /dev/fuse transport; the container's init
mounts its files over /proc/meminfo and the others. The mount says which container asks, so a
read costs a look at its cgroups and nothing else. One small process serves it; whoever holds a
duplicate of the descriptor can start another one when it died, and readers never notice.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from runtime import mounts
from runtime.paths import Paths
from runtime.procview_files import View
from vzfs import protocol, syscalls
from vzfs.protocol import OUT_SIZE, Op

#: File in the view → where it is mounted inside.
TARGETS = {
    "meminfo": "proc/meminfo",
    "cpuinfo": "proc/cpuinfo",
    "stat": "proc/stat",
    "uptime": "proc/uptime",
    "loadavg": "proc/loadavg",
    "swaps": "proc/swaps",
    "diskstats": "proc/diskstats",
    "online": "sys/devices/system/cpu/online",
}
_NAMES = tuple(TARGETS)
#: Node id 1 is the directory, 2… are the files.
_FIRST = 2
_BUFFER = 64 << 10
#: Names and attributes: the kernel may keep them for good.
_VALID_S = 1 << 30
_PAGE = 4096
#: The least size shown: a number of bytes nobody has a buffer of (see ``_read``).
_LEAST_SIZE = 5 * _PAGE
#: struct fuse_notify_inval_inode_out: node, offset (negative: only its attributes), length.
_FORGET_ATTRIBUTES = struct.Struct("<IiQQqq")
_READ_ONLY = errno.EROFS


@dataclass(frozen=True, slots=True)
class Source:
    """Which container is shown, and since when it runs."""

    paths: Paths
    ctid: int
    #: CLOCK_BOOTTIME (of whoever made this) and CLOCK_REALTIME of its start, in seconds.
    boottime_s: float
    realtime_s: float

    @classmethod
    def starting(cls, paths: Paths, ctid: int) -> Source:
        """Return the source for a container that starts now."""
        return cls(paths, ctid, time.clock_gettime(time.CLOCK_BOOTTIME), time.time())

    @classmethod
    def since_boot(cls, paths: Paths, ctid: int) -> Source:
        """Return the source for a container with the server's own clocks."""
        up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        return cls(paths, ctid, 0.0, time.time() - up_s)


def directory(paths: Paths, ctid: int) -> str:
    """Return where the view of ``ctid`` is mounted on the server."""
    return str(paths.run / "procview" / str(ctid))


def mount(paths: Paths, ctid: int) -> int:
    """Mount the view of ``ctid`` in this mount namespace; return the descriptor to serve.

    One left by a crash is replaced. Raises OSError.
    """
    place = directory(paths, ctid)
    unmount(paths, ctid)
    os.makedirs(place, mode=0o755, exist_ok=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,allow_other,default_permissions"
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    try:
        syscalls.mount("procview", place, "fuse.procview", flags, data)
    except OSError:
        os.close(fd)
        raise
    return fd


def unmount(paths: Paths, ctid: int) -> None:
    """Take the view away on the server; absent is success."""
    place = directory(paths, ctid)
    while True:
        try:
            syscalls.umount(place, _MNT_DETACH)
        except OSError:
            break
    with suppress(OSError):
        os.rmdir(place)


_MNT_DETACH = 2
#: A view nobody looks at is not served for longer, in seconds: most never are again.
_IDLE_S = 15.0


def bindings(paths: Paths, ctid: int) -> dict[str, int]:
    """Return target → detached mount of each file, for ``attach``; the view must be served.

    Raises OSError.
    """
    place = directory(paths, ctid)
    found: dict[str, int] = {}
    try:
        for name, target in TARGETS.items():
            found[target] = mounts.clone(f"{place}/{name}")
    except OSError:
        for fd in found.values():
            os.close(fd)
        raise
    return found


def attach(root_fd: int, files: Mapping[str, int]) -> None:
    """Mount the files over those of the container's /proc and /sys; closes their descriptors.

    Call it inside, with /proc and /sys mounted below ``root_fd``. A file which this kernel's /proc
    lacks is left out. Raises OSError.
    """
    from runtime.syscalls import move_mount

    for target, fd in files.items():
        with mounts.closing(fd):
            try:
                place = mounts.open_inside(root_fd, target)
            except FileNotFoundError:
                continue
            with mounts.closing(place):
                move_mount(fd, place)


def serve(fd: int, source: Source) -> None:
    """Answer requests until the view is unmounted or nobody looked at it for a while.

    For a process of its own. Another may go on with the same descriptor when it can be read.

    Its clock must be that of whoever made ``source`` (time_namespaces(7)).
    """
    Server(fd, View(source.paths, source.ctid, source.boottime_s, source.realtime_s)).run()


class Server:
    """The few requests a directory of generated files gets."""

    def __init__(self, fd: int, view: View) -> None:
        """Serve ``view`` on a /dev/fuse descriptor."""
        self._fd = fd
        self._view = view
        self._make: tuple[Callable[[], bytes], ...] = tuple(getattr(view, name) for name in _NAMES)
        #: Open file → what is left of a content that did not fit into one read.
        self._kept: dict[int, bytes] = {}
        self._handles = 0
        #: A node whose size the kernel must ask for again.
        self._resized = 0
        self._when = int(view.started_s)
        self._sizes = [_LEAST_SIZE] * len(_NAMES)

    def run(self) -> None:
        """Serve until the kernel ends the connection or nobody asks."""
        fd, buffer = self._fd, bytearray(_BUFFER)
        buffers, poller = [buffer], select.poll()
        poller.register(fd, select.POLLIN)
        while True:
            pause_s = self._view.load.pause_s()
            if not poller.poll(max(_IDLE_S if pause_s is None else pause_s, 0) * 1000):
                if pause_s is None:
                    return
                self._view.load.sample()
                continue
            try:
                size = os.readv(fd, buffers)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                if error.errno == errno.ENODEV:
                    return
                raise
            _, op, unique, node = protocol.IN_START.unpack_from(buffer, 0)
            try:
                reply = self._answer(op, node, buffer, size)
            except OSError as error:
                reply = None
                self._send(unique, -(error.errno or errno.EIO), b"")
            if reply is not None:
                self._send(unique, 0, reply)
            if self._resized:
                self._forget_size(self._resized)
                self._resized = 0
            if op == Op.DESTROY:
                return

    def _send(self, unique: int, error: int, body: bytes) -> None:
        # A reader that was killed meanwhile needs no answer (ENOENT).
        with suppress(OSError):
            os.write(self._fd, protocol.OUT_HEADER.pack(OUT_SIZE + len(body), error, unique) + body)

    def _forget_size(self, node: int) -> None:
        # A notification: unique 0, its code in place of the error.
        with suppress(OSError):
            os.write(
                self._fd,
                _FORGET_ATTRIBUTES.pack(
                    _FORGET_ATTRIBUTES.size, protocol.NOTIFY_INVAL_INODE, 0, node, -1, 0
                ),
            )

    def _answer(self, op: int, node: int, request: bytearray, size: int) -> bytes | None:
        """Return the body of the reply; None for requests that have none. Raises OSError."""
        at = protocol.IN_SIZE
        if op == Op.READ:
            handle, offset, count = struct.unpack_from("<QQI", request, at)
            return self._read(node, handle, offset, count)
        if op == Op.OPEN:
            if struct.unpack_from("<I", request, at)[0] & os.O_ACCMODE != os.O_RDONLY:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            self._handles += 1
            flags = protocol.FOPEN_DIRECT_IO | protocol.FOPEN_NOFLUSH
            return protocol.OPEN_OUT.pack(self._handles, flags, 0)
        if op == Op.RELEASE:
            self._kept.pop(struct.unpack_from("<Q", request, at)[0], None)
            return b""
        if op == Op.LOOKUP:
            return self._lookup(node, bytes(request[at : size - 1]).decode("ascii", "replace"))
        if op == Op.GETATTR:
            return struct.pack("<QII", _VALID_S, 0, 0) + protocol.ATTR.pack(*self._node(node))
        if op in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
            return None
        if op == Op.INIT:
            return self._init(request, at)
        if op in (Op.OPENDIR, Op.FLUSH):
            # The kernel does not ask again.
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if op == Op.READDIR:
            return self._list(*struct.unpack_from("<QQI", request, at))
        if op in (Op.RELEASEDIR, Op.DESTROY):
            return b""
        if op == Op.STATFS:
            return struct.pack("<QQQQQIIII24x", 0, 0, 0, len(_NAMES) + 1, 0, 4096, 255, 4096, 0)
        if op in (Op.SETATTR, Op.WRITE, Op.CREATE, Op.MKNOD, Op.UNLINK, Op.RENAME, Op.RENAME2):
            raise OSError(_READ_ONLY, os.strerror(_READ_ONLY))
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    @staticmethod
    def _init(request: bytearray, at: int) -> bytes:
        _major, minor, readahead, flags = struct.unpack_from("<IIII", request, at)
        agreed = flags & (
            protocol.ASYNC_READ | protocol.PARALLEL_DIROPS | protocol.NO_OPENDIR_SUPPORT
        )
        return protocol.INIT_OUT.pack(
            protocol.MAJOR,
            min(minor, protocol.MINOR),
            readahead,
            agreed,
            0,
            0,
            _BUFFER // 2,
            1,
            0,
            0,
            0,
            0,
            0,
        )

    def _node(self, node: int) -> tuple[int, ...]:
        """Return struct fuse_attr of a node; raises OSError.

        The size of a file is more than its content: sendfile(2) and splice(2) look at it before
        they read, as busybox's cat does.
        """
        if node == protocol.ROOT_ID:
            mode, size = stat.S_IFDIR | 0o555, 0
        elif _FIRST <= node < _FIRST + len(_NAMES):
            mode, size = stat.S_IFREG | 0o444, self._sizes[node - _FIRST]
        else:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        when = self._when
        return (node, size, 0, when, when, when, 0, 0, 0, mode, 1, 0, 0, 0, _PAGE, 0)

    def _lookup(self, parent: int, name: str) -> bytes:
        if parent != protocol.ROOT_ID or name not in TARGETS:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        node = _FIRST + _NAMES.index(name)
        return protocol.ENTRY_OUT.pack(node, 0, _VALID_S, _VALID_S, 0, 0, *self._node(node))

    def _read(self, node: int, handle: int, offset: int, count: int) -> bytes:
        if not _FIRST <= node < _FIRST + len(_NAMES):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Whoever starts from the beginning wants the present; who goes on, the rest of the same.
        content = self._kept.get(handle) if offset else None
        if content is None:
            content = self._make[node - _FIRST]()
            if len(content) > self._sizes[node - _FIRST] - _PAGE:
                # Room for more processors or digits at the next reading.
                self._sizes[node - _FIRST] = len(content) // _PAGE * 2 * _PAGE + _LEAST_SIZE
                self._resized = node
        if offset == 0 and count == self._sizes[node - _FIRST]:
            # This came through the page cache: the kernel takes a short answer for a new size.
            self._resized = node
        out = content[offset : offset + count]
        # After the end only the end is asked for.
        self._kept[handle] = content if offset + count < len(content) else b""
        return out

    def _list(self, handle: int, offset: int, count: int) -> bytes:
        out = b""
        rows = [(protocol.ROOT_ID, ".", 4), (protocol.ROOT_ID, "..", 4)]
        rows += [(_FIRST + index, name, 8) for index, name in enumerate(_NAMES)]
        for place, (node, name, kind) in enumerate(rows[offset:], offset + 1):
            raw = name.encode()
            entry = protocol.DIRENT.pack(node, place, len(raw), kind) + raw
            entry += b"\0" * (-len(entry) % 8)
            if len(out) + len(entry) > count:
                break
            out += entry
        return out
