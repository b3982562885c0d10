"""Which of a container's differences from its template are damage: what ``recover`` restores.

A file of a package is restored while the container has that package in the template's version;
what its own package manager changed or removed is its business. Configuration files and what lies
where programs and users keep their data stay when they were changed, and return when /etc lost
them. Trees without a package database go by place alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from templates import inspection
from vzfs import syscalls
from vzfs.restoring import Difference, Kind

#: Contents belong to the container's users and programs.
_DATA = (b"/home", b"/media", b"/mnt", b"/root", b"/run", b"/srv", b"/tmp", b"/usr/local", b"/var")
_SETTINGS = (b"/etc", b"/opt")
#: No status file of a package database is larger.
_LARGEST_BYTES = 64 << 20
_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS


@dataclass
class Policy:
    """Answers what to restore; ``changed`` collects the packages that are the container's own."""

    #: Path → packages of the template that have it.
    owners: Mapping[bytes, frozenset[str]]
    conffiles: frozenset[bytes]
    #: Packages the container has in another version than the template, or not any more.
    foreign: frozenset[str]
    changed: set[str] = field(default_factory=set)

    def wanted(self, difference: Difference) -> bool:
        """Whether a difference is damage."""
        path, kind = difference.path, difference.kind
        owners = self.owners.get(path)
        if owners:
            if owners <= self.foreign:
                self.changed |= owners
                return False
            if kind in (Kind.GONE, Kind.EMPTIED, Kind.ATTRIBUTES):
                return True
            return path not in self.conffiles
        if path == b"/":
            return True
        if _below(path, _DATA):
            return False
        if kind is Kind.ATTRIBUTES:
            return not self.owners
        if _below(path, _SETTINGS) or self.owners:
            # Made by the packages' scripts: nobody knows how it ought to be, only that it was.
            return kind in (Kind.GONE, Kind.EMPTIED) and not self.foreign
        return True


def policy(layers: tuple[Path, ...], private: Path) -> Policy:
    """Return what to restore in a private area that stands on ``layers``; raises OSError."""
    owners: dict[bytes, set[str]] = {}
    conffiles: set[bytes] = set()
    versions: dict[str, str] = {}
    for layer in layers:
        status = inspection.resolve(layer, "/var/lib/dpkg/status")
        if status is None or not status.is_file():
            continue
        if not versions:
            # The top-most tree's: it knows the packages of those below.
            versions = _versions(status.read_text(encoding="utf-8", errors="surrogateescape"))
        _read_lists(layer, status.parent / "info", owners, conffiles)
    own = _own_status(private / "root")
    present = versions if own is None else _versions(own)
    foreign = frozenset(name for name in versions if versions[name] != present.get(name))
    return Policy(
        {path: frozenset(names) for path, names in owners.items()}, frozenset(conffiles), foreign
    )


def _versions(text: str) -> dict[str, str]:
    return {fields["Package"]: fields["Version"] for fields in inspection.parse_status(text)}


def _read_lists(
    layer: Path, info: Path, owners: dict[bytes, set[str]], conffiles: set[bytes]
) -> None:
    """Add the paths of every package which a tree's dpkg database knows (dpkg(1), info/)."""
    merged: dict[bytes, bytes] = {}
    for entry in os.scandir(layer):
        if entry.is_symlink():
            target = os.readlink(entry.path).lstrip("/")
            merged[b"/" + os.fsencode(entry.name)] = b"/" + os.fsencode(target)

    def place(path: bytes) -> bytes:
        # Lists say /bin/sh where the tree has merged /bin into /usr/bin.
        top, slash, rest = path[1:].partition(b"/")
        return merged.get(b"/" + top, b"/" + top) + slash + rest

    for entry in os.scandir(info):
        match = re.fullmatch(r"([^:]+)(?::[^:]+)?\.(list|conffiles)", entry.name)
        if match is None:
            continue
        for line in Path(entry.path).read_bytes().splitlines():
            if match[2] == "conffiles":
                conffiles.add(place(line.rsplit(b" ", 1)[-1]))
            elif line not in (b"/.", b""):
                owners.setdefault(place(line), set()).add(match[1])


def _own_status(root: Path) -> str | None:
    """Return the container's own package status; None where it still has the template's.

    What lies there is its root's: a link or a device is not followed, and no more read than fits.
    """
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        fd = syscalls.openat2(top, b"var/lib/dpkg/status", flags, _RESOLVE)
    except OSError:
        return None
    finally:
        os.close(top)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        # A copy of metadata alone: the contents are the template's.
        marks = os.listxattr(fd)
        if not status.st_size or "trusted.overlay.metacopy" in marks:
            return None
        return file.read(_LARGEST_BYTES).decode("utf-8", "surrogateescape")


def _below(path: bytes, places: tuple[bytes, ...]) -> bool:
    return any(path == place or path.startswith(place + b"/") for place in places)
