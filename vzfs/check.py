"""Checking, repairing and thinning a private area which is not mounted.

A `Problem` says what is wrong and, where something can be done, carries the repair. Everything is
reached by descriptors, from the root of the layer down, so that neither depth nor a rename below
our feet leads anywhere else.
"""

from __future__ import annotations

import errno
import filecmp
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vzfs import layers
from vzfs.datacopy import copy_data
from vzfs.inodes import Directory, File
from vzfs.layers import Place, Stack, proc_fd, proc_path
from vzfs.magic import PREFIX, MagicLinks, target_of
from vzfs.operations import Operations
from vzfs.options import Options
from vzfs.overlay import index_name


@dataclass(frozen=True)
class Problem:
    """Something wrong at a path of the private area; ``repair`` is None where nothing helps."""

    path: bytes
    text: str
    repair: Callable[[], None] | None = None


@dataclass
class Figures:
    """What a private area consists of."""

    directories: int = 0
    private_files: int = 0
    #: Files with metadata of their own over shared data.
    shared_copies: int = 0
    magic_links: int = 0
    whiteouts: int = 0
    #: Bytes on disk of the area's own files.
    private_bytes: int = 0
    #: Bytes which magic links and copies of metadata share with the templates.
    shared_bytes: int = 0
    broken: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """One entry met on a walk through the private layer."""

    place: Place
    name: bytes
    stat: os.stat_result
    #: Where it is, for messages.
    path: bytes
    marks: frozenset[str]

    @property
    def proc(self) -> bytes:
        """A path for calls without descriptors."""
        return proc_path(self.place.open(), self.name)


