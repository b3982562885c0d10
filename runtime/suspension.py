"""Suspending containers to disk: why this server cannot, told before anything is touched.

CRIU is what could. It checks every file system of a container for a way to find it again at resume
and has none for those served through FUSE (its request "Support FUSE mountpoints" is open since
2015), which a container's tree is, and the files of its /proc. So the refusal names what is
missing. ``freeze`` is the other way: the state stays in memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from runtime import files
from runtime.errors import CheckpointFailed


def obstacle() -> str:
    """Return why no container of this server can be suspended to disk."""
    if shutil.which("criu", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"):
        return "the installed criu cannot dump a container whose file system is served by VZFS"
    return "criu is not installed, and the present one could not dump a file system like VZFS"


def forget(private: Path) -> bool:
    """Remove the dump in a private area, which a start makes worthless; return whether one was."""
    dump = private / "dump" / "Dump"
    there = dump.exists()
    if there:
        files.remove(dump)
    return there


def check_autostop(text: str) -> str:
    """Check how the server's shutdown ends a container; raises CheckpointFailed for suspend."""
    from runtime.settings import one_of

    word = one_of("stop", "suspend")(text.lower())
    if word == "suspend":
        raise CheckpointFailed(
            f"containers cannot be suspended: {obstacle()}", hint="--autostop stop"
        )
    return word
