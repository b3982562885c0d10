"""Copy-up: making a shared object private, metadata first, data when they are about to change.

The order makes every step safe against a crash; what the user sees is the old object or the new
one, never a mixture.

1. Metadata. A copy without data (the lower file's size, all of it a hole) is prepared in the work
   area with owner, mode, times, attributes and the marks ``metacopy`` and ``redirect``, then
   renamed to its place. Until the rename nothing has changed; after it reads still come from the
   lower file. Leftovers in the work area are removed at the next mount.
2. Data. They are copied into that copy while the ``metacopy`` mark says that they do not count.
   They are written to the disk (``sync_copies``), then the mark is removed: this is the moment the
   file changes hands. A copy that was interrupted is begun again.

Metadata alone are not synced: like any chmod(2) they are durable after fsync(2). Directories,
symbolic links, devices and empty files are copied whole in step 1, and so is a small file whose
data are about to change: what is renamed to its place is the complete copy, written before, as
kernel overlayfs does it. That happens at once, in the thread of the file system, unless the disk
turned out to be slow; anything bigger goes to a thread of its own (see `Later`).
"""

from __future__ import annotations

import errno
import os
import stat
import time

from vzfs import layers
from vzfs.datacopy import copy_data, settle
from vzfs.inodes import Directory, File, Node
from vzfs.layers import proc_fd, proc_path
from vzfs.lookup import Lookup
from vzfs.magic import LAYER, target_of
from vzfs.overlay import Job, Later, failure, index_name

_FRESH = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
#: Files of at most this many bytes are copied at once.
_AT_ONCE = 1 << 20
#: With a disk which took longer than this for one of them nothing is waited for at once.
_PATIENCE_S = 0.005
CAPABILITY = "security.capability"


