"""Changing a quota file by a command: under its lock, durable, errors made into messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vzfs.quotaerror import EXIT_LOCK, QuotaError, open_file
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import F_ATTACHED, F_DIRTY, F_ON


class Edit:
    """An open file under its edit lock, errors turned into QuotaError."""

    def __init__(self, path: Path) -> None:
        self.file = open_file(path)
        self._held = self.file.edit()

    def __enter__(self) -> QuotaFile:
        try:
            self._held.__enter__()
        except TimeoutError as error:
            self.file.close()
            raise QuotaError(
                EXIT_LOCK,
                "cannot get the lock of this quota file",
                "another quota command is at work on it",
            ) from error
        file = self.file
        if not file.served and file.dirty:
            # Said in so many words, or the next checksum would hide it.
            file.set_flags(on=F_DIRTY)
        return file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._held.__exit__(kind, error, trace)
        finally:
            self.file.close()


def settled(file: QuotaFile) -> None:
    """Make a change durable: sealed when the quota is off, written back when it is on."""
    if file.flags & (F_ON | F_ATTACHED):
        file.sync()
    else:
        file.seal()
