"""A private area under quota, mounted and served by a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vzfs import quota, quotastate, server, syscalls
from vzfs.options import Options
from vzfs.quotascan import scan

#: A program that writes blocks until it is refused: PATH SIZE COUNT append|overwrite.
WRITER = """
import os, sys
path, size, count, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
done = 0
try:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_APPEND if how == "append" else 0))
    for number in range(count):
        done += os.write(fd, b"x" * size)
except OSError as error:
    print(error.errno, done)
else:
    print(0, done)
"""


class QuotaBed:
    """Layers, a quota file and a mount below one directory."""

    def __init__(self, top: Path, transport: str = "kernel") -> None:
        """Prepare the directories; ``mount`` mounts."""
        self.top = top
        self.lower, self.upper, self.mount_point = top / "lower", top / "p/root", top / "m"
        self.work = top / "p/cow"
        for path in (self.lower, self.upper, self.work, self.mount_point):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o755)
        self.file = top / "quota.1"
        self.options = Options(
            lower=(self.lower,),
            upper=self.upper,
            work=self.work,
            transport=transport,
            ledger=self.file,
        )
        self.fd = -1
        self.pid = 0

    def mount(self, **limits: int) -> Path:
        """Mount with ``limits`` (of ``quota.Changes``); return the mount point."""
        index = self.work / "index"
        quota.prepare(self.file, self.upper, quota.Changes(**limits), index=index)
        server.preload()
        self.fd = server.open_device()
        server.mount(self.fd, self.options, self.mount_point)
        self.serve()
        return self.mount_point

    def serve(self, *, resume: bool = False) -> None:
        """Start a server."""
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                # Nothing of the test's own (the other end of a pipe) may live on in here.
                kept = sorted((2, self.fd, tell))
                for low, high in zip(kept, (*kept[1:], 1 << 16), strict=True):
                    os.closerange(low + 1, high)
                server.serve(self.fd, self.options, resume, ready=lambda: _ready(tell))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(tell)
        with open(ready, "rb") as pipe:
            if pipe.read(1) != b"r":
                raise AssertionError("the server did not come up")

    def kill(self) -> None:
        """Kill the server as nothing can prevent."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0

    def unmount(self) -> None:
        """Unmount; the server must end by itself, and well."""
        syscalls.umount(self.mount_point)
        os.close(self.fd)
        self.fd = -1
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        assert status == 0

    def close_mount(self) -> None:
        """End the mount by force."""
        # The device first: with nobody to serve it, any other way to look at the mount would wait.
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with suppress(OSError):
            while True:
                syscalls.umount(self.mount_point, 2)
        if self.pid:
            self.kill()

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        self.close_mount()
        shutil.rmtree(self.top, ignore_errors=True)

    def state(self) -> quotastate.Snapshot:
        """Return the exact state of the quota."""
        return quotastate.snapshot(self.file)

    def used_kib(self) -> int:
        """Return the exact usage in KiB."""
        return (self.state().usage.blocks + 1) // 2

    def difference(self) -> tuple[int, int]:
        """Return by how many (blocks, inodes) the quota differs from a count of the area."""
        usage = self.state().usage
        found = scan(self.upper, index=self.work / "index")
        return usage.blocks - found.blocks, usage.inodes - found.inodes

    def settled(self, timeout_s: float = 5.0) -> tuple[int, int]:
        """Return ``difference`` once it is nothing, or as it still is after ``timeout_s``.

        The kernel tells of a close(2) after the caller went on.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.difference()
            if found == (0, 0) or time.monotonic() > deadline:
                return found
            time.sleep(0.01)

    def owners_settled(self) -> bool:
        """Whether the usage of every user and group is what a count finds."""
        self.settled()
        found = scan(self.upper, index=self.work / "index")
        users = {ident: tuple(pair) for ident, pair in found.users.items()}
        groups = {ident: tuple(pair) for ident, pair in found.groups.items()}
        for record in self.state().records:
            counted = (groups if record.kind else users).pop(record.ident, (0, 0))
            if counted != (record.usage.blocks, record.usage.inodes):
                return False
        return not users and not groups


def _ready(tell: int) -> None:
    os.write(tell, b"r")
    os.close(tell)


def fill(
    path: Path, size: int, count: int, how: str = "overwrite", *, uid: int = 0
) -> tuple[int, int]:
    """Write in a process of its own; return (errno or 0, bytes written)."""
    words: Sequence[str] = (str(path), str(size), str(count), how)
    done = subprocess.run(
        [sys.executable, "-I", "-c", WRITER, *words],
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    number, written = done.stdout.split()
    return int(number), int(written)
