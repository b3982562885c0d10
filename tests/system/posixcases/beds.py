"""File systems a suite can be laid upon: ext4 itself, kernel overlayfs, fuse-overlayfs, vzfs.

A bed owns a directory with `lower`, `upper`, `work` and `merged` in it. Everything it starts is
gone when its `with` block ends, also when the file system under test hangs.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import select
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

import pytest

from . import calls

if TYPE_CHECKING:
    from vzfs.options import Options
    from vzfs.resend import Hand

#: How a server ends that rests.
_RESTED = 3
OVERLAY_OPTIONS = "redirect_dir=on,index=on,metacopy=off"


class Bed:
    """A directory whose `merged` is the tree under test; the base class mounts nothing."""

    name = "ext4"
    has_lower = False
    # Moves (posixcases.moves) which the subject refuses by a limit of its own.
    refuses: frozenset[str] = frozenset()

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

    @classmethod
    def missing(cls) -> str:
        """Return what this machine lacks for the bed and how to get it, or nothing."""
        return ""

    def mount(self) -> None:
        """Make `merged` show the layers."""

    def unmount(self) -> None:
        """Undo `mount`; the layers stay."""

    def remount(self) -> None:
        """Unmount and mount again: whatever was only in memory is lost."""
        self.unmount()
        self.mount()

    def pause(self) -> None:
        """Let what happens by itself after a while happen."""

    def abandon(self) -> None:
        """Get rid of the mount even when nobody answers behind it, or there is none."""
        # stat(2) fails on the mount of a dead server, so ismount() cannot be asked.
        while True:
            try:
                calls.unmount(str(self.merged))
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):
                    return
                raise

    @contextmanager
    def mounted(self) -> Iterator[Bed]:
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
        command = ["fuse-overlayfs", "-o", data, str(self.merged)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    def unmount(self) -> None:
        calls.unmount(str(self.merged))


class Vzfs(Bed):
    """The file system under test, its server forked from this process."""

    name = "vzfs-kernel"
    transport = "kernel"
    has_lower = True
    #: Further fields of vzfs.options.Options.
    settings: Mapping[str, object] = MappingProxyType({})
    server = -1
    device = -1
    #: Keep the descriptor of /dev/fuse, so that `serve(resume=True)` can follow a dead server.
    supervised = False
    #: What the servers of a mount share, where the kernel does not keep their requests.
    hand: Hand | None = None

    @classmethod
    def missing(cls) -> str:
        return _lacks("vzfs.transport_kernel")

    @property
    def log(self) -> Path:
        """Where the server's words go."""
        return self.home / "server.log"

    def options(self) -> Options:
        """Return what the server is told."""
        from vzfs.options import Options

        return Options(
            lower=self.lowers,
            upper=self.upper,
            work=self.work,
            transport=self.transport,
            **self.settings,  # type: ignore[arg-type]
        )

    def attach(self) -> None:
        """Mount, with nobody to serve it yet."""
        from vzfs import server

        self.hand = self.new_hand()
        self.device = server.open_device()
        server.mount(self.device, self.options(), self.merged)

    def mount(self) -> None:
        from vzfs import server

        server.preload()
        self.attach()
        self.serve()
        if not self.supervised:
            self.let_go()

    def new_hand(self) -> Hand | None:
        """Return what a supervisor here would give every server."""
        from vzfs import server

        return None if server.keeps_requests() else server.Hand()

    def keeps_removed(self) -> bool:
        """Whether a removed file that is open outlives its server: the kernel has it open too."""
        from vzfs import server

        passes = self.settings.get("passthrough", True) and server.offers_passthrough()
        return self.transport == "kernel" and bool(passes)

    def loses_requests(self) -> str:
        """Return why requests in the hand of a killed server are lost, or nothing."""
        from vzfs import server

        if self.transport == "kernel" or server.keeps_requests():
            return ""
        return "before Linux 6.9 only the own transport keeps the requests of a killed server"

    def let_go(self) -> None:
        """Close our own descriptor of /dev/fuse: without a server the mount is then dead."""
        if self.device >= 0:
            os.close(self.device)
            self.device = -1

    def serve(self, resume: bool = False, prepare: Callable[[], None] = lambda: None) -> None:
        """Fork a server for the mount; `prepare` runs in it first."""

        child = os.fork()
        if child:
            self.server = child
            return
        device = self.device
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            log = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            os.dup2(log, 2)
            # What the tests hold open would keep other mounts busy.
            os.closerange(3, device)
            os.closerange(device + 1, 65536)
            prepare()
            self.run(device, resume)
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def run(self, device: int, resume: bool) -> None:
        """Serve the mount, in the process that was forked for that."""
        from vzfs import server

        server.serve(device, self.options(), resume=resume, hand=self.hand)

    def unmount(self) -> None:
        calls.unmount(str(self.merged), 0)
        self.let_go()
        self._reap(10)

    def abandon(self) -> None:
        """Kill the server: the kernel then fails every request that waits for it."""
        self.let_go()
        self._reap(0)
        super().abandon()

    def kill(self) -> None:
        """kill -9 the server and wait until it is gone."""
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)
        self.server = -1

    def died(self) -> bool:
        """Whether the server ended by itself; it is reaped then."""
        if self.server >= 0 and os.waitpid(self.server, os.WNOHANG)[0]:
            self.server = -1
        return self.server < 0

    def _reap(self, patience_s: float) -> None:
        if self.server < 0:
            return
        deadline = time.monotonic() + patience_s
        while not (done := os.waitpid(self.server, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.kill()
                if patience_s:
                    raise AssertionError("the server outlives its mount")
                return
            time.sleep(0.002)
        self.server = -1
        status = os.waitstatus_to_exitcode(done[1])
        if patience_s and status != 0:
            raise AssertionError(f"the server ended with {status}:\n{self.log.read_text()[-3000:]}")


class VzfsPlain(Vzfs):
    """Our own transport as it is before Linux 6.9: no passthrough, requests kept by ourselves."""

    name = "vzfs-plain"
    settings = MappingProxyType({"passthrough": False})

    def new_hand(self) -> Hand | None:
        from vzfs import server

        return server.Hand()


class VzfsResting(Vzfs):
    """A server that rests whenever nothing was asked for two milliseconds, and who keeps it."""

    name = "vzfs-resting"
    settings = MappingProxyType({"rest_s": 0.002})

    @property
    def rests(self) -> int:
        """How often a server has rested."""
        count = self.home / "rests"
        return count.stat().st_size if count.exists() else 0

    def pause(self) -> None:
        time.sleep(3 * self.options().rest_s)

    def run(self, device: int, resume: bool) -> None:
        count = os.open(self.home / "rests", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        left: list[int] = []
        while True:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            child = os.fork()
            if child == 0:
                self._serve_once(device, resume, left, theirs)
            theirs.close()
            for fd in left:
                os.close(fd)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            if code != _RESTED:
                os._exit(code if code >= 0 else 128 - code)
            with ours:
                left = socket.recv_fds(ours, 1, 64)[1]
            os.write(count, b".")
            poller = select.poll()
            poller.register(device, select.POLLIN)
            poller.poll()
            resume = True

    def _serve_once(
        self, device: int, resume: bool, left: list[int], said: socket.socket
    ) -> NoReturn:
        from vzfs import server

        def rest(fds: list[int]) -> bool:
            socket.send_fds(said, [b"."], fds)
            return True

        status = 1
        try:
            options = self.options()
            rested = server.serve(
                device, options, resume, hand=self.hand, rest=rest, left=left or None
            )
            status = _RESTED if rested else 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)


class VzfsPyfuse3(Vzfs):
    """The same over the portable transport."""

    name = "vzfs-pyfuse3"
    transport = "pyfuse3"
    refuses = frozenset({"allocate"})  # the library has no fallocate

    @classmethod
    def missing(cls) -> str:
        return _lacks("vzfs.transport_pyfuse3") or _lacks("pyfuse3")


def _lacks(module: str) -> str:
    return "" if importlib.util.find_spec(module) else f"no module {module}"


BEDS: dict[str, type[Bed]] = {
    bed.name: bed
    for bed in (Bed, Overlayfs, FuseOverlayfs, Vzfs, VzfsPlain, VzfsResting, VzfsPyfuse3)
}


def supervised(bed: str, home: Path, **settings: object) -> Vzfs:
    """Return a bed whose server can be replaced, with further fields of its options."""
    kind = BEDS[bed]
    if missing := kind.missing():
        pytest.skip(missing)
    subject = kind(home / "bed")
    assert isinstance(subject, Vzfs)
    subject.supervised = True
    subject.settings = {**subject.settings, **settings}
    return subject
