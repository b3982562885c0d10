"""The server may be killed at any time: another one takes the descriptor over and all goes on."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import IO, cast

import pytest
from posixcases import beds

from vzfs import layers, syscalls

pytestmark = pytest.mark.root

TRANSPORTS = ("vzfs-kernel", "vzfs-plain", "vzfs-pyfuse3")


class Restartable:
    """A mounted bed whose server can be killed and replaced.

    Servers are forked from a process which has nothing open: one that inherited a file of its own
    mount would wait for itself when closing it.
    """

    def __init__(self, bed: beds.Vzfs) -> None:
        self.bed = bed
        bed.supervised = True
        bed.mount()
        os.listdir(bed.merged)
        self._socket, theirs = socket.socketpair()
        self._nursery = os.fork()
        if not self._nursery:
            self._socket.close()
            self._serve_for(theirs)
        theirs.close()

    def _serve_for(self, orders: socket.socket) -> None:
        server = -1
        try:
            while order := orders.recv(1):
                if order == b"k":
                    os.kill(server, signal.SIGKILL)
                    os.waitpid(server, 0)
                else:
                    self.bed.serve(resume=True)
                    server = self.bed.server
                orders.send(order)
        finally:
            if server >= 0:
                os.kill(server, signal.SIGKILL)
            os._exit(0)

    def _order(self, order: bytes) -> None:
        self._socket.send(order)
        assert self._socket.recv(1) == order

    @property
    def root(self) -> Path:
        return self.bed.merged

    def fork(self) -> int:
        """Fork; the child does not keep the mount's descriptor."""
        child = os.fork()
        if not child:
            os.close(self.bed.device)
            self._socket.close()
        return child

    def kill(self) -> None:
        if self.bed.server >= 0:
            self.bed.kill()
        else:
            self._order(b"k")

    def replace(self) -> None:
        self._order(b"r")

    def restart(self) -> None:
        self.kill()
        self.replace()

    def abandon(self) -> None:
        """End everything."""
        self._socket.close()
        os.waitpid(self._nursery, 0)
        self.bed.abandon()


@pytest.fixture(params=TRANSPORTS)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Restartable]:
    kind = beds.BEDS[request.param]
    assert issubclass(kind, beds.Vzfs)
    bed = kind(tmp_path / "bed", 1)
    lower = bed.lowers[0]
    (lower / "etc" / "deep" / "er").mkdir(parents=True)
    (lower / "etc" / "config").write_text("shared\n")
    (lower / "etc" / "deep" / "er" / "leaf").write_text("leaf\n")
    running = Restartable(bed)
    try:
        yield running
    finally:
        running.abandon()


def test_paths_lead_where_they_led(mounted: Restartable) -> None:
    config = mounted.root / "etc" / "config"
    assert config.read_text() == "shared\n"
    (mounted.root / "new").mkdir()
    (mounted.root / "new" / "file").write_text("mine")
    before = config.stat().st_ino
    mounted.restart()
    assert config.read_text() == "shared\n"
    assert (mounted.root / "new" / "file").read_text() == "mine"
    if mounted.bed.transport == "kernel":
        assert config.stat().st_ino == before
    config.write_text("changed")
    assert config.read_text() == "changed"


def test_open_files_go_on(mounted: Restartable) -> None:
    path = mounted.root / "log"
    with open(path, "w+b", buffering=0) as log, open(mounted.root / "etc/config", "rb") as config:
        log.write(b"before ")
        mounted.restart()
        log.write(b"after")
        log.seek(0)
        assert log.read() == b"before after"
        os.fchmod(log.fileno(), 0o600)
        assert os.fstat(log.fileno()).st_mode & 0o777 == 0o600
        os.ftruncate(log.fileno(), 6)
        assert os.fstat(log.fileno()).st_size == 6
        assert config.read() == b"shared\n"
    assert path.read_bytes() == b"before"


def test_an_unlinked_open_file_survives(mounted: Restartable) -> None:
    path = mounted.root / "gone"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"still here")
        path.unlink()
        mounted.restart()
        file.seek(0)
        if mounted.bed.keeps_removed():
            assert file.read() == b"still here"
        assert not path.exists()


