"""The product's log, vzctl.log: one line an action, in vzctl's form.

``LOGGING``, ``LOGFILE`` and ``LOG_LEVEL`` of vz.conf(5) apply: level 0 records actions and errors,
1 helper commands, 2 details, 3 command lines. Writing never fails a command: a log that cannot be
written is reported once on stderr.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


class Log:
    """Appends lines to one file; each line is a single write(2), so that writers never mix."""

    def __init__(self, path: Path, *, program: str, level: int = 0, enabled: bool = True) -> None:
        """Log to ``path`` what is at most ``level``, as ``program``."""
        self._path = path
        self._program = program
        self._level = level
        self._enabled = enabled

    def write(self, text: str, *, ctid: int | str | None = None, level: int = 0) -> None:
        """Append ``text`` as one line; control characters in it are escaped."""
        if not self._enabled or level > self._level:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        about = f" CT {ctid} :" if ctid is not None else ""
        line = f"{stamp} {self._program} :{about} {one_line(text)}\n"
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except FileNotFoundError:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(
                    self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640
                )
            except OSError as error:
                self._give_up(error)
                return
        except OSError as error:
            self._give_up(error)
            return
        try:
            os.write(fd, line.encode("utf-8", "surrogateescape"))
        except OSError as error:
            self._give_up(error)
        finally:
            os.close(fd)

    def _give_up(self, error: OSError) -> None:
        self._enabled = False
        print(f"warning: cannot write the log {self._path}: {error.strerror}", file=sys.stderr)


def one_line(text: str) -> str:
    """Return ``text`` without control characters, so that it can forge neither line nor colour."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode("ascii")
        for char in text.strip()
    )
