"""Magic links: symbolic links of four slashes which stand for a file of the template area.

``////debian/12/x86_64/bash-5.2/bin/bash`` in a private area is seen through the mount as the
regular file of that path below the template area: its contents, its attributes, its pages in the
cache. Writing to it replaces the link by a copy. Whoever can make such a link can read what is
below the template area and nothing else: targets are resolved by openat2(2), beneath the area,
through no symbolic link.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vzfs import layers, syscalls
from vzfs.layers import Descriptors, Found, Place

PREFIX = b"////"
#: Layer number of places in the template area; no layer of the stack has it.
LAYER = -1
_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


class MagicLinks:
    """Resolves targets below one template area."""

    def __init__(self, area: Path, descriptors: Descriptors, fd: int = -1) -> None:
        """Open the area, read-only, unless it is open. Raises OSError when it is missing."""
        if fd < 0:
            try:
                fd = syscalls.clone_mount(area, read_only=True)
            except PermissionError:
                fd = os.open(area, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root = Place(descriptors, LAYER, None, b"", fd)

    def resolve(self, target: bytes) -> Found | None:
        """Return the file a link's target names, None when it is broken or leads outside."""
        path = target[len(PREFIX) :]
        names = path.split(b"/")
        if not path or any(name in (b"", b".", b"..") for name in names):
            return None
        try:
            fd = syscalls.openat2(self.root.fd, path, os.O_PATH | os.O_NOFOLLOW, _RESOLVE)
        except OSError:
            return None
        try:
            st = os.fstat(fd)
        finally:
            os.close(fd)
        if not stat.S_ISREG(st.st_mode):
            return None
        place = self.root
        for name in names[:-1]:
            place = place.child(name)
        return Found(st, place, names[-1], ())


def target_of(place: Place, name: bytes) -> bytes:
    """Return the target of a link to a file of the template area."""
    return PREFIX + layers.lower_path(place, name)[1:]
