"""The operations with disk quotas: what each of them takes and gives back, told to the ledger.

Everything an operation takes is reserved before it is done, and what was reserved is replaced by
what was really used after it. What changes where no operation sees it (a passthrough writer, a
directory that grows by an entry, an extent tree written later) has a charge, see ``accounting``.
Without a ledger every operation here goes straight to the one it extends.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from vzfs import quotastate
from vzfs.accounting import Accounting
from vzfs.attributes import stored
from vzfs.control import Controlled
from vzfs.inodes import Directory, File, Node
from vzfs.ledger import Ledger
from vzfs.naming import ACCESS_ACL, Caller, remove_made
from vzfs.options import Options
from vzfs.overlay import Job, failure
from vzfs.quotaguard import Guard

if TYPE_CHECKING:
    from vzfs.resting import Left

#: Directories of which it is remembered which inode they are.
_DIRECTORIES = 4096
#: With more open charges than this, df is exact to a second only.
_FLUSH_AT_ONCE = 256


class Accounted(Controlled):
    """The operations, accounted."""

    guard: Guard | None = None
    _flushed_s = 0.0
    #: The file created last, and its status: it is opened next.
    _fresh: tuple[File, os.stat_result] | None = None

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        #: Private inodes of directories by node id, to find their charges without a stat.
        self._inodes: dict[int, int] = {}

    def start_accounting(self, options: Options, *, resume: bool, left: Left | None = None) -> None:
        """Keep accounts in the quota file of ``options``; raises OSError, QuotaFileError."""
        from vzfs.server import choose_transport

        assert options.ledger is not None
        transport = quotastate.TRANSPORTS.index(choose_transport(options))
        books = Ledger.attach(
            options.ledger,
            area=options.upper,
            index=options.work_area / "index",
            resume=resume,
            transport=transport,
            fd=left.quota if left else -1,
        )
        self._books = books
        self.ledger = books
        self.accounting = Accounting(books, self.stack.upper.root.fd)
        if left is not None:
            guarded = left.guarded
        else:
            guarded = quotastate.TRANSPORTS[transport] == "kernel" and options.passthrough
            guarded = guarded and self.stack.move_to_own_mount(no_atime=options.no_atime)
            os.dup2(self.stack.index, self.index_place.fd, inheritable=False)
        if guarded:
            self._start_guard()

    def _start_guard(self) -> None:
        """Have a guard watch the mount through which the private area is reached."""
        assert self._books is not None
        assert self.accounting is not None
        mount = b"/proc/self/fd/%d/." % self.stack.upper.root.fd
        try:
            self.guard = Guard(self.accounting, self._books, mount)
        except OSError:
            return  # the server counts, see ``opened``
        for number in self.accounting.open_recovered():
            with suppress(OSError):
                self.guard.follow(number)

    def rest_accounts(self) -> bool:
        """Settle the accounts for a server that goes on with them; False: they may yet change."""
        books = self._books
        if books is None or self.accounting is None:
            return True
        return self.accounting.settle_all() and books.rest()

    def kept(self) -> list[int]:
        """Return the descriptors, besides those of the stack, which another server goes on with."""
        books = self._books
        return super().kept() if books is None else [*super().kept(), books.file.fd]

    def stop_accounting(self) -> None:
        """The file system is unmounted: write everything back."""
        self._dismiss_guard()
        if self.accounting is not None and self._books is not None:
            self.accounting.finish()
            self._books.detach()
        self.accounting = self._books = self.ledger = None

    def _dismiss_guard(self) -> None:
        if self.guard is not None:
            self.guard.close()
            self.guard = None

    def trim(self) -> None:
        """Bound what is held, and end a request."""
        super().trim()
        if self._books is not None:
            self._books.commit()

    @property
    def end_request(self) -> Callable[[], None] | None:
        """What must be called after every request, None where nothing must."""
        return None if self._books is None else self._books.commit

    def statfs(self) -> os.statvfs_result:
        """Return the figures of the quota, exact, or of the disk."""
        if self.accounting is not None:
            now = time.monotonic()
            if len(self.accounting.charges) < _FLUSH_AT_ONCE or now - self._flushed_s > 1:
                self._flushed_s = now
                self.accounting.flush()
        return super().statfs()

    # making private

    def private(self, directory: Directory) -> int:
        """Return a descriptor of the private part of a directory that is about to change."""
        books, accounting = self._books, self.accounting
        if books is None or accounting is None:
            return super().private(directory)
        books.begin()
        up = directory.up
        if up is None:
            fd = super().private(directory)
        else:
            fd = up.fd if up.fd >= 0 else up.open()
        inodes = self._inodes
        if inodes.get(directory.nid) not in accounting.charges:
            st = os.fstat(fd)
            accounting.watch(st, fd)
            if len(inodes) >= _DIRECTORIES:
                inodes.clear()
            inodes[directory.nid] = st.st_ino
        return fd

    def changed(self, directory: Directory) -> None:
        """Note that a name was added, for which the directory may have grown."""
        super().changed(directory)
        books, accounting = self._books, self.accounting
        if books is None or accounting is None or directory.up is None:
            return
        if books.nearly_full():
            st = os.fstat(directory.up.open())
            charge = accounting.charges.get(st.st_ino)
            if charge is not None:
                accounting.settle(charge, st.st_blocks)

    def own(self, node: Node, *, data: int | None = None) -> None:
        """Make the metadata of an object private which is about to change, or a small file."""
        if self._books is not None:
            self._books.begin()
            if isinstance(node, Directory) and node.up is not None:
                return  # it gets no name by that, see ``private``
        super().own(node, data=data)

    def _copy_directory(self, directory: Directory) -> None:
        if self.accounting is not None and directory.parent is not None:
            assert directory.parent.up is not None
            fd = directory.parent.up.open()
            self.accounting.watch(os.fstat(fd), fd)
        super()._copy_directory(directory)

    def charge_new(self, owner: os.stat_result, new: os.stat_result, at: int, name: bytes) -> None:
        """Charge a copy to its owner; its marks and its data are still to come."""
        super().charge_new(owner, new, at, name)
        if self.accounting is not None:
            self.accounting.born(new.st_ino)
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            try:
                self.accounting.watch(new, fd, owner)
            finally:
                os.close(fd)

    def _copy_file(self, node: File, data: int | None) -> None:
        super()._copy_file(node, data)
        if self.accounting is not None and node.parent is None:
            # Its name went while it was on the way to being changed.
            self.accounting.orphaned(self.stat(node))
            self.orphans.add(node.nid)

    def _copy_job(self, node: File, below: os.stat_result, wanted: int) -> Job:
        job = super()._copy_job(node, below, wanted)
        books, accounting = self._books, self.accounting
        if books is None or accounting is None:
            return job
        # Killed while it copies, the copy has blocks nobody was told of: the next server scans.
        books.hold()
        finish = job._finish

        def finish_accounted(error: OSError | None) -> None:
            # What the copy has by now; `stat` shows the file as it was.
            fd = self.open_file(node, os.O_RDONLY, data=False)
            before = os.fstat(fd)
            os.close(fd)
            charge = accounting.charges.get(before.st_ino)
            if charge is not None:
                # `finish` charges what came after this; df may have looked at it since.
                accounting.settle(charge, self.frozen[node.nid].st_blocks)
                accounting.forget(charge)
            elif not before.st_nlink:
                # Removed before, and nobody had it open: whoever waits for the copy will.
                blocks = self.frozen[node.nid].st_blocks
                books.record(before.st_uid, before.st_gid, blocks, 1)
                self.orphans.add(node.nid)
            try:
                finish(error)
            finally:
                if before.st_nlink:
                    accounting.watch(before)
                else:
                    accounting.orphaned(before)
                if not self.jobs:
                    books.unhold()

        job._finish = finish_accounted
        return job

    # names

    def _charge_created(
        self, dir_fd: int, name: bytes, fd: int, st: os.stat_result, above: os.stat_result
    ) -> None:
        # The directory has a charge (see `private`): only the object is charged here.
        if self.accounting is None:
            super()._charge_created(dir_fd, name, fd, st, above)
            return
        self.accounting.born(st.st_ino)
        if st.st_blocks:
            try:
                self.accounting.ledger.reserve(st.st_uid, st.st_gid, st.st_blocks, 0)
            except OSError:
                remove_made(dir_fd, name, fd, st)
                raise

    def _discharge(self, st: os.stat_result, blocks: int | None = None) -> None:
        if self.accounting is not None:
            self.accounting.removed(st)

    def _gone(self, node: File, st: os.stat_result) -> None:
        if self.accounting is not None and node.opens:
            self.accounting.orphaned(st)
            self.orphans.add(node.nid)
        else:
            super()._gone(node, st)

    def create(
        self, parent: Directory, name: bytes, mode: int, caller: Caller
    ) -> tuple[File, os.stat_result, int]:
        """Create a regular file."""
        made = super().create(parent, name, mode, caller)
        self._fresh = made[:2]
        return made

    def tmpfile(
        self, parent: Directory, mode: int, caller: Caller
    ) -> tuple[File, os.stat_result, int]:
        """Create a file without a name."""
        node, st, fd = super().tmpfile(parent, mode, caller)
        if self.accounting is not None:
            self.accounting.born(st.st_ino)
            self.accounting.orphaned(st, fd)
        return node, st, fd

    def link(self, node: Node, parent: Directory, name: bytes) -> tuple[Node, os.stat_result]:
        """Give a file another name, or its first."""
        if self._books is not None:
            self._books.admit_name()
        linked, st = super().link(node, parent, name)
        if linked.nid in self.orphans:
            self.orphans.discard(linked.nid)
            if self.accounting is not None:
                self.accounting.adopted(st.st_ino)
        return linked, st

    # attributes

    def _chown(
        self, node: Node, path: bytes, dir_fd: int, follow: bool, uid: int, gid: int
    ) -> None:
        accounting = self.accounting
        if accounting is None:
            super()._chown(node, path, dir_fd, follow, uid, gid)
            return
        before = self.stat(node)
        owner = (before.st_uid if uid < 0 else uid, before.st_gid if gid < 0 else gid)
        accounting.chown(before, *owner)
        try:
            os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=follow)
        except OSError:
            accounting.chown_back(before, *owner)
            raise

    def _put_xattr(
        self, node: Node, before: os.stat_result | None, name: bytes, value: bytes, flags: int
    ) -> None:
        books = self._books
        if books is None or before is None:
            super()._put_xattr(node, before, name, value, flags)
            return
        uid, gid, unit = before.st_uid, before.st_gid, before.st_blksize
        most = (len(value) + 2 * unit) // unit * unit // 512
        try:
            books.reserve(uid, gid, most, 0)
            books.release(uid, gid, most, 0)
        except OSError:
            self._fit_xattr(node, before, name, value, flags)
        else:
            super()._put_xattr(node, before, name, value, flags)

    def _fit_xattr(
        self, node: Node, before: os.stat_result, name: bytes, value: bytes, flags: int
    ) -> None:
        """Store an attribute that may need no more room than there is; raises EDQUOT if it does.

        Small ones are kept in the inode, which only the file system below can tell.
        """
        assert self._books is not None
        path, follow = self.path(node), self.follow(node)
        try:
            old: bytes | None = os.getxattr(path, stored(name), follow_symlinks=follow)
        except OSError:
            old = None
        super()._put_xattr(node, before, name, value, flags)
        grown = self.stat(node).st_blocks - before.st_blocks
        if grown <= 0 or grown <= self._books.headroom(before.st_uid, before.st_gid):
            return
        if old is None:
            os.removexattr(path, stored(name), follow_symlinks=follow)
        else:
            os.setxattr(path, stored(name), old, follow_symlinks=follow)
        if name == ACCESS_ACL.encode():
            # Its mask went into the mode, acl(5).
            os.chmod(path, stat.S_IMODE(before.st_mode))
        # The old value may be in a block now which it did not need before.
        self._after_xattr(node, before)
        raise failure(errno.EDQUOT)

    def _after_xattr(self, node: Node, before: os.stat_result | None) -> None:
        if self.accounting is None or before is None:
            super()._after_xattr(node, before)
            return
        super()._after_xattr(node, None)
        self.accounting.changed(self.stat(node), before.st_blocks)

    def recharge(self, node: File, before: os.stat_result, after: os.stat_result) -> None:
        """Charge what an operation changed; ``before`` and ``after`` are of the backing file."""
        if self.accounting is not None:
            self.accounting.changed(after, before.st_blocks)

    # files

    def _truncate(self, node: File, size: int) -> None:
        if self._books is not None:
            self._books.begin()
        super()._truncate(node, size)

    def descriptor(self, node: Node, *, write: bool) -> int:
        """Return a descriptor of the file's data, valid until the request ends."""
        if write and self._books is not None:
            self._books.begin()
        return super().descriptor(node, write=write)

    def opened(self, node: File, flags: int) -> None:
        """Count an open file."""
        accounting = self.accounting
        if accounting is None or not node.kind:
            super().opened(node, flags)
            return
        node.opens += 1
        if flags & os.O_ACCMODE != os.O_RDONLY and stat.S_ISREG(node.kind):
            node.writers += 1
            fresh, self._fresh = self._fresh, None
            st = fresh[1] if fresh is not None and fresh[0] is node else self.stat(node)
            if accounting.opened(st).orphan:
                self.orphans.add(node.nid)
            if self.guard is not None:
                try:
                    self.guard.opening(st.st_uid, st.st_gid)
                except OSError:
                    # Near a limit, files opened for writing are written through the server instead.
                    self._dismiss_guard()

    def closed(self, node: File, flags: int) -> None:
        """Count a file closed."""
        accounting = self.accounting
        if accounting is None:
            super().closed(node, flags)
            return
        if node.opens:
            node.opens -= 1
        orphan = not node.opens and node.nid in self.orphans
        writes = flags & os.O_ACCMODE != os.O_RDONLY and stat.S_ISREG(node.kind)
        if writes or orphan:
            st = self.stat(node)
            if writes:
                node.writers = max(0, node.writers - 1)
                accounting.closed(st)
            if orphan:
                self.orphans.discard(node.nid)
                accounting.evicted(st.st_ino)

    def retire(self, node: Node) -> None:
        """Release what a forgotten node held."""
        if self.orphans and node.nid in self.orphans and isinstance(node, File):
            # Changed after it lost its name, and never open.
            self.orphans.discard(node.nid)
            if self.accounting is not None:
                self.accounting.evicted(self.stat(node).st_ino)
        super().retire(node)

    def write(self, node: Node, offset: int, data: bytes | memoryview) -> int:
        """Write as much of ``data`` as there is room for; raises ENOSPC, EDQUOT, EFBIG."""
        books, accounting = self._books, self.accounting
        if books is None or accounting is None or not isinstance(node, File):
            return super().write(node, offset, data)
        fd = self.descriptor(node, write=True)
        before = os.fstat(fd)
        uid, gid = before.st_uid, before.st_gid
        wanted = self._growth(before, offset, len(data))
        if wanted:
            try:
                books.reserve(uid, gid, wanted, 0)
            except OSError:
                data = data[: self._fitting(before, offset, len(data), books.headroom(uid, gid))]
                if not data:
                    raise
                wanted = self._growth(before, offset, len(data))
                books.reserve(uid, gid, wanted, 0)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            if wanted:
                books.release(uid, gid, wanted, 0)
            accounting.changed(os.fstat(fd), before.st_blocks)

    def _fitting(self, st: os.stat_result, offset: int, length: int, room: int) -> int:
        """Return how many of ``length`` bytes can be written with ``room`` blocks more."""
        fits, refused = 0, length
        while refused - fits > st.st_blksize:
            middle = (fits + refused) // 2
            end = (offset + middle) // st.st_blksize * st.st_blksize
            middle = max(0, end - offset)
            if middle <= fits:
                break
            if self._growth(st, offset, middle) <= room:
                fits = middle
            else:
                refused = middle
        return fits
