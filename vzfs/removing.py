"""Operations which take names away: unlink, rmdir, and what a rename replaces."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from vzfs import layers, syscalls
from vzfs.inodes import Directory, File, Node
from vzfs.naming import Naming
from vzfs.overlay import failure, proc_directory

_NOTE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


class Removing(Naming):
    """Operations that remove names."""

    def _pin(self, node: Node) -> None:
        """Hold an object whose name goes away, for those who still use it."""
        if isinstance(node, Directory):
            if node.up is not None:
                self.stack.descriptors.pin(node.up)
            return
        assert isinstance(node, File)
        if node.magic and node.anchor < 0 and node.up is not None:
            node.anchor = os.open(
                node.upname, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=node.up.open()
            )
        if node.fd < 0 and node.up is not None and not node.magic:
            node.fd = os.open(
                node.upname, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=node.up.open()
            )
        if (node.meta or not node.has_copy) and node.lower_fd < 0 and node.low is not None:
            node.lower_fd = os.open(
                node.loname, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=node.low.open()
            )

    def _nameless(self, node: Node) -> None:
        """Note that the known name of a node is gone (`_pin` was called before)."""
        node.parent = None
        if isinstance(node, File):
            node.up = None
            if node.twin is not None:
                self._nameless(node.twin)
        if node.lookups <= 0 and not self.known_before(node):
            self.table.forget(node.nid, 0)
            self.retire(node)

    def _group(self, node: File) -> None:
        """Copy up a lower file with several names before one of them changes."""
        if node.has_copy or node.magic or node.twin is not None:
            self._begin_count(node)
            return
        st = self.stat_lower(node)
        if st.st_nlink > 1 and node.low is not None:
            slot = self.stack.layers[node.low.layer].slot
            if self.group_size(slot, st) > 1:
                self.own(node)
        self._begin_count(node)

    def _begin_count(self, node: File) -> None:
        """Note that one of several names goes: a death before the count says so is healed."""
        if node.links is not None:
            os.close(os.open(layers.RECOUNT, _NOTE, 0o600, dir_fd=self.stack.work))

    def _drop_name(self, node: File, st: os.stat_result) -> None:
        """Account for one name less; ``st`` are the attributes from before."""
        if node.magic:
            self.discharge_link(os.stat(node.anchor))
        elif node.links is not None:
            self._set_links(node, node.links - 1)
            if node.links == 0:
                entry = self._index_entry(node)
                if entry:
                    os.unlink(entry, dir_fd=self.index_place.fd)
                    slot, _, inode = entry.partition(b"-")
                    self.indexed.discard((int(slot), int(inode)))
                self._gone(node, st)
            with suppress(FileNotFoundError):
                os.unlink(layers.RECOUNT, dir_fd=self.stack.work)
        elif st.st_nlink == 1 and node.has_copy:
            self._gone(node, st)

    def _gone(self, node: File, st: os.stat_result) -> None:
        """Release what a file without names is charged, unless somebody has it open."""
        if node.opens:
            self.orphans.add(node.nid)
        else:
            self._discharge(st)

    def _index_entry(self, node: File) -> bytes:
        mark = layers.get_mark(self.path(node), layers.ORIGIN)
        if node.up is self.index_place:
            return node.upname
        if mark is None and node.fd >= 0:
            mark = layers.get_mark_fd(node.fd, layers.ORIGIN)
        origin = self.stack.parse_origin(mark) if mark else None
        return b"%d-%d" % origin if origin in self.indexed else b""

    def unlink(self, parent: Directory, name: bytes) -> None:
        """Remove a file's name."""
        node, st = self.lookup(parent, name)
        if not isinstance(node, File):
            raise failure(errno.EISDIR)
        known = node.has_copy and node.twin is None and not self.frozen
        self._group(node)
        if not known:
            st = self.stat(node)
        covers = self.lower_has(parent, name)
        real = node.up is not None and node.up is parent.up and node.upname == name
        self._pin(node)
        if real:
            dir_fd = self.private(parent)
            if covers:
                spare, work = self.temporary_name(), self.stack.temporary
                self.whiteout(work, spare)
                try:
                    os.rename(spare, name, src_dir_fd=work, dst_dir_fd=dir_fd)
                except OSError:
                    os.unlink(spare, dir_fd=work)
                    raise
            else:
                os.unlink(name, dir_fd=dir_fd)
        else:
            self.check_names(parent)
            self.whiteout(self.private(parent), name)
        self._drop_name(node, st)
        if real or node.up is None or node.links == 0:
            self._nameless(node)

    def check_names(self, directory: Directory) -> None:
        """Raise EPERM when chattr(1) protects the names in a directory.

        A whiteout would be a new name to the file system, which append-only allows.
        """
        if directory.up is not None and self.flags(directory) & (
            syscalls.FS_IMMUTABLE_FL | syscalls.FS_APPEND_FL
        ):
            raise failure(errno.EPERM)

    def visible(self, directory: Directory) -> bool:
        """Tell whether a directory shows any entry."""
        hidden: set[bytes] = set()
        if directory.up is not None:
            for name, white in self.scan(directory.up.open()):
                if not white:
                    return True
                hidden.add(name)
        for place in directory.lows:
            for name, white in self.scan(place.open()):
                if name in hidden:
                    continue
                if not white:
                    return True
                hidden.add(name)
        return False

    def scan(self, dir_fd: int) -> list[tuple[bytes, bool]]:
        """Return the entries of one directory of one layer: name, whether it is a whiteout."""
        entries = []
        with os.scandir(proc_directory(dir_fd)) as found:
            for entry in found:
                white = False
                if not (
                    entry.is_symlink()
                    or entry.is_file(follow_symlinks=False)
                    or entry.is_dir(follow_symlinks=False)
                ):
                    white = layers.is_whiteout(
                        os.stat(entry.name, dir_fd=dir_fd, follow_symlinks=False)
                    )
                entries.append((entry.name, white))
        return entries

    def rmdir(self, parent: Directory, name: bytes) -> None:
        """Remove an empty directory."""
        node, _ = self.lookup(parent, name)
        if not isinstance(node, Directory):
            raise failure(errno.ENOTDIR)
        covers = self.lower_has(parent, name)
        if node.up is not None and not node.lows and not covers:
            # Nothing but what is in it can keep it: the file system below knows.
            place = node.up
            st = os.fstat(place.fd if place.fd >= 0 else place.open())
            dir_fd = self.private(parent)
            try:
                os.rmdir(name, dir_fd=dir_fd)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
            else:
                self._pin(node)
                self._discharge(st)
                self._nameless(node)
                return
        if self.visible(node):
            raise failure(errno.ENOTEMPTY)
        st = self.stat(node)
        self._pin(node)
        work = self.stack.temporary
        if node.up is None:
            self.check_names(parent)
            self.whiteout(self.private(parent), name)
        else:
            dir_fd = self.private(parent)
            spare = self.temporary_name()
            if covers:
                self.whiteout(work, spare)
                try:
                    syscalls.rename(work, spare, dir_fd, name, syscalls.RENAME_EXCHANGE)
                except OSError:
                    os.unlink(spare, dir_fd=work)
                    raise
                self._destroy(spare)
            else:
                try:
                    os.rmdir(name, dir_fd=dir_fd)
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise
                    os.rename(name, spare, src_dir_fd=dir_fd, dst_dir_fd=work)
                    self._destroy(spare)
            self._discharge(st)
        node.lows = ()
        if node.up is None:
            node.up = self._grave()
        self._nameless(node)

    def _grave(self) -> layers.Place:
        """Return an empty, removed directory for a lower one that was removed while in use."""
        work, name = self.stack.temporary, self.temporary_name()
        os.mkdir(name, 0o700, dir_fd=work)
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work)
        os.rmdir(name, dir_fd=work)
        return layers.Place(self.stack.descriptors, 0, None, b"", fd)

    def _destroy(self, spare: bytes) -> None:
        """Remove a directory of the work area which holds whiteouts only."""
        work = self.stack.temporary
        fd = os.open(spare, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work)
        try:
            for name in os.listdir(proc_directory(fd)):
                os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(spare, dir_fd=work)
