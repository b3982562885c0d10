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
from vzfs.inodes import Directory, File, Node, split_id
from vzfs.listing import Reading
from vzfs.naming import ACCESS_ACL, SELF, Caller
from vzfs.overlay import failure

_UTIME = (
    protocol.FATTR_ATIME
    | protocol.FATTR_MTIME
    | protocol.FATTR_ATIME_NOW
    | protocol.FATTR_MTIME_NOW
)
_OWNER = protocol.FATTR_UID | protocol.FATTR_GID
_CAPABILITY = b"security.capability"
_CAP_FSETID = 4
#: The uid and gid of a request on an idmapped mount which creates nothing.
NOBODY = 0xFFFFFFFF
_GET_FLAGS = (syscalls.FS_IOC_GETFLAGS, 0x80046601)
_SET_FLAGS = (syscalls.FS_IOC_SETFLAGS, 0x40046602)


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

    def setattr(self, node: Node, change: Change, caller: Caller = SELF) -> os.stat_result:
        """Change attributes; returns the new ones. May raise `Later`.

        A change of nothing is what the kernel asks for before somebody without CAP_FSETID writes
        to a setuid or setgid file (FUSE_HANDLE_KILLPRIV_V2): chown(2) takes the bits away.
        """
        valid = change.valid
        st = self._setattr(node, change, valid)
        if valid & protocol.FATTR_KILL_SUIDGID:
            st = self._strip_setid(node, st)
        if st.st_mode & stat.S_ISGID and loses_setgid(st, caller):
            os.chmod(self.path(node), stat.S_IMODE(st.st_mode) & ~stat.S_ISGID)
            st = self.stat(node)
        return st

    def _strip_setid(self, node: Node, st: os.stat_result) -> os.stat_result:
        """Take setuid away, and setgid where it is not for mandatory locks."""
        mode = stat.S_IMODE(st.st_mode)
        kept = mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
        if kept == mode or not stat.S_ISREG(st.st_mode):
            return st
        os.chmod(self.path(node), kept)
        return self.stat(node)

    def strip_for_write(self, node: Node, caller: Caller) -> None:
        """Take away what a write(2) by ``caller``, who has no CAP_FSETID, does not leave.

        For writes the kernel does not prepare itself (direct I/O through the server).
        """
        st = self.stat(node)
        if st.st_mode & (stat.S_ISUID | stat.S_ISGID):
            self.setattr(node, Change(protocol.FATTR_KILL_SUIDGID), caller)
            self.invalidate(node)

    def _setattr(self, node: Node, change: Change, valid: int) -> os.stat_result:
        if isinstance(node, File) and node.nid in self.jobs:
            self.own_data(node)
        if valid & protocol.FATTR_SIZE:
            if not isinstance(node, File):
                raise failure(errno.EISDIR)
            self._truncate(node, change.size)
            if not valid & ~(protocol.FATTR_SIZE | protocol.FATTR_FH) & 0x7FF:
                return self.stat(node)
        self.own(node)
        path, dir_fd = self.at(node)
        follow = self.follow(node)
        if valid & _OWNER or not valid & (protocol.FATTR_MODE | protocol.FATTR_SIZE | _UTIME):
            self._chown(
                node,
                path,
                dir_fd,
                follow,
                change.uid if valid & protocol.FATTR_UID else -1,
                change.gid if valid & protocol.FATTR_GID else -1,
            )
        if valid & protocol.FATTR_MODE:
            os.chmod(path, stat.S_IMODE(change.mode), dir_fd=dir_fd)
        if valid & _UTIME:
            self._utime(node, path, dir_fd, follow, change)
        return self.stat(node)

    def _chown(
        self, node: Node, path: bytes, dir_fd: int, follow: bool, uid: int, gid: int
    ) -> None:
        if self.ledger is None:
            os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=follow)
            return
        before = self.stat(node)
        new_uid = before.st_uid if uid < 0 else uid
        new_gid = before.st_gid if gid < 0 else gid
        blocks = before.st_blocks
        owners = (before.st_uid, before.st_gid, new_uid, new_gid)
        self.ledger.transfer(*owners, blocks, 1)
        try:
            os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=follow)
        except OSError:
            self.ledger.transfer(new_uid, new_gid, before.st_uid, before.st_gid, blocks, 1)
            raise

    def _utime(self, node: Node, path: bytes, dir_fd: int, follow: bool, change: Change) -> None:
        valid = change.valid
        now = protocol.FATTR_ATIME_NOW | protocol.FATTR_MTIME_NOW
        if valid & now == now:
            os.utime(path, dir_fd=dir_fd, follow_symlinks=follow)
            return
        both = protocol.FATTR_ATIME | protocol.FATTR_MTIME
        if valid & (both | now) == both:
            times = (change.atime_ns, change.mtime_ns)
            os.utime(path, ns=times, dir_fd=dir_fd, follow_symlinks=follow)
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
        os.utime(path, ns=(atime, mtime), dir_fd=dir_fd, follow_symlinks=follow)

    def _truncate(self, node: File, size: int) -> None:
        if node.twin is not None:
            # By descriptor this cannot be asked for again; the twin is what the name means.
            if not node.twin.private:
                raise failure(errno.ESTALE)
            node = node.twin
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

    def generation(self, node: Node) -> int:
        """Return what tells an object from an earlier one with the same id.

        Without passthrough a file which was removed while open goes with its server, and its inode
        number may be another file's under the next. The kernel must not take that for the same.
        """
        if self.passthrough:
            return 0  # it holds what is open, and ids of files differ from server to server
        if node.generation is None:
            _, slot, _ = split_id(node.nid)
            if slot or (isinstance(node, File) and node.magic):
                node.generation = 0  # a template's inodes stay
            else:
                seconds, nanoseconds = self.statx(node)[13:15]
                node.generation = seconds * 10**9 + nanoseconds  # when it was made
        return node.generation

    # extended attributes

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """Return an extended attribute. Raises ENODATA, ENOTSUP."""
        if name != _CAPABILITY or not isinstance(node, File):
            return os.getxattr(self.path(node), stored(name), follow_symlinks=self.follow(node))
        real = node.twin or node
        if real.bare:
            raise failure(errno.ENODATA)
        try:
            return os.getxattr(self.path(real), name, follow_symlinks=self.follow(real))
        except OSError as error:
            real.bare = error.errno == errno.ENODATA
            raise

    def listxattr(self, node: Node, caller: Caller = SELF) -> bytes:
        """Return the names of the extended attributes, each ended by a zero byte.

        Those in ``trusted`` are for the host's root only, xattr(7).
        """
        names = os.listxattr(self.path(node), follow_symlinks=self.follow(node))
        shown = [shown_name(name) for name in names]
        if any(name.startswith("trusted.") for name in shown) and not is_host_root(caller):
            shown = [name for name in shown if not name.startswith("trusted.")]
        return b"".join(os.fsencode(name) + b"\0" for name in shown if name)

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int, kill: bool) -> None:
        """Set an extended attribute; ``kill`` takes the setgid bit away with an ACL."""
        if isinstance(node, File) and node.nid in self.jobs:
            self.own_data(node)
        self.own(node)
        if isinstance(node, File):
            (node.twin or node).bare = False
        before = self.stat(node) if self.ledger is not None else None
        self._put_xattr(node, before, name, value, flags)
        if name == ACCESS_ACL.encode() and kill:
            st = self.stat(node)
            if st.st_mode & stat.S_ISGID:
                os.chmod(self.path(node), stat.S_IMODE(st.st_mode) & ~stat.S_ISGID)
        self._after_xattr(node, before)

    def _put_xattr(
        self, node: Node, before: os.stat_result | None, name: bytes, value: bytes, flags: int
    ) -> None:
        """Store an extended attribute of a private object whose status is ``before``."""
        os.setxattr(self.path(node), stored(name), value, flags, follow_symlinks=self.follow(node))

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
        real = node.twin or node
        if not stat.S_ISREG(real.kind):
            raise failure(errno.ENOTTY)
        return self.open_file(real, flags, data=not real.has_copy)

    def _get_flags(self, node: Node) -> int:
        fd = self._open_any(node)
        try:
            return syscalls.get_flags(fd)
        finally:
            os.close(fd)

    def _own_for_flags(self, node: Node) -> None:
        """Make everything private that could not be changed under a protecting flag."""
        if isinstance(node, File):
            self.own_data(node.twin or node)
        elif isinstance(node, Directory):
            self.private(node)
            self.make_impure(node)

    def _set_flags(self, node: Node, wanted: int) -> None:
        self._own_for_flags(node)
        fd = self._open_any(node)
        try:
            syscalls.set_flags(fd, wanted)
            self._flags_changed(node, fd)
        finally:
            os.close(fd)

    def _flags_changed(self, node: Node, fd: int) -> None:
        node.flags = syscalls.get_flags(fd)
        self.invalidate(node)
        if isinstance(node, File) and node.twin is not None:
            self._flags_changed(node.twin, fd)

    def invalidate(self, node: Node) -> None:
        """Have the kernel forget attributes that changed in a way it does not know of."""

    def _get_fsx(self, node: Node) -> bytes:
        fd = self._open_any(node)
        try:
            return fcntl.ioctl(fd, syscalls.FS_IOC_FSGETXATTR, bytes(28))
        finally:
            os.close(fd)

    def _set_fsx(self, node: Node, data: bytes) -> None:
        self._own_for_flags(node)
        fd = self._open_any(node)
        try:
            current = fcntl.ioctl(fd, syscalls.FS_IOC_FSGETXATTR, bytes(28))
            # Only the flags: extent size hints and project ids belong to the host.
            wanted = data[:4] + current[4:]
            fcntl.ioctl(fd, syscalls.FS_IOC_FSSETXATTR, wanted)
            self._flags_changed(node, fd)
        finally:
            os.close(fd)


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


