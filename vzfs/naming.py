"""Operations which add names: create, link.

What a name leads to in the lower layers is hidden by a whiteout. All whiteouts are hard links to
one inode in the work area: they cost a directory entry and nothing else, and they are not charged
to anybody. Every change of a visible name is one rename(2) or one link(2), so that a crash leaves
the old or the new state.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from vzfs import layers, syscalls
from vzfs.copyup import CopyUp
from vzfs.inodes import Directory, File, Node
from vzfs.layers import proc_fd, proc_path
from vzfs.overlay import failure

WHITEOUT = b"whiteout"
DEFAULT_ACL = "system.posix_acl_default"
ACCESS_ACL = "system.posix_acl_access"
MAGIC = b"////"
#: Instead of a descriptor, or of the -1 of what has none: it was not made.
_NOTHING = -2
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Caller(NamedTuple):
    """On whose behalf something is created."""

    uid: int
    gid: int
    umask: int
    pid: int = 0


#: Nobody in particular: the server itself.
SELF = Caller(0, 0, 0)


class Naming(CopyUp):
    """Operations which add names."""

    # helpers

    def has_default_acl(self, directory: Directory) -> bool:
        """Tell whether what is made in a directory inherits an ACL from it."""
        if directory.default_acl is None:
            try:
                os.getxattr(self.path(directory), DEFAULT_ACL)
                directory.default_acl = True
            except OSError:
                directory.default_acl = False
        return directory.default_acl

    def lower_has(self, directory: Directory, name: bytes) -> bool:
        """Tell whether the lower layers show ``name``, whatever the private one says."""
        return bool(directory.lows) and layers.find_lower(directory.lows, name) is not None

    def whiteout(self, dir_fd: int, name: bytes) -> None:
        """Make a whiteout of a free name."""
        work = self.stack.temporary
        try:
            os.link(WHITEOUT, name, src_dir_fd=work, dst_dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EMLINK):
                raise
            spare = self.temporary_name()
            os.mknod(spare, stat.S_IFCHR | 0o600, 0, dir_fd=work)
            os.rename(spare, WHITEOUT, src_dir_fd=work, dst_dir_fd=work)
            os.link(WHITEOUT, name, src_dir_fd=work, dst_dir_fd=dir_fd, follow_symlinks=False)

    def _is_whiteout(self, dir_fd: int, name: bytes) -> bool:
        try:
            return layers.is_whiteout(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def changed(self, directory: Directory) -> None:
        """Note that a name was added."""
        if directory.listing is not None:
            directory.listing.stale = True

    def _new(
        self,
        parent: Directory,
        name: bytes,
        mode: int,
        caller: Caller,
        make: Callable[[int, bytes, int], int],
        *,
        mark: str = "",
    ) -> tuple[Node, os.stat_result, int]:
        """Create an object, owned by the caller; return its node, attributes, descriptor.

        ``make(dir_fd, name, mode)`` creates it and returns an open descriptor or -1.
        """
        dir_fd = self.private(parent)
        inherits = self.has_default_acl(parent)
        if not inherits:
            mode &= ~caller.umask
        above = os.fstat(dir_fd)
        gid = above.st_gid if above.st_mode & stat.S_ISGID else caller.gid
        if stat.S_ISDIR(mode) and above.st_mode & stat.S_ISGID:
            mode |= stat.S_ISGID
        if self.ledger is not None:
            self.ledger.reserve(caller.uid, gid, 0, 1)
        try:
            covered = bool(mark) and bool(parent.lows) and self._is_whiteout(dir_fd, name)
            fd = _NOTHING
            if not mark:
                try:
                    fd = make(dir_fd, name, mode)
                except FileExistsError:
                    covered = bool(parent.lows) and self._is_whiteout(dir_fd, name)
                    if not covered:
                        raise
            if fd == _NOTHING:
                fd, st = self._new_aside(parent, name, mode, caller.uid, gid, make, covered, mark)
            else:
                st = self._give(dir_fd, name, fd, mode, caller.uid, gid)
                self._charge_created(dir_fd, name, fd, st, above)
        except BaseException:
            if self.ledger is not None:
                self.ledger.release(caller.uid, gid, 0, 1)
            raise
        if mark:
            self.make_impure(parent)
        self.changed(parent)
        assert parent.up is not None
        if mark:
            node, st = self._copy(parent, parent.up, name, name, st, proc_path(dir_fd, name))
        else:
            node = self._plain(parent, parent.up, name, st)
        return node, st, fd

    def _give(
        self, dir_fd: int, name: bytes, fd: int, mode: int, uid: int, gid: int
    ) -> os.stat_result:
        """Give a fresh object its owner, and the mode bits which chown(2) takes away."""
        st = os.fstat(fd) if fd >= 0 else os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        special = mode & (stat.S_ISUID | stat.S_ISGID)
        if st.st_uid == uid and st.st_gid == gid and st.st_mode & special == special:
            return st
        if st.st_uid != uid or st.st_gid != gid:
            if fd >= 0:
                os.chown(fd, uid, gid)
            else:
                os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)
        if special and not stat.S_ISLNK(mode):
            wanted = stat.S_IMODE(st.st_mode) | special
            os.chmod(proc_fd(fd) if fd >= 0 else proc_path(dir_fd, name), wanted)
        return os.fstat(fd) if fd >= 0 else os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

    def _new_aside(
        self,
        parent: Directory,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        make: Callable[[int, bytes, int], int],
        covered: bool,
        mark: str,
    ) -> tuple[int, os.stat_result]:
        """Create an object in the work area, complete it, and move it over a whiteout.

        It is charged before that: what is refused must leave the whiteout in its place.
        """
        work = self.stack.temporary
        shop = -1
        shop_name = b""
        if self.has_default_acl(parent):
            # A directory with the same default ACL, so that the object inherits it.
            shop_name = self.temporary_name()
            os.mkdir(shop_name, 0o700, dir_fd=work)
            acl = os.getxattr(self.path(parent), DEFAULT_ACL)
            os.setxattr(proc_path(work, shop_name), DEFAULT_ACL, acl)
            shop = os.open(shop_name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work)
        here = shop if shop >= 0 else work
        spare = self.temporary_name()
        target = self.private(parent)
        try:
            fd = make(here, spare, mode)
            st = self._give(here, spare, fd, mode, uid, gid)
            if mark:
                os.setxattr(proc_path(here, spare), mark, b"y")
            if stat.S_ISDIR(mode):
                os.setxattr(proc_path(here, spare), layers.OPAQUE, b"y")
            st = os.stat(spare, dir_fd=here, follow_symlinks=False)
            self._charge_created(here, spare, fd, st, os.stat(here))
            try:
                if stat.S_ISDIR(mode) and covered:
                    syscalls.rename(here, spare, target, name, syscalls.RENAME_EXCHANGE)
                    os.unlink(spare, dir_fd=here)
                elif covered or stat.S_ISDIR(mode):
                    os.rename(spare, name, src_dir_fd=here, dst_dir_fd=target)
                else:
                    syscalls.rename(here, spare, target, name, syscalls.RENAME_NOREPLACE)
            except OSError:
                if self.ledger is not None:
                    self.ledger.release(st.st_uid, st.st_gid, st.st_blocks, 0)
                remove_made(here, spare, fd, st)
                raise
        finally:
            if shop >= 0:
                os.close(shop)
                os.rmdir(shop_name, dir_fd=work)
        return fd, st

    def _charge_created(
        self, dir_fd: int, name: bytes, fd: int, st: os.stat_result, above: os.stat_result
    ) -> None:
        """Charge the blocks of a fresh object and of the entry in its directory."""
        if self.ledger is None:
            return
        grown = os.fstat(dir_fd).st_blocks - above.st_blocks
        try:
            if grown:
                self.ledger.reserve(above.st_uid, above.st_gid, grown, 0)
            if st.st_blocks:
                self.ledger.reserve(st.st_uid, st.st_gid, st.st_blocks, 0)
        except OSError:
            remove_made(dir_fd, name, fd, st)
            raise

    def _discharge(self, st: os.stat_result, blocks: int | None = None) -> None:
        """Tell the ledger that an object is gone."""
        if self.ledger is not None:
            count = st.st_blocks if blocks is None else blocks
            self.ledger.release(st.st_uid, st.st_gid, count, 1)

    # creation

    def create(
        self, parent: Directory, name: bytes, mode: int, caller: Caller
    ) -> tuple[File, os.stat_result, int]:
        """Create a regular file; return its node, attributes and a descriptor open for both."""

        def make(dir_fd: int, at: bytes, bits: int) -> int:
            return os.open(at, _CREATE, stat.S_IMODE(bits), dir_fd=dir_fd)

        node, st, fd = self._new(parent, name, stat.S_IFREG | mode, caller, make)
        assert isinstance(node, File)
        node.bare = True
        return node, st, fd

    def mknod(
        self, parent: Directory, name: bytes, mode: int, device: int, caller: Caller
    ) -> tuple[Node, os.stat_result]:
        """Create a special file (or a regular one)."""
        if stat.S_ISCHR(mode) and device == 0:
            # Ours would hide what is below: a file with a mark stands for the user's.
            def make_escaped(dir_fd: int, at: bytes, bits: int) -> int:
                os.close(os.open(at, _CREATE, stat.S_IMODE(bits), dir_fd=dir_fd))
                return -1

            mode = stat.S_IFREG | stat.S_IMODE(mode)
            node, st, _ = self._new(parent, name, mode, caller, make_escaped, mark=layers.ESCAPED)
            return node, st

        def make(dir_fd: int, at: bytes, bits: int) -> int:
            os.mknod(at, bits, device, dir_fd=dir_fd)
            return -1

        node, st, _ = self._new(parent, name, mode, caller, make)
        return node, st

    def mkdir(
        self, parent: Directory, name: bytes, mode: int, caller: Caller
    ) -> tuple[Node, os.stat_result]:
        """Create a directory."""

        def make(dir_fd: int, at: bytes, bits: int) -> int:
            os.mkdir(at, stat.S_IMODE(bits), dir_fd=dir_fd)
            return -1

        node, st, _ = self._new(parent, name, stat.S_IFDIR | mode, caller, make)
        return node, st

    def symlink(
        self, parent: Directory, name: bytes, target: bytes, caller: Caller
    ) -> tuple[Node, os.stat_result]:
        """Create a symbolic link. Raises EINVAL for a magic one unless they are allowed."""
        magic = target.startswith(MAGIC)
        if magic and not self.options.magic_links:
            raise failure(errno.EINVAL)

        def make(dir_fd: int, at: bytes, bits: int) -> int:
            os.symlink(target, at, dir_fd=dir_fd)
            return -1

        node, st, _ = self._new(parent, name, stat.S_IFLNK | 0o777, caller, make)
        if magic and self.magic is not None and self.magic.resolve(target) is not None:
            self.table.forget(node.nid, 0)
            node, _ = self.lookup(parent, name)
        return node, st

    def tmpfile(
        self, parent: Directory, mode: int, caller: Caller
    ) -> tuple[File, os.stat_result, int]:
        """Create a file without a name, open(2) O_TMPFILE."""
        dir_fd = self.private(parent)
        if not self.has_default_acl(parent):
            mode &= ~caller.umask
        above = os.fstat(dir_fd)
        gid = above.st_gid if above.st_mode & stat.S_ISGID else caller.gid
        if self.ledger is not None:
            self.ledger.reserve(caller.uid, gid, 0, 1)
        fd = os.open(
            b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, stat.S_IMODE(mode), dir_fd=dir_fd
        )
        st = self._give(dir_fd, b"", fd, mode, caller.uid, gid)
        file = File(self.table.identify_file(0, st.st_ino), st.st_ino, None, b"", stat.S_IFREG)
        file.fd = os.open(proc_fd(fd), os.O_PATH | os.O_CLOEXEC)
        self.table.add(file)
        return file, st, fd

    def link(self, node: Node, parent: Directory, name: bytes) -> tuple[Node, os.stat_result]:
        """Give a file another name."""
        if not isinstance(node, File):
            raise failure(errno.EPERM)
        if node.twin is not None:
            node = node.twin
        self.own(node)
        target = self.private(parent)
        covered = bool(parent.lows) and self._is_whiteout(target, name)
        where, at = (self.stack.temporary, self.temporary_name()) if covered else (target, name)
        real = self.stat(node)
        if self._is_marked(node, real):
            self.make_impure(parent)
        if node.links is not None:
            self._set_links(node, node.links + 1)
        try:
            if node.fd >= 0:
                syscalls.link_followed(proc_fd(node.fd), where, at)
            else:
                assert node.up is not None
                os.link(
                    node.upname,
                    at,
                    src_dir_fd=node.up.open(),
                    dst_dir_fd=where,
                    follow_symlinks=False,
                )
        except OSError:
            if node.links is not None:
                self._set_links(node, node.links - 1)
            raise
        if covered:
            os.rename(at, name, src_dir_fd=where, dst_dir_fd=target)
        self.changed(parent)
        if node.fd >= 0 and parent.up is not None:
            os.close(node.fd)
            node.fd = -1
            node.up, node.upname = parent.up, name
        if node.parent is None:
            node.parent, node.name = parent, name
        return node, self.stat(node)

    def _is_marked(self, node: File, real: os.stat_result) -> bool:
        """Tell whether a private file carries marks its directory must announce."""
        return node.ino != real.st_ino or node.meta or node.links is not None or node.escaped

    def _set_links(self, node: File, count: int) -> None:
        os.setxattr(self.path(node), layers.NLINK, b"%d" % count, follow_symlinks=self.follow(node))
        node.links = count


def remove_made(dir_fd: int, name: bytes, fd: int, st: os.stat_result) -> None:
    """Undo the creation of an object that was refused; ``fd`` is open on it, or -1."""
    if fd >= 0:
        os.close(fd)
    if stat.S_ISDIR(st.st_mode):
        os.rmdir(name, dir_fd=dir_fd)
    else:
        os.unlink(name, dir_fd=dir_fd)
