"""File systems a suite can be laid upon: ext4 itself, kernel overlayfs, fuse-overlayfs, vzfs.

A bed owns a directory with `lower`, `upper`, `work` and `merged` in it. Everything it starts is
gone when its `with` block ends, also when the file system under test hangs.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import calls

REPOSITORY = Path(__file__).resolve().parents[3]
OVERLAY_OPTIONS = "redirect_dir=on,index=on,metacopy=off"


class Bed:
    """A directory whose `merged` is the tree under test; the base class mounts nothing."""

    name = "ext4"
    has_lower = False

    def __init__(self, home: Path, lowers: int = 1) -> None:
        self.home = home
        self.upper, self.work, self.merged = (home / n for n in ("upper", "work", "merged"))
        # The uppermost layer comes first, as in lowerdir=.
        self.lowers = tuple(home / f"lower{n}" for n in range(lowers))
        for path in (*self.lowers, self.upper, self.work, self.merged):
            path.mkdir(parents=True, mode=0o755)
            path.chmod(0o755)

    @property
    def lower(self) -> Path:
        """The uppermost lower layer."""
        return self.lowers[0]

    def mount(self) -> None:
        """Make `merged` show the layers."""

    def unmount(self) -> None:
        """Undo `mount`; the layers stay."""

    def remount(self) -> None:
        """Unmount and mount again: whatever was only in memory is lost."""
        self.unmount()
        self.mount()

    def abandon(self) -> None:
        """Get rid of the mount even when nobody answers behind it."""
        self.unmount()

    @contextmanager
    def mounted(self) -> Iterator["Bed"]:
        """Mount for the duration of a block."""
        self.mount()
        try:
            yield self
        finally:
            self.unmount()


class Overlayfs(Bed):
    """Kernel overlayfs, the oracle."""

    name = "overlayfs"
    has_lower = True

    def mount(self) -> None:
        lower = ":".join(map(str, self.lowers))
        data = f"lowerdir={lower},upperdir={self.upper},workdir={self.work},{OVERLAY_OPTIONS}"
        calls.mount("overlay", str(self.merged), "overlay", 0, data)

    def unmount(self) -> None:
        calls.unmount(str(self.merged))


class FuseOverlayfs(Bed):
    """The overlay of rootless containers, a peer in the benchmarks."""

    name = "fuse-overlayfs"
    has_lower = True

    def mount(self) -> None:
        lower = ":".join(map(str, self.lowers))
        data = f"lowerdir={lower},upperdir={self.upper},workdir={self.work},allow_other"
        subprocess.run(["fuse-overlayfs", "-o", data, str(self.merged)], check=True)

    def unmount(self) -> None:
        calls.unmount(str(self.merged))


BEDS: dict[str, type[Bed]] = {bed.name: bed for bed in (Bed, Overlayfs, FuseOverlayfs)}
