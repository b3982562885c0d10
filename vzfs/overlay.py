"""The heart: which file a name leads to, and what its attributes are.

`Overlay` holds the state every operation works on. The operations themselves are grouped by topic
in modules of their own (naming, attributes, files, listing) and put together in `operations`.
Nothing here knows how requests arrive: callers pass nodes and names, and get nodes and
`os.stat_result` back, or an OSError whose number goes to the user.

One thread runs all of it. What would block for long (copying a big file) is a `Job` in another
thread which touches nothing but two descriptors; the operation raises `Later`, and the transport
runs the whole request again once the job is done.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vzfs import layers, protocol, syscalls
from vzfs.inodes import Directory, File, Node, NodeTable
from vzfs.layers import Found, Place, Stack
from vzfs.links import Groups
from vzfs.magic import PREFIX, MagicLinks
from vzfs.shift import Shift

if TYPE_CHECKING:
    from vzfs.options import Options

#: (ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev,
#: blksize, flags): struct fuse_attr.
Attributes = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int]
NANO = 10**9


class Ledger(Protocol):
    """Who owns how much; blocks are of 512 bytes. Written elsewhere, used here."""

    def reserve(self, uid: int, gid: int, blocks: int, inodes: int) -> None:
        """Record more usage; raises OSError(EDQUOT) when a limit would be passed."""

    def release(self, uid: int, gid: int, blocks: int, inodes: int) -> None:
        """Record less usage."""

    def transfer(
        self, old_uid: int, old_gid: int, new_uid: int, new_gid: int, blocks: int, inodes: int
    ) -> None:
        """Move usage to another owner; raises OSError(EDQUOT)."""

    def near_limit(self, uid: int, gid: int) -> bool:
        """Tell whether writes have to be counted one by one."""

    def statfs(self, real: os.statvfs_result) -> os.statvfs_result:
        """Return the file system's figures as the container shall see them."""


class Job:
    """Work for another thread; ``finish`` then runs in the thread of the file system."""

    def __init__(self, work: Callable[[], None], finish: Callable[[OSError | None], None]) -> None:
        self._work = work
        self._finish = finish
        self.error: OSError | None = None
        self.done = False

    def run(self) -> None:
        """Do the work, in any thread."""
        try:
            self._work()
        except OSError as error:
            self.error = error

    def finish(self) -> None:
        """Take the result over; called once, from the file system's own thread."""
        if not self.done:
            self.done = True
            self._finish(self.error)


class Later(Exception):
    """Run the request again when the job is done. Raised before anything was changed."""

    def __init__(self, job: Job) -> None:
        super().__init__("later")
        self.job = job


def failure(number: int) -> OSError:
    """Return the OSError for a number."""
    return OSError(number, os.strerror(number))


