"""rename(2) and renameat2(2), directories of the lower layers included.

A directory with lower parts is moved like any other: its private part is renamed and says in a
``redirect`` mark where the lower parts are. The old name is covered by a whiteout in the same
rename (RENAME_WHITEOUT), so there is no moment without either name.

An exchange done twice is none, so what is about to be swapped for which request is noted in the
work area: the server which follows a killed one is asked for the same, and finds it done.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress

from vzfs import layers, syscalls
from vzfs.inodes import Directory, File, Node
from vzfs.layers import proc_fd, proc_path
from vzfs.overlay import failure
from vzfs.removing import Removing

#: What must not be done again.
_TWICE = syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT


#: In the work area: a request, and the inode which it moves to the second name.
_NOTE = "moving"
_NOTED = struct.Struct("<QQ")


def forget_moves(work: int) -> None:
    """Remove the note of a former mount from the work area ``work``."""
    with suppress(FileNotFoundError):
        os.unlink(_NOTE, dir_fd=work)


class Renaming(Removing):
    """The operation which moves names."""

    #: The request that is served, 0 where the transport does not know it.
    request = 0
    #: It was taken by a former server too, which may have done it.
    repeated = False

    def rename(self, parent: Directory, name: bytes, to: Directory, new: bytes, flags: int) -> None:
        """Move ``name`` in ``parent`` to ``new`` in ``to``, renameat2(2)."""
        if flags & ~(
            syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT
        ):
            raise failure(errno.EINVAL)
        if self.repeated and flags & _TWICE and self._is_moved(to, new):
            if flags & syscalls.RENAME_WHITEOUT:
                self._complete_whiteout(parent, name)
            return
        node, _ = self.lookup(parent, name)
        try:
            victim: Node | None = self.lookup(to, new)[0]
        except FileNotFoundError:
            victim = None
        if flags & syscalls.RENAME_EXCHANGE:
            if victim is None:
                raise failure(errno.ENOENT)
            if victim is not node:
                self._exchange(parent, name, node, to, new, victim)
            return
        if victim is not None and flags & syscalls.RENAME_NOREPLACE:
            raise failure(errno.EEXIST)
        if victim is node:
            return
        self._check_kinds(node, victim)
        if not flags & syscalls.RENAME_WHITEOUT:
            self._move(parent, name, node, to, new, victim)
            return
        if self.ledger is not None:
            self.ledger.reserve(0, 0, 0, 1)
        try:
            self.check_names(parent)
            self._ready(parent, name, node)
            self._note_move(node)
            self._move(parent, name, node, to, new, victim)
        except BaseException:
            if self.ledger is not None:
                self.ledger.release(0, 0, 0, 1)
            raise
        self._leave_user_whiteout(parent, name)

    def _note_move(self, node: Node) -> None:
        """Note, before it happens, what the request moves."""
        if self.request:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            fd = os.open(_NOTE, flags, 0o600, dir_fd=self.stack.work)
            try:
                os.pwrite(fd, _NOTED.pack(self.request, self._number(node)), 0)
            finally:
                os.close(fd)

    def _is_moved(self, to: Directory, new: bytes) -> bool:
        """Tell whether the former server did the request that is repeated."""
        try:
            fd = os.open(_NOTE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.stack.work)
        except FileNotFoundError:
            return False
        try:
            noted = os.pread(fd, _NOTED.size, 0)
        finally:
            os.close(fd)
        if len(noted) != _NOTED.size:
            return False
        request, number = _NOTED.unpack(noted)
        try:
            return bool(request == self.request and number == self._number(self.lookup(to, new)[0]))
        except FileNotFoundError:
            return False

    def _number(self, node: Node) -> int:
        """Return the number of a private object, for comparison."""
        return os.stat(self.path(node), follow_symlinks=isinstance(node, Directory)).st_ino

    def _complete_whiteout(self, parent: Directory, name: bytes) -> None:
        try:
            self.lookup(parent, name)
        except FileNotFoundError:
            self._leave_user_whiteout(parent, name)

    def _check_kinds(self, node: Node, victim: Node | None) -> None:
        if victim is None:
            return
        if isinstance(node, Directory):
            if not isinstance(victim, Directory):
                raise failure(errno.ENOTDIR)
            if self.visible(victim):
                raise failure(errno.ENOTEMPTY)
        elif isinstance(victim, Directory):
            raise failure(errno.EISDIR)

    def _move(
        self,
        parent: Directory,
        name: bytes,
        node: Node,
        to: Directory,
        new: bytes,
        victim: Node | None,
    ) -> None:
        self.check_names(parent)
        if victim is not None:
            self.check_names(to)
        target = self.private(to)
        self._ready(parent, name, node)
        source = self.private(parent)
        self._mark_for(node, to, new)
        leaves = self.lower_has(parent, name)
        before: os.stat_result | None = None
        if victim is not None:
            if isinstance(victim, File):
                self._group(victim)
            before = self.stat(victim)
            self._pin(victim)
            if isinstance(victim, Directory) and victim.up is not None:
                self._empty(victim)
        real = self._is_real(parent, name, node)
        # A file takes the place of a whiteout by itself.
        if victim is None and isinstance(node, Directory) and self._is_whiteout(target, new):
            syscalls.rename(source, name, target, new, syscalls.RENAME_EXCHANGE)
            if not leaves:
                os.unlink(name, dir_fd=source)
        elif not real:
            self._name_group(node, target, new)
            self.whiteout(source, name)
        elif leaves and not (source == target and name == new):
            self._rename_leaving(source, name, target, new)
        else:
            os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
        if victim is not None and before is not None:
            self._bury(victim, before)
        self._moved(node, to, new)
        self.changed(to)

    def _rename_leaving(self, source: int, name: bytes, target: int, new: bytes) -> None:
        """Rename and leave a whiteout, in one step where the file system can."""
        try:
            syscalls.rename(source, name, target, new, syscalls.RENAME_WHITEOUT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            work, spare = self.stack.temporary, self.temporary_name()
            self.whiteout(work, spare)
            syscalls.rename(work, spare, source, name, syscalls.RENAME_EXCHANGE)
            os.rename(spare, new, src_dir_fd=work, dst_dir_fd=target)

    def _is_real(self, parent: Directory, name: bytes, node: Node) -> bool:
        """Tell whether the private directory holds an entry for the name."""
        if isinstance(node, Directory):
            return True
        assert isinstance(node, File)
        return node.up is parent.up and node.upname == name

    def _ready(self, parent: Directory, name: bytes, node: Node) -> None:
        """Make the moved object private where it stands."""
        if isinstance(node, Directory):
            self.own(node)
            if node.lows:
                self._set_redirect(node)
            return
        assert isinstance(node, File)
        real = node.twin or node
        if real.magic:
            return
        if not real.has_copy:
            real.parent, real.name = parent, name
        self.own(node)
        if real.meta and real.low is not None:
            # Too deep for a redirect: only at its place would the lower part be found again.
            path = layers.lower_path(real.low, real.loname)
            if len(path) > layers.REDIRECT_MAX:
                self.own_data(real)

    def _set_redirect(self, node: Directory) -> None:
        paths = {layers.lower_path(p.parent, p.name) for p in node.lows if p.parent is not None}
        if len(paths) != 1:
            raise failure(errno.EXDEV)
        path = paths.pop()
        if len(path) > layers.REDIRECT_MAX:
            raise failure(errno.EXDEV)
        os.setxattr(self.path(node), layers.REDIRECT, path)

    def _mark_for(self, node: Node, to: Directory, new: bytes) -> None:
        """Prepare the marks an object needs in its new directory."""
        if isinstance(node, Directory):
            if node.lows:
                self.make_impure(to)
            elif self.lower_has(to, new):
                os.setxattr(self.path(node), layers.OPAQUE, b"y")
        elif isinstance(node, File):
            real = node.twin or node
            if not real.magic and self._is_marked(real, self.stat(real)):
                self.make_impure(to)

    def _name_group(self, node: Node, target: int, new: bytes) -> None:
        """Give the indexed copy of a file with several lower names one more private name."""
        assert isinstance(node, File)
        real = node.twin or node
        assert real.up is not None
        work, spare = self.stack.temporary, self.temporary_name()
        os.link(
            real.upname,
            spare,
            src_dir_fd=real.up.open(),
            dst_dir_fd=work,
            follow_symlinks=False,
        )
        os.rename(spare, new, src_dir_fd=work, dst_dir_fd=target)

    def _empty(self, victim: Directory) -> None:
        """Remove the whiteouts of an empty directory that is about to be replaced."""
        assert victim.up is not None
        fd = victim.up.open()
        names = [name for name, _ in self.scan(fd)]
        if names:
            if victim.lows:
                os.setxattr(proc_fd(fd), layers.OPAQUE, b"y")
            for name in names:
                os.unlink(name, dir_fd=fd)

    def _bury(self, victim: Node, before: os.stat_result) -> None:
        """Account for an object whose name was taken over."""
        if isinstance(victim, Directory):
            if victim.up is not None:
                self._discharge(before)
            else:
                victim.up = self._grave()
            victim.lows = ()
            self._nameless(victim)
            return
        assert isinstance(victim, File)
        self._drop_name(victim, before)
        if victim.links is None or victim.links == 0 or victim.up is not self.index_place:
            self._nameless(victim)

    def _moved(self, node: Node, to: Directory, new: bytes) -> None:
        node.parent, node.name = to, new
        assert to.up is not None
        if isinstance(node, Directory):
            assert node.up is not None
            node.up.parent, node.up.name = to.up, new
            return
        assert isinstance(node, File)
        real = node.twin or node
        real.parent, real.name = to, new
        if real.up is not self.index_place:
            real.up, real.upname = to.up, new

    def _exchange(
        self,
        parent: Directory,
        name: bytes,
        node: Node,
        to: Directory,
        new: bytes,
        other: Node,
    ) -> None:
        """Swap two names."""
        self.check_names(parent)
        self.check_names(to)
        source, target = self.private(parent), self.private(to)
        self._ready(parent, name, node)
        self._ready(to, new, other)
        for place, at, what in ((parent, name, node), (to, new, other)):
            if not self._is_real(place, at, what):
                self._name_group(what, self.private(place), at)
        self._mark_for(node, to, new)
        self._mark_for(other, parent, name)
        self._note_move(node)
        syscalls.rename(source, name, target, new, syscalls.RENAME_EXCHANGE)
        self._moved(node, to, new)
        self._moved(other, parent, name)
        self.changed(parent)
        self.changed(to)

    def _leave_user_whiteout(self, parent: Directory, name: bytes) -> None:
        """Put the character device 0:0 a RENAME_WHITEOUT asks for at the old name."""
        dir_fd = self.private(parent)
        work, spare = self.stack.temporary, self.temporary_name()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        os.close(os.open(spare, flags, 0, dir_fd=work))
        os.setxattr(proc_path(work, spare), layers.ESCAPED, b"y")
        self.make_impure(parent)
        os.rename(spare, name, src_dir_fd=work, dst_dir_fd=dir_fd)
        self.changed(parent)
