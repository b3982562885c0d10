"""Magic links for private files: equal to a template's (vzpkg link), or to other containers' (vzcache).

A container's private files are compared with the store; one that is equal there in content, mode,
owner and attributes is replaced by a link ``////PATH``, which VZFS shows as the file itself, so
that its disk space and page cache are shared. Files no template holds but several containers do are
put into the area's ``vc/``. Every replacement is one rename; a crash leaves a file or the link to
an equal one. While a container is mounted its file server does that (``vzfs.orders``), and leaves
alone what is open for writing, or was changed while it was compared.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime import files, programs
from runtime.progress import Progress, Silent
from templates import inspection, lock, trees, users
from templates.catalogue import Template
from templates.errors import BrokenLink, ProgramFailed
from templates.store import Store, key_of, shared_store
from vzfs import syscalls
from vzfs.layers import METACOPY
from vzfs.orders import Orders

#: A link of more than 59 bytes takes a block itself: smaller files gain nothing.
LEAST_BYTES = 8192
_OWN_MARKS = ("trusted.overlay.", "trusted.vzfs.")
_CHUNK_BYTES = 1 << 20
_READ = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_NOCTTY
#: What is no error of a file that is in use, but of the disk.
_REAL = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE)


@dataclass(slots=True)
class Linked:
    """How many files became links, the bytes their copies took, and what was left alone."""

    files: int = 0
    bytes: int = 0
    #: Paths of equal files somebody has open for writing.
    open: list[str] = field(default_factory=list)
    #: Paths of files that were changed or taken away meanwhile.
    changed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A private file that may become a link, and the digest it is known by."""

    #: Below the tree's root.
    path: str
    status: os.stat_result
    key: str


@dataclass(frozen=True, slots=True)
class Tree:
    """The private area of one container, whose lock is held."""

    private: Path
    #: How its mounted files are changed; None while it is not mounted.
    orders: Orders | None = None

    @property
    def root(self) -> Path:
        """Where the container's own files are."""
        return self.private / "root"

    def open(self, path: str, flags: int = _READ) -> int:
        """Open a file of the tree; raises OSError."""
        top = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return trees.open_below(top, path, flags)
        finally:
            os.close(top)

    def target(self, path: str) -> str:
        """Return where a symbolic link leads, "" for anything else."""
        try:
            fd = self.open(path, os.O_PATH)
        except OSError:
            return ""
        try:
            return os.readlink("", dir_fd=fd)
        except OSError:
            return ""
        finally:
            os.close(fd)

    def link(self, candidate: Candidate, target: str) -> None:
        """Put a magic link in the place of a file, which the container's quota counts from now on.

        Raises OSError.
        """
        if self.orders is None:
            path = self.root / candidate.path
            directory = os.stat(path.parent)
            spare = self.spare()
            os.symlink(target, spare)
            os.lchown(spare, candidate.status.st_uid, candidate.status.st_gid)
            os.rename(spare, path)
            os.utime(path.parent, ns=(directory.st_atime_ns, directory.st_mtime_ns))
            return
        try:
            self.orders.link(candidate.path, candidate.status, target)
        except OSError:
            # A server that was killed may have done it without saying so.
            if self.target(candidate.path) != target:
                raise

    def spare(self) -> Path:
        """Return where to make what then takes a file's place: not in the tree the container sees."""
        spare = self.private / ".link.tmp"
        # What a killed command left may be a link, which must not be written through.
        spare.unlink(missing_ok=True)
        return spare


def candidates(tree: Tree, *, sizes: frozenset[int] | None = None) -> Iterator[Candidate]:
    """Yield the private files of a tree worth linking, of the given sizes only.

    Files with several names, and those whose data lies in a layer below, are left alone.
    """
    for path, status in private_files(tree.root):
        if sizes is not None and status.st_size not in sizes:
            continue
        try:
            fd = tree.open(path)
        except OSError:
            continue  # taken away meanwhile
        try:
            if METACOPY not in os.listxattr(fd) and _same_file(os.fstat(fd), status):
                key = key_of(fd, status, dated=path.endswith(".py"), ignore=_OWN_MARKS)
                yield Candidate(path, status, key)
        finally:
            os.close(fd)


def private_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the regular files below ``root`` that are large enough and have one name."""
    for _fd, path, _name, status in trees.walk(root):
        if (
            stat.S_ISREG(status.st_mode)
            and status.st_nlink == 1
            and status.st_blocks * 512 >= LEAST_BYTES
        ):
            yield path, status


def link_private(
    area: Path, tree: Tree, *, test: bool = False, progress: Progress | None = None
) -> Linked:
    """Replace private files equal to a template's by links; return what that freed. Raises OSError."""
    report = Linked()
    stores = (Store(area), shared_store(area))
    found = list(candidates(tree))
    with lock.area(area, "store"):
        for number, candidate in enumerate(found, 1):
            for store in stores:
                entry = store.entry(candidate.key)
                if entry.is_file() and replace(area, tree, candidate, entry, report, test=test):
                    break
            (progress or Silent()).amount("Comparing files", number, len(found))
    return report


