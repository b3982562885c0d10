"""Templates for system tests: definitions of their own, and the one real distribution."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import System

DEBIAN = "debian-12-x86_64"
BUSYBOX = "busybox-1-x86_64"


def debian(system: System) -> str:
    """Return the name of the Debian template, its cache built once for the whole run."""
    done = system.run("vzpkg", "create", "cache", DEBIAN, timeout_s=600)
    assert done.returncode in (0, 29), done.stderr
    return DEBIAN


def place(system: System, name: str) -> Path:
    """Return the directory of a base template in the area."""
    return system.paths.template / Path(*name.split("-")[:3])


def define(system: System, name: str, **files: str) -> Path:
    """Write the definition of a base template; names of fields with ``_`` for ``-`` too."""
    directory = place(system, name) / "config/os/default"
    directory.mkdir(parents=True)
    for field, text in files.items():
        real = field.replace("post_", "post-").replace("pre_", "pre-")
        (directory / real).write_text(text)
    return directory


def copy(system: System, source: str, name: str) -> Path:
    """Make template ``name`` of the definition of another, as an administrator does."""
    import shutil

    directory = place(system, name) / "config/os/default"
    directory.parent.mkdir(parents=True)
    shutil.copytree(place(system, source) / "config/os/default", directory)
    return directory


def tree(system: System, name: str) -> Path:
    """Return the tree of the current cache of ``name``."""
    import json

    body = json.loads((system.paths.template / "cache" / f"{name}.json").read_text())
    return system.paths.template / str(body["tree"])


def trees(system: System) -> list[Path]:
    """Return all finished and unfinished trees of the area."""
    return [
        path
        for path in system.paths.template.glob("*/*/*/tree/*")
        if not path.name.endswith(".groups")
    ]


def inode(path: Path) -> int:
    """Return the inode of a file, links not followed."""
    return os.lstat(path).st_ino
