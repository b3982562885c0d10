"""Private files become links to shared ones, and copies again, while the mount is in use.

Asked for by the host: by a write(2) to ``/.vzfs-links`` (see ``orders``), which holds a word that
only the owner of the work area knows, so that nobody inside can ask for anything.

    free PATH FILE            is this file open for writing?
    link PATH FILE TARGET     put the magic link TARGET in its place
    copy PATH                 give a link, or a copy of metadata, data of its own

FILE is what the host saw of the file: inode, size, times of change. Comparing is the host's work:
it asks ``free``, compares, asks ``link``. A file that ``free`` found without writers and that has
the same time of change (ctime, which nobody can set) afterwards has the data that were compared:
whoever writes to it must have opened it since, and his first write, or first store into a mapping,
changes that time. Times of the last moments do not count, they come from a coarse clock.

The change is one rename(2) which exchanges the file with a link prepared in ``cow/replaced``. There
the file stays, named by its inode number, until the kernel forgets the node: its number is part of
the node's id (see ``inodes``) and must not be another file's, not even when another server takes
over. So does a link whose place a copy takes. A file nobody has open is emptied at once. Those who
read it by passthrough go on with it: it keeps its data until they close it, and should somebody
then want to write, it is put back by the same exchange, so that they see what is written. Everybody
else reads the shared file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from contextlib import suppress
from typing import NamedTuple

from vzfs import syscalls
from vzfs.accounted import Accounted
from vzfs.control import Control
from vzfs.copyup import set_times
from vzfs.inodes import Directory, File, Node, split_id
from vzfs.layers import Found
from vzfs.magic import PREFIX
from vzfs.overlay import failure, proc_directory
from vzfs.recovery import Recovering

REPLACED = "replaced"
#: A file changed this lately may be changed again without its time telling, in nanoseconds.
#: Times come from the clock of the timer interrupt, 10 ms at the coarsest.
RECENT_NS = 100_000_000
#: How long a new server links nothing: files its predecessor let be opened may be opened only now.
_SETTLING_S = 2.0
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC


class Seen(NamedTuple):
    """What the host saw of a file; times in nanoseconds."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Relinking(Recovering, Accounted):
    """The operations, and those which only the host asks for."""

    _replaced = -1

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        self._started_s = time.monotonic()
        #: Inodes in ``replaced`` by the id of the node they belong to.
        self._former: dict[int, list[int]] = {}
        #: Those of them which are still being read, by the same id.
        self._kept: dict[int, int] = {}
        #: Replaced files a former server let be opened: the status of those who have them open.
        self._bygone: dict[int, File] = {}

    @property
    def busy(self) -> bool:
        """Whether something is under way, or may change, that another server would not know of."""
        return bool(self._former or self._kept or self._bygone) or super().busy

    # orders

    def write(self, node: Node, offset: int, data: bytes | memoryview) -> int:
        """Write ``data``; to the file of links, one order."""
        if isinstance(node, Control) and node.links:
            self.obey(bytes(data))
            return len(data)
        return super().write(node, offset, data)

    def obey(self, order: bytes) -> None:
        """Do what the host asks for; raises OSError, `Later` while much is copied.

        EPERM: not the host. ESTALE: not the file it saw. ETXTBSY: open for writing. EAGAIN: changed
        too lately to tell, ask again. EBUSY: in use in a way that is not known. EINVAL: nothing that
        can be linked, or not to that target.
        """
        word, *words = order.split(b"\0")
        if not self.token or word != self.token:
            raise failure(errno.EPERM)
        match words:
            case [b"free", path, *seen] if len(seen) == 4:
                self._on(path, _seen(seen))
            case [b"link", path, *seen, target] if len(seen) == 4:
                self._on(path, _seen(seen), target)
            case [b"copy", path]:
                self._on(path)
            case _:
                raise failure(errno.EINVAL)

    def _on(self, path: bytes, seen: Seen | None = None, target: bytes = b"") -> None:
        met: list[Node] = []
        here: Node = self.root
        *above, name = path.split(b"/")
        try:
            for step in (*above, name):
                if step in (b"", b".", b".."):
                    raise failure(errno.EINVAL)
                if not isinstance(here, Directory):
                    raise failure(errno.ENOTDIR)
                parent = here
                here, _ = self.lookup(parent, step)
                met.append(here)
            if not isinstance(here, File) or not stat.S_ISREG(here.kind):
                raise failure(errno.EINVAL)
            if seen is None:
                self.own_data(here)
                self.invalidate(here)
                return
            st = self._untouched(here, parent, name, seen)
            if target:
                self._link(here, parent, st, target)
        finally:
            for node in reversed(met):
                self.discard(node)

    def _untouched(self, node: File, parent: Directory, name: bytes, seen: Seen) -> os.stat_result:
        """Return the status of a private file which is as it was seen and that nobody writes to."""
        up = parent.up
        if (
            not node.private
            or node.links is not None
            or node.escaped
            or up is None
            or node.up is not up
            or node.upname != name
            or self.flags(node) & syscalls.FS_PERSONAL_FLAGS
        ):
            raise failure(errno.EINVAL)
        st = os.stat(name, dir_fd=up.open(), follow_symlinks=False)
        if Seen(st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns) != seen or st.st_nlink != 1:
            raise failure(errno.ESTALE)
        if time.time_ns() - st.st_ctime_ns < RECENT_NS:
            raise failure(errno.EAGAIN)
        if self.resumed and time.monotonic() - self._started_s < _SETTLING_S:
            raise failure(errno.EAGAIN)
        if node.nid in self.jobs or node.twin is not None:
            raise failure(errno.EBUSY)
        if node.writers:
            raise failure(errno.ETXTBSY)
        # Ours are not somebody's.
        self.drop_descriptors(node)
        if not node.opens:
            self.release_backing(node)
        # A backing file registered when it was made is open for writing as long as it is read.
        elif not self.resumed:
            return st
        if not leased(up.open(), name, fcntl.F_RDLCK, otherwise=not self.resumed):
            raise failure(errno.ETXTBSY)
        return st

    # the exchange

    def _link(self, node: File, parent: Directory, st: os.stat_result, target: bytes) -> None:
        found = self.magic.resolve(target) if self.magic is not None else None
        if found is None or not target.startswith(PREFIX) or not _alike(st, found.stat):
            raise failure(errno.EINVAL)
        assert parent.up is not None
        known = not self.resumed and not node.opens
        alone = leased(parent.up.open(), node.upname, fcntl.F_WRLCK, otherwise=known)
        if not alone and not node.opens:
            raise failure(errno.EBUSY)
        if self._books is not None:
            self._books.begin()
        self._take_place(node, parent, st, target, found)
        if alone:
            self._drain(st.st_ino)
        elif node.backing:
            self._kept[node.nid] = st.st_ino
            # Whoever writes to another file than this one has to be kept apart from its readers.
            node.backing_private = False
        self.invalidate(node)

    def _take_place(
        self, node: File, parent: Directory, st: os.stat_result, target: bytes, found: Found
    ) -> None:
        assert parent.up is not None
        place, entry = self._replaced_place(), b"%d" % st.st_ino
        with suppress(FileNotFoundError):
            # A link: the file of this number has its own name.
            os.unlink(entry, dir_fd=place)
        os.symlink(target, entry, dir_fd=place)
        try:
            os.chown(entry, st.st_uid, st.st_gid, dir_fd=place, follow_symlinks=False)
            link = os.stat(entry, dir_fd=place, follow_symlinks=False)
            dir_fd = parent.up.open()
            times = os.fstat(dir_fd)
            syscalls.rename(place, entry, dir_fd, node.upname, syscalls.RENAME_EXCHANGE)
        except OSError:
            os.unlink(entry, dir_fd=place)
            raise
        set_times(dir_fd, times)
        self._former.setdefault(node.nid, []).append(st.st_ino)
        node.magic = True
        node.low, node.loname = found.place, found.name
        node.flags = None
        self.table.rename(node, 0, link.st_ino)
        self.drop_descriptors(node)
        if self._books is not None and self.accounting is not None:
            self.accounting.born(link.st_ino)
            self._books.record(link.st_uid, link.st_gid, link.st_blocks, 1)
        self._discharge(st)

    def _put_back(self, node: File) -> None:
        """Let a file which is still being read take the place of its link: it is to be changed."""
        inode = self._kept[node.nid]
        place, entry = self._replaced_place(), b"%d" % inode
        assert node.up is not None
        st = os.stat(entry, dir_fd=place, follow_symlinks=False)
        link = os.stat(node.upname, dir_fd=node.up.open(), follow_symlinks=False)
        if self.ledger is not None:
            self.ledger.reserve(st.st_uid, st.st_gid, st.st_blocks, 1)
        dir_fd = node.up.open()
        times = os.fstat(dir_fd)
        try:
            syscalls.rename(place, entry, dir_fd, node.upname, syscalls.RENAME_EXCHANGE)
        except OSError:
            if self.ledger is not None:
                self.ledger.release(st.st_uid, st.st_gid, st.st_blocks, 1)
            raise
        set_times(dir_fd, times)
        self.discharge_link(link)
        os.unlink(entry, dir_fd=place)
        del self._kept[node.nid]
        self._former[node.nid].remove(inode)
        node.magic = False
        node.low, node.loname, node.flags = None, b"", None
        node.backing_private = True
        self.table.rename(node, 0, inode)
        self.drop_descriptors(node)

    def own(self, node: Node, *, data: int | None = None) -> None:
        """Make the metadata of an object private which is about to change, or a small file."""
        self._before_change(node)
        super().own(node, data=data)

    def own_data(self, node: File, *, size: int | None = None) -> None:
        """Make the data of a file private, at most ``size`` bytes of them."""
        self._before_change(node)
        super().own_data(node, size=size)

    def _before_change(self, node: Node) -> None:
        if node.nid in self._bygone:
            raise failure(errno.ESTALE)
        if self._kept and node.nid in self._kept:
            assert isinstance(node, File)
            if node.parent is not None:
                self._put_back(node)

    def _anchor(self, node: File) -> None:
        """Keep a magic link that is about to be replaced, for its number; it is charged no more."""
        assert node.up is not None
        here, place = node.up.open(), self._replaced_place()
        link = os.stat(node.upname, dir_fd=here, follow_symlinks=False)
        entry = b"%d" % link.st_ino
        with suppress(FileNotFoundError):
            os.unlink(entry, dir_fd=place)
        os.link(node.upname, entry, src_dir_fd=here, dst_dir_fd=place, follow_symlinks=False)
        self._former.setdefault(node.nid, []).append(link.st_ino)
        self.discharge_link(link)

    def release_backing(self, node: File) -> None:
        """Have the kernel let go of the backing file of a node nobody has open."""

    # the end of what was replaced

    def closed(self, node: File, flags: int) -> None:
        """Count a file closed."""
        super().closed(node, flags)
        if self._kept and not node.opens and node.nid in self._kept:
            self.release_backing(node)
            self._drain(self._kept.pop(node.nid))

    def retire(self, node: Node) -> None:
        """Release what a forgotten node held."""
        if self._former and node.nid in self._former:
            self._kept.pop(node.nid, None)
            for inode in self._former.pop(node.nid):
                with suppress(OSError):
                    os.unlink(b"%d" % inode, dir_fd=self._replaced_place())
        if self._bygone and node.nid in self._bygone:
            self._bygone.pop(node.nid).release()
        super().retire(node)

    def _drain(self, inode: int) -> None:
        """Take the data of a replaced file away, unless somebody reads them."""
        empty(self._replaced_place(), b"%d" % inode)

    def _replaced_place(self) -> int:
        if self._replaced < 0:
            with suppress(FileExistsError):
                os.mkdir(REPLACED, 0o700, dir_fd=self.stack.work)
            self._replaced = os.open(REPLACED, _DIRECTORY, dir_fd=self.stack.work)
        return self._replaced

    # another server

    def recover(self, nid: int) -> Node:
        """Return the node a former server called ``nid``. Raises ESTALE when it is not found.

        What was replaced is looked up again by its name. Who has it open may ask for its status.
        """
        slot, inode = split_id(nid)[1:]
        if not self.resumed or slot:
            return super().recover(nid)
        try:
            place = self._replaced_place()
            fd = os.open(b"%d" % inode, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
        except OSError:
            return super().recover(nid)
        st = os.fstat(fd)
        if st.st_ino != inode:
            os.close(fd)
            return super().recover(nid)  # a link which never took the file's place
        if not stat.S_ISREG(st.st_mode) or not st.st_size:
            os.close(fd)
            raise failure(errno.ESTALE)
        file = File(nid, inode, None, b"", stat.S_IFREG)
        file.twin = File(self.table.fresh(), inode, None, b"", stat.S_IFREG)
        file.twin.fd = fd
        self._bygone[nid] = file.twin
        self.table.add(file)
        return file


def _seen(words: list[bytes]) -> Seen:
    try:
        return Seen(*(int(word) for word in words))
    except ValueError:
        raise failure(errno.EINVAL) from None


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    """Tell whether a link to ``other`` shows the attributes of ``one``."""
    return (one.st_size, one.st_mode, one.st_uid, one.st_gid) == (
        other.st_size,
        other.st_mode,
        other.st_uid,
        other.st_gid,
    )


def leased(dir_fd: int, name: bytes, kind: int, *, otherwise: bool) -> bool:
    """Tell whether a file can be leased, fcntl(2), ``otherwise`` where there are no leases.

    F_RDLCK: nobody has it open for writing. F_WRLCK: nobody has it open.
    """
    fd = os.open(name, _LOOK, dir_fd=dir_fd)
    try:
        # Whoever opens the file in this very moment has a signal sent: not the deadly SIGIO.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    except OSError:
        return otherwise
    finally:
        os.close(fd)
    return True


def empty(place: int, name: bytes) -> None:
    """Truncate the file ``name`` of the directory ``place`` if nobody has it open."""
    if not leased(place, name, fcntl.F_WRLCK, otherwise=False):
        return
    fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def sweep(work: int, *, resume: bool) -> None:
    """Clear what a former server of the work area ``work`` replaced.

    While the mount lasts (``resume``) the kernel may know it yet: it loses its data, not its number.
    """
    try:
        place = os.open(REPLACED, _DIRECTORY, dir_fd=work)
    except FileNotFoundError:
        return
    try:
        for name in os.listdir(proc_directory(place)):
            st = os.stat(name, dir_fd=place, follow_symlinks=False)
            if not resume or name != b"%d" % st.st_ino:
                os.unlink(name, dir_fd=place)
            elif stat.S_ISREG(st.st_mode) and st.st_size:
                empty(place, name)
    finally:
        os.close(place)