def share(
    area: Path,
    chosen: Sequence[Tree],
    *,
    test: bool = False,
    progress: Progress | None = None,
) -> dict[Path, Linked]:
    """Link files that several trees have alike; return what that freed for each private area.

    Raises OSError.
    """
    reports = {tree.private: link_private(area, tree, test=test) for tree in chosen}
    seen: dict[int, set[Path]] = {}
    for tree in chosen:
        for _path, status in private_files(tree.root):
            seen.setdefault(status.st_size, set()).add(tree.private)
    sizes = frozenset(size for size, owners in seen.items() if len(owners) > 1)
    groups: dict[str, list[tuple[Tree, Candidate]]] = {}
    for tree in chosen:
        for candidate in candidates(tree, sizes=sizes):
            groups.setdefault(candidate.key, []).append((tree, candidate))
    store = shared_store(area)
    with lock.area(area, "store"):
        for number, (key, alike) in enumerate(groups.items(), 1):
            if not _of_several(alike):
                continue
            members = [(t, c) for t, c in alike if _is_free(t, c, reports[t.private])]
            if not _of_several(members):
                continue
            entry = store.entry(key)
            if not test and not any(_enter(*member, entry) for member in members):
                continue
            for tree, candidate in members:
                replace(area, tree, candidate, entry, reports[tree.private], test=test)
            (progress or Silent()).amount("Sharing files", number, len(groups))
    return reports


def _of_several(members: Sequence[tuple[Tree, Candidate]]) -> bool:
    return len({tree.private for tree, _candidate in members}) > 1


def detach(
    area: Path,
    tree: Tree,
    *,
    test: bool = False,
    only_shared: bool = True,
    progress: Progress | None = None,
) -> Linked:
    """Replace links by copies of what they lead to (``only_shared``: links into ``vc/``).

    Needed before a container goes where its template area is not. Raises OSError, BrokenLink.
    """
    report = Linked()
    found = list(trees.magic_links(tree.root))
    for number, (path, target) in enumerate(found, 1):
        (progress or Silent()).amount("Copying files", number, len(found))
        if only_shared and not target.startswith("vc/"):
            continue
        source = inspection.resolve(area, target)
        if source is None or not source.is_file() or area.resolve() not in source.parents:
            raise BrokenLink(f"{tree.root / path} leads to {target}, which is not there")
        if test:
            pass
        elif tree.orders is not None:
            try:
                tree.orders.copy(path)
            except OSError as error:
                if error.errno in _REAL:
                    raise
                report.changed.append(path)
                continue
        else:
            _give_copy(tree, path, source)
        report.files += 1
        report.bytes += source.stat().st_blocks * 512
    if not test and next(trees.magic_links(tree.root), None) is None:
        (tree.private / "templates" / users.LINKS).unlink(missing_ok=True)
    return report


def _give_copy(tree: Tree, path: str, source: Path) -> None:
    """Give a link, or a copy of metadata, of a tree that is not mounted data of its own."""
    place = tree.root / path
    directory, status = os.stat(place.parent), os.lstat(place)
    spare = tree.spare()
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            whole = stat.S_ISLNK(status.st_mode)
            _fill(fd, copy, model=source if whole else place)
        finally:
            os.close(copy)
    finally:
        os.close(fd)
    os.rename(spare, place)
    os.utime(place.parent, ns=(directory.st_atime_ns, directory.st_mtime_ns))


def _same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Tell whether two statuses are of one file that was not changed in between."""
    return (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) == (
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
        other.st_ctime_ns,
    )


def same(fd: int, entry: Path) -> bool:
    """Tell whether an open file equals a store entry in mode, owner, attributes and every byte.

    A digest is not trusted here. Raises OSError.
    """
    one, other = os.fstat(fd), os.lstat(entry)
    for name in ("st_size", "st_mode", "st_uid", "st_gid"):
        if getattr(one, name) != getattr(other, name):
            return False
    if _attributes(fd) != _attributes(entry):
        return False
    offset = 0
    with open(entry, "rb") as right:
        while True:
            piece = os.pread(fd, _CHUNK_BYTES, offset)
            offset += len(piece)
            if piece != right.read(len(piece) or 1):
                return False
            if not piece:
                return True


def _attributes(file: int | Path) -> dict[str, bytes]:
    """Return a file's extended attributes, without VZFS's own marks."""
    return {
        name: os.getxattr(file, name)
        for name in os.listxattr(file)
        if not name.startswith(_OWN_MARKS)
    }


def _is_free(tree: Tree, candidate: Candidate, report: Linked) -> bool:
    """Tell whether a file may be replaced; says in the report why not."""
    try:
        if tree.orders is not None:
            tree.orders.free(candidate.path, candidate.status)
        else:
            fd = tree.open(candidate.path)
            try:
                # chattr(1): a link cannot be protected, nor may this file be renamed over.
                return not syscalls.get_flags(fd) & syscalls.FS_PERSONAL_FLAGS
            finally:
                os.close(fd)
    except OSError as error:
        return _leave(candidate, report, error)
    return True


def _leave(candidate: Candidate, report: Linked, error: OSError) -> bool:
    """Note that a file is left alone because of ``error``; raises it when that is the disk's."""
    if error.errno in _REAL:
        raise error
    if error.errno == errno.ETXTBSY:
        report.open.append(candidate.path)
    elif error.errno not in (errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP):
        report.changed.append(candidate.path)
    return False


