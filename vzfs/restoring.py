"""Showing a template's files again where a private area which is not mounted hides them.

What hides a lower file is taken away: a whiteout, a private file of the same name, the mark of a
directory that was made anew. Nothing is copied, so what is restored is shared again. The caller
decides about each `Difference`; what lies in the private layer only is never touched.

Copies remember which lower file they come from, and carry its identity (``layers.ORIGIN``). One
that was moved away from a name that is restored becomes a file of its own first: two names of one
identity would be taken for hard links. A kill between any two steps leaves an area in order, and
the next run does the rest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from vzfs import layers
from vzfs.check import Area, Entry
from vzfs.layers import Found, proc_fd, proc_path

_ACLS = ("system.posix_acl_access", "system.posix_acl_default")


class Kind(StrEnum):
    """In which way the private layer differs from those below at a path."""

    #: The name was removed.
    GONE = "gone"
    #: Something else stands there: changed contents, another owner or mode, another kind.
    CHANGED = "changed"
    #: A directory was removed and made anew: what it had below is not seen.
    EMPTIED = "emptied"
    #: Owner, mode or ACL of a directory.
    ATTRIBUTES = "attributes"


@dataclass(frozen=True, slots=True)
class Difference:
    """A lower file or directory that does not show as it is."""

    path: bytes
    kind: Kind
    #: What is below is a directory.
    directory: bool


@dataclass
class Restored:
    """What was done, and what was not although it was wanted: path → why."""

    paths: list[bytes] = field(default_factory=list)
    kept: dict[bytes, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Step:
    entry: Entry
    found: Found
    difference: Difference


class Restorer:
    """Restores what the layers below a private area hold."""

    def __init__(self, area: Area) -> None:
        """Work on ``area``, which was opened for changes."""
        self.area = area
        #: Lower paths of directories that are shown somewhere else now.
        self._moved: dict[bytes, bytes] = {}
        #: Copies by the lower file they come from: (device slot, inode).
        self._copies: dict[tuple[int, int], list[Entry]] = {}

    def restore(self, wanted: Callable[[Difference], bool], *, test: bool = False) -> Restored:
        """Restore every difference ``wanted`` agrees to; with ``test`` only find out.

        Raises OSError; what was restored until then stays.
        """
        done = Restored()
        if not test:
            # Names which lead to a copy through the index get entries of their own.
            self.area.fold()
        steps = [step for step in self._steps(wanted, done) if self._possible(step, done)]
        done.paths = [step.difference.path for step in steps]
        top = self._top(wanted)
        if top is not None:
            done.paths.insert(0, b"/")
        if test:
            return done
        self._part_moved_copies(steps)
        touched = {self.area.stack.upper.root}
        for step in steps:
            self._apply(step)
            touched.add(step.entry.place)
        if top is not None:
            _take_attributes(*top)
        for place in touched:
            fd = os.open(proc_fd(place.open()) + b"/.", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return done

    def _top(self, wanted: Callable[[Difference], bool]) -> tuple[bytes, bytes] | None:
        """Return paths of the root and its model where the root's attributes are to be restored."""
        own = proc_fd(self.area.stack.upper.root.open())
        model = proc_fd(self.area.core.roots[0].open())
        if _same_attributes(own, os.stat(own), model, os.stat(model)):
            return None
        return (own, model) if wanted(Difference(b"/", Kind.ATTRIBUTES, True)) else None

    def _steps(self, wanted: Callable[[Difference], bool], done: Restored) -> list[_Step]:
        """Return what is wanted, parents first; fills the tables of moved things."""
        steps: list[_Step] = []
        #: Directories below which nothing corresponds to the layers.
        apart: list[bytes] = []
        entries = list(self.area.walk())
        entries.sort(key=lambda entry: entry.path.split(b"/"))
        for entry in entries:
            if layers.ORIGIN in entry.marks:
                mark = os.getxattr(entry.proc, layers.ORIGIN, follow_symlinks=False)
                origin = self.area.stack.parse_origin(mark)
                if origin is not None:
                    self._copies.setdefault(origin, []).append(entry)
            if apart and entry.path.startswith(tuple(apart)):
                if layers.REDIRECT in entry.marks and stat.S_ISDIR(entry.stat.st_mode):
                    self._moved[os.getxattr(entry.proc, layers.REDIRECT)] = entry.path
                continue
            found = layers.resolve_file(self.area.core.roots, entry.path)
            directory = stat.S_ISDIR(entry.stat.st_mode)
            if directory and layers.REDIRECT in entry.marks:
                self._moved[os.getxattr(entry.proc, layers.REDIRECT)] = entry.path
                apart.append(entry.path + b"/")
                continue
            if found is None:
                if directory:
                    apart.append(entry.path + b"/")
                continue
            difference = _difference(entry, found)
            if difference is not None and wanted(difference):
                steps.append(_Step(entry, found, difference))
                if difference.kind is Kind.CHANGED and directory:
                    done.kept[entry.path] = "a directory of its own stands there"
                    steps.pop()
                    apart.append(entry.path + b"/")
            elif directory and (
                difference is not None and difference.kind in (Kind.EMPTIED, Kind.CHANGED)
            ):
                apart.append(entry.path + b"/")
        return steps

    def _possible(self, step: _Step, done: Restored) -> bool:
        """Whether nothing of what would show again is shown elsewhere."""
        if not step.difference.directory or step.difference.kind is Kind.ATTRIBUTES:
            return True
        path = step.difference.path
        for lower, here in self._moved.items():
            if lower == path or lower.startswith(path + b"/"):
                done.kept[path] = f"it was moved to {os.fsdecode(here)}"
                return False
        return True

    def _part_moved_copies(self, steps: list[_Step]) -> None:
        """Make files of their own of copies whose lower file shows again under its name."""
        going = {(id(step.entry.place), step.entry.name) for step in steps}
        shown = [step for step in steps if step.difference.kind is not Kind.ATTRIBUTES]
        inodes = {
            (self.area.stack.layers[step.found.place.layer].slot, step.found.stat.st_ino)
            for step in shown
            if not step.difference.directory
        }
        trees = tuple(step.difference.path + b"/" for step in shown if step.difference.directory)
        for origin, entries in self._copies.items():
            for entry in entries:
                if (id(entry.place), entry.name) in going:
                    continue
                source = self.area.lower_of(entry) if layers.METACOPY in entry.marks else None
                # Where it came from is only known of copies that share data still; others lose
                # nothing but their inode number.
                in_tree = bool(trees) and (
                    source is None or layers.lower_path(source.place, source.name).startswith(trees)
                )
                if origin in inodes or (in_tree and not self._at_home(entry, origin)):
                    self._part(entry, source)

    def _at_home(self, entry: Entry, origin: tuple[int, int]) -> bool:
        """Whether a copy hides the very file it was made of."""
        found = layers.resolve_file(self.area.core.roots, entry.path)
        return found is not None and origin == (
            self.area.stack.layers[found.place.layer].slot,
            found.stat.st_ino,
        )

    def _part(self, entry: Entry, source: Found | None) -> None:
        if source is not None:
            self.area.fill(entry, source)
        for mark in (layers.REDIRECT, layers.ORIGIN):
            with suppress(OSError):
                os.removexattr(entry.proc, mark, follow_symlinks=False)

    def _apply(self, step: _Step) -> None:
        entry = step.entry
        dir_fd = entry.place.open()
        if step.difference.kind is Kind.EMPTIED:
            os.removexattr(proc_path(dir_fd, entry.name), layers.OPAQUE, follow_symlinks=False)
            _take_attributes(entry.proc, _proc(step.found))
        elif step.difference.kind is Kind.ATTRIBUTES:
            _take_attributes(entry.proc, _proc(step.found))
        else:
            os.unlink(entry.name, dir_fd=dir_fd)
        self.area.core.trim()


