"""A tree as a value: everything about it that two equal trees must share."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

# Times below this were set by a test; later ones are the moment something happened to run.
SET_BY_HAND_NS = 10_000_000 * 10**9
PRIVATE = ("trusted.overlay.", "trusted.vzfs.", "user.overlay.")


@dataclass(frozen=True)
class Entry:
    """One object as seen through one of its names."""

    kind: str
    mode: str
    uid: int
    gid: int
    links: int | None
    size: int | None
    device: int
    mtime_ns: int | None
    same_as: str
    content: bytes | str | None
    attributes: tuple[tuple[str, bytes], ...]


def snapshot(root: Path | str) -> dict[str, Entry]:
    """Return every name below a directory with what it leads to."""
    tree: dict[str, Entry] = {}
    first: dict[int, str] = {}
    for path, status in _walk(str(root)):
        name = os.path.relpath(path, root)
        tree[name] = _entry(path, status, first, name)
    return tree


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    yield root, os.lstat(root)
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path)
        else:
            yield path, status


def _entry(path: str, status: os.stat_result, first: dict[int, str], name: str) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    folder, regular = kind == stat.S_IFDIR, kind == stat.S_IFREG
    content: bytes | str | None = None
    if regular:
        with open(path, "rb") as file:
            content = file.read()
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)
    attributes = tuple(
        (a, os.getxattr(path, a, follow_symlinks=False))
        for a in sorted(os.listxattr(path, follow_symlinks=False))
        if not a.startswith(PRIVATE)
    )
    return Entry(
        kind=oct(kind),
        mode=oct(stat.S_IMODE(status.st_mode)),
        uid=status.st_uid,
        gid=status.st_gid,
        links=None if folder else status.st_nlink,
        size=None if folder else status.st_size,
        device=status.st_rdev,
        mtime_ns=status.st_mtime_ns if status.st_mtime_ns < SET_BY_HAND_NS else None,
        same_as=name if folder else first.setdefault(status.st_ino, name),
        content=content,
        attributes=attributes,
    )


def without_links(tree: dict[str, Entry]) -> dict[str, Entry]:
    """Leave out link counts and link groups."""
    return {name: replace(entry, links=None, same_as="") for name, entry in tree.items()}


def difference(got: dict[str, Entry], wanted: dict[str, Entry]) -> list[str]:
    """Return one line for every name that differs."""
    lines = []
    for name in sorted(got.keys() | wanted.keys()):
        a, b = got.get(name), wanted.get(name)
        if a is None or b is None:
            lines.append(f"{name}: {'missing' if a is None else 'should not be there'}")
        elif a != b:
            fields = [f for f in Entry.__dataclass_fields__ if getattr(a, f) != getattr(b, f)]
            texts = [f"{f} {getattr(a, f)!r:.80} instead of {getattr(b, f)!r:.80}" for f in fields]
            lines.append(f"{name}: {'; '.join(texts)}")
    return lines
