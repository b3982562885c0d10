"""The store: each distinct file of all templates once, shared between trees as one inode.

An entry is named by a digest of content, mode, owner and extended attributes. What refers to it
(trees, package directories) are hard links, so that every container maps the same page cache. The
time of change is part of the digest only for Python sources, whose compiled forms name it.

Within one tree two names are the same inode only where the tree itself had a hard link: equal but
unrelated files take entries ``KEY.0``, ``KEY.1``, …, since a file system above must be able to
tell a hard link, where writing to one name changes the other, from a coincidence. The genuine
groups are listed beside the tree.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runtime import syscalls
from runtime.progress import Progress, Silent
from templates import lock

_HEADER = struct.Struct("<IIIQq")
#: Larger files are hashed through a mapping, smaller ones are read.
_MAP_FROM_BYTES = 128 << 10
_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class Adopted:
    """What adopting a tree found; sizes in bytes."""

    files: int = 0
    bytes: int = 0
    #: Files whose content the store had already.
    shared_files: int = 0
    shared_bytes: int = 0
    #: Genuine hard links of the tree: lists of names relative to it.
    groups: list[list[str]] = field(default_factory=list)


def key_of(
    path: str | int,
    status: os.stat_result,
    *,
    dated: bool | None = None,
    ignore: tuple[str, ...] = (),
) -> str:
    """Return the digest a regular file is known by in the store; raises OSError.

    A descriptor is read, not mapped: somebody may truncate the file meanwhile.
    ``dated`` says whether its time of change counts; by default that of Python sources does.
    Attributes whose names begin as one of ``ignore`` do not.
    """
    import blake3  # a compiled module: loaded by whoever builds or links, not by lists

    if dated is None:
        dated = isinstance(path, str) and path.endswith(".py")
    total = blake3.blake3(
        _HEADER.pack(
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_size,
            status.st_mtime_ns if dated else 0,
        )
    )
    follow = isinstance(path, int)
    for name in sorted(os.listxattr(path, follow_symlinks=follow)):
        if name.startswith(ignore):
            continue
        value = os.getxattr(path, name, follow_symlinks=follow)
        total.update(f"{len(name)} {name} {len(value)} ".encode("utf-8", "surrogateescape"))
        total.update(value)
    if isinstance(path, int):
        offset = 0
        while piece := os.pread(path, _PIECE_BYTES, offset):
            total.update(piece)
            offset += len(piece)
    elif status.st_size > _MAP_FROM_BYTES:
        total.update_mmap(path)
    else:
        with open(path, "rb") as file:
            total.update(file.read())
    return total.hexdigest()


def regular_files(tree: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every regular file below ``tree`` with its status, in a fixed order."""
    with os.scandir(tree) as entries:
        here = sorted(entries, key=lambda entry: entry.name)
    for entry in here:
        if entry.is_dir(follow_symlinks=False):
            yield from regular_files(entry.path)
        elif entry.is_file(follow_symlinks=False):
            yield entry.path, entry.stat(follow_symlinks=False)


