"""What the host asks of the file server of a mount: files become links, links become files.

An order is one write(2) to ``.vzfs-links`` in the mount's root, its fields separated by NUL (see
``relinking``); the answer is its error. A server that is killed and replaced takes a new word.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from vzfs.relinking import RECENT_NS

_NAME = ".vzfs-links"
#: How often, and how long apart, a new server is asked again.
_TRIES = 40
_TRY_S = 0.1


class Orders:
    """Orders for the mount of one private area."""

    def __init__(self, mount_point: Path, work_area: Path) -> None:
        self._file = mount_point / _NAME
        self._work = work_area
        self._token = b""

    def free(self, path: str, seen: os.stat_result) -> None:
        """Find that nobody has the private file ``path`` (below the root) open for writing.

        Raises OSError: ETXTBSY when somebody has, ESTALE when it is not as ``seen`` any more,
        EINVAL when it cannot be a link, EBUSY.
        """
        self._ask(b"free", os.fsencode(path), *_fields(seen))

    def link(self, path: str, seen: os.stat_result, target: str) -> None:
        """Put a magic link in the place of a file that was found free and compared since.

        Raises OSError as ``free`` does; the file is then as it was.
        """
        self._ask(b"link", os.fsencode(path), *_fields(seen), os.fsencode(target))

    def copy(self, path: str) -> None:
        """Make the data of a file private; raises OSError (ENOENT, EDQUOT, ENOSPC)."""
        self._ask(b"copy", os.fsencode(path))

    def _ask(self, *fields: bytes) -> None:
        for left in reversed(range(_TRIES)):
            try:
                if not self._token:
                    self._token = self._word()
                fd = os.open(self._file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    os.write(fd, b"\0".join((self._token, *fields)))
                finally:
                    os.close(fd)
                return
            except OSError as error:
                if error.errno == errno.EPERM and left:
                    self._token = b""  # of a former server
                elif error.errno != errno.EAGAIN or not left:
                    raise
            time.sleep(max(_TRY_S, RECENT_NS / 1e9))

    def _word(self) -> bytes:
        from vzfs.server import read_session

        return read_session(self._work).get("token", "").encode()


def _fields(seen: os.stat_result) -> tuple[bytes, ...]:
    numbers = (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    return tuple(b"%d" % number for number in numbers)