def _difference(entry: Entry, found: Found) -> Difference | None:
    """Return in which way a private entry keeps a lower one from being seen; None: it does not."""
    below = bool(found.directories)
    if layers.is_whiteout(entry.stat):
        return Difference(entry.path, Kind.GONE, below)
    if not (below and stat.S_ISDIR(entry.stat.st_mode)):
        return Difference(entry.path, Kind.CHANGED, below)
    if layers.OPAQUE in entry.marks:
        return Difference(entry.path, Kind.EMPTIED, below)
    if not _same_attributes(entry.proc, entry.stat, _proc(found), found.stat):
        return Difference(entry.path, Kind.ATTRIBUTES, below)
    return None


def _proc(found: Found) -> bytes:
    return proc_path(found.place.open(), found.name)


def _same_attributes(
    path: bytes, own: os.stat_result, model_path: bytes, model: os.stat_result
) -> bool:
    """Whether two directories have the same owner, mode and ACLs."""
    return (own.st_mode, own.st_uid, own.st_gid) == (
        model.st_mode,
        model.st_uid,
        model.st_gid,
    ) and all(_attribute(path, name) == _attribute(model_path, name) for name in _ACLS)


def _take_attributes(path: bytes, model_path: bytes) -> None:
    """Give a private directory owner, mode and ACLs of the one below."""
    model = os.stat(model_path)
    os.chown(path, model.st_uid, model.st_gid)
    for name in _ACLS:
        value = _attribute(model_path, name)
        if value is not None:
            os.setxattr(path, name, value)
        elif _attribute(path, name) is not None:
            os.removexattr(path, name)
    os.chmod(path, stat.S_IMODE(model.st_mode))


def _attribute(path: bytes, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError:
        return None