class Overlay:
    """State of one mount and how names are found."""

    def __init__(self, stack: Stack, options: Options) -> None:
        self.stack = stack
        self.options = options
        self.ledger: Ledger | None = None
        #: Translates ids where the kernel does not.
        self.shift = Shift(options.first_id) if options.first_id else None
        #: What a transport does to let two backing files of one inode coexist: without
        #: passthrough nothing is needed and nodes never split.
        self.passthrough = False
        area = options.template_area
        self.magic = MagicLinks(area, stack.descriptors) if area is not None else None
        self.roots = tuple(layer.root for layer in stack.lower)
        root = Directory(protocol.ROOT_ID, 0, None, b"", stack.upper.root, self.roots)
        if stack.upper.root.mark(layers.OPAQUE) is not None:
            root.lows = ()
        root.ino = os.fstat(stack.upper.root.fd).st_ino
        root.lookups = 1
        self.root = root
        self.table = NodeTable(root)
        self.index_place = Place(stack.descriptors, 0, None, b"", os.dup(stack.index))
        self.indexed: set[tuple[int, int]] = set()
        for entry in os.listdir(proc_directory(stack.index)):
            slot, _, inode = entry.partition(b"-")
            if slot.isdigit() and inode.isdigit():
                self.indexed.add((int(slot), int(inode)))
        #: Copies in progress by node id, and the attributes those files show meanwhile.
        self.jobs: dict[int, Job] = {}
        self.frozen: dict[int, os.stat_result] = {}
        #: Nodes without a name whose usage is given back when the last open ends.
        self.orphans: set[int] = set()
        self.groups = Groups(stack)
        self.groups.remember()

    # names to nodes

    def directory(self, nid: int) -> Directory:
        """Return the directory node. Raises ESTALE or ENOTDIR."""
        node = self.table.nodes.get(nid)
        if node is None:
            node = self.recover(nid)
        if isinstance(node, Directory):
            return node
        raise failure(errno.ENOTDIR)

    def node(self, nid: int) -> Node:
        """Return the node. Raises ESTALE."""
        node = self.table.nodes.get(nid)
        return self.recover(nid) if node is None else node

    def recover(self, nid: int) -> Node:
        """Find a node a former server handed out. Raises ESTALE when that is impossible."""
        raise failure(errno.ESTALE)

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
        if parent.lows:
            found = layers.find_lower(parent.lows, name)
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
        if layers.COPYING in marks and nid not in self.jobs:
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
        slot = self.stack.layers[found.place.layer].slot
        if not found.directories and st.st_nlink > 1 and (slot, st.st_ino) in self.indexed:
            return self._indexed(parent, name, slot, st.st_ino)
        if found.directories:
            nid = self.table.identify(slot, st.st_ino)
            node = self.table.nodes.get(nid)
            if isinstance(node, Directory):
                return node, st
            directory = Directory(nid, st.st_ino, parent, name, None, found.directories)
            directory.impure = False
            self.table.add(directory)
            return directory, st
        nid = self.table.identify_file(slot, st.st_ino)
        node = self.table.nodes.get(nid)
        file = self._file(node, nid, st.st_ino, parent, name, st, None, b"")
        file.low, file.loname = found.place, found.name
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

    # attributes

    def stat(self, node: Node) -> os.stat_result:
        """Return the attributes of the object as the backing file system has them."""
        if isinstance(node, Directory):
            place = node.up if node.up is not None else node.lows[0]
            return os.stat(place.fd if place.fd >= 0 else place.open())
        assert isinstance(node, File)
        if node.twin is not None:
            node = node.twin
        if self.frozen and node.nid in self.frozen:
            return self.frozen[node.nid]
        if node.magic:
            return self.stat_lower(node)
        if node.fd >= 0:
            return os.stat(node.fd)
        if node.up is not None:
            up = node.up
            return os.stat(
                node.upname, dir_fd=up.fd if up.fd >= 0 else up.open(), follow_symlinks=False
            )
        return self.stat_lower(node)

    def stat_lower(self, node: File) -> os.stat_result:
        """Return the attributes of the lower file."""
        if node.lower_fd >= 0:
            return os.stat(node.lower_fd)
        if node.low is None:
            raise failure(errno.ESTALE)
        return os.stat(node.loname, dir_fd=node.low.open(), follow_symlinks=False)

    def attributes(self, node: Node, st: os.stat_result) -> Attributes:
        """Return ``st`` as the user shall see it, in the order of struct fuse_attr."""
        size, blocks, mode, links, rdev = (
            st.st_size,
            st.st_blocks,
            st.st_mode,
            st.st_nlink,
            st.st_rdev,
        )
        if isinstance(node, Directory):
            if node.parent is None and node is not self.root:
                links = 0
            elif node.lows:
                links = 1
        elif isinstance(node, File):
            real = node.twin or node
            if real.meta:
                below = self.stat_lower(real)
                size, blocks = below.st_size, below.st_blocks
            if real.links is not None:
                links = real.links
            elif real.magic:
                links = 0 if real.parent is None else 1
            elif real.low is not None and not real.has_copy:
                if real.parent is None:
                    links = 0
                elif links > 1:
                    links = self.lower_links(real, st)
            if real.escaped:
                mode = stat.S_IFCHR | stat.S_IMODE(mode)
        atime, mtime, ctime = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns
        return (
            node.ino,
            size,
            blocks,
            atime // NANO,
            mtime // NANO,
            ctime // NANO,
            atime % NANO,
            mtime % NANO,
            ctime % NANO,
            mode,
            links,
            st.st_uid if self.shift is None else self.shift.outward(st.st_uid),
            st.st_gid if self.shift is None else self.shift.outward(st.st_gid),
            rdev & 0xFFFFFFFF,
            4096,
            0,
        )

    def lower_links(self, node: File, st: os.stat_result) -> int:
        """Return how many names a lower file has in these layers, as far as that is known.

        Its link count says how many there are in the package store as well.
        """
        if node.low is None or not self.groups.known:
            return st.st_nlink
        return self.groups.count(self.stack.layers[node.low.layer].slot, st.st_ino)

    # where things are

    def path(self, node: Node) -> bytes:
        """Return a path to the object for calls without descriptors; see `follow`."""
        if isinstance(node, Directory):
            place = node.up if node.up is not None else node.lows[0]
            return layers.proc_fd(place.open())
        assert isinstance(node, File)
        if node.twin is not None:
            node = node.twin
        if node.fd >= 0:
            return layers.proc_fd(node.fd)
        if node.up is not None and not node.magic:
            return layers.proc_path(node.up.open(), node.upname)
        if node.lower_fd >= 0:
            return layers.proc_fd(node.lower_fd)
        if node.low is None:
            raise failure(errno.ESTALE)
        return layers.proc_path(node.low.open(), node.loname)

    def follow(self, node: Node) -> bool:
        """Tell whether the last component of `path` is a link of /proc to be followed."""
        if isinstance(node, File):
            real = node.twin or node
            return real.fd >= 0 or (not real.has_copy and real.lower_fd >= 0)
        return True

    def open_file(self, node: File, flags: int, *, data: bool = True) -> int:
        """Open the file itself (with ``data``, the lower one while only metadata are private)."""
        flags |= os.O_CLOEXEC | os.O_NOCTTY
        if data and (node.meta or not node.has_copy):
            if node.lower_fd >= 0:
                return os.open(layers.proc_fd(node.lower_fd), flags)
            if node.low is None:
                raise failure(errno.ESTALE)
            return os.open(node.loname, flags | os.O_NOFOLLOW, dir_fd=node.low.open())
        if node.fd >= 0:
            return os.open(layers.proc_fd(node.fd), flags)
        if node.up is None:
            raise failure(errno.ESTALE)
        return os.open(node.upname, flags | os.O_NOFOLLOW, dir_fd=node.up.open())

    def flags(self, node: Node) -> int:
        """Return the inode flags of a private object, remembered."""
        if node.flags is None:
            node.flags = 0
            try:
                if isinstance(node, Directory):
                    fd = os.open(self.path(node), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                else:
                    assert isinstance(node, File)
                    fd = self.open_file(node, os.O_RDONLY | os.O_NONBLOCK, data=False)
                try:
                    node.flags = syscalls.get_flags(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENXIO):
                    raise
        return node.flags

    def forget(self, nid: int, count: int) -> None:
        """Drop references of the kernel."""
        node = self.table.forget(nid, count)
        if node is not None:
            self.retire(node)

    def discard(self, node: Node) -> None:
        """Drop a node which was looked up but not handed to the kernel."""
        if node.lookups <= 0 and node is not self.root:
            self.forget(node.nid, 0)

    def retire(self, node: Node) -> None:
        """Release what a forgotten node held."""
        node.release()

    def trim(self) -> None:
        """Bound what is held; called between requests."""
        if self.stack.descriptors.crowded:
            self.stack.descriptors.trim()


def proc_directory(fd: int) -> bytes:
    """Return a listable path of a directory descriptor."""
    return b"/proc/self/fd/%d/." % fd


def index_name(slot: int, inode: int) -> bytes:
    """Return the name under which the copy of a lower file with several names is indexed."""
    return b"%d-%d" % (slot, inode)
