"""Which host ids a container's users are: 65,536 of its own, from a range set apart.

The range is the one systemd reserves for containers (UIDS-GIDS.md: 524288…1879048191). A slot is
chosen from the container's id and claimed by a file in the run directory, so that no two
containers of a system ever share ids during one boot. Ids on disk are those of the container,
so a claim that changes with a reboot changes nothing on disk.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress

from runtime.errors import NoResources
from runtime.namespaces import IdRange
from runtime.paths import Paths
from runtime.registry import RESERVED, configured

COUNT = 65536
_FIRST = 524288
#: How many containers can have ids of their own at once.
SLOTS = (1879048192 - _FIRST) // COUNT


def claim(paths: Paths, ctid: int) -> IdRange:
    """Return the host ids of ``ctid``, claiming them if it has none; raises NoResources, OSError."""
    directory = paths.run / "ids"
    directory.mkdir(parents=True, exist_ok=True)
    for sweep in (False, True):
        if sweep:
            release_unconfigured(paths)
        for step in range(SLOTS):
            slot = (_preferred(paths, ctid) + step) % SLOTS
            if _take(f"{directory}/{slot}", ctid):
                return IdRange(_FIRST + slot * COUNT, COUNT)
    raise NoResources("all ranges of user ids are taken")


def _preferred(paths: Paths, ctid: int) -> int:
    # Systems below other roots start elsewhere, so that they rarely meet on the same host.
    offset = zlib.crc32(paths.tag.encode()) if paths.tag else 0
    return (ctid - RESERVED - 1 + offset) % SLOTS


def _take(path: str, ctid: int) -> bool:
    """Whether the claim file ``path`` is ours: a symbolic link, so made with its content."""
    try:
        os.symlink(str(ctid), path)
        return True
    except FileExistsError:
        with suppress(FileNotFoundError):
            return os.readlink(path) == str(ctid)
    return False


def release_unconfigured(paths: Paths) -> None:
    """Drop the claims of containers which do not exist any more."""
    alive = {str(ctid) for ctid in configured(paths)}
    with suppress(FileNotFoundError), os.scandir(paths.run / "ids") as entries:
        for entry in entries:
            with suppress(OSError):
                if os.readlink(entry.path) not in alive:
                    os.unlink(entry.path)
