"""Magic links for private files: equal to a template's (vzpkg link), or to other containers' (vzcache).

A container that is not mounted has its private files compared with the store; one that is equal
there in content, mode, owner and attributes is replaced by a link ``////PATH``, which VZFS shows
as the file itself, so that its disk space and page cache are shared. Files no template holds but
several containers do are put into the area's ``vc/``. Every replacement is one rename; a crash
leaves a file or the link to an equal one.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime.progress import Progress, Silent
from templates import inspection, lock, users
from templates.catalogue import Template
from templates.errors import BrokenLink, ProgramFailed
from templates.store import Store, key_of, shared_store

#: A link of more than 59 bytes takes a block itself: smaller files gain nothing.
LEAST_BYTES = 8192
_OWN_MARKS = ("trusted.overlay.", "trusted.vzfs.")
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class Linked:
    """How many files became links, and the bytes their copies took."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A private file that may become a link, and the digest it is known by."""

    path: str
    status: os.stat_result
    key: str


def candidates(root: Path, *, sizes: frozenset[int] | None = None) -> Iterator[Candidate]:
    """Yield the private files below ``root`` worth linking, of the given sizes only.

    Files with several names, and those whose data lies in a layer below, are left alone.
    """
    for path, status in private_files(root):
        if sizes is not None and status.st_size not in sizes:
            continue
        attributes = os.listxattr(path, follow_symlinks=False)
        if any(
            name in ("trusted.overlay.metacopy", "trusted.overlay.redirect") for name in attributes
        ):
            continue
        yield Candidate(path, status, key_of(path, status, ignore=_OWN_MARKS))


def private_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the regular files below ``root`` that are large enough and have one name."""
    for place, _directories, names in os.walk(root):
        for name in names:
            path = os.path.join(place, name)
            status = os.lstat(path)
            if (
                stat.S_ISREG(status.st_mode)
                and status.st_nlink == 1
                and status.st_blocks * 512 >= LEAST_BYTES
            ):
                yield path, status


def link_private(
    area: Path, private: Path, *, test: bool = False, progress: Progress | None = None
) -> Linked:
    """Replace private files equal to a template's by links; return what that freed.

    The container must not be mounted, and its lock be held. Raises OSError.
    """
    report = Linked()
    stores = (Store(area), shared_store(area))
    found = list(candidates(private / "root"))
    with lock.area(area, "store"):
        for number, candidate in enumerate(found, 1):
            for store in stores:
                entry = store.entry(candidate.key)
                if entry.is_file() and same(candidate.path, entry):
                    replace(area, private, candidate, entry, test=test)
                    report.files += 1
                    report.bytes += candidate.status.st_blocks * 512
                    break
            (progress or Silent()).amount("Comparing files", number, len(found))
    return report


def share(
    area: Path,
    privates: Sequence[Path],
    *,
    test: bool = False,
    progress: Progress | None = None,
) -> dict[Path, Linked]:
    """Link files that several of ``privates`` have alike; return what that freed for each.

    The containers must not be mounted, and their locks be held. Raises OSError.
    """
    reports = {private: link_private(area, private, test=test) for private in privates}
    seen: dict[int, set[Path]] = {}
    for private in privates:
        for _path, status in private_files(private / "root"):
            seen.setdefault(status.st_size, set()).add(private)
    sizes = frozenset(size for size, owners in seen.items() if len(owners) > 1)
    groups: dict[str, list[tuple[Path, Candidate]]] = {}
    for private in privates:
        for candidate in candidates(private / "root", sizes=sizes):
            groups.setdefault(candidate.key, []).append((private, candidate))
    store = shared_store(area)
    with lock.area(area, "store"):
        for number, (key, members) in enumerate(groups.items(), 1):
            if len({private for private, _candidate in members}) < 2:
                continue
            entry = store.entry(key)
            if not test:
                _enter(members[0][1], entry)
            for private, candidate in members:
                if test or same(candidate.path, entry):
                    replace(area, private, candidate, entry, test=test)
                    reports[private].files += 1
                    reports[private].bytes += candidate.status.st_blocks * 512
            (progress or Silent()).amount("Sharing files", number, len(groups))
    return reports


def detach(area: Path, private: Path, *, only_shared: bool = True) -> Linked:
    """Replace links by copies of what they lead to (``only_shared``: links into ``vc/``).

    Needed before a container goes where its template area is not. Raises OSError, BrokenLink.
    """
    report = Linked()
    for path, target in users.magic_links(private / "root"):
        if only_shared and not target.startswith("vc/"):
            continue
        source = inspection.resolve(area, target)
        if source is None or not source.is_file() or area.resolve() not in source.parents:
            raise BrokenLink(f"{path} leads to {target}, which is not there")
        directory = os.stat(os.path.dirname(path))
        spare = _spare(private)
        _copy(source, spare)
        os.rename(spare, path)
        _put_back_time(path, directory)
        report.files += 1
        report.bytes += source.stat().st_blocks * 512
    if next(users.magic_links(private / "root"), None) is None:
        (private / "templates" / users.LINKS).unlink(missing_ok=True)
    return report


def same(path: str, entry: Path) -> bool:
    """Tell whether a file equals a store entry in mode, owner, attributes and every byte.

    A digest is not trusted here. Raises OSError.
    """
    one, other = os.lstat(path), os.lstat(entry)
    for field in ("st_size", "st_mode", "st_uid", "st_gid"):
        if getattr(one, field) != getattr(other, field):
            return False
    if _attributes(path) != _attributes(entry):
        return False
    with open(path, "rb") as left, open(entry, "rb") as right:
        while True:
            piece = left.read(_CHUNK_BYTES)
            if piece != right.read(_CHUNK_BYTES):
                return False
            if not piece:
                return True


def _attributes(path: str | Path) -> dict[str, bytes]:
    """Return a file's extended attributes, without VZFS's own marks."""
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith(_OWN_MARKS)
    }


def replace(
    area: Path, private: Path, candidate: Candidate, entry: Path, *, test: bool = False
) -> None:
    """Put a link to ``entry`` in a private file's place; the link counts for the file's owner."""
    if test:
        return
    mark = private / "templates" / users.LINKS
    if not mark.exists():
        files.replace(mark, b"this container has magic links\n", mode=0o600)
    directory = os.stat(os.path.dirname(candidate.path))
    spare = _spare(private)
    os.symlink(f"////{entry.relative_to(area)}", spare)
    os.lchown(spare, candidate.status.st_uid, candidate.status.st_gid)
    os.rename(spare, candidate.path)
    _put_back_time(candidate.path, directory)


def _spare(private: Path) -> Path:
    """Return where to make what then takes a file's place: not in the tree the container sees."""
    spare = private / ".link.tmp"
    # What a killed command left may be a link, which must not be written through.
    spare.unlink(missing_ok=True)
    return spare