def status(pid: int) -> dict[str, str]:
    """Return the lines of /proc/PID/status, {} for a process we cannot see."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return dict(line.split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return {}


def keeps_setid(caller: Caller) -> bool:
    """Tell whether a caller has CAP_FSETID; on an idmapped mount its uid is not told."""
    if caller.uid in (0, NOBODY):
        if caller.uid == 0:
            return True
        effective = status(caller.pid).get("CapEff", "0")
        return bool(int(effective, 16) >> _CAP_FSETID & 1)
    return False


def loses_setgid(st: os.stat_result, caller: Caller) -> bool:
    """Tell whether a regular file must lose a setgid bit without group execution.

    The kernel leaves that case of setattr_should_drop_sgid() (fs/attr.c) to the server: it sends
    a SETATTR without the mode. A change of mode by someone outside the group never arrives with
    the bit set, so it means the same.
    """
    if not stat.S_ISREG(st.st_mode) or st.st_mode & stat.S_IXGRP or keeps_setid(caller):
        return False
    if caller.gid == st.st_gid:
        return False
    words = status(caller.pid)
    groups = {int(word) for word in words.get("Groups", "").split()}
    if caller.gid == NOBODY:
        groups.update(int(word) for word in words.get("Gid", "").split()[3:4])
    return st.st_gid not in {inside(caller.pid, group) for group in groups}


def inside(pid: int, gid: int) -> int:
    """Return what a group id of ours is called in a process's user namespace, -1 for nothing."""
    try:
        with open(f"/proc/{pid}/gid_map", encoding="ascii") as file:
            for line in file:
                first, outside, count = (int(word) for word in line.split())
                if outside <= gid < outside + count:
                    return first + gid - outside
    except OSError:
        pass
    return -1


def is_host_root(caller: Caller) -> bool:
    """Tell whether a caller is root in our own user namespace."""
    if caller.uid != NOBODY:
        return caller.uid == 0
    try:
        return os.stat(f"/proc/{caller.pid}/ns/user").st_ino == os.stat(
            "/proc/self/ns/user"
        ).st_ino and status(caller.pid).get("Uid", "1").split()[1:2] == ["0"]
    except OSError:
        return False
