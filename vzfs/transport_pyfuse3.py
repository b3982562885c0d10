"""The portable transport: the same file system served through pyfuse3 and trio.

It needs no privilege beyond a mounted descriptor and works on older kernels. It costs a context
switch of trio's for every request, all data pass the server, and pages of template files are
cached once for each mount. pyfuse3 knows no ioctl, fallocate, lseek, copy_file_range, statx and
tmpfile: the kernel emulates them or says that they are not supported.

The first exchange with the kernel (INIT) is ours: libfuse would not ask for all we need, and a
server which replaces a killed one gets none. libfuse is shown an INIT of our making on a socket,
whose place the real descriptor takes while libfuse handles it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import trio

from vzfs import protocol, resend, syscalls
from vzfs.attributes import Change, is_host_root, keeps_setid
from vzfs.inodes import Directory, File, Node
from vzfs.listing import DOT, DOTDOT
from vzfs.portableinit import answer_init, own_init
from vzfs.portablereplies import Replies

if TYPE_CHECKING:
    from vzfs.operations import Operations

_Result = TypeVar("_Result")
#: Marks a handle of an open for writing: node ids are below it.
_WRITES = 1 << 63


def serve(fd: int, core: Operations, flags: int, on_init: Callable[[int], None]) -> None:
    """Serve a /dev/fuse descriptor until it is unmounted; ``flags`` are 0 on a fresh mount."""
    if not flags:
        try:
            flags = answer_init(fd)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                return  # unmounted before anybody used it
            raise
        on_init(flags)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    placeholder = theirs.detach()  # libfuse closes it in the end
    # Waiting for memory ends when this process is killed. The kernel then fails the request it was
    # copying (EIO, fs/fuse/dev.c), so libfuse's buffers must be present before they are read to.
    syscalls.touch_allocations()
    with ours:
        ours.send(own_init(flags & 0xFFFFFFFF & ~protocol.INIT_EXT))
        handlers = Handlers(core, fd, placeholder)
        pyfuse3.init(handlers, f"/dev/fd/{placeholder}", {"default_permissions"})
        if core.resumed:
            resend.ask(fd)
        try:
            trio.run(handlers.serve)
        except* OSError as group:
            # Somebody aborted the connection (/sys/fs/fuse/connections): it is over as well.
            if any(one.errno != errno.ECONNABORTED for one in leaves(group)):
                raise
        finally:
            pyfuse3.close(unmount=False)


def leaves(group: BaseExceptionGroup[OSError]) -> list[OSError]:
    """Return the errors in a group of groups."""
    found: list[OSError] = []
    for one in group.exceptions:
        found += leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found


class Handlers(Replies):
    """pyfuse3's view of the file system. A handle is the node id, so it outlives a server."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, core: Operations, device: int, placeholder: int) -> None:
        """Serve ``core``; ``placeholder`` is the descriptor ``device`` shall take over."""
        super().__init__(core)
        self._device = device
        self._placeholder = placeholder

    def init(self) -> None:
        """Put the real descriptor in place: called while libfuse handles our INIT.

        The answer it then writes names a request the kernel never made and is ignored there.
        """
        os.dup2(self._device, self._placeholder, inheritable=False)

    async def serve(self) -> None:
        """Run until the file system is unmounted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(1)
            if self.core.written:
                self.core.tick()

    # names

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """Look a name up; what is not there is remembered by the kernel as well."""

        def find() -> pyfuse3.EntryAttributes:
            try:
                return self._given(*self.core.lookup(self.core.directory(parent), name))
            except FileNotFoundError:
                absent = pyfuse3.EntryAttributes()
                absent.st_ino = 0
                absent.entry_timeout = self.core.options.timeout_s
                return absent

        return await self._do(find)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Drop references."""
        for nid, count in inode_list:
            self.core.forget(nid, count)

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Create a special file."""
        caller = self._caller(ctx)
        return await self._make(
            parent, name, lambda at: self.core.mknod(at, name, mode, rdev, caller)
        )

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Create a directory."""
        caller, bits = self._caller(ctx), stat.S_IMODE(mode)
        return await self._make(parent, name, lambda at: self.core.mkdir(at, name, bits, caller))

    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Create a symbolic link."""
        caller = self._caller(ctx)
        return await self._make(
            parent, name, lambda at: self.core.symlink(at, name, target, caller)
        )

    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Give a file another name."""
        core = self.core
        return await self._make(
            new_parent, new_name, lambda at: core.link(core.node(inode), at, new_name)
        )

    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        """Remove a name."""
        core = self.core
        await self._do_once(
            lambda: core.unlink(core.directory(parent), name), errno.ENOENT, lambda: None
        )

    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        """Remove a directory."""
        core = self.core
        await self._do_once(
            lambda: core.rmdir(core.directory(parent), name), errno.ENOENT, lambda: None
        )

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: Any
    ) -> None:
        """Move a name."""
        core = self.core

        def there() -> None:
            core.lookup(core.directory(new_parent), new_name)

        await self._do_once(
            lambda: core.rename(
                core.directory(parent), name, core.directory(new_parent), new_name, flags
            ),
            errno.ENOENT,
            there,
        )

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        """Return the target of a symbolic link."""
        return await self._do(lambda: self.core.readlink(self.core.node(inode)))

    # attributes

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Return attributes."""

        def find() -> pyfuse3.EntryAttributes:
            node = self.core.node(inode)
            return self._entry(node, self.core.stat(node))

        return await self._do(find)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: Any,
    ) -> pyfuse3.EntryAttributes:
        """Change attributes."""
        valid = 0
        for wanted, bit in (
            (fields.update_mode, protocol.FATTR_MODE),
            (fields.update_uid, protocol.FATTR_UID),
            (fields.update_gid, protocol.FATTR_GID),
            (fields.update_size, protocol.FATTR_SIZE),
            (fields.update_atime, protocol.FATTR_ATIME),
            (fields.update_mtime, protocol.FATTR_MTIME),
        ):
            if wanted:
                valid |= bit
        uid, gid = attr.st_uid, attr.st_gid
        if self.core.shift is not None:
            uid, gid = self.core.shift.inward(uid), self.core.shift.inward(gid)
        change = Change(
            valid,
            attr.st_mode,
            uid,
            gid,
            attr.st_size,
            attr.st_atime_ns,
            attr.st_mtime_ns,
        )

        def apply() -> pyfuse3.EntryAttributes:
            node = self.core.node(inode)
            return self._entry(node, self.core.setattr(node, change, self._caller(ctx)))

        return await self._do(apply)

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """Return the figures of the file system."""
        real = await self._do(self.core.statfs)
        out = pyfuse3.StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail"):
            setattr(out, "f_" + name, getattr(real, "f_" + name))
        out.f_namemax = 255
        return out

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        """Return an extended attribute."""
        value = await self._do(lambda: self.core.getxattr(self.core.node(inode), name))
        shift = self.core.shift
        return value if shift is None else shift.value_outward(name, value)

    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        """Return the names of the extended attributes."""
        names = await self._do(
            # Unshifted: the root of a container is not the host's.
            lambda: self.core.listxattr(self.core.node(inode), self._caller(ctx, shifted=False))
        )
        return names.split(b"\0")[:-1]

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        """Set an extended attribute (pyfuse3 has checked XATTR_CREATE and XATTR_REPLACE)."""
        caller = self._caller(ctx)
        if self.core.shift is not None:
            value = self.core.shift.value_inward(name, value)

        def apply() -> None:
            node = self.core.node(inode)
            self.core.setxattr(node, name, value, 0, False)
            st = self.core.stat(node)
            # Without SETXATTR_EXT the kernel cannot say that setgid must go with an ACL.
            if (
                name == b"system.posix_acl_access"
                and st.st_mode & stat.S_ISGID
                and not keeps_setid(caller)
                and not is_host_root(caller)
                and caller.gid != st.st_gid
            ):
                self.core.setattr(
                    node, Change(protocol.FATTR_MODE, st.st_mode & ~stat.S_ISGID), caller
                )

        await self._do(apply)

    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        """Remove an extended attribute."""
        await self._do(lambda: self.core.removexattr(self.core.node(inode), name))

    # files

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Open a file."""

        def ready() -> pyfuse3.FileInfo:
            node = self.core.prepare_open(self.core.node(inode), flags, self._caller(ctx))
            return self._opened(node, flags)

        return await self._do(ready)

    def _opened(self, node: File, flags: int) -> pyfuse3.FileInfo:
        self.core.opened(node, flags)
        writes = _WRITES if flags & os.O_ACCMODE != os.O_RDONLY else 0
        # A control file has other contents at every read.
        cached = bool(node.kind)
        return pyfuse3.FileInfo(fh=node.nid | writes, keep_cache=cached, direct_io=not cached)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Create and open a file."""
        core = self.core

        caller = self._caller(ctx)

        def make() -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
            node, st, fd = core.create(core.directory(parent), name, stat.S_IMODE(mode), caller)
            os.close(fd)
            return self._opened(node, flags), self._given(node, st)

        def again() -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
            found, st = core.lookup(core.directory(parent), name)
            node = core.prepare_open(found, flags, caller)
            return self._opened(node, flags), self._given(node, st)

        return await self._do_once(make, errno.EEXIST, again)

    def _node(self, fh: int) -> Node:
        return self.core.node(fh & ~_WRITES)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return bytes."""
        return await self._do(lambda: self.core.read(self._node(fh), off, size))

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write bytes."""
        return await self._do(lambda: self.core.write(self._node(fh), off, buf))

    async def flush(self, fh: int) -> None:
        """Say that closing needs nothing of us; the kernel then stops asking."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        """Close a file."""
        node = self.core.table.nodes.get(fh & ~_WRITES)
        if isinstance(node, File):
            flags = os.O_WRONLY if fh & _WRITES else os.O_RDONLY
            await self._do(lambda: self.core.closed(node, flags))

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make a file durable."""
        await self._do(lambda: self.core.fsync(self._node(fh), data_only=bool(datasync)))

    # directories

    async def opendir(self, inode: int, ctx: Any) -> int:
        """Open a directory: nothing to remember, positions mean the same for everybody."""
        return inode

    async def releasedir(self, fh: int) -> None:
        """Close a directory."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Make a directory durable."""
        await self._do(lambda: self.core.fsync(self._node(fh), data_only=bool(datasync)))

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Report entries after a position."""
        await self._do(lambda: self._report(self.core.directory(fh), start_id, token))

    def _report(self, directory: Directory, start: int, token: pyfuse3.ReaddirToken) -> None:
        core = self.core
        for position, name in ((DOT, b"."), (DOTDOT, b"..")):
            if start < position:
                shown = directory if name == b"." else directory.parent or directory
                entry = self._entry(shown, core.stat(shown))
                # An entry without node id takes no reference; the number is shown all the same.
                if not pyfuse3.readdir_reply(token, name, entry, position):
                    return
        listing, number = core.position(directory, start)
        for at in range(number, len(listing.names)):
            try:
                node, st = core.lookup(directory, listing.names[at])
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EIO):
                    continue
                raise
            core.generation(node)
            entry = self._entry(node, st)
            if not pyfuse3.readdir_reply(token, listing.names[at], entry, listing.cookies[at]):
                core.discard(node)
                return
            node.lookups += 1