class Store:
    """The store of one template area."""

    def __init__(self, area: Path) -> None:
        """Use the store of the template area ``area``."""
        self.area = area
        self.path = area / "store"

    def entry(self, key: str, occurrence: int = 0) -> Path:
        """Return the place of the ``occurrence``-th file with ``key`` in one tree."""
        return self.path / key[:2] / f"{key[2:]}.{occurrence}"

    def adopt(self, tree: Path, progress: Progress | None = None) -> Adopted:
        """Make every file of ``tree`` an entry of the store, or a link to the equal one.

        A crash leaves the tree as good as before: each name is replaced in one step by an equal
        file. Data is on disk before the store knows it. Raises OSError.
        """
        report = Adopted()
        fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)
        with lock.area(self.area, "store"):
            self.path.mkdir(mode=0o700, exist_ok=True)
            self._adopt(tree, report, progress or Silent())
        return report

    def _adopt(self, tree: Path, report: Adopted, progress: Progress) -> None:
        found: dict[int, list[str]] = {}
        statuses: dict[int, os.stat_result] = {}
        for path, status in regular_files(str(tree)):
            found.setdefault(status.st_ino, []).append(path)
            statuses[status.st_ino] = status
        occurrences: dict[str, int] = {}
        times: dict[str, os.stat_result] = {}
        total = len(found)
        for done, (inode, names) in enumerate(found.items(), 1):
            status = statuses[inode]
            key = key_of(names[0], status)
            occurrence = occurrences.get(key, 0)
            occurrences[key] = occurrence + 1
            report.files += 1
            report.bytes += status.st_size
            if self._share(names, status, self.entry(key, occurrence), times):
                report.shared_files += 1
                report.shared_bytes += status.st_size
            if len(names) > 1:
                report.groups.append([os.path.relpath(name, tree) for name in names])
            if done % 200 == 0 or done == total:
                progress.amount("Storing files", done, total)
        for directory, before in times.items():
            os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _share(
        self,
        names: list[str],
        status: os.stat_result,
        entry: Path,
        times: dict[str, os.stat_result],
    ) -> bool:
        """Enter a file under ``entry``, or put links to the equal file there in its place.

        Returns whether the store had it.
        """
        try:
            os.link(names[0], entry)
            return False
        except FileNotFoundError:
            entry.parent.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.link(names[0], entry)
                return False
        except FileExistsError:
            pass
        known = os.stat(entry, follow_symlinks=False)
        if known.st_ino == status.st_ino:
            return True
        if not _same_outside(known, status):
            # Somebody damaged the entry; the trees that use it keep it, new ones get this file.
            self._enter_instead(names[0], entry)
            return False
        spare = ""
        try:
            for name in names:
                directory = os.path.dirname(name)
                if directory not in times:
                    times[directory] = os.stat(directory)
                spare = os.path.join(directory, f".pyvz-{os.getpid()}")
                os.link(entry, spare)
                os.rename(spare, name)
        except OSError as error:
            if error.errno != errno.EMLINK:
                with suppress(OSError):
                    os.unlink(spare)
                raise
            # As many names as the file system allows: later trees share a second inode.
            self._enter_instead(names[-1], entry)
            return False
        return True

    def _enter_instead(self, name: str, entry: Path) -> None:
        spare = entry.with_name(f".tmp-{entry.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            os.unlink(spare)
        os.link(name, spare)
        os.rename(spare, entry)

    def find(self, path: str, status: os.stat_result) -> Path | None:
        """Return the entry equal to the regular file ``path``, None when there is none."""
        entry = self.entry(key_of(path, status))
        return entry if entry.exists() else None

    def sweep(
        self, keep: Callable[[], frozenset[str]] = frozenset, *, test: bool = False
    ) -> tuple[int, int]:
        """Remove entries nothing refers to; return how many, and their bytes.

        ``keep`` returns the entries that magic links name, relative to the template area: asked
        while nobody makes any. ``test`` only counts.
        """
        removed = freed = 0
        with lock.area(self.area, "store"):
            named = keep()
            for shelf in self.path.glob("??"):
                with os.scandir(shelf) as entries:
                    lonely = [e for e in entries if e.stat(follow_symlinks=False).st_nlink == 1]
                for entry in lonely:
                    if f"{self.path.name}/{shelf.name}/{entry.name}" in named:
                        continue
                    freed += entry.stat(follow_symlinks=False).st_size
                    removed += 1
                    if not test:
                        os.unlink(entry.path)
        return removed, freed

    def damaged(self) -> Iterator[Path]:
        """Yield every entry whose content or attributes are no longer what its name says."""
        for path, status in regular_files(str(self.path)):
            entry = Path(path)
            named = entry.parent.name + entry.name.rpartition(".")[0]
            # An entry's name no longer tells whether it was a Python source.
            if named not in (key_of(path, status), key_of(path, status, dated=True)):
                yield entry


def shared_store(area: Path) -> Store:
    """Return where files of several containers lie which no template holds (vzcache)."""
    store = Store(area)
    store.path = area / "vc"
    return store


def _same_outside(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_size, one.st_mode, one.st_uid, one.st_gid) == (
        other.st_size,
        other.st_mode,
        other.st_uid,
        other.st_gid,
    )