class CopyUp(Lookup):
    """Operations that make things private."""

    _serial = 0
    #: How long the last small copy took.
    _copy_s = 0.0

    def temporary_name(self) -> bytes:
        """Return a free name in the work area."""
        CopyUp._serial += 1
        return b"#%x" % CopyUp._serial

    # directories

    def private(self, directory: Directory) -> int:
        """Return a descriptor of the private part of a directory, copying it up if needed.

        Raises ENOENT for a directory that was removed.
        """
        up = directory.up
        if up is not None:
            return up.fd if up.fd >= 0 else up.open()
        chain = []
        here: Directory | None = directory
        while here is not None and here.up is None:
            chain.append(here)
            here = here.parent
        if here is None or here.up is None:
            raise failure(errno.ENOENT)
        for step in reversed(chain):
            self._copy_directory(step)
        assert directory.up is not None
        return directory.up.open()

    def _copy_directory(self, directory: Directory) -> None:
        parent = directory.parent
        assert parent is not None
        assert parent.up is not None
        source = directory.lows[0]
        source_fd = source.open()
        st = os.fstat(source_fd)
        name = self.temporary_name()
        work = self.stack.temporary
        os.mkdir(name, 0o700, dir_fd=work)
        target = proc_path(work, name)
        self.charge_new(st, os.stat(name, dir_fd=work, follow_symlinks=False), work, name)
        try:
            self._copy_attributes(proc_fd(source_fd), target, st, follow=True)
            if source.parent is None or source.name != directory.name:
                os.setxattr(target, layers.REDIRECT, self._redirect(source))
            parent_fd = parent.up.open()
            times = os.fstat(parent_fd)
            os.rename(name, directory.name, src_dir_fd=work, dst_dir_fd=parent_fd)
        except BaseException:
            os.rmdir(name, dir_fd=work)
            raise
        set_times(parent_fd, times)
        directory.up = parent.up.child(directory.name)
        directory.impure = False

    def _redirect(self, place: layers.Place) -> bytes:
        path = layers.lower_path(place.parent, place.name) if place.parent else b"/"
        if len(path) > layers.REDIRECT_MAX:
            raise failure(errno.EXDEV)
        return path

    def make_impure(self, directory: Directory) -> None:
        """Mark a private directory as holding marked entries."""
        if not self.is_impure(directory):
            assert directory.up is not None
            os.setxattr(proc_fd(directory.up.open()), layers.IMPURE, b"y")
            directory.impure = True

    # metadata

    def _copy_attributes(
        self, source: bytes, target: bytes, st: os.stat_result, *, follow: bool = False
    ) -> None:
        """Copy owner, mode, extended attributes and times onto a fresh object of ours."""
        if st.st_uid or st.st_gid:
            os.chown(target, st.st_uid, st.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(target, stat.S_IMODE(st.st_mode))
        try:
            names = os.listxattr(source, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            names = []
        for name in names:
            if name.startswith(layers.PRIVATE_PREFIXES):
                continue
            try:
                value = os.getxattr(source, name, follow_symlinks=follow)
                os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                    raise
        os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)

    def own(self, node: Node, *, data: int | None = None) -> None:
        """Make the metadata of any object private, and the first ``data`` bytes of a file.

        With None the data stay those of the lower file.
        """
        if isinstance(node, Directory):
            self.private(node)
            return
        assert isinstance(node, File)
        if node.twin is not None:
            node = node.twin
        if not node.has_copy:
            self._copy_file(node, data)
        elif node.up is self.index_place:
            self._show(node)

    def _show(self, node: File) -> None:
        """Give an indexed copy the name it is used by in the private layer, too.

        That is for whoever looks into the private area without us. Here the copy is found through
        the index by all of its names, so it may fail (no room, too many names).
        """
        parent, name = node.parent, node.name
        if parent is None or not parent.lows:
            return
        found = layers.find_lower(parent.lows, name)
        if found is None or found.directories:
            return
        slot = self.stack.layers[found.place.layer].slot
        if index_name(slot, found.stat.st_ino) != node.upname:
            return
        try:
            parent_fd = self.private(parent)
            times = os.fstat(parent_fd)
            self.make_impure(parent)
            index = self.index_place.fd
            os.link(
                node.upname, name, src_dir_fd=index, dst_dir_fd=parent_fd, follow_symlinks=False
            )
            set_times(parent_fd, times)
        except OSError:
            return
        node.up, node.upname = parent.up, name

    def _copy_file(self, node: File, data: int | None) -> None:
        st = self.stat_lower(node)
        nameless = node.parent is None
        parent_fd = -1
        if not nameless:
            assert node.parent is not None
            parent_fd = self.private(node.parent)
        work, name = self.stack.temporary, self.temporary_name()
        target = proc_path(work, name)
        try:
            redirect = self._prepare_copy(node, name, st, data)
            layer = node.low.layer if node.low is not None else 1
            slot, names = 0, 1
            if layer != LAYER:
                origin = self.stack.origin(layer, st)
                os.setxattr(target, layers.ORIGIN, origin, follow_symlinks=False)
                slot = self.stack.layers[layer].slot
                names = self.group_size(slot, st) if not nameless else 1
            if redirect:
                if len(redirect) <= layers.REDIRECT_MAX:
                    os.setxattr(target, layers.REDIRECT, redirect)
                os.setxattr(target, layers.METACOPY, b"")
            self.charge_new(st, os.stat(name, dir_fd=work, follow_symlinks=False), work, name)
            if nameless:
                node.fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work)
                os.unlink(name, dir_fd=work)
            elif names > 1:
                os.setxattr(target, layers.NLINK, b"%d" % names, follow_symlinks=False)
                entry = index_name(slot, st.st_ino)
                os.rename(name, entry, src_dir_fd=work, dst_dir_fd=self.index_place.fd)
                self.indexed.add((slot, st.st_ino))
                node.up, node.upname = self.index_place, entry
                node.links = names
                self._show(node)
            else:
                assert node.parent is not None
                times = os.fstat(parent_fd)
                self.make_impure(node.parent)
                if node.magic:
                    self._anchor(node)
                os.rename(name, node.name, src_dir_fd=work, dst_dir_fd=parent_fd)
                set_times(parent_fd, times)
                node.up, node.upname = node.parent.up, node.name
        except BaseException:
            try:
                os.unlink(name, dir_fd=work)
            except FileNotFoundError:
                pass
            raise
        if node.magic:
            node.magic = False
            fresh = os.stat(node.fd) if nameless else self.stat(node)
            self.table.rename(node, 0, fresh.st_ino)
        node.meta = bool(redirect)

    def _prepare_copy(self, node: File, name: bytes, st: os.stat_result, data: int | None) -> bytes:
        """Make a copy of the lower file ``st`` in the work area, without our marks.

        Returns where data that were not copied are to be found, b"" when there are none.
        """
        if node.lower_fd >= 0:
            source, followed = proc_fd(node.lower_fd), True
        else:
            assert node.low is not None
            source, followed = proc_path(node.low.open(), node.loname), False
        work = self.stack.temporary
        redirect = b""
        if stat.S_ISREG(st.st_mode):
            fd = os.open(name, _FRESH, 0o600, dir_fd=work)
            try:
                if data:
                    lower = self.open_file(node, os.O_RDONLY)
                    try:
                        copy_data(lower, fd, data)
                    finally:
                        os.close(lower)
                    if self.options.sync_copies:
                        settle(fd)
                elif data is None and st.st_size:
                    assert node.low is not None
                    redirect = layers.lower_path(node.low, node.loname)
                    if node.magic:
                        redirect = target_of(node.low, node.loname)
                    os.ftruncate(fd, st.st_size)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(source), name, dir_fd=work)
        else:
            os.mknod(name, st.st_mode, st.st_rdev, dir_fd=work)
        target = proc_path(work, name)
        self._copy_attributes(source, target, st, follow=followed)
        if data is not None and data < st.st_size:
            # A part of the data is the file truncated already, at this moment.
            os.utime(target, ns=(st.st_atime_ns, time.time_ns()))
        return redirect

    def _anchor(self, node: File) -> None:
        """Keep the inode of a magic link that is about to be replaced, for its number."""

    def discharge_link(self, st: os.stat_result) -> None:
        """Tell the ledger that a magic link is gone."""
        if self.ledger is not None:
            self.ledger.release(st.st_uid, st.st_gid, st.st_blocks, 1)

    def group_size(self, slot: int, st: os.stat_result) -> int:
        """Return how many names of these layers are the lower file ``st``, 1 when only one is."""
        return self.groups.count(slot, st.st_ino) if st.st_nlink > 1 else 1

    def charge_new(self, owner: os.stat_result, new: os.stat_result, at: int, name: bytes) -> None:
        """Tell the ledger of a fresh object; takes the object away again when that fails.

        There must be room for a block of attributes as well, which are charged when they are there.
        """
        if self.ledger is None:
            return
        marks = new.st_blksize // 512
        try:
            self.ledger.reserve(owner.st_uid, owner.st_gid, new.st_blocks + marks, 1)
            self.ledger.release(owner.st_uid, owner.st_gid, marks, 0)
        except OSError:
            if stat.S_ISDIR(new.st_mode):
                os.rmdir(name, dir_fd=at)
            else:
                os.unlink(name, dir_fd=at)
            raise

    # data

    def own_data(self, node: File, *, size: int | None = None) -> None:
        """Make the data of a file private, at most ``size`` bytes of them.

        Raises `Later` while much is copied; ESTALE when readers hold the lower file through the
        kernel, after the name was given a new node.
        """
        if not node.has_copy:
            st = self.stat_lower(node)
            wanted = st.st_size if size is None else min(size, st.st_size)
            if stat.S_ISREG(st.st_mode) and self._at_once(wanted):
                begin = time.monotonic()
                self.own(node, data=wanted)
                self._copy_s = time.monotonic() - begin
                self.data_changed(node)
            else:
                self.own(node)
        elif node.up is self.index_place:
            self._show(node)
        if not node.meta:
            self._separate(node)
            return
        job = self.jobs.get(node.nid)
        if job is not None:
            raise Later(job)
        below = self.stat_lower(node)
        wanted = below.st_size if size is None else min(size, below.st_size)
        if wanted == 0:
            fd = self.open_file(node, os.O_RDWR, data=False)
            try:
                os.ftruncate(fd, 0)
                self._settle(node, fd)
            finally:
                os.close(fd)
            return
        at_once = self._at_once(wanted)
        job = self._copy_job(node, below, wanted)
        if not at_once:
            raise Later(job)
        job.run()
        job.finish()
        if job.error is not None:
            raise job.error

    def _at_once(self, size: int) -> bool:
        """Tell whether copying ``size`` bytes may keep all others waiting."""
        return not size or (size <= _AT_ONCE and self._copy_s < _PATIENCE_S)

    def _copy_job(self, node: File, below: os.stat_result, wanted: int) -> Job:
        if self.ledger is not None:
            owner = self.stat(node)
            blocks = below.st_blocks if wanted == below.st_size else (wanted + 511) // 512
            self.ledger.reserve(owner.st_uid, owner.st_gid, blocks, 0)
            self.ledger.release(owner.st_uid, owner.st_gid, blocks, 0)
        source = self.open_file(node, os.O_RDONLY)
        try:
            target = self.open_file(node, os.O_RDWR, data=False)
        except BaseException:
            os.close(source)
            raise
        before = os.fstat(target)
        try:
            capability: bytes | None = os.getxattr(target, CAPABILITY)
        except OSError:
            capability = None
        os.setxattr(target, layers.COPYING, layers.copying_mark(before.st_mtime_ns, capability))

        def work() -> None:
            begin = time.monotonic()
            copy_data(source, target, wanted)
            if self.options.sync_copies:
                settle(target)
            if wanted <= _AT_ONCE:
                self._copy_s = time.monotonic() - begin

        def finish(error: OSError | None) -> None:
            self.jobs.pop(node.nid, None)
            self.frozen.pop(node.nid, None)
            try:
                if error is None:
                    if capability is not None:
                        os.setxattr(target, CAPABILITY, capability)
                    # A part of the data is the file truncated already, at this moment.
                    whole = wanted == below.st_size
                    mtime_ns = before.st_mtime_ns if whole else time.time_ns()
                    os.utime(target, ns=(before.st_atime_ns, mtime_ns))
                    after = os.fstat(target)
                    if self.ledger is not None:
                        grown = after.st_blocks - before.st_blocks
                        self.ledger.reserve(after.st_uid, after.st_gid, grown, 0)
                    self._settle(node, target)
                else:
                    layers.heal_copy(target)
            finally:
                os.close(source)
                os.close(target)

        job = Job(work, finish)
        self.jobs[node.nid] = job
        self.frozen[node.nid] = before
        return job

    def _settle(self, node: File, fd: int) -> None:
        """Take the marks away: from here on the data are the container's own."""
        os.removexattr(fd, layers.METACOPY)
        for mark in (layers.COPYING, layers.REDIRECT):
            try:
                os.removexattr(fd, mark)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
        node.meta = False
        self.data_changed(node)
        self._separate(node)

    def _separate(self, node: File) -> None:
        """Split a node whose readers hold the lower file through the kernel."""
        if node.twin is None and node.opens and node.backing and not node.backing_private:
            self.split(node)

    def data_changed(self, node: File) -> None:
        """Note that the data of a file are in another backing file now."""

    def split(self, node: File) -> File:
        """Leave ``node`` to those who hold the lower file open; its name gets a new node."""
        st = self.stat(node)
        twin = self.table.split(node, 0, st.st_ino)
        twin.up, twin.upname, twin.fd = node.up, node.upname, node.fd
        twin.links, twin.flags, twin.escaped = node.links, node.flags, node.escaped
        node.up, node.fd = None, -1
        return twin


def set_times(fd: int, st: os.stat_result) -> None:
    """Undo what our own entry did to the times of the directory ``fd``."""
    os.utime(proc_fd(fd), ns=(st.st_atime_ns, st.st_mtime_ns))
