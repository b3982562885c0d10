"""Layers on disk: directories held by descriptor, whiteouts, opaque marks, redirects.

The on-disk form is overlayfs's (Documentation/filesystems/overlayfs.rst), so that a private area
can be mounted with it and inspected with ordinary tools: a whiteout is a character device 0:0, an
opaque directory carries ``trusted.overlay.opaque=y``, a moved directory or a copy of metadata
alone says in ``trusted.overlay.redirect`` where its lower part is. What overlayfs has no form for
is kept in ``trusted.vzfs.*``, which it does not read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vzfs import syscalls

if TYPE_CHECKING:
    from vzfs.resting import Left

OPAQUE = "trusted.overlay.opaque"
REDIRECT = "trusted.overlay.redirect"
METACOPY = "trusted.overlay.metacopy"
#: On a metadata-only copy whose data are being copied: "<mtime in ns>:<capability in hex>", what
#: writing the data disturbs. Left behind by a death in between; healed when the name is found.
COPYING = "trusted.vzfs.copying"
#: On a directory: some entry needs its extended attributes read (origin, metacopy, redirect).
IMPURE = "trusted.overlay.impure"
#: On a copy: "<inode>:<layer tag>", the identity its node id and st_ino come from.
ORIGIN = "trusted.vzfs.origin"
#: On a copy of a file with several names in the layers: how many names it has now.
NLINK = "trusted.vzfs.nlink"
#: In the work area, while a name of such a file is removed: the count may be wrong.
RECOUNT = "recount"
#: On an empty regular file: it stands for a character device 0:0 the user made.
ESCAPED = "trusted.vzfs.whiteout"
#: Prefixes of our own marks. A user's attribute of such a name is stored one level down.
PRIVATE_PREFIXES = ("trusted.overlay.", "trusted.vzfs.")

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Absolute redirects longer than this are not written (overlayfs: OVL_REDIRECT_MAX is 256 for
#: relative ones, and an extended attribute has to fit a block of the file system).
REDIRECT_MAX = 1024


def proc_path(dir_fd: int, name: bytes) -> bytes:
    """Return a short path for calls which take no directory descriptor (extended attributes)."""
    return b"/proc/self/fd/%d/%b" % (dir_fd, name)


def proc_fd(fd: int) -> bytes:
    """Return the path of what ``fd`` refers to."""
    return b"/proc/self/fd/%d" % fd


def is_whiteout(st: os.stat_result) -> bool:
    """Tell whether a directory entry hides what is below it."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def copying_mark(mtime_ns: int, capability: bytes | None) -> bytes:
    """Return the value of ``COPYING``."""
    return b"%d:%b" % (mtime_ns, (capability or b"").hex().encode())


def heal_copy(fd: int) -> None:
    """Undo an unfinished copy of data in the metadata-only copy ``fd``, open for writing.

    A copy that was finished but for this mark keeps its data. Raises OSError.
    """
    times, _, capability = os.getxattr(fd, COPYING).partition(b":")
    if METACOPY in os.listxattr(fd):
        before = os.fstat(fd)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, before.st_size)
        if capability:
            os.setxattr(fd, "security.capability", bytes.fromhex(capability.decode()))
        os.utime(fd, ns=(before.st_atime_ns, int(times)))
    os.removexattr(fd, COPYING)


def get_mark(path: bytes, name: str) -> bytes | None:
    """Return one of our marks, None where there is none or the file system has no attributes."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            return None
        raise


def get_mark_fd(fd: int, name: str) -> bytes | None:
    """Return a mark of what an O_PATH descriptor refers to."""
    try:
        return os.getxattr(proc_fd(fd), name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            return None
        raise


class Descriptors:
    """How many directories are held open; the oldest are closed between two requests.

    Closing only between requests lets an operation use a descriptor it has fetched without
    guarding it. A closed directory is opened again from its parent when it is next needed.
    """

    def __init__(self, limit: int = 1024) -> None:
        self.limit = limit
        #: Oldest first.
        self._open: dict[Place, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, place: Place) -> None:
        """Note that ``place`` was opened."""
        self._open[place] = None

    def pin(self, place: Place) -> None:
        """Keep a directory open as long as somebody knows it, and no longer: it is removed."""
        place.open()
        place.pinned = True
        self._open.pop(place, None)

    @property
    def crowded(self) -> bool:
        """Whether `trim` has something to do."""
        return len(self._open) > self.limit

    def trim(self) -> None:
        """Close the oldest quarter of the directories held open."""
        goal = self.limit * 3 // 4
        for place in list(self._open)[: len(self._open) - goal]:
            del self._open[place]
            place.close()


class Place:
    """A directory of one layer: its parent and name there, and a descriptor while in use."""

    __slots__ = ("descriptors", "fd", "layer", "name", "parent", "pinned")

    def __init__(
        self, descriptors: Descriptors, layer: int, parent: Place | None, name: bytes, fd: int = -1
    ) -> None:
        self.descriptors = descriptors
        #: 0 for the private layer, then the lower ones from the top.
        self.layer = layer
        self.parent = parent
        self.name = name
        self.fd = fd
        #: Never closed while it lives: a root, or a removed directory nobody can open again.
        self.pinned = parent is None

    def open(self) -> int:
        """Return an O_PATH descriptor, valid until the request ends. Raises OSError."""
        if self.fd >= 0:
            return self.fd
        chain = [self]
        up = self.parent
        while up is not None and up.fd < 0:
            chain.append(up)
            up = up.parent
        if up is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        fd = up.fd
        for place in reversed(chain):
            fd = os.open(place.name, _DIRECTORY, dir_fd=fd)
            place.fd = fd
            place.descriptors.add(place)
        return fd

    def child(self, name: bytes) -> Place:
        """Return the directory ``name`` in this one, not opened yet."""
        return Place(self.descriptors, self.layer, self, name)

    def close(self) -> None:
        """Give the descriptor back; the place stays usable."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def mark(self, name: str) -> bytes | None:
        """Return a mark of this directory."""
        return get_mark_fd(self.open(), name)

    def components(self) -> list[bytes]:
        """Return the names from the layer's root down to here."""
        names = []
        place: Place | None = self
        while place is not None and place.parent is not None:
            names.append(place.name)
            place = place.parent
        names.reverse()
        return names

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Layer(NamedTuple):
    """One opened layer."""

    path: Path
    root: Place
    #: Index of its device in the stack, part of every node id (0 is the private layer's own).
    slot: int
    device: int
    #: Ties an origin mark to this very layer, so that a copied private area is not misread.
    tag: str