def _put_back_time(path: str, directory: os.stat_result) -> None:
    os.utime(os.path.dirname(path), ns=(directory.st_atime_ns, directory.st_mtime_ns))


def _enter(candidate: Candidate, entry: Path) -> None:
    """Copy a private file to its place among the shared ones, whole and durable."""
    if entry.exists():
        return
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    spare = entry.with_name(f".tmp-{entry.name}.{os.getpid()}")
    _copy(Path(candidate.path), spare)
    os.rename(spare, entry)
    files.fsync_directory(entry.parent)


def _copy(source: Path, target: Path) -> None:
    """Copy a file with owner, mode, attributes and times, without VZFS's own marks, durably."""
    status = os.lstat(source)
    with open(source, "rb") as reader, open(target, "wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
        os.fchown(writer.fileno(), status.st_uid, status.st_gid)
        os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))
        for name, value in _attributes(source).items():
            os.setxattr(writer.fileno(), name, value)
        writer.flush()
        os.fsync(writer.fileno())
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def unpack_fetched(template: Template, private: Path, progress: Progress) -> int:
    """Unpack into the template area what was fetched for the container's packages; return how many.

    So a package's files are in the area once, from its first use on. Raises ProgramFailed, OSError.
    """
    status = private / "root/var/lib/dpkg/status"
    if not status.is_file() or any(parent.is_symlink() for parent in list(status.parents)[:4]):
        return 0
    made = 0
    text = status.read_text(encoding="utf-8", errors="surrogateescape")
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
        ["dpkg-deb", "--extract", str(package), str(target)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ProgramFailed(f"dpkg-deb cannot unpack {package}: {done.stderr.strip()}")