class Area:
    """A private area opened for checking."""

    def __init__(self, options: Options, *, modify: bool) -> None:
        """Open the area; raises `layers.Busy` when it is to be modified and is mounted, else OSError."""
        self.options = options
        options.work_area.mkdir(mode=0o700, exist_ok=True)
        self.stack = Stack(options.lower, options.upper, options.work_area)
        if modify:
            self.stack.lock()
        self.core = Operations(self.stack, options)
        area = options.template_area
        self.magic = MagicLinks(area, self.stack.descriptors) if area is not None else None

    def close(self) -> None:
        """Let go of the area."""
        self.stack.close()

    def walk(self) -> Iterator[Entry]:
        """Yield every entry of the private layer, directories before what is in them."""
        pending = [(self.stack.upper.root, b"")]
        while pending:
            place, path = pending.pop()
            fd = place.open()
            for name in sorted(os.listdir(proc_fd(fd) + b"/.")):
                try:
                    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    marks = os.listxattr(proc_path(fd, name), follow_symlinks=False)
                except FileNotFoundError:
                    continue
                entry = Entry(place, name, st, path + b"/" + name, frozenset(marks))
                yield entry
                if stat.S_ISDIR(st.st_mode):
                    pending.append((place.child(name), entry.path))
            self.core.trim()

    def figures(self) -> Figures:
        """Count what is there."""
        found = Figures()
        for entry in self.walk():
            st = entry.stat
            if layers.is_whiteout(st):
                found.whiteouts += 1
                continue
            found.private_bytes += st.st_blocks * 512
            if stat.S_ISDIR(st.st_mode):
                found.directories += 1
            elif self._is_magic(entry):
                found.magic_links += 1
                target = self._target(entry)
                if target is None:
                    found.broken.append(entry.path)
                else:
                    found.shared_bytes += target.stat.st_blocks * 512
            elif layers.METACOPY in entry.marks:
                found.shared_copies += 1
                found.shared_bytes += st.st_size
            else:
                found.private_files += 1
        return found

    def _is_magic(self, entry: Entry) -> bool:
        return stat.S_ISLNK(entry.stat.st_mode) and os.readlink(
            entry.name, dir_fd=entry.place.open()
        ).startswith(PREFIX)

    def _target(self, entry: Entry) -> layers.Found | None:
        target = os.readlink(entry.name, dir_fd=entry.place.open())
        return self.magic.resolve(target) if self.magic is not None else None

    # checks

    def check(self) -> Iterator[Problem]:
        """Yield everything that is wrong."""
        yield from self.check_leftovers()
        yield from self.check_marks()
        yield from self.check_links()
        yield from self.check_index()

    def check_leftovers(self) -> Iterator[Problem]:
        """Yield what an interrupted server left in the work area."""
        fd = self.stack.temporary
        for name in os.listdir(proc_fd(fd) + b"/."):
            if name.startswith(b"#"):
                yield Problem(
                    b"cow/work/" + name,
                    "an unfinished copy",
                    partial(layers.remove_tree, fd, name),
                )

    def check_links(self) -> Iterator[Problem]:
        """Yield magic links which lead nowhere."""
        for entry in self.walk():
            if self._is_magic(entry) and self._target(entry) is None:
                target = os.readlink(entry.name, dir_fd=entry.place.open())
                yield Problem(entry.path, f"broken magic link to {os.fsdecode(target)}")

    def check_marks(self) -> Iterator[Problem]:
        """Yield copies without their lower part, and marks the directory does not announce."""
        announced: dict[int, bool] = {}
        for entry in self.walk():
            marked = entry.marks & {layers.ORIGIN, layers.METACOPY, layers.NLINK, layers.ESCAPED}
            if stat.S_ISDIR(entry.stat.st_mode):
                yield from self._check_directory(entry)
                continue
            if not marked:
                continue
            key = id(entry.place)
            if key not in announced:
                announced[key] = entry.place.mark(layers.IMPURE) is not None
                if not announced[key]:
                    place = entry.place
                    yield Problem(
                        os.path.dirname(entry.path) or b"/",
                        "the directory does not say that it holds copies",
                        partial(_announce, place),
                    )
            if layers.METACOPY in entry.marks:
                yield from self._check_metacopy(entry)

    def _check_directory(self, entry: Entry) -> Iterator[Problem]:
        if layers.REDIRECT not in entry.marks:
            return
        target = os.getxattr(entry.proc, layers.REDIRECT)
        if target.startswith(b"/") and not layers.resolve(self.core.roots, target):
            proc = entry.proc
            yield Problem(
                entry.path,
                f"the moved directory {os.fsdecode(target)} is not in the template any more",
                partial(_make_opaque, proc),
            )

    def _check_metacopy(self, entry: Entry) -> Iterator[Problem]:
        below = self.lower_of(entry)
        if below is None or below.directories or not stat.S_ISREG(below.stat.st_mode):
            yield Problem(entry.path, "its data were shared with a template file that is gone")
            return
        if entry.stat.st_blocks * 512 > max(4096, entry.stat.st_blksize):
            proc, size = entry.proc, entry.stat.st_size
            yield Problem(
                entry.path, "an interrupted copy takes room", partial(_drop_data, proc, size)
            )

    def lower_of(self, entry: Entry) -> layers.Found | None:
        """Return the shared file a copy of metadata belongs to."""
        target = b""
        if layers.REDIRECT in entry.marks:
            target = os.getxattr(entry.proc, layers.REDIRECT)
        if target.startswith(PREFIX):
            return self.magic.resolve(target) if self.magic is not None else None
        if not target:
            # Too deep for a redirect: at the same place below.
            target = entry.path
        return layers.resolve_file(self.core.roots, target)

    def check_index(self) -> Iterator[Problem]:
        """Yield copies of files with several names which say a wrong number of them."""
        seen = self._visible_names() if self.core.indexed else {}
        for slot, inode in sorted(self.core.indexed):
            name = index_name(slot, inode)
            fd = self.stack.index
            path = proc_path(fd, name)
            said = layers.get_mark(path, layers.NLINK)
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            count = st.st_nlink - 1 + len(seen.get((slot, inode), []))
            if not count:
                yield Problem(
                    b"cow/index/" + name,
                    "a copy without any name",
                    partial(os.unlink, name, dir_fd=fd),
                )
            elif said != b"%d" % count:
                yield Problem(
                    b"cow/index/" + name,
                    f"has {count} names, not {(said or b'?').decode()}",
                    partial(_say_names, path, count),
                )

    def _visible_names(self) -> dict[tuple[int, int], list[tuple[bytes, ...]]]:
        """Return, for each indexed file, the names which lead to it through the lower layers."""
        names: dict[tuple[int, int], list[tuple[bytes, ...]]] = {}
        pending: list[tuple[Directory, tuple[bytes, ...]]] = [(self.core.root, ())]
        while pending:
            here, path = pending.pop()
            for name in self.core.names(here):
                node, st = self.core.lookup(here, name)
                if isinstance(node, Directory):
                    if node.lows:
                        pending.append((node, (*path, name)))
                elif isinstance(node, File) and node.up is self.core.index_place:
                    slot, _, inode = node.upname.partition(b"-")
                    names.setdefault((int(slot), int(inode)), []).append((*path, name))
                del st
            self.core.trim()
        return names

    # changes

    def fold(self) -> int:
        """Give every indexed copy its names in the private layer; returns how many were made.

        Afterwards the area needs the index no more, and overlayfs sees the same files.
        """
        made = 0
        for (slot, inode), names in self._visible_names().items():
            entry = index_name(slot, inode)
            for path in names:
                directory = self.core.root
                for name in path[:-1]:
                    node, _ = self.core.lookup(directory, name)
                    assert isinstance(node, Directory)
                    directory = node
                target = self.core.private(directory)
                self.core.make_impure(directory)
                os.link(
                    entry,
                    path[-1],
                    src_dir_fd=self.stack.index,
                    dst_dir_fd=target,
                    follow_symlinks=False,
                )
                made += 1
        for slot, inode in list(self.core.indexed):
            entry = index_name(slot, inode)
            path_of = proc_path(self.stack.index, entry)
            os.removexattr(path_of, layers.NLINK, follow_symlinks=False)
            os.unlink(entry, dir_fd=self.stack.index)
            self.core.indexed.discard((slot, inode))
        return made

    def link(self, path: Path, template: Path) -> int:
        """Replace a private file by a magic link to an equal template file.

        Both are paths of the host. Returns the bytes given back on disk. Raises OSError (EINVAL
        when they differ in anything a user can see, EMLINK when the file has other names, EPERM when
        chattr(1) protects it).
        """
        assert self.options.template_area is not None
        st, model = os.lstat(path), os.lstat(template)
        if not (stat.S_ISREG(st.st_mode) and stat.S_ISREG(model.st_mode)):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if st.st_nlink > 1:
            raise OSError(errno.EMLINK, "it has several names", str(path))
        if not same_file(path, template):
            raise OSError(errno.EINVAL, "it differs from the template file", str(path))
        relative = template.relative_to(self.options.template_area)
        work, spare = self.stack.temporary, self._spare()
        directory = os.stat(path.parent)
        os.symlink(PREFIX + os.fsencode(relative), spare, dir_fd=work)
        try:
            # Its owner is who the link is charged to.
            os.chown(spare, st.st_uid, st.st_gid, dir_fd=work, follow_symlinks=False)
            os.rename(spare, os.fsencode(path), src_dir_fd=work)
        except OSError:
            os.unlink(spare, dir_fd=work)
            raise
        os.utime(path.parent, ns=(directory.st_atime_ns, directory.st_mtime_ns))
        return st.st_blocks * 512

    def _spare(self) -> bytes:
        """Return a free name in the work area; one that was left there by a dead tool is cleared."""
        name = self.core.temporary_name()
        with suppress(FileNotFoundError):
            layers.remove_tree(self.stack.temporary, name)
        return name

    def detach(self) -> int:
        """Replace every magic link and every copy of metadata by a whole file; returns how many.

        Needed before an area moves to a server without its template.
        """
        done = 0
        for entry in list(self.walk()):
            if self._is_magic(entry):
                found = self._target(entry)
                if found is not None:
                    self._materialise(entry, found)
                    done += 1
            elif layers.METACOPY in entry.marks:
                found = self.lower_of(entry)
                if found is not None:
                    self.fill(entry, found)
                    done += 1
        return done

    def _materialise(self, entry: Entry, found: layers.Found) -> None:
        """Put a copy of the target in the place of a magic link."""
        work, name = self.stack.temporary, self._spare()
        source = os.open(found.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=found.place.open())
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            target = os.open(name, flags, 0o600, dir_fd=work)
            try:
                copy_data(source, target, found.stat.st_size)
                os.fdatasync(target)
            finally:
                os.close(target)
            self.core._copy_attributes(
                proc_fd(source), proc_path(work, name), found.stat, follow=True
            )
        finally:
            os.close(source)
        os.rename(name, entry.name, src_dir_fd=work, dst_dir_fd=entry.place.open())

    def fill(self, entry: Entry, found: layers.Found) -> None:
        """Give a copy of metadata its data."""
        source = os.open(found.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=found.place.open())
        target = os.open(entry.name, os.O_RDWR | os.O_CLOEXEC, dir_fd=entry.place.open())
        try:
            copy_data(source, target, found.stat.st_size)
            os.fdatasync(target)
            os.utime(target, ns=(entry.stat.st_atime_ns, entry.stat.st_mtime_ns))
            os.removexattr(target, layers.METACOPY)
        finally:
            os.close(source)
            os.close(target)

    def target(self, entry: Entry) -> bytes:
        """Return the magic link a copy of metadata came from, b"" for none."""
        found = self.lower_of(entry)
        return target_of(found.place, found.name) if found is not None else b""


def same_file(one: Path, other: Path) -> bool:
    """Tell whether two files are equal in content, mode, owner and extended attributes."""
    a, b = os.lstat(one), os.lstat(other)
    if (a.st_mode, a.st_uid, a.st_gid, a.st_size) != (b.st_mode, b.st_uid, b.st_gid, b.st_size):
        return False
    return _attributes(one) == _attributes(other) and filecmp.cmp(one, other, shallow=False)


def _attributes(path: Path) -> dict[str, bytes]:
    names = [
        name
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith(layers.PRIVATE_PREFIXES)
    ]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _announce(place: Place) -> None:
    os.setxattr(proc_fd(place.open()), layers.IMPURE, b"y")


def _say_names(path: bytes, count: int) -> None:
    os.setxattr(path, layers.NLINK, b"%d" % count, follow_symlinks=False)


def _make_opaque(proc: bytes) -> None:
    os.setxattr(proc, layers.OPAQUE, b"y")
    os.removexattr(proc, layers.REDIRECT)


def _drop_data(proc: bytes, size: int) -> None:
    st = os.stat(proc)
    fd = os.open(proc, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, 0)
        os.ftruncate(fd, size)
        os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))
    finally:
        os.close(fd)
