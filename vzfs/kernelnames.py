"""Requests of /dev/fuse on names and attributes: unpacked, done, answered."""

from __future__ import annotations

import errno
import os
import stat

from vzfs import protocol
from vzfs.attributes import Change
from vzfs.inodes import Directory
from vzfs.kernelreplies import Replies
from vzfs.listing import DOT, DOTDOT
from vzfs.naming import Caller
from vzfs.overlay import NANO, failure
from vzfs.protocol import OUT_HEADER, OUT_SIZE

_IN = protocol.IN_SIZE


class NameRequests(Replies):
    """Handlers of everything but the contents of files."""

    # names

    def _lookup(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        name = bytes(view[_IN : size - 1])
        core = self.core
        try:
            node, st = core.lookup(core.directory(nid), name)
        except FileNotFoundError:
            # Node id 0: nothing there, and the kernel may remember that.
            head = (144, 0, unique, 0, 0, self.seconds, 0, self.nanoseconds, 0)
            self._send(protocol.ENTRY_REPLY.pack(*head, *(0,) * 16))
            return
        self._entry(unique, node, st)

    def _mknod(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        mode, device, umask, _ = protocol.MKNOD_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 16 : size - 1])
        core = self.core
        caller = self._caller(view, umask)
        self._entry(unique, *core.mknod(core.directory(nid), name, mode, device, caller))

    def _mkdir(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        mode, umask = protocol.MKDIR_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 8 : size - 1])
        core = self.core
        self._entry(unique, *core.mkdir(core.directory(nid), name, mode, self._caller(view, umask)))

    def _symlink(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        name, target = self._names(view, _IN, size)
        core = self.core
        caller = self._caller(view, 0)
        self._entry(unique, *core.symlink(core.directory(nid), name, target, caller))

    def _link(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        (old,) = protocol.LINK_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 8 : size - 1])
        core = self.core
        self._entry(unique, *core.link(core.node(old), core.directory(nid), name))

    def _unlink(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self.core.unlink(self.core.directory(nid), bytes(view[_IN : size - 1]))
        self._ok(unique, nid, view, size)

    def _rmdir(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self.core.rmdir(self.core.directory(nid), bytes(view[_IN : size - 1]))
        self._ok(unique, nid, view, size)

    def _rename(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        (to,) = protocol.RENAME_IN.unpack_from(view, _IN)
        self._move(unique, nid, to, 0, self._names(view, _IN + 8, size))

    def _rename2(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        to, flags, _ = protocol.RENAME2_IN.unpack_from(view, _IN)
        core = self.core
        core.request = unique & ~protocol.UNIQUE_RESEND
        core.repeated = self.is_repeated(unique)
        self._move(unique, nid, to, flags, self._names(view, _IN + 16, size))

    def _move(self, unique: int, nid: int, to: int, flags: int, names: list[bytes]) -> None:
        core = self.core
        core.rename(core.directory(nid), names[0], core.directory(to), names[1], flags)
        self._send(OUT_HEADER.pack(OUT_SIZE, 0, unique))

    def _readlink(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._reply(unique, self.core.readlink(self.core.node(nid)))

    # attributes

    def _getattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        core = self.core
        node = core.node(nid)
        self._attr(unique, node, core.stat(node))

    def _setattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        fields = protocol.SETATTR_IN.unpack_from(view, _IN)
        valid, _, _, length, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = (
            fields
        )
        shift = self.core.shift
        if shift is not None:
            uid, gid = shift.inward(uid), shift.inward(gid)
        change = Change(
            valid, mode, uid, gid, length, atime * NANO + atime_ns, mtime * NANO + mtime_ns
        )
        node = self.core.node(nid)
        self._attr(unique, node, self.core.setattr(node, change, self._caller(view, 0)))

    def _statx(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        node = self.core.node(nid)
        real = self.core.statx(node)
        shown = self.core.attributes(node, self.core.stat(node))
        ino, length, blocks = shown[:3]
        mode, links, uid, gid, rdev = shown[9:14]
        # The kernel takes ids, link count and mode from here; attributes stay the backing file's.
        body = protocol.STATX_BODY.pack(
            real[0] & 0xFFF,
            4096,
            real[2],
            links,
            uid,
            gid,
            mode,
            ino,
            length,
            blocks,
            real[10],
            *real[11:19],
            os.major(rdev),
            os.minor(rdev),
            0,
            0,
        )
        head = protocol.STATX_REPLY_HEAD.pack(
            OUT_SIZE + 32 + len(body), 0, unique, self.seconds, self.nanoseconds, 0, 0, 0
        )
        self._send(head + body)

    def _statfs(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        v = self.core.statfs()
        self._send(
            protocol.STATFS_REPLY.pack(
                96,
                0,
                unique,
                v.f_blocks,
                v.f_bfree,
                v.f_bavail,
                v.f_files,
                v.f_ffree,
                v.f_bsize,
                255,
                v.f_frsize,
                0,
            )
        )

    def _setxattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        if self.flags & protocol.SETXATTR_EXT:
            length, flags, extra, _ = protocol.SETXATTR_EXT_IN.unpack_from(view, _IN)
            start = _IN + 16
        else:
            length, flags = protocol.SETXATTR_IN.unpack_from(view, _IN)
            start, extra = _IN + 8, 0
        rest = bytes(view[start:size])
        end = rest.index(b"\0")
        value = rest[end + 1 : end + 1 + length]
        kill = bool(extra & protocol.SETXATTR_ACL_KILL_SGID)
        if self.core.shift is not None:
            value = self.core.shift.value_inward(rest[:end], value)
        self.core.setxattr(self.core.node(nid), rest[:end], value, flags, kill)
        self._ok(unique, nid, view, size)

    def _getxattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        (room, _) = protocol.GETXATTR_IN.unpack_from(view, _IN)
        name = bytes(view[_IN + 8 : size - 1])
        value = self.core.getxattr(self.core.node(nid), name)
        if self.core.shift is not None:
            value = self.core.shift.value_outward(name, value)
        self._xattr(unique, room, value)

    def _listxattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        (room, _) = protocol.GETXATTR_IN.unpack_from(view, _IN)
        # Unshifted: the root of a container is not the host's.
        uid, gid, pid = protocol.IN_CALLER.unpack_from(view, 24)
        names = self.core.listxattr(self.core.node(nid), Caller(uid, gid, 0, pid))
        self._xattr(unique, room, names)

    def _xattr(self, unique: int, room: int, value: bytes) -> None:
        if not room:
            self._send(protocol.XATTR_SIZE_REPLY.pack(24, 0, unique, len(value), 0))
        elif len(value) > room:
            raise failure(errno.ERANGE)
        else:
            self._reply(unique, value)

    def _removexattr(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self.core.removexattr(self.core.node(nid), bytes(view[_IN : size - 1]))
        self._ok(unique, nid, view, size)

    def _ioctl(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        _, _, command, _, length, room = protocol.IOCTL_IN.unpack_from(view, _IN)
        data = bytes(view[_IN + 32 : _IN + 32 + length])
        result = self.core.ioctl(self.core.node(nid), command, data)[:room]
        self._reply(unique, protocol.IOCTL_OUT.pack(0, 0, 0, 0) + result.ljust(room, b"\0"))

    # directories

    def _readdir(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._list(unique, nid, view, plus=False)

    def _readdirplus(self, unique: int, nid: int, view: memoryview, size: int) -> None:
        self._list(unique, nid, view, plus=True)

    def _list(self, unique: int, nid: int, view: memoryview, *, plus: bool) -> None:
        _, offset, room, *_ = protocol.READ_IN.unpack_from(view, _IN)
        core = self.core
        directory = core.directory(nid)
        parts: list[bytes] = []
        used = 0
        entry_size = 128 if plus else 0
        for position, name in ((DOT, b"."), (DOTDOT, b"..")):
            if offset < position:
                parts.append(self._dot(directory, name, position, plus=plus))
                used += len(parts[-1])
        listing, number = core.position(directory, offset)
        names, cookies = listing.names, listing.cookies
        seconds, nanoseconds = self.seconds, self.nanoseconds
        dirent, entry_out, attributes = (
            protocol.DIRENT.pack,
            protocol.ENTRY_OUT.pack,
            core.attributes,
        )
        while number < len(names):
            name = names[number]
            length = (24 + len(name) + 7) & ~7
            if used + entry_size + length > room:
                break
            try:
                node, st = core.lookup(directory, name)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EIO):
                    raise
                number += 1
                continue
            shown = attributes(node, st)
            if plus:
                node.lookups += 1
                born = core.generation(node)
                parts.append(
                    entry_out(node.nid, born, seconds, seconds, nanoseconds, nanoseconds, *shown)
                )
            head = dirent(shown[0], cookies[number], len(name), shown[9] >> 12)
            parts.append((head + name).ljust(length, b"\0"))
            if not plus:
                core.discard(node)
            used += entry_size + length
            number += 1
        self._reply(unique, b"".join(parts))

    def _dot(self, directory: Directory, name: bytes, position: int, *, plus: bool) -> bytes:
        node = directory if name == b"." else directory.parent or directory
        entry = bytes(128) if plus else b""
        head = protocol.DIRENT.pack(node.ino, position, len(name), stat.S_IFDIR >> 12)
        return entry + (head + name).ljust((24 + len(name) + 7) & ~7, b"\0")