class Busy(OSError):
    """The private area is mounted, or being repaired."""


class Stack:
    """The private layer, the work area and the lower layers, opened."""

    def __init__(
        self,
        lower: tuple[Path, ...],
        upper: Path,
        work: Path,
        descriptor_limit: int = 1024,
        *,
        no_atime: bool = False,
        left: Left | None = None,
    ) -> None:
        """Open everything, or take what was ``left``. Raises OSError when a layer is missing.

        Lower layers are reached through detached read-only mounts, so that nothing opened through
        them can write into a template. Where the kernel refuses that (no CAP_SYS_ADMIN) the plain
        directory is used. With ``no_atime`` the private layer and the work area are reached through
        one such mount too, one that leaves access times alone.
        """
        self.descriptors = Descriptors(descriptor_limit)
        self._lock = self._above = -1
        self.work_path = work
        if left is not None:
            self.upper = self._layer(0, upper, left.upper)
            self.work, self.temporary, self.index = left.work, left.temporary, left.index
            self._lock = left.lock
        else:
            if no_atime:
                self._above_path = Path(os.path.commonpath([upper, work]))
                self._above = syscalls.clone_mount(self._above_path, read_only=False, no_atime=True)
            self.upper = self._layer(0, upper, self._open_private(upper))
            self.work = self._open_private(work)
            self.temporary = self._area("work")
            self.index = self._area("index")
        if os.fstat(self.work).st_dev != self.upper.device:
            raise OSError(errno.EXDEV, "the work area is on another file system", str(work))
        #: (device, read through a layer other than the private one) in order of first use
        self._devices: list[int] = []
        self.lower = tuple(
            self._layer(number, path, left.lower[number - 1] if left else _open_lower(path))
            for number, path in enumerate(lower, start=1)
        )
        #: All of them by number.
        self.layers = (self.upper, *self.lower)
        self._by_tag = {layer.tag: layer for layer in self.lower}

    def _area(self, name: str) -> int:
        try:
            return os.open(name, _DIRECTORY, dir_fd=self.work)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=self.work)
            return os.open(name, _DIRECTORY, dir_fd=self.work)

    def _open_private(self, path: Path) -> int:
        if self._above < 0:
            return os.open(path, _DIRECTORY)
        return os.open(path.relative_to(self._above_path), _DIRECTORY, dir_fd=self._above)

    def _layer(self, number: int, path: Path, fd: int) -> Layer:
        st = os.fstat(fd)
        if not stat.S_ISDIR(st.st_mode):
            os.close(fd)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        slot = 0
        if number:
            if st.st_dev not in self._devices:
                self._devices.append(st.st_dev)
            slot = self._devices.index(st.st_dev) + 1
        tag = f"{st.st_ino:x}.{st.st_ctime_ns & 0xFFFFFFFF:x}"
        return Layer(path, Place(self.descriptors, number, None, b"", fd), slot, st.st_dev, tag)

    def origin(self, layer: int, st: os.stat_result) -> bytes:
        """Return the origin mark for a copy of the file ``st`` of a lower layer."""
        return f"{st.st_ino}:{self.layers[layer].tag}".encode()

    def parse_origin(self, mark: bytes) -> tuple[int, int] | None:
        """Return (slot, inode) of an origin mark, None when it is of other layers."""
        inode, _, tag = mark.partition(b":")
        layer = self._by_tag.get(tag.decode("ascii", "replace"))
        if layer is None or not inode.isdigit():
            return None
        return layer.slot, int(inode)

    def move_to_own_mount(self, *, no_atime: bool) -> bool:
        """Reach the private layer and the work area through a mount that nobody else uses.

        A guard watches what is done through that mount. False: it cannot be had, all stays.
        """
        top = os.path.commonpath((self.upper.path, self.work_path))
        places = (
            (self.upper.path, self.upper.root.fd),
            (self.work_path, self.work),
            (self.work_path / "work", self.temporary),
            (self.work_path / "index", self.index),
        )
        try:
            with ExitStack() as closing:
                clone = syscalls.clone_mount(top, read_only=False, no_atime=no_atime)
                closing.callback(os.close, clone)
                fresh = []
                for path, old in places:
                    fd = os.open(os.path.relpath(path, top), _DIRECTORY, dir_fd=clone)
                    closing.callback(os.close, fd)
                    fresh.append((fd, old))
                    if os.fstat(fd).st_ino != os.fstat(old).st_ino:
                        return False  # something else is mounted in between
                for fd, old in fresh:
                    os.dup2(fd, old, inheritable=False)
        except OSError:
            return False
        return True

    def kept(self) -> list[int]:
        """Return the descriptors another server needs to go on: lock, private ones, layers."""
        private = (self.upper.root.fd, self.work, self.temporary, self.index)
        return [self._lock, *private, *(layer.root.fd for layer in self.lower)]

    def lock(self, patience_s: float | None = 0) -> None:
        """Take the lock of the private area until `close` or death, waiting that long (or forever).

        Raises `Busy`.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        fd = os.open("lock", flags, 0o600, dir_fd=self.work)
        deadline = None if patience_s is None else time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if deadline is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if deadline is not None and time.monotonic() >= deadline:
                    os.close(fd)
                    text = "the private area is mounted"
                    raise Busy(errno.EBUSY, text, str(self.upper.path)) from None
            time.sleep(0.01)
        self._lock = fd

    @property
    def locked(self) -> bool:
        """Whether the private area is ours alone: nobody else is in the middle of a change."""
        return self._lock >= 0

    def close(self) -> None:
        """Close the areas; the layers' descriptors go with their places."""
        for fd in (self.work, self.temporary, self.index, self._lock, self._above):
            if fd >= 0:
                os.close(fd)


