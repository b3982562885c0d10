"""What a name leads to: through the private layer, magic links, the index, the lower layers."""

from __future__ import annotations

import errno
import os
import stat

from vzfs import layers
from vzfs.inodes import Directory, File, Node
from vzfs.layers import Found, Place
from vzfs.magic import PREFIX
from vzfs.overlay import Overlay, failure, index_name


class Lookup(Overlay):
    """How names are found."""

    def lookup(self, parent: Directory, name: bytes) -> tuple[Node, os.stat_result]:
        """Return what ``name`` leads to, entered in the table. Raises ENOENT, ENAMETOOLONG."""
        up = parent.up
        if up is not None:
            try:
                st = os.stat(name, dir_fd=up.fd if up.fd >= 0 else up.open(), follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                if layers.is_whiteout(st):
                    raise FileNotFoundError(errno.ENOENT, "")
                if stat.S_ISLNK(st.st_mode) and self.magic is not None:
                    found = self._magic(up, name, st)
                    if found is not None:
                        return self._linked(parent, up, name, st, found)
                if parent.lows or self.is_impure(parent):
                    return self._marked(parent, up, name, st)
                return self._plain(parent, up, name, st), st
        lows = parent.lows
        if len(lows) == 1:
            # What most names are: files of the only template. `find_lower` would say the same.
            place = lows[0]
            fd = place.fd if place.fd >= 0 else place.open()
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                return self._lower_directory(parent, name, st, place, None), st
            if not layers.is_whiteout(st):
                return self._lower_file(parent, name, st, place, name)
        elif lows:
            found = layers.find_lower(lows, name)
            if found is not None:
                return self._lower(parent, name, found)
        raise FileNotFoundError(errno.ENOENT, "")

    def _magic(self, up: Place, name: bytes, st: os.stat_result) -> Found | None:
        """Return the template file a private symbolic link stands for, if it does."""
        if st.st_size <= len(PREFIX):
            return None
        target = os.readlink(name, dir_fd=up.fd)
        if not target.startswith(PREFIX):
            return None
        assert self.magic is not None
        return self.magic.resolve(target)

    def _linked(
        self, parent: Directory, up: Place, name: bytes, st: os.stat_result, found: Found
    ) -> tuple[Node, os.stat_result]:
        """Enter a magic link as the regular file it stands for."""
        nid = self.table.identify_file(0, st.st_ino)
        node = self.table.nodes.get(nid)
        file = self._file(node, nid, st.st_ino, parent, name, found.stat, up, name)
        file.kind = stat.S_IFREG
        file.magic = True
        file.low, file.loname = found.place, found.name
        return file, found.stat

    def is_impure(self, directory: Directory) -> bool:
        """Tell whether entries of a private directory may carry marks."""
        if directory.impure is None:
            up = directory.up
            directory.impure = up is not None and up.mark(layers.IMPURE) is not None
        return directory.impure

    def _plain(self, parent: Directory, up: Place, name: bytes, st: os.stat_result) -> Node:
        """Enter a private object without marks."""
        if stat.S_ISDIR(st.st_mode):
            nid = self.table.identify(0, st.st_ino)
            node = self.table.nodes.get(nid)
            if isinstance(node, Directory):
                return node
            directory = Directory(nid, st.st_ino, parent, name, up.child(name), ())
            self.table.add(directory)
            return directory
        nid = self.table.identify_file(0, st.st_ino)
        node = self.table.nodes.get(nid)
        return self._file(node, nid, st.st_ino, parent, name, st, up, name)

    def _file(
        self,
        node: Node | None,
        nid: int,
        ino: int,
        parent: Directory,
        name: bytes,
        st: os.stat_result,
        up: Place | None,
        upname: bytes,
    ) -> File:
        if isinstance(node, File):
            if node.twin is not None:
                node = self._heal(node, st)
            node.parent = parent
            node.name = name
            if up is not None:
                node.up = up
                node.upname = upname
                if node.fd >= 0:
                    os.close(node.fd)
                    node.fd = -1
            return node
        file = File(nid, ino, parent, name, stat.S_IFMT(st.st_mode))
        file.up = up
        file.upname = upname
        self.table.add(file)
        return file

    def _heal(self, node: File, st: os.stat_result) -> File:
        """Return the node which stands for the name of a split one."""
        twin = node.twin
        assert twin is not None
        if self.table.nodes.get(twin.nid) is twin:
            return twin
        if not node.opens:
            node.twin = None
            return node
        # The kernel dropped the twin (it asks twice after ESTALE) while readers stay.
        fresh = self.table.split(node, 0, st.st_ino)
        fresh.links, fresh.flags, fresh.escaped = twin.links, twin.flags, twin.escaped
        return fresh

    def _marked(
        self, parent: Directory, up: Place, name: bytes, st: os.stat_result
    ) -> tuple[Node, os.stat_result]:
        """Enter a private object of a directory with lower parts or marked entries."""
        path = layers.proc_path(up.fd, name)
        if stat.S_ISDIR(st.st_mode):
            return self._merged(parent, up, name, st, path), st
        if not self.is_impure(parent):
            return self._plain(parent, up, name, st), st
        return self._copy(parent, up, name, name, st, path)

    def _merged(
        self, parent: Directory, up: Place, name: bytes, st: os.stat_result, path: bytes
    ) -> Directory:
        marks = os.listxattr(path, follow_symlinks=False)
        lows: tuple[Place, ...] = ()
        if layers.REDIRECT in marks:
            target = os.getxattr(path, layers.REDIRECT, follow_symlinks=False)
            if target.startswith(b"/"):
                lows = layers.resolve(self.roots, target)
            else:
                found = layers.find_lower(parent.lows, target)
                lows = found.directories if found else ()
        elif layers.OPAQUE not in marks and parent.lows:
            found = layers.find_lower(parent.lows, name)
            lows = found.directories if found else ()
        slot, ino = self._birth(lows, st)
        nid = self.table.identify(slot, ino)
        node = self.table.nodes.get(nid)
        if isinstance(node, Directory):
            return node
        directory = Directory(nid, ino, parent, name, up.child(name), lows)
        directory.impure = layers.IMPURE in marks
        self.table.add(directory)
        return directory

    def _birth(self, lows: tuple[Place, ...], st: os.stat_result) -> tuple[int, int]:
        """Return (slot, inode) a directory is identified by: its top-most lower part's."""
        if not lows:
            return 0, st.st_ino
        low = lows[0]
        return self.stack.layers[low.layer].slot, os.fstat(low.open()).st_ino

    def _copy(
        self,
        parent: Directory,
        up: Place,
        name: bytes,
        upname: bytes,
        st: os.stat_result,
        path: bytes,
    ) -> tuple[Node, os.stat_result]:
        """Enter a private file which may be a copy of a lower one."""
        marks = os.listxattr(path, follow_symlinks=False)
        slot, ino = 0, st.st_ino
        if layers.ORIGIN in marks:
            origin = self.stack.parse_origin(
                os.getxattr(path, layers.ORIGIN, follow_symlinks=False)
            )
            if origin is not None:
                slot, ino = origin
        nid = self.table.identify_file(slot, ino)
        node = self.table.nodes.get(nid)
        # Of somebody who looks on, it is none of his business: the server may be copying.
        if layers.COPYING in marks and nid not in self.jobs and self.stack.locked:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                layers.heal_copy(fd)
                st = os.fstat(fd)
            finally:
                os.close(fd)
        file = self._file(node, nid, ino, parent, name, st, up, upname)
        if layers.NLINK in marks:
            file.links = int(os.getxattr(path, layers.NLINK, follow_symlinks=False))
        if layers.ESCAPED in marks:
            file.escaped = True
            file.kind = stat.S_IFCHR
        file.meta = layers.METACOPY in marks
        if file.meta and file.low is None and file.lower_fd < 0:
            target = b""
            if layers.REDIRECT in marks:
                target = os.getxattr(path, layers.REDIRECT, follow_symlinks=False)
            if target.startswith(PREFIX):
                found = self.magic.resolve(target) if self.magic is not None else None
            elif target.startswith(b"/"):
                found = layers.resolve_file(self.roots, target)
            else:
                found = layers.find_lower(parent.lows, target or name)
            if found is None or found.directories:
                raise failure(errno.EIO)
            file.low, file.loname = found.place, found.name
        return file, st

    def _lower(self, parent: Directory, name: bytes, found: Found) -> tuple[Node, os.stat_result]:
        st = found.stat
        if not found.directories:
            return self._lower_file(parent, name, st, found.place, found.name)
        return self._lower_directory(parent, name, st, found.place, found.directories), st

    def _lower_directory(
        self,
        parent: Directory,
        name: bytes,
        st: os.stat_result,
        place: Place,
        lows: tuple[Place, ...] | None,
    ) -> Directory:
        """Enter a directory of the lower layers; ``lows`` is None when only ``place`` has it."""
        nid = self.table.identify(self.stack.layers[place.layer].slot, st.st_ino)
        node = self.table.nodes.get(nid)
        if isinstance(node, Directory):
            return node
        lows = lows or (place.child(name),)
        directory = Directory(nid, st.st_ino, parent, name, None, lows)
        directory.impure = False
        self.table.add(directory)
        return directory

    def _lower_file(
        self, parent: Directory, name: bytes, st: os.stat_result, place: Place, loname: bytes
    ) -> tuple[Node, os.stat_result]:
        """Enter a file of a lower layer, which has the name ``loname`` in ``place``."""
        ino = st.st_ino
        slot = self.stack.layers[place.layer].slot
        if st.st_nlink > 1 and (slot, ino) in self.indexed:
            return self._indexed(parent, name, slot, ino)
        nid = self.table.identify_file(slot, ino)
        file = self._file(self.table.nodes.get(nid), nid, ino, parent, name, st, None, b"")
        file.low, file.loname = place, loname
        return file, st

    def _indexed(
        self, parent: Directory, name: bytes, slot: int, inode: int
    ) -> tuple[Node, os.stat_result]:
        """Enter a lower name whose file was copied up under another of its names."""
        entry = index_name(slot, inode)
        place = self.index_place
        st = os.stat(entry, dir_fd=place.fd, follow_symlinks=False)
        path = layers.proc_path(place.fd, entry)
        return self._copy(parent, place, name, entry, st, path)