@pytest.mark.parametrize("bed", TRANSPORTS)
def test_a_descriptor_never_leads_to_a_file_that_got_the_inode(tmp_path: Path, bed: str) -> None:
    subject = beds.BEDS[bed](tmp_path / "bed")
    assert isinstance(subject, beds.Vzfs)
    running = Restartable(subject)
    held: dict[int, FileIO] = {}
    try:
        for serial in range(20):
            path = running.root / f"gone{serial}"
            file = open(path, "w+b", buffering=0)
            file.write(b"old")
            held[os.fstat(file.fileno()).st_ino] = file
            path.unlink()
        running.restart()
        reused = 0
        for serial in range(60):
            path = running.root / f"new{serial}"
            path.write_text("new")
            reused += path.stat().st_ino in held
        for file in held.values():
            with suppress(OSError):
                assert os.pread(file.fileno(), 10, 0) in (b"old", b"")
            with suppress(OSError):
                os.pwrite(file.fileno(), b"scribble", 0)
            with suppress(OSError):
                os.ftruncate(file.fileno(), 0)
        for _ in range(2):
            assert {(running.root / f"new{n}").read_text() for n in range(60)} == {"new"}
            running.restart()
        # Only passthrough keeps them. Else ext4 gives the lowest free number.
        assert bool(reused) != subject.keeps_removed()
    finally:
        for file in held.values():
            with suppress(OSError):
                file.close()
        running.abandon()


def test_a_deleted_file_is_freed_though_its_server_died(mounted: Restartable) -> None:
    (mounted.root / "gone").write_text("x")
    upper = os.open(mounted.bed.upper, os.O_RDONLY | os.O_DIRECTORY)
    handle = syscalls.name_to_handle(upper, b"gone")
    with open(mounted.root / "gone", "r+") as file:
        mounted.restart()
        (mounted.root / "gone").unlink()
        if mounted.bed.keeps_removed():
            os.close(syscalls.open_by_handle(upper, handle, os.O_PATH))
            assert file.read() == "x"
    deadline = time.monotonic() + 10
    with pytest.raises(OSError, match="Stale"):
        while time.monotonic() < deadline:
            os.close(syscalls.open_by_handle(upper, handle, os.O_PATH))
            os.statvfs(mounted.root)  # it is done between requests
    os.close(upper)


def test_a_descriptor_can_be_synced_whatever_became_of_its_file(mounted: Restartable) -> None:
    config = mounted.root / "etc" / "config"
    with open(config, "r+") as moved, open(mounted.root / "etc/deep/er/leaf", "r+") as gone:
        os.rename(config, mounted.root / "elsewhere")
        (mounted.root / "etc/deep/er/leaf").unlink()
        mounted.restart()
        if mounted.bed.keeps_removed():
            for file in (moved, gone):
                file.write("more")
                file.flush()
                os.fsync(file.fileno())
                os.fdatasync(file.fileno())
    if mounted.bed.keeps_removed():
        assert (mounted.root / "elsewhere").read_text().startswith("more")


def test_relative_paths_work_in_directories_known_before(mounted: Restartable) -> None:
    inside = mounted.root / "etc" / "deep" / "er"
    here = os.open("/", os.O_RDONLY)
    try:
        os.chdir(inside)
        assert Path("leaf").read_text() == "leaf\n"
        mounted.restart()
        assert Path("leaf").read_text() == "leaf\n"
        Path("made").write_text("new")
        mounted.restart()
        assert sorted(os.listdir(".")) == ["leaf", "made"]
        os.rename("../../deep", "../../moved")
        mounted.restart()
        assert sorted(os.listdir(".")) == ["leaf", "made"]
        Path("again").write_text("x")
    finally:
        os.fchdir(here)
        os.close(here)
    assert (mounted.root / "etc" / "moved" / "er" / "again").read_text() == "x"


def test_requests_wait_while_nobody_answers(mounted: Restartable) -> None:
    mounted.kill()
    child = mounted.fork()
    if not child:
        try:
            (mounted.root / "waited").write_text("for a server")
        finally:
            os._exit(0)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    mounted.replace()
    deadline = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "the request never ended"
        time.sleep(0.01)
    assert (mounted.root / "waited").read_text() == "for a server"