def replace(
    area: Path,
    tree: Tree,
    candidate: Candidate,
    entry: Path,
    report: Linked,
    *,
    test: bool = False,
) -> bool:
    """Put a link to ``entry`` in an equal private file's place; return whether it is one now.

    ``test``: only find out. Raises OSError.
    """
    if not _is_free(tree, candidate, report):
        return False
    try:
        fd = tree.open(candidate.path)
        try:
            if entry.exists() and not same(fd, entry):
                return False
        finally:
            os.close(fd)
        if not test:
            mark = tree.private / "templates" / users.LINKS
            if not mark.exists():
                files.replace(mark, b"this container has magic links\n", mode=0o600)
            tree.link(candidate, f"////{entry.relative_to(area)}")
    except OSError as error:
        return _leave(candidate, report, error)
    report.files += 1
    report.bytes += candidate.status.st_blocks * 512
    return True


def _enter(tree: Tree, candidate: Candidate, entry: Path) -> bool:
    """Copy a private file to its place among the shared ones, whole and durable.

    Returns whether it is there: a file that was changed since is not what its name would say.
    """
    if entry.exists():
        return True
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    spare = entry.with_name(f".tmp-{entry.name}.{os.getpid()}")
    try:
        source = tree.open(candidate.path)
    except OSError:
        return False
    try:
        copy = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _fill(source, copy, model=source)
            dated = candidate.path.endswith(".py")
            if key_of(copy, os.fstat(copy), dated=dated, ignore=_OWN_MARKS) != candidate.key:
                spare.unlink()
                return False
        finally:
            os.close(copy)
    finally:
        os.close(source)
    os.rename(spare, entry)
    files.fsync_directory(entry.parent)
    return True


def _fill(source: int, copy: int, *, model: int | Path) -> None:
    """Copy data, and owner, mode, attributes and times of ``model``, durably.

    VZFS's own marks stay behind.
    """
    offset = 0
    while piece := os.pread(source, _CHUNK_BYTES, offset):
        offset += os.pwrite(copy, piece, offset)
    status = os.stat(model)
    os.fchown(copy, status.st_uid, status.st_gid)
    os.fchmod(copy, stat.S_IMODE(status.st_mode))
    for name, value in _attributes(model).items():
        os.setxattr(copy, name, value)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.fsync(copy)


def unpack_fetched(template: Template, tree: Tree, progress: Progress) -> int:
    """Unpack into the template area what was fetched for the container's packages; return how many.

    So a package's files are in the area once, from its first use on. Raises ProgramFailed, OSError.
    """
    try:
        fd = tree.open("var/lib/dpkg/status")
    except OSError:
        return 0
    made = 0
    with open(fd, encoding="utf-8", errors="surrogateescape") as status:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return 0
        text = status.read()
    for fields in inspection.parse_status(text):
        name, version = fields.get("Package", ""), fields.get("Version", "")
        directory = inspection.package_directory(name, version, fields.get("Architecture", ""))
        if "/" in directory or (template.place / directory).exists():
            continue
        archive = f"{name}_{version.replace(':', '%3a')}_{fields.get('Architecture', '')}.deb"
        package = template.place / "pm" / "archives" / archive
        if "/" in archive or not package.is_file():
            continue
        progress.detail(f"unpacking {archive}")
        with files.new_directory(template.place / directory) as fresh:
            _extract(package, fresh)
            Store(template.area).adopt(fresh)
        made += 1
    return made


def _extract(package: Path, target: Path) -> None:
    """Unpack a package's files (dpkg-deb(1)); nothing of it is run."""
    done = subprocess.run(
        [*programs.ENDING_WITH_US, "dpkg-deb", "--extract", str(package), str(target)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ProgramFailed(f"dpkg-deb cannot unpack {package}: {done.stderr.strip()}")
