"""Finding nodes a former server handed out.

A server that replaces a killed one starts with an empty table while the kernel goes on using ids
it was given before. An id says which inode of which device it was born as, so the object can be
opened by a file handle, open_by_handle_at(2). Where it is now is then read from /proc and looked
up like any other name, and believed only if that leads to the same object again: a file which was
copied up since must not be mistaken for its origin. A copy that got another name than its origin is
found by the mark it carries. What has no name (any more) is served by the descriptor alone where the
kernel holds it open for passthrough; else it went with its server.

Handles are composed for file systems of the ext family only (an inode number, any generation).
Elsewhere every unknown id is stale, and the kernel looks the path up again: open files keep
working by passthrough, relative paths of processes inside subdirectories do not.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vzfs import layers, syscalls
from vzfs.files import Files
from vzfs.inodes import UNCOMPUTED, Directory, File, Node, split_id
from vzfs.layers import proc_fd
from vzfs.overlay import failure
from vzfs.walking import directories

if TYPE_CHECKING:
    from vzfs.layers import Layer

#: FILEID_INO32_GEN, linux/exportfs.h: inode number and generation, 0 standing for any.
_INO32_GEN = 1
_DELETED = b" (deleted)"


class Recovering(Files):
    """The file system of a server which replaced another."""

    #: This server replaced another one, so unknown ids may be known to the kernel.
    resumed = False
    _mounts: dict[int, int] | None = None
    #: Private copies by the slot and inode of what they were copied from, as last searched for.
    _copies: Mapping[tuple[int, int], int] = {}
    _search_again_s = 0.0

    def recover(self, nid: int) -> Node:
        """Return the node a former server called ``nid``. Raises ESTALE when it is not found."""
        if not self.resumed:
            raise failure(errno.ESTALE)
        epoch, slot, inode = split_id(nid)
        if slot == UNCOMPUTED:
            raise failure(errno.ESTALE)
        fd = self._open_inode(slot, inode)
        try:
            st = os.fstat(fd)
            node = self._by_path(fd, slot, st)
            if node is None and not stat.S_ISDIR(st.st_mode):
                node = self._by_copy(slot, inode) if slot else self._by_number(fd, st)
            if stat.S_ISDIR(st.st_mode):
                if node is None or node.nid != nid:
                    raise failure(errno.ESTALE)
                return node
            return self._file_again(nid, epoch, slot, fd, st, node)
        finally:
            os.close(fd)

    def known_before(self, node: Node) -> bool:
        """Tell whether the kernel knows an object by this id from a former server.

        It removes only what it knows, and forgets that later. Until then the inode has to be kept:
        an object that got its number, and with it its id, would be taken for the removed one.
        Ids of files with an epoch are never given again.
        """
        return self.resumed and (isinstance(node, Directory) or not self.table.epoch)

    def _open_inode(self, slot: int, inode: int) -> int:
        if inode > 0xFFFFFFFF:
            raise failure(errno.ESTALE)
        if self._mounts is None:
            self._mounts = {}
        mount = self._mounts.get(slot)
        if mount is None:
            layer = next((one for one in self.stack.layers if one.slot == slot), None)
            if layer is None:
                raise failure(errno.ESTALE)
            mount = os.open(layer.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                kind = syscalls.name_to_handle(mount, b"").kind
            except OSError:
                kind = -1
            if kind != _INO32_GEN:
                os.close(mount)
                mount = -1
            self._mounts[slot] = mount
        if mount < 0:
            raise failure(errno.ESTALE)
        handle = syscalls.Handle(_INO32_GEN, struct.pack("<II", inode, 0))
        try:
            return syscalls.open_by_handle(mount, handle, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            raise failure(errno.ESTALE) from None

    def _by_path(self, fd: int, slot: int, st: os.stat_result) -> Node | None:
        """Return the node the object's present path leads to, if that is this object."""
        return next((node for node in self._there(fd, slot) if self._is(node, slot, st)), None)

    def _there(self, fd: int, slot: int) -> Iterator[Node]:
        """Yield the nodes the object's present path leads to, one for each layer it may be in."""
        path = os.readlink(proc_fd(fd))
        for layer in self.stack.layers:
            if layer.slot != slot:
                continue
            names = _below(layer, path)
            if names is not None:
                node = self._walk(names)
                if node is None and layer.root.layer:
                    node = self._walk_moved(names)
                if node is not None:
                    yield node

    def _by_number(self, fd: int, st: os.stat_result) -> Node | None:
        """Return the node of a private file of which the kernel below remembers no name."""
        if not st.st_nlink or _leads_to(os.readlink(proc_fd(fd)), st):
            return None
        for folder, entries in directories(self.stack.upper.path):
            for entry in entries:
                if entry.inode() == st.st_ino:
                    path = os.readlink(proc_fd(folder)) + b"/" + os.fsencode(entry.name)
                    names = _below(self.stack.upper, path)
                    return self._walk(names) if names is not None else None
        return None

    def _by_copy(self, slot: int, inode: int) -> Node | None:
        """Return the node of a copy whose name is not that of the lower file any more."""
        copy = self._copies.get((slot, inode))
        if copy is None and time.monotonic() >= self._search_again_s:
            began = time.monotonic()
            self._copies = self._search_copies()
            # Who asks in vain for many files must not make all others wait.
            self._search_again_s = time.monotonic() + 10 * (time.monotonic() - began)
            copy = self._copies.get((slot, inode))
        if copy is None:
            return None
        fd = self._open_inode(0, copy)
        try:
            born = (slot, inode)
            return next((n for n in self._there(fd, 0) if split_id(n.nid)[1:] == born), None)
        finally:
            os.close(fd)

    def _search_copies(self) -> dict[tuple[int, int], int]:
        """Return the inodes of the private copies of lower files, by slot and inode of those."""
        found: dict[tuple[int, int], int] = {}
        for fd, entries in directories(self.stack.upper.path):
            if layers.get_mark_fd(fd, layers.IMPURE) is None:
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    continue
                path = layers.proc_path(fd, os.fsencode(entry.name))
                mark = layers.get_mark(path, layers.ORIGIN)
                origin = self.stack.parse_origin(mark) if mark else None
                if origin is not None:
                    found[origin] = entry.inode()
        return found

    def _walk(self, names: list[bytes]) -> Node | None:
        node: Node = self.root
        for name in names:
            if not isinstance(node, Directory):
                return None
            try:
                node, _ = self.lookup(node, name)
            except OSError:
                return None
        return node

    def _walk_moved(self, names: list[bytes]) -> Node | None:
        """Find a lower path below a directory which was moved: one with a redirect to it."""
        pending: list[Directory] = [self.root]
        while pending:
            here = pending.pop()
            if here.up is None:
                continue
            for name, white in self.scan(here.up.open()):
                if white:
                    continue
                try:
                    child, _ = self.lookup(here, name)
                except OSError:
                    continue
                if not isinstance(child, Directory) or child.up is None:
                    continue
                pending.append(child)
                if child.lows and child.up.mark(layers.REDIRECT) is not None:
                    below = child.lows[0].components()
                    if names[: len(below)] == below:
                        return self._walk_from(child, names[len(below) :])
        return None

    def _walk_from(self, node: Node, names: list[bytes]) -> Node | None:
        for name in names:
            if not isinstance(node, Directory):
                return None
            try:
                node, _ = self.lookup(node, name)
            except OSError:
                return None
        return node

    def _is(self, node: Node, slot: int, st: os.stat_result) -> bool:
        """Tell whether a node found by path is the object with that slot and inode."""
        _, node_slot, node_inode = split_id(node.nid)
        if (node_slot, node_inode) == (slot, st.st_ino):
            return True
        if slot or not self.passthrough or not isinstance(node, File) or not node.has_copy:
            return False
        return self.stat(node).st_ino == st.st_ino

    def _file_again(
        self, nid: int, epoch: int, slot: int, fd: int, st: os.stat_result, node: Node | None
    ) -> File:
        """Return a file under the id of a former server."""
        if isinstance(node, File) and node.nid == nid:
            return node
        if node is None and (slot or st.st_nlink or not self.passthrough):
            # Only passthrough keeps a file without a name beyond its server. Without, or with a
            # name elsewhere, this is another file which got the number.
            raise failure(errno.ESTALE)
        ino = node.ino if node is not None else st.st_ino
        file = File(nid, ino, None, b"", stat.S_IFMT(st.st_mode))
        if isinstance(node, File):
            # The same object under the id of this server: attributes are its business.
            file.twin = node
            file.parent, file.name = node.parent, node.name
        else:
            file.fd = os.open(proc_fd(fd), os.O_PATH | os.O_CLOEXEC)
            self._find_data(file)
        self.table.add(file)
        return file

    def _find_data(self, file: File) -> None:
        """Find the lower file of a nameless copy which holds metadata only."""
        marks = os.listxattr(proc_fd(file.fd))
        if layers.COPYING in marks:
            fd = os.open(proc_fd(file.fd), os.O_RDWR | os.O_CLOEXEC)
            try:
                layers.heal_copy(fd)
            finally:
                os.close(fd)
        if layers.METACOPY not in marks:
            return
        target = layers.get_mark_fd(file.fd, layers.REDIRECT) or b""
        found = layers.resolve_file(self.roots, target)
        if found is None or found.directories:
            raise failure(errno.EIO)
        file.meta = True
        file.low, file.loname = found.place, found.name


def _leads_to(path: bytes, st: os.stat_result) -> bool:
    """Tell whether ``path`` leads to the object with the attributes ``st``."""
    try:
        return os.path.samestat(os.lstat(path), st)
    except OSError:
        return False


def _below(layer: Layer, path: bytes) -> list[bytes] | None:
    """Return the names from a layer's root to ``path``, None when it is elsewhere or gone."""
    top = os.path.realpath(os.fsencode(layer.path))
    if path.endswith(_DELETED):
        return None
    if path == top:
        return []
    if not path.startswith(top + b"/"):
        return None
    return path[len(top) + 1 :].split(b"/")
