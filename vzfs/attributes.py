"""Attributes: mode, owner, times, size; extended attributes and ACLs; the flags of chattr(1)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from typing import NamedTuple

from vzfs import layers, protocol, syscalls
from vzfs.inodes import Directory, File, Node
from vzfs.listing import Reading
from vzfs.naming import ACCESS_ACL, DEFAULT_ACL
from vzfs.overlay import failure

_UTIME = (
    protocol.FATTR_ATIME
    | protocol.FATTR_MTIME
    | protocol.FATTR_ATIME_NOW
    | protocol.FATTR_MTIME_NOW
)
_OWNER = protocol.FATTR_UID | protocol.FATTR_GID
_GET_FLAGS = (syscalls.FS_IOC_GETFLAGS, 0x80046601)
_SET_FLAGS = (syscalls.FS_IOC_SETFLAGS, 0x40046602)
#: The user may change these; others (extents, inline data…) stay as the file system set them.
_SETTABLE = 0x00FF | 0x00010000 | 0x00020000 | 0x20000000


class Change(NamedTuple):
    """What setattr is to change; ``valid`` are protocol.FATTR_* bits, times nanoseconds."""

    valid: int
    mode: int = 0
    uid: int = -1
    gid: int = -1
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0


class Attributes(Reading):
    """The operations on attributes."""

    def setattr(self, node: Node, change: Change) -> os.stat_result:
        """Change attributes; returns the new ones. May raise `Later`."""
        valid = change.valid
        if isinstance(node, File) and node.nid in self.jobs:
            self.own_data(node)
        if valid & protocol.FATTR_SIZE:
            if not isinstance(node, File):
                raise failure(errno.EISDIR)
            self._truncate(node, change.size)
            if not valid & ~(protocol.FATTR_SIZE | protocol.FATTR_FH) & 0x7FF:
                return self.stat(node)
        self.own(node)
        path, follow = self.path(node), self.follow(node)
        if valid & _OWNER or not valid & (protocol.FATTR_MODE | protocol.FATTR_SIZE | _UTIME):
            self._chown(
                node,
                path,
                follow,
                change.uid if valid & protocol.FATTR_UID else -1,
                change.gid if valid & protocol.FATTR_GID else -1,
            )
        if valid & protocol.FATTR_MODE:
            os.chmod(path, stat.S_IMODE(change.mode))
        if valid & _UTIME:
            self._utime(node, path, follow, change)
        return self.stat(node)

    def _chown(self, node: Node, path: bytes, follow: bool, uid: int, gid: int) -> None:
        if self.ledger is None:
            os.chown(path, uid, gid, follow_symlinks=follow)
            return
        before = self.stat(node)
        new_uid = before.st_uid if uid < 0 else uid
        new_gid = before.st_gid if gid < 0 else gid
        blocks = before.st_blocks
        owners = (before.st_uid, before.st_gid, new_uid, new_gid)
        self.ledger.transfer(*owners, blocks, 1)
        try:
            os.chown(path, uid, gid, follow_symlinks=follow)
        except OSError:
            self.ledger.transfer(new_uid, new_gid, before.st_uid, before.st_gid, blocks, 1)
            raise

    def _utime(self, node: Node, path: bytes, follow: bool, change: Change) -> None:
        valid = change.valid
        now = protocol.FATTR_ATIME_NOW | protocol.FATTR_MTIME_NOW
        if valid & now == now:
            os.utime(path, follow_symlinks=follow)
            return
        st = self.stat(node)
        clock = time.time_ns() if valid & now else 0
        atime, mtime = st.st_atime_ns, st.st_mtime_ns
        if valid & protocol.FATTR_ATIME_NOW:
            atime = clock
        elif valid & protocol.FATTR_ATIME:
            atime = change.atime_ns
        if valid & protocol.FATTR_MTIME_NOW:
            mtime = clock
        elif valid & protocol.FATTR_MTIME:
            mtime = change.mtime_ns
        os.utime(path, ns=(atime, mtime), follow_symlinks=follow)

    def _truncate(self, node: File, size: int) -> None:
        if node.twin is not None:
            raise failure(errno.ESTALE)
        self.own_data(node, size=size)
        if node.twin is not None:
            raise failure(errno.ESTALE)
        before = self.stat(node) if self.ledger is not None else None
        fd = self.open_file(node, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
            if before is not None:
                self.recharge(node, before, os.fstat(fd))
        finally:
            os.close(fd)

    def recharge(self, node: File, before: os.stat_result, after: os.stat_result) -> None:
        """Tell the ledger of a change of a file's blocks that has happened already."""
        if self.ledger is None:
            return
        delta = after.st_blocks - (node.charged if node.writers else before.st_blocks)
        if node.writers:
            node.charged = after.st_blocks
        if delta > 0:
            self.record(after.st_uid, after.st_gid, delta)
        elif delta < 0:
            self.ledger.release(after.st_uid, after.st_gid, -delta, 0)

    def record(self, uid: int, gid: int, blocks: int) -> None:
        """Charge blocks that are used already, limits or not."""
        assert self.ledger is not None
        note = getattr(self.ledger, "record", None)
        if note is not None:
            note(uid, gid, blocks, 0)
            return
        try:
            self.ledger.reserve(uid, gid, blocks, 0)
        except OSError as error:
            if error.errno != errno.EDQUOT:
                raise

    def readlink(self, node: Node) -> bytes:
        """Return the target of a symbolic link."""
        if not isinstance(node, File) or not stat.S_ISLNK(node.kind):
            raise failure(errno.EINVAL)
        if self.follow(node):
            fd = node.fd if node.fd >= 0 else node.lower_fd
            return os.readlink(b"", dir_fd=fd)
        return os.readlink(self.path(node))

    def statfs(self) -> os.statvfs_result:
        """Return the figures of the private area's file system, or of the quota."""
        real = os.statvfs(self.stack.upper.root.fd)
        return self.ledger.statfs(real) if self.ledger is not None else real

    def statx(self, node: Node) -> tuple[int, ...]:
        """Return struct statx of the backing object, see syscalls.STATX."""
        mask = syscalls.STATX_BASIC_STATS | syscalls.STATX_BTIME
        if isinstance(node, Directory) or self.follow(node):
            if isinstance(node, Directory):
                place = node.up if node.up is not None else node.lows[0]
                fd = place.open()
            else:
                assert isinstance(node, File)
                real = node.twin or node
                fd = real.fd if real.fd >= 0 else real.lower_fd
            return syscalls.statx(fd, b"", syscalls.AT_EMPTY_PATH, mask)
        return syscalls.statx(
            syscalls.AT_FDCWD, self.path(node), syscalls.AT_SYMLINK_NOFOLLOW, mask
        )

    # extended attributes

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """Return an extended attribute. Raises ENODATA, ENOTSUP."""
        return os.getxattr(self.path(node), stored(name), follow_symlinks=self.follow(node))

    def listxattr(self, node: Node) -> bytes:
        """Return the names of the extended attributes, each ended by a zero byte."""
        names = os.listxattr(self.path(node), follow_symlinks=self.follow(node))
        shown = [shown_name(name) for name in names]
        return b"".join(os.fsencode(name) + b"\0" for name in shown if name)

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int, kill: bool) -> None:
        """Set an extended attribute; ``kill`` takes the setgid bit away with an ACL."""
        if isinstance(node, File) and node.nid in self.jobs:
            self.own_data(node)
        self.own(node)
        before = self.stat(node) if self.ledger is not None else None
        path, follow = self.path(node), self.follow(node)
        os.setxattr(path, stored(name), value, flags, follow_symlinks=follow)
        if name == ACCESS_ACL.encode() and kill:
            st = self.stat(node)
            if st.st_mode & stat.S_ISGID:
                os.chmod(path, stat.S_IMODE(st.st_mode) & ~stat.S_ISGID)
        self._after_xattr(node, before)

    def removexattr(self, node: Node, name: bytes) -> None:
        """Remove an extended attribute. Raises ENODATA."""
        path = self.path(node)
        os.getxattr(path, stored(name), follow_symlinks=self.follow(node))
        if isinstance(node, File) and node.nid in self.jobs:
            self.own_data(node)
        self.own(node)
        before = self.stat(node) if self.ledger is not None else None
        os.removexattr(self.path(node), stored(name), follow_symlinks=self.follow(node))
        self._after_xattr(node, before)

    def _after_xattr(self, node: Node, before: os.stat_result | None) -> None:
        if isinstance(node, Directory):
            node.default_acl = None
        if before is not None and self.ledger is not None:
            delta = self.stat(node).st_blocks - before.st_blocks
            if delta > 0:
                self.record(before.st_uid, before.st_gid, delta)
            elif delta < 0:
                self.ledger.release(before.st_uid, before.st_gid, -delta, 0)

    # chattr(1), lsattr(1)

    def ioctl(self, node: Node, command: int, data: bytes) -> bytes:
        """Do an ioctl(2): the flags of files. Raises ENOTTY for any other."""
        if command in _GET_FLAGS:
            return struct.pack("<I", self._get_flags(node))
        if command in _SET_FLAGS:
            self._set_flags(node, struct.unpack_from("<I", data)[0])
            return b""
        if command == syscalls.FS_IOC_FSGETXATTR:
            return self._get_fsx(node)
        if command == syscalls.FS_IOC_FSSETXATTR:
            self._set_fsx(node, data)
            return b""
        raise failure(errno.ENOTTY)

    def _open_any(self, node: Node) -> int:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        if isinstance(node, Directory):
            return os.open(self.path(node), flags | os.O_DIRECTORY)
        assert isinstance(node, File)
        if not stat.S_ISREG(node.kind):
            raise failure(errno.ENOTTY)
        return (
            self.open_file(node.twin or node, flags, data=False)
            if node.has_copy
            else (self.open_file(node, flags))
        )

    def _get_flags(self, node: Node) -> int:
        fd = self._open_any(node)
        try:
            return syscalls.get_flags(fd)
        finally:
            os.close(fd)

    def _set_flags(self, node: Node, wanted: int) -> None:
        if isinstance(node, File) and node.nid in self.jobs:
            self.own_data(node)
        self.own(node)
        fd = self._open_any(node)
        try:
            kept = syscalls.get_flags(fd) & ~_SETTABLE
            syscalls.set_flags(fd, kept | wanted & _SETTABLE)
            if isinstance(node, File):
                (node.twin or node).flags = syscalls.get_flags(fd)
        finally:
            os.close(fd)

    def _get_fsx(self, node: Node) -> bytes:
        fd = self._open_any(node)
        try:
            return fcntl.ioctl(fd, syscalls.FS_IOC_FSGETXATTR, bytes(28))
        finally:
            os.close(fd)

    def _set_fsx(self, node: Node, data: bytes) -> None:
        self.own(node)
        fd = self._open_any(node)
        try:
            current = fcntl.ioctl(fd, syscalls.FS_IOC_FSGETXATTR, bytes(28))
            # Only the flags: extent size hints and project ids belong to the host.
            wanted = data[:4] + current[4:]
            fcntl.ioctl(fd, syscalls.FS_IOC_FSSETXATTR, wanted)
            if isinstance(node, File):
                (node.twin or node).flags = syscalls.get_flags(fd)
        finally:
            os.close(fd)

    def flags(self, node: File) -> int:
        """Return the inode flags of a private file, remembered."""
        if node.flags is None:
            try:
                fd = self.open_file(node, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    node.flags = syscalls.get_flags(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                    raise
                node.flags = 0
        return node.flags


def stored(name: bytes) -> str:
    """Return the name an attribute is stored under: ours are out of a user's reach."""
    text = os.fsdecode(name)
    for prefix in layers.PRIVATE_PREFIXES:
        if text.startswith(prefix):
            return prefix + "user." + text[len(prefix) :]
    return text


def shown_name(name: str) -> str:
    """Return the name a user sees for a stored attribute, "" for one of our marks."""
    for prefix in layers.PRIVATE_PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return prefix + rest[5:] if rest.startswith("user.") else ""
    return name