def test_opens_that_wait_for_a_copy_are_served_by_the_next_server(mounted: Restartable) -> None:
    if lost := mounted.bed.loses_requests():
        pytest.skip(lost)
    big = mounted.bed.lowers[0] / "big"
    with open(big, "wb") as file:
        piece = os.urandom(1 << 20)
        for _ in range(400):
            file.write(piece)
    copy = mounted.bed.upper / "big"
    children = []
    for number in range(4):
        child = mounted.fork()
        if not child:
            status = 1
            with suppress(OSError), open(mounted.root / "big", "r+b") as file:
                file.seek(number)
                file.write(b"#")
                status = 0
            os._exit(status)
        children.append(child)
    for _ in range(2):
        deadline = time.monotonic() + 10
        while not copy.exists() or not copy.stat().st_blocks:
            assert time.monotonic() < deadline, "no copy is begun"
        assert layers.METACOPY in os.listxattr(copy), "the copy was whole before the kill"
        mounted.restart()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    with open(mounted.root / "big", "rb") as file, open(big, "rb") as former:
        assert file.read(4) == b"####"
        former.seek(4)
        while piece := former.read(1 << 24):
            assert file.read(1 << 24) == piece
        assert not file.read(1)


def _opened(name: str, mode: str) -> IO[bytes]:
    """Open like open(); an open that meets two deaths, one at each attempt, may fail with ESTALE."""
    for _ in range(3):
        try:
            return cast("IO[bytes]", open(name, mode))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    raise AssertionError(f"{name} stays stale")


def _load(root: Path, number: int, rounds: int) -> int:
    """Work in a directory of one's own, checking every result; returns the exit status."""
    rng = random.Random(number)
    home = root / f"worker{number}"
    home.mkdir()
    os.chdir(home)
    model: dict[str, bytes] = {}
    for step in range(rounds):
        name = f"f{rng.randrange(20)}"
        choice = rng.randrange(6)
        if choice <= 1:
            data = rng.randbytes(rng.randrange(20000))
            with _opened(name + ".new", "wb") as file:
                file.write(data)
            os.rename(name + ".new", name)
            model[name] = data
        elif choice == 2 and name in model:
            with _opened(name, "ab") as file:
                file.write(b"more")
            model[name] += b"more"
        elif choice == 3 and name in model:
            os.unlink(name)
            del model[name]
        elif choice == 4:
            os.makedirs(f"d{step}/e")
            with open(f"d{step}/e/x", "w") as text:
                text.write("x")
            os.rename(f"d{step}", f"r{step}")
            os.unlink(f"r{step}/e/x")
            os.removedirs(f"r{step}/e")
        elif name in model:
            with _opened(name, "rb") as file:
                assert file.read() == model[name], (step, name)
    listed = {name for name in os.listdir(".") if not name.endswith(".new")}
    assert listed == set(model), listed ^ set(model)
    for name, data in model.items():
        with _opened(name, "rb") as file:
            assert file.read() == data, name
    return 0


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("kills", [pytest.param(25, id="25-kills")])
def test_a_mixed_load_does_not_notice_the_server_being_killed(
    tmp_path: Path, name: str, kills: int
) -> None:
    bed = beds.BEDS[name](tmp_path / "bed", 1)
    assert isinstance(bed, beds.Vzfs)
    if lost := bed.loses_requests():
        pytest.skip(lost)
    running = Restartable(bed)
    workers = []
    try:
        for number in range(3):
            child = running.fork()
            if not child:
                status = 1
                try:
                    status = _load(running.root, number, 2000)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            workers.append(child)
        statuses: dict[int, int] = {}
        killed = 0
        deadline = time.monotonic() + 90
        while len(statuses) < len(workers):
            assert time.monotonic() < deadline, "the load does not finish"
            # A new server has time to answer what waits before it is killed.
            time.sleep(random.uniform(0.1, 0.2))
            if killed < kills:
                running.restart()
                os.statvfs(running.root)
                killed += 1
            for child in workers:
                if child not in statuses:
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        statuses[child] = os.waitstatus_to_exitcode(status)
        assert list(statuses.values()) == [0] * len(workers)
        assert killed > 5
    finally:
        for child in workers:
            if child not in statuses:
                os.kill(child, signal.SIGKILL)
        running.abandon()
