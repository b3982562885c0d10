"""What provokes each exit status: the table, and the surroundings its rows need."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import BIN

#: Status → what provokes it: a function of the system that yields the words of the command.
Provoked = Callable[..., Iterator[tuple[object, ...]]]
CASES: list[tuple[int, Provoked]] = []


def case(code: int) -> Callable[[Provoked], Provoked]:
    """Enter a provocation of ``code`` into the table."""

    def enter(function: Provoked) -> Provoked:
        CASES.append((code, contextmanager(function)))
        return function

    return enter


@contextmanager
def configured(system, ctid: int, line: str) -> Iterator[None]:
    """Add a line to a container's configuration for the time of a block."""
    conf = system.paths.ct_conf(ctid)
    before = conf.read_text()
    conf.write_text(f"{before}{line}\n")
    try:
        yield
    finally:
        conf.write_text(before)


@contextmanager
def server(system, text: str) -> Iterator[None]:
    """Have ``text`` as vz.conf for the time of a block."""
    system.paths.global_config.write_text(text)
    try:
        yield
    finally:
        system.paths.global_config.unlink()


@contextmanager
def script(path: Path, text: str) -> Iterator[None]:
    """Have an executable script for the time of a block."""
    path.write_text(text)
    path.chmod(0o755)
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Let the file system refuse every change of ``path`` for the time of a block."""
    done = subprocess.run(["chattr", "+i", path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"chattr does not work here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def covered(places: list[Path], *words: object) -> tuple[object, ...]:
    """Return a command that runs with nothing in the directories ``places``, for itself alone."""
    mounts = "".join(f"mount -t tmpfs none {place} && " for place in places)
    inner = [BIN / str(words[0]), *words[1:]]
    return ("/usr/bin/unshare", "-m", "/bin/sh", "-c", f'{mounts}exec "$@"', "sh", *inner)


def groups(system, ctid: int) -> list[Path]:
    return [group for group in system.cgroups() if group.name == str(ctid)]
