"""What a supervisor tells the command that started it: JSON lines over a pipe.

The last line is ``ready``, ``error`` or (for a command run to its end) ``exit``; a pipe that
closes before means that the supervisor died.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator
from typing import Any

from runtime import errors
from runtime.errors import VzError
from runtime.progress import Progress


class CallerGone(Exception):
    """The command that waited for us is dead."""


class Reporter:
    """The supervisor's end: a ``Progress`` that writes to the pipe."""

    def __init__(self, fd: int) -> None:
        """Write to ``fd``."""
        self.fd = fd

    def send(self, **fields: Any) -> None:
        """Write one line; raises CallerGone."""
        if self.fd < 0:
            return
        try:
            os.write(self.fd, json.dumps(fields).encode() + b"\n")
        except BrokenPipeError:
            raise CallerGone from None

    def ready(self) -> None:
        """Say that the container is started or mounted; raises CallerGone."""
        if self.fd >= 0:
            try:
                os.write(self.fd, b'{"ready": true}\n')
            except BrokenPipeError:
                raise CallerGone from None

    def heed(self) -> None:
        """Look whether anybody listens; raises CallerGone."""
        if self.fd >= 0:
            poller = select.poll()
            poller.register(self.fd, 0)
            if poller.poll(0):
                raise CallerGone

    def say(self, message: str) -> None:
        """Pass ``message`` on; raises CallerGone."""
        self.send(say=message)

    def warn(self, message: str) -> None:
        """Pass a warning on; raises CallerGone."""
        self.send(warn=message)

    def detail(self, message: str) -> None:
        """Pass a detail on; raises CallerGone."""
        self.send(detail=message)

    def amount(self, what: str, done: float, total: float) -> None:
        """Drop the amount: nothing here takes that long."""

    def error(self, error: VzError) -> None:
        """Pass an error on, to be raised again by the command; raises CallerGone."""
        self.send(error=type(error).__name__, message=error.message, hint=error.hint)


def follow(fd: int, progress: Progress) -> Iterator[dict[str, Any]]:
    """Pass the messages from ``fd`` to ``progress``; yield every other line.

    Raises the error the supervisor reports, when it has ended. Closes ``fd`` at the end.
    """
    with open(fd, "rb") as pipe:
        for raw in pipe:
            line = json.loads(raw)
            if "say" in line:
                progress.say(line["say"])
            elif "warn" in line:
                progress.warn(line["warn"])
            elif "detail" in line:
                progress.detail(line["detail"])
            elif "error" in line:
                pipe.read()
                raise _rebuilt(line)
            else:
                yield line


def _rebuilt(line: dict[str, Any]) -> VzError:
    kind = getattr(errors, line["error"], errors.SystemFailure)
    if not (isinstance(kind, type) and issubclass(kind, VzError)):
        kind = errors.SystemFailure
    return kind(line["message"], hint=line["hint"])
