"""The heart: the state of a mount, where its objects are, and what their attributes are.

`Overlay` holds the state every operation works on. The operations themselves are grouped by topic
in modules of their own (lookup, naming, removing, …) and put together in `operations`.
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
from vzfs.layers import Place, Stack
from vzfs.links import Groups
from vzfs.magic import MagicLinks
from vzfs.shift import Shift

if TYPE_CHECKING:
    from vzfs.options import Options
    from vzfs.resting import Left

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

    def __init__(self, stack: Stack, options: Options, left: Left | None = None) -> None:
        self.stack = stack
        self.options = options
        self.ledger: Ledger | None = None
        #: Translates ids where the kernel does not.
        self.shift = Shift(options.first_id) if options.first_id else None
        #: What a transport does to let two backing files of one inode coexist: without
        #: passthrough nothing is needed and nodes never split.
        self.passthrough = False
        area = options.template_area
        self.magic: MagicLinks | None = None
        if area is not None:
            self.magic = MagicLinks(area, stack.descriptors, left.magic if left else -1)
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

    @property
    def busy(self) -> bool:
        """Whether something is under way, or may change, that another server would not know of."""
        return bool(self.jobs or self.orphans)

    def kept(self) -> list[int]:
        """Return the descriptors, besides those of the stack, which another server goes on with."""
        return [] if self.magic is None else [self.magic.root.fd]

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

    def known_before(self, node: Node) -> bool:
        """Tell whether the kernel knows an object by this id from a former server."""
        return False

    # attributes

    def stat(self, node: Node) -> os.stat_result:
        """Return the attributes of the object as the backing file system has them."""
        if isinstance(node, Directory):
            place = node.up if node.up is not None else node.lows[0]
            return os.fstat(place.fd if place.fd >= 0 else place.open())
        assert isinstance(node, File)
        if node.twin is not None:
            node = node.twin
        if self.frozen and node.nid in self.frozen:
            return self.frozen[node.nid]
        if node.magic:
            return self.stat_lower(node)
        if node.fd >= 0:
            return os.fstat(node.fd)
        if node.up is not None:
            up = node.up
            return os.stat(
                node.upname, dir_fd=up.fd if up.fd >= 0 else up.open(), follow_symlinks=False
            )
        return self.stat_lower(node)

    def stat_lower(self, node: File) -> os.stat_result:
        """Return the attributes of the lower file."""
        if node.lower_fd >= 0:
            return os.fstat(node.lower_fd)
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
        # By number, stat_result has whole seconds.
        atime, mtime, ctime = map(int, st[7:10])
        return (
            node.ino,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            st.st_atime_ns - atime * NANO,
            st.st_mtime_ns - mtime * NANO,
            st.st_ctime_ns - ctime * NANO,
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

    def at(self, node: Node) -> tuple[bytes, int]:
        """Return (path, directory descriptor) for the calls which take both; see `follow`."""
        if isinstance(node, File):
            real = node.twin or node
            up = real.up
            if real.fd < 0 and up is not None and not real.magic:
                return real.upname, up.fd if up.fd >= 0 else up.open()
        # Absolute: the descriptor does not matter.
        return self.path(node), self.stack.work

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