def _open_lower(path: Path) -> int:
    """Open a lower layer, read-only where the kernel lets us."""
    try:
        return syscalls.clone_mount(path, read_only=True)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EINVAL):
            raise
    return os.open(path, _DIRECTORY)


class Found(NamedTuple):
    """A name found in a directory of the lower layers."""

    stat: os.stat_result
    place: Place
    name: bytes
    #: For a directory: it and the directories of the same name further down it merges with.
    directories: tuple[Place, ...]


def find_lower(places: tuple[Place, ...], name: bytes) -> Found | None:
    """Look ``name`` up in merged lower directories, top-most first.

    Honours whiteouts, opaque marks and redirects of layers which were private areas themselves.
    """
    found: Found | None = None
    merged: list[Place] = []
    wanted = name
    for number, place in enumerate(places):
        try:
            st = os.stat(wanted, dir_fd=place.open(), follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(st.st_mode):
            here = place.child(wanted)
            merged.append(here)
            if found is None:
                found = Found(st, place, wanted, ())
            if number + 1 == len(places):
                break
            marks = os.listxattr(proc_path(place.open(), wanted), follow_symlinks=False)
            if OPAQUE in marks:
                break
            if REDIRECT in marks:
                target = here.mark(REDIRECT) or b""
                if target.startswith(b"/"):
                    rest = tuple(_root(p) for p in _distinct_layers(places[number + 1 :]))
                    merged.extend(resolve(rest, target))
                    break
                wanted = target
            continue
        if found is not None or is_whiteout(st):
            break
        return Found(st, place, wanted, ())
    if found is None:
        return None
    return found._replace(directories=tuple(merged))


def _root(place: Place) -> Place:
    while place.parent is not None:
        place = place.parent
    return place


def _distinct_layers(places: tuple[Place, ...]) -> list[Place]:
    seen: set[int] = set()
    kept = []
    for place in places:
        if place.layer not in seen:
            seen.add(place.layer)
            kept.append(place)
    return kept


def resolve(roots: tuple[Place, ...], path: bytes) -> tuple[Place, ...]:
    """Return the merged lower directories an absolute redirect names, () when none is there."""
    places = roots
    for name in path.split(b"/"):
        if not name:
            continue
        found = find_lower(places, name)
        if found is None or not found.directories:
            return ()
        places = found.directories
    return places


def resolve_file(roots: tuple[Place, ...], path: bytes) -> Found | None:
    """Return the lower file an absolute redirect names, None when it is gone."""
    directory, _, name = path.rpartition(b"/")
    places = resolve(roots, directory)
    return find_lower(places, name) if places else None


def lower_path(place: Place, name: bytes) -> bytes:
    """Return the absolute redirect for the entry ``name`` of a lower directory."""
    return b"/" + b"/".join([*place.components(), name])


def remove_tree(dir_fd: int, name: bytes) -> None:
    """Remove a tree of the work area."""
    st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISDIR(st.st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return
    fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        for entry in os.listdir(proc_fd(fd) + b"/."):
            remove_tree(fd, entry)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)
