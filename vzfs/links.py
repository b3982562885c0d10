"""Files of the lower layers that have several names.

A template tree is a farm of hard links into a package store: nearly every file has a link count
above one, though only one of its names is in the tree. Which ones really have several names *in
these layers* (perl and perl5.36, git's helpers) decides whether a copy-up must keep them
together. Finding out takes a walk over the layers; it is done once, when the first such file is
changed, and remembered in the work area. A template may bring the answer along: the file
``<layer>.hardlinks`` beside a layer (see `write_index`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from vzfs.layers import Layer, Stack, proc_fd

_CACHE = "hardlinks.json"
SUFFIX = ".hardlinks"


class Groups:
    """How many names each lower file has; asks the disk on first use."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._counts: dict[tuple[int, int], int] | None = None

    def count(self, slot: int, inode: int) -> int:
        """Return how many names of the layers lead to a file, at least 1."""
        if self._counts is None:
            self._counts = self._load()
        return self._counts.get((slot, inode), 1)

    @property
    def known(self) -> bool:
        """Whether `count` would answer from memory."""
        return self._counts is not None

    def remember(self) -> None:
        """Load the answer if it costs nothing: it was found before."""
        if self._counts is None:
            self._counts = self._cached()

    def _load(self) -> dict[tuple[int, int], int]:
        cached = self._cached()
        if cached is not None:
            return cached
        total: Counter[tuple[int, int]] = Counter()
        for layer in self._stack.lower:
            counts = read_index(layer.path)
            if counts is None:
                counts = count_names(layer.root.open())
            for inode, count in counts.items():
                total[layer.slot, inode] += count
        groups = {key: count for key, count in total.items() if count > 1}
        self._store(groups)
        return groups

    def _key(self) -> list[str]:
        return [_fingerprint(layer) for layer in self._stack.lower]

    def _cached(self) -> dict[tuple[int, int], int] | None:
        try:
            fd = os.open(_CACHE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._stack.work)
        except FileNotFoundError:
            return None
        try:
            with open(fd, encoding="ascii") as file:
                stored = json.load(file)
        except (OSError, ValueError):
            return None
        if stored.get("layers") != self._key():
            return None
        return {(slot, inode): count for slot, inode, count in stored["groups"]}

    def _store(self, groups: dict[tuple[int, int], int]) -> None:
        path = self._stack.work_path / _CACHE
        spare = path.with_suffix(".new")
        rows = [[slot, inode, count] for (slot, inode), count in sorted(groups.items())]
        # The server's umask is 0.
        spare.touch(mode=0o600)
        spare.write_text(json.dumps({"layers": self._key(), "groups": rows}))
        os.rename(spare, path)


def _fingerprint(layer: Layer) -> str:
    st = os.fstat(layer.root.fd)
    return f"{layer.path}:{st.st_dev}:{st.st_ino}:{st.st_mtime_ns}"


def count_names(root: int) -> dict[int, int]:
    """Return, for each file with more than one name below the directory ``root``, the number.

    Counts by the inode numbers the directory entries carry: no file is asked for anything.
    """
    counts: Counter[int] = Counter()
    device = os.fstat(root).st_dev
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    # Depth first, one descriptor for each level: no path is built, however deep the tree.
    levels: list[tuple[int, list[str]]] = []

    def enter(fd: int) -> None:
        below = []
        if os.fstat(fd).st_dev == device:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        below.append(entry.name)
                    else:
                        counts[entry.inode()] += 1
        levels.append((fd, below))

    enter(os.open(proc_fd(root) + b"/.", flags & ~os.O_NOFOLLOW))
    while levels:
        fd, below = levels[-1]
        if below:
            enter(os.open(below.pop(), flags, dir_fd=fd))
        else:
            os.close(fd)
            levels.pop()
    return {inode: count for inode, count in counts.items() if count > 1}


def index_path(layer: Path) -> Path:
    """Return where the index of a layer is: beside it."""
    return layer.with_name(layer.name + SUFFIX)


def write_index(layer: Path) -> None:
    """Store beside a finished template tree which of its files have several names."""
    fd = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        st = os.fstat(fd)
        counts = count_names(fd)
    finally:
        os.close(fd)
    path = index_path(layer)
    spare = path.with_name(path.name + ".new")
    spare.write_text(json.dumps({"root": st.st_ino, "names": sorted(counts.items())}))
    os.rename(spare, path)


def read_index(layer: Path) -> dict[int, int] | None:
    """Return what `write_index` stored, None when there is none or it is of another tree."""
    try:
        with open(index_path(layer), encoding="ascii") as file:
            stored = json.load(file)
        if stored["root"] != os.stat(layer).st_ino:
            return None
        return dict(stored["names"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
