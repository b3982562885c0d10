"""Intentions: written before an act which takes several steps, cleared after it.

What remains after a crash tells the next command what to finish or to undo. One file per
environment and act, so that two containers never wait for each other.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import files
from runtime.paths import Paths


@dataclass(frozen=True, slots=True)
class Intention:
    """An act on an environment that was begun: what, since when (seconds), with which facts."""

    ident: str
    act: str
    since_s: float
    details: dict[str, Any]
    file: Path

    def clear(self) -> None:
        """Say that the act is finished or undone."""
        files.remove(self.file)


@contextmanager
def intention(paths: Paths, ident: int | str, act: str, **details: Any) -> Iterator[Intention]:
    """Record that ``act`` begins on ``ident``; cleared when the block ends normally.

    On an exception the block must have undone its work itself (ExitStack): the record is cleared
    then too. Only a crash leaves it.
    """
    entry = record(paths, ident, act, **details)
    try:
        yield entry
    finally:
        entry.clear()


def record(paths: Paths, ident: int | str, act: str, **details: Any) -> Intention:
    """Write an intention durably and return it; raises OSError."""
    paths.journal.mkdir(parents=True, exist_ok=True)
    entry = Intention(str(ident), act, time.time(), details, paths.journal / f"{ident}.{act}.json")
    body = {"ident": entry.ident, "act": act, "since_s": entry.since_s, "details": details}
    files.replace(entry.file, json.dumps(body).encode(), mode=0o600)
    return entry


def unfinished(paths: Paths) -> frozenset[str]:
    """Return the identities for which something was begun and not cleared."""
    try:
        names = os.listdir(paths.journal)
    except FileNotFoundError:
        return frozenset()
    return frozenset(name.partition(".")[0] for name in names if name.endswith(".json"))


def pending(paths: Paths, ident: int | str) -> list[Intention]:
    """Return what was begun on ``ident`` and not cleared, oldest first.

    Call it with the environment's lock held: then no living command is still at it.
    """
    try:
        names = os.listdir(paths.journal)
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        if not name.startswith(f"{ident}.") or not name.endswith(".json"):
            continue
        file = paths.journal / name
        try:
            body = json.loads(file.read_bytes())
            found.append(
                Intention(body["ident"], body["act"], body["since_s"], body["details"], file)
            )
        except FileNotFoundError:
            continue
    return sorted(found, key=lambda entry: entry.since_s)
