"""Servers beside a container: forked early, told later what to serve, cut off from their parent.

What its parent has written to by the time of a fork a server has in memory too; so it is forked
before anything was done, and waits.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from runtime import procview, syscalls
from runtime.log import Log
from vzfs import server as vzfs_server
from vzfs.server import Hand

#: Where a server has its end of the channel.
_CHANNEL_FD = 3
_READY = b"R"
_RESTS = b"Z"
#: How a file server ends that rests, see ``take_left``.
RESTED = 3
#: The most descriptors of a message.
_MOST_FDS = 250
#: The longest message of a channel, in bytes.
LONGEST = 1 << 15


@dataclass(frozen=True, slots=True)
class Server:
    """A child that serves a file system; the descriptor names it when its id is free again."""

    pid: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class Given:
    """What a server is told to serve."""

    log: Log
    ctid: int
    #: It goes on from where another died, or rested.
    resumed: bool
    #: Options of the file system or source of the view, pickled.
    what: bytes

    def send(self, sock: socket.socket, fds: list[int]) -> None:
        """Tell a waiting server; one that is dead will be missed elsewhere.

        ``fds`` are its connection, and what a file server left that rests.
        """
        with suppress(OSError):
            socket.send_fds(sock, [pickle.dumps(self)], fds)


def channel() -> tuple[socket.socket, socket.socket]:
    """Return the ends of a connection that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def fork(name: str, serve: Callable[[], int]) -> tuple[Server, socket.socket]:
    """Fork a process that runs ``serve`` and ends with that status; return where to tell it what.

    It has the other end of that channel and no other descriptor; its standard ones lead nowhere,
    so that nobody who reads a command's output waits for it. Raises OSError.
    """
    near, far = channel()
    with far:
        pid = syscalls.fork()
        if pid:
            return Server(pid, os.pidfd_open(pid)), near
        status = 1
        with suppress(BaseException):
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            syscalls.set_name(name)
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
            _keep_only(far.detach())
            status = serve()
        os._exit(status)


def _keep_only(fd: int) -> None:
    if fd != _CHANNEL_FD:
        os.dup2(fd, _CHANNEL_FD, inheritable=False)
    fcntl.fcntl(_CHANNEL_FD, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    syscalls.close_range(_CHANNEL_FD + 1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def serve_files(hand: Hand | None) -> int:
    """Serve a container's files until they are unmounted, or nobody asks for them any more.

    All its servers share the ``hand``. Returns the status to end with: 0, or RESTED.
    """

    def serve(given: Given, fds: list[int], sock: socket.socket) -> int:
        def ready() -> None:
            # Who started it waits only for the first of a mount.
            if not given.resumed:
                with suppress(OSError):
                    sock.send(_READY)

        def rest(left: list[int]) -> bool:
            try:
                socket.send_fds(sock, [_RESTS], left)
            except OSError:
                return False
            return True

        options = pickle.loads(given.what)
        rested = vzfs_server.serve(
            fds[0], options, given.resumed, hand=hand, ready=ready, rest=rest, left=fds[1:]
        )
        return RESTED if rested else 0

    return _serve("vzfs", serve)


def await_ready(sock: socket.socket) -> bool:
    """Wait until the first file server of a mount answers requests; False: it never will."""
    with suppress(ConnectionResetError):
        return sock.recv(1) == _READY
    return False


def take_left(sock: socket.socket) -> list[int]:
    """Return what a file server left that ended with RESTED, told it over ``sock``; else nothing."""
    with suppress(OSError):
        # Not what somebody waits for still; and not by recv_fds, which passes no flags on.
        if sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == _RESTS:
            return socket.recv_fds(sock, 1, _MOST_FDS)[1]
    return []


def serve_view() -> int:
    """Serve a container's view of /proc while somebody looks; returns the status to end with."""

    def serve(given: Given, fds: list[int], sock: socket.socket) -> int:
        sock.close()
        procview.serve(fds[0], pickle.loads(given.what))
        return 0

    return _serve("procview", serve)


def _serve(name: str, body: Callable[[Given, list[int], socket.socket], int]) -> int:
    """Wait to be told what to serve, and run ``body``; nothing is done when nothing comes.

    It is given what it was told, the descriptors with it and the channel. Returns what it returns;
    what it raises is logged and ends the process with status 1.
    """
    sock = socket.socket(fileno=_CHANNEL_FD)
    data, fds, _flags, _address = socket.recv_fds(sock, LONGEST, _MOST_FDS)
    if not fds:
        return 0
    given: Given = pickle.loads(data)
    syscalls.set_name(f"{name}-{given.ctid}")
    try:
        return body(given, list(fds), sock)
    except BaseException:
        given.log.write(f"{name}: {traceback.format_exc()}", ctid=given.ctid)
        os._exit(1)
