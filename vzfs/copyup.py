"""Copy-up: making a shared object private, metadata first, data when they are about to change.

The order makes every step safe against a crash; what the user sees is the old object or the new
one, never a mixture.

1. Metadata. A copy without data (the lower file's size, all of it a hole) is prepared in the work
   area with owner, mode, times, attributes and the marks ``metacopy`` and ``redirect``, then
   renamed to its place. Until the rename nothing has changed; after it reads still come from the
   lower file. Leftovers in the work area are removed at the next mount.
2. Data. They are copied into that copy while the ``metacopy`` mark says that they do not count.
   fdatasync(2) makes them durable (``sync_copies``), then the mark is removed: this is the moment
   the file changes hands. A copy that was interrupted is begun again.

Metadata alone are not synced: like any chmod(2) they are durable after fsync(2). Directories,
symbolic links, devices and empty files are copied whole in step 1.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from vzfs import layers, syscalls
from vzfs.inodes import Directory, File, Node
from vzfs.layers import proc_fd, proc_path
from vzfs.magic import LAYER, target_of
from vzfs.overlay import Job, Later, Overlay, failure, index_name

_CHUNK = 16 << 20
CAPABILITY = "security.capability"


class CopyUp(Overlay):
    """Operations that make things private."""

    _serial = 0

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
        _set_times(parent_fd, times)
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

    def own(self, node: Node) -> None:
        """Make the metadata of any object private."""
        if isinstance(node, Directory):
            self.private(node)
            return
        assert isinstance(node, File)
        if node.twin is not None:
            node = node.twin
        if not node.has_copy:
            self._copy_file(node)

    def _copy_file(self, node: File) -> None:
        st = self.stat_lower(node)
        regular = stat.S_ISREG(st.st_mode)
        if node.lower_fd >= 0:
            source = proc_fd(node.lower_fd)
            followed = True
        else:
            assert node.low is not None
            source = proc_path(node.low.open(), node.loname)
            followed = False
        nameless = node.parent is None
        parent_fd = -1
        if not nameless:
            assert node.parent is not None
            parent_fd = self.private(node.parent)
        work, name = self.stack.temporary, self.temporary_name()
        target = proc_path(work, name)
        redirect = b""
        if regular:
            if st.st_size:
                assert node.low is not None
                redirect = layers.lower_path(node.low, node.loname)
                if node.magic:
                    redirect = target_of(node.low, node.loname)
            fd = os.open(
                name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=work
            )
            try:
                os.ftruncate(fd, st.st_size)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(source), name, dir_fd=work)
        else:
            os.mknod(name, st.st_mode, st.st_rdev, dir_fd=work)
        try:
            self._copy_attributes(source, target, st, follow=followed)
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
            else:
                assert node.parent is not None
                times = os.fstat(parent_fd)
                self.make_impure(node.parent)
                if node.magic:
                    self._anchor(node)
                os.rename(name, node.name, src_dir_fd=work, dst_dir_fd=parent_fd)
                _set_times(parent_fd, times)
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

    def _anchor(self, node: File) -> None:
        """Keep the inode of a magic link for its number; it is charged no more."""
        assert node.up is not None
        node.anchor = os.open(
            node.upname, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=node.up.open()
        )
        self.discharge_link(os.stat(node.anchor))

    def discharge_link(self, st: os.stat_result) -> None:
        """Tell the ledger that a magic link is gone."""
        if self.ledger is not None:
            self.ledger.release(st.st_uid, st.st_gid, st.st_blocks, 1)

    def group_size(self, slot: int, st: os.stat_result) -> int:
        """Return how many names of these layers are the lower file ``st``, 1 when only one is."""
        return self.groups.count(slot, st.st_ino) if st.st_nlink > 1 else 1

    def charge_new(self, owner: os.stat_result, new: os.stat_result, at: int, name: bytes) -> None:
        """Tell the ledger of a fresh object; takes the object away again when that fails."""
        if self.ledger is None:
            return
        try:
            self.ledger.reserve(owner.st_uid, owner.st_gid, new.st_blocks, 1)
        except OSError:
            if stat.S_ISDIR(new.st_mode):
                os.rmdir(name, dir_fd=at)
            else:
                os.unlink(name, dir_fd=at)
            raise

    # data

    def own_data(self, node: File, *, size: int | None = None) -> None:
        """Make the data of a file private, at most ``size`` bytes of them.

        Raises `Later` when there is something to copy; ESTALE when readers hold the lower file
        through the kernel, after the name was given a new node.
        """
        if not node.private:
            self.own(node)
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
        raise Later(self._copy_job(node, below, wanted))

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
            copy_data(source, target, wanted)
            if self.options.sync_copies:
                os.fdatasync(target)

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


def copy_data(source: int, target: int, size: int) -> None:
    """Copy the first ``size`` bytes, keeping holes; shares extents where the kernel can.

    Raises OSError (ENOSPC, EDQUOT, EIO).
    """
    os.ftruncate(target, 0)
    if size == os.fstat(source).st_size:
        try:
            syscalls.ficlone(target, source)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
                raise
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(source, position, os.SEEK_HOLE), size)
        while position < end:
            count = _copy_range(source, target, position, min(end - position, _CHUNK))
            if not count:
                return
            position += count


def _copy_range(source: int, target: int, position: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, position, position)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return os.pwrite(target, os.pread(source, min(count, 1 << 20), position), position)


def _set_times(fd: int, st: os.stat_result) -> None:
    """Undo what our own entry did to the times of the directory ``fd``."""
    os.utime(proc_fd(fd), ns=(st.st_atime_ns, st.st_mtime_ns))
