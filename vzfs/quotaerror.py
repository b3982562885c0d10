"""How quota commands fail: one exception, with the exit codes of vzquota."""

from __future__ import annotations

from pathlib import Path

from vzfs.quotafile import QuotaFile, QuotaFileError

#: vzquota(8), EXIT STATUS.
EXIT_SYSTEM = 1
EXIT_USAGE = 2
EXIT_CALL = 3
EXIT_FILE = 4
EXIT_RUNNING = 5
EXIT_NOT_RUNNING = 6
EXIT_LOCK = 7
EXIT_CROSSES = 8
EXIT_UGID_INACTIVE = 9
EXIT_DIRTY = 10
EXIT_NO_FILE = 11
EXIT_INTERNAL = 12
EXIT_NO_MOUNT = 13


class QuotaError(Exception):
    """A quota command failed; ``code`` is vzquota's exit status."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        """Carry one line of what and why, and one of what to try."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def open_file(path: Path) -> QuotaFile:
    """Open a quota file; raises QuotaError (11 when there is none, 4 when it is unusable)."""
    try:
        return QuotaFile.open(path)
    except FileNotFoundError:
        raise QuotaError(
            EXIT_NO_FILE, f"quota file {path} does not exist", "vzquota init makes one"
        ) from None
    except QuotaFileError as error:
        raise QuotaError(
            EXIT_FILE,
            f"quota file {path}: {error.strerror}",
            "vzquota drop -f removes it, vzquota init makes a new one",
        ) from error
    except OSError as error:
        raise QuotaError(EXIT_FILE, f"cannot open {path}: {error.strerror}") from error
