"""What a supervisor makes of the end of its file server."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import children, fileserver
from runtime.acts import Kept
from runtime.children import Server
from runtime.fileserver import Ended, FileServer
from runtime.paths import Paths


class Forks:
    """Stands for ``children.fork``: keeps the servers' ends of the channels, or fails."""

    def __init__(self) -> None:
        self.theirs: list[socket.socket] = []
        self.refuse = False

    def __call__(self, name: str, serve: Callable[[], int]) -> tuple[Server, socket.socket]:
        if self.refuse:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        near, far = children.channel()
        self.theirs.append(far)
        return Server(os.getpid(), os.pidfd_open(os.getpid())), near


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Forks:
    made = Forks()
    monkeypatch.setattr(children, "fork", made)
    monkeypatch.setattr(fileserver, "_PAUSE_S", 0.0)
    return made


@pytest.fixture
def kept(tmp_path: Path, forks: Forks) -> Kept:
    made = Kept(Paths(tmp_path), 101, True, False, False, -1, -1, os.getpid())
    made.fuse_fd = os.open("/dev/null", os.O_RDWR)
    made.server, made.server_says = forks("vzfs", lambda: 0)
    return made


def given(theirs: socket.socket) -> int:
    """Return how many descriptors a server was given."""
    theirs.setblocking(False)
    _data, fds, _flags, _address = socket.recv_fds(theirs, children.LONGEST, 64)
    for fd in fds:
        os.close(fd)
    return len(fds)


def rest(theirs: socket.socket) -> None:
    """Say, as a server does, that it rests, and leave two descriptors."""
    socket.send_fds(theirs, [b"Z"], [0, 0])
    theirs.close()


def test_a_dead_server_is_replaced_until_it_dies_too_often(kept: Kept, forks: Forks) -> None:
    files = FileServer(kept)
    for _death in range(5):
        files.replaced = False
        assert files.ended(-9) is Ended.REPLACED
        assert files.replaced
        assert not files.rests
        assert given(forks.theirs[-1]) == 1
    assert files.ended(-9) is Ended.HOPELESS
    assert len(forks.theirs) == 6


def test_one_that_rests_is_replaced_when_it_is_woken(kept: Kept, forks: Forks) -> None:
    files = FileServer(kept)
    for _time in range(10):
        rest(forks.theirs[-1])
        assert files.ended(children.RESTED) is Ended.REPLACED
        assert files.rests
        assert kept.server is None
        files.wake()
        assert not files.rests
        assert kept.server is not None
        assert given(forks.theirs[-1]) == 3
        files.wake()
    assert len(forks.theirs) == 11


def test_who_waits_for_the_first_server_still_hears_of_it(kept: Kept, forks: Forks) -> None:
    files = FileServer(kept)
    assert kept.server_says is not None
    waits = kept.server_says.dup()
    forks.theirs[-1].send(b"R")
    rest(forks.theirs[-1])
    assert files.ended(children.RESTED) is Ended.REPLACED
    files.wake()
    # What the first left cannot be had: the next begins as after a death.
    assert given(forks.theirs[-1]) == 1
    assert children.await_ready(waits)


def test_without_room_for_a_process_it_is_tried_again(kept: Kept, forks: Forks) -> None:
    files = FileServer(kept)
    forks.refuse = True
    assert files.ended(-9) is Ended.REPLACED
    assert files.rests
    files.wake()
    assert files.rests
    forks.refuse = False
    files.wake()
    assert not files.rests
    assert given(forks.theirs[-1]) == 1
    rest(forks.theirs[-1])
    files.ended(children.RESTED)
    forks.refuse = True
    files.wake()
    forks.refuse = False
    files.wake()
    assert given(forks.theirs[-1]) == 3


def test_the_end_of_one_that_was_unmounted_is_no_death(kept: Kept, forks: Forks) -> None:
    files = FileServer(kept)
    assert files.ended(0) is Ended.UNMOUNTED
    kept.server, kept.server_says = forks("vzfs", lambda: 0)
    files.drop()
    assert kept.fuse_fd == -1
    assert files.ended(-9) is Ended.NOTHING
    assert len(forks.theirs) == 2
