"""What happened to environments: one JSON line an event in the run directory.

Written by whoever makes something happen (supervisor, commands); read by ``pctl events``. A line
is a single write(2), so that writers never mix; the file is turned once it has grown, keeping one
predecessor.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.paths import Paths

_LARGEST_BYTES = 4 << 20
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: when (seconds since the epoch), to whom, what, and facts on it."""

    time_s: float
    ident: str
    what: str
    facts: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return it as one line for people."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.time_s))
        facts = " ".join(f"{key}={value}" for key, value in self.facts.items())
        return f"{stamp} {self.ident} {self.what} {facts}".rstrip()


def file(paths: Paths) -> Path:
    """Return the file of events."""
    return paths.run / "events.jsonl"


def emit(paths: Paths, ident: int | str, what: str, **facts: Any) -> None:
    """Record an event; never fails its caller (events inform, state decides)."""
    body = {"time_s": round(time.time(), 6), "ident": str(ident), "what": what, "facts": facts}
    target = file(paths)
    with suppress(OSError):
        if target.exists() and target.stat().st_size > _LARGEST_BYTES:
            os.replace(target, target.with_suffix(".1"))
        fd = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(body, separators=(",", ":")).encode() + b"\n")
        finally:
            os.close(fd)


def read(paths: Paths, *, follow: bool = False) -> Iterator[Event]:
    """Yield the recorded events, oldest first; with ``follow``, go on with those that come."""
    target = file(paths)
    for place in () if follow else (target.with_suffix(".1"),):
        with suppress(FileNotFoundError), open(place, encoding="utf-8") as old:
            yield from _parsed(old)
    position, inode = _end(target) if follow else (0, 0)
    while True:
        with suppress(FileNotFoundError), open(target, encoding="utf-8") as stream:
            now = os.fstat(stream.fileno()).st_ino
            stream.seek(position if now == inode else 0)
            inode = now
            yield from _parsed(stream)
            position = stream.tell()
        if not follow:
            return
        time.sleep(_POLL_S)


def _end(target: Path) -> tuple[int, int]:
    try:
        facts = target.stat()
    except FileNotFoundError:
        return 0, 0
    return facts.st_size, facts.st_ino


def _parsed(stream: Any) -> Iterator[Event]:
    while line := stream.readline():
        with suppress(ValueError, TypeError):
            yield Event(**json.loads(line))
