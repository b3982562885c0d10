"""What a long action tells whoever waits: messages, steps and amounts.

A sink is chosen once by the command: a bar on a terminal, a line per step elsewhere, JSON lines
with ``--progress=json``. Mechanisms only see the ``Progress`` protocol.
"""

from __future__ import annotations

import json
import sys
from typing import IO, Protocol

from runtime.log import Log, one_line


class Progress(Protocol):
    """Where an action reports to."""

    def say(self, message: str) -> None:
        """Tell a result or a stage in the product's words ("Container is mounted")."""

    def warn(self, message: str) -> None:
        """Tell something the user should know, which stops nothing."""

    def detail(self, message: str) -> None:
        """Tell what only ``--verbose`` shows."""

    def amount(self, what: str, done: float, total: float) -> None:
        """Tell how far ``what`` is; ``done == total`` ends it."""


class Silent:
    """Says nothing: for library use."""

    def say(self, message: str) -> None:
        """Drop ``message``."""

    def warn(self, message: str) -> None:
        """Drop ``message``."""

    def detail(self, message: str) -> None:
        """Drop ``message``."""

    def amount(self, what: str, done: float, total: float) -> None:
        """Drop the amount."""


class Lines:
    """Messages on stdout, warnings and amounts on stderr, everything also in the log."""

    def __init__(
        self, log: Log | None = None, *, ctid: int | str | None = None, quiet: bool = False,
        verbose: bool = False, bars: bool = True,
    ) -> None:  # fmt: skip
        """Report to the console unless ``quiet``, and to ``log``."""
        self.log = log
        self.ctid = ctid
        self._quiet = quiet
        self._verbose = verbose
        self._bars = bars
        self._tenth: dict[str, int] = {}

    def say(self, message: str) -> None:
        """Print ``message`` on stdout and log it."""
        self._note(message, 0)
        if not self._quiet:
            print(message, flush=True)

    def warn(self, message: str) -> None:
        """Print a warning on stderr and log it."""
        self._note(f"warning: {message}", 0)
        if not self._quiet:
            print(f"warning: {one_line(message)}", file=sys.stderr, flush=True)

    def detail(self, message: str) -> None:
        """Log ``message`` at level 2; print it with ``--verbose``."""
        self._note(message, 2)
        if self._verbose and not self._quiet:
            print(message, file=sys.stderr, flush=True)

    def amount(self, what: str, done: float, total: float) -> None:
        """Redraw a line on a terminal; print each further tenth elsewhere."""
        if self._quiet or not self._bars or total <= 0:
            return
        share = min(done / total, 1.0)
        if sys.stderr.isatty():
            width = 30
            filled = int(share * width)
            bar = "█" * filled + "░" * (width - filled)
            end = "\n" if share >= 1.0 else ""
            print(f"\r{what} {bar} {share:4.0%}", end=end, file=sys.stderr, flush=True)
            return
        tenth = int(share * 10)
        if self._tenth.get(what) != tenth:
            self._tenth[what] = tenth
            print(f"{what}: {share:.0%}", file=sys.stderr, flush=True)

    def _note(self, message: str, level: int) -> None:
        if self.log is not None:
            self.log.write(message, ctid=self.ctid, level=level)


class Json:
    """One JSON object a line on ``stream``: for programs that drive us."""

    def __init__(self, stream: IO[str], log: Log | None = None) -> None:
        """Report to ``stream`` and to ``log``."""
        self._stream = stream
        self._log = log

    def say(self, message: str) -> None:
        """Emit an object of kind "message"."""
        self._emit("message", text=message)

    def warn(self, message: str) -> None:
        """Emit an object of kind "warning"."""
        self._emit("warning", text=message)

    def detail(self, message: str) -> None:
        """Emit an object of kind "detail"."""
        self._emit("detail", text=message)

    def amount(self, what: str, done: float, total: float) -> None:
        """Emit an object of kind "amount"."""
        self._emit("amount", what=what, done=done, total=total)

    def _emit(self, kind: str, **fields: str | float) -> None:
        print(json.dumps({"kind": kind, **fields}), file=self._stream, flush=True)
        if self._log is not None and kind in ("message", "warning"):
            self._log.write(str(fields["text"]))
