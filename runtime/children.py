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
    #: It goes on from where another died.
    resumed: bool
    #: Options of the file system or source of the view, pickled.
    what: bytes

    def send(self, sock: socket.socket, fd: int) -> None:
        """Tell a waiting server, with its connection; one that is dead will be missed elsewhere."""
        with suppress(OSError):
            socket.send_fds(sock, [pickle.dumps(self)], [fd])


def channel() -> tuple[socket.socket, socket.socket]:
    """Return the ends of a connection that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def fork(name: str, serve: Callable[[], None]) -> tuple[Server, socket.socket]:
    """Fork a process that runs ``serve`` and ends; return it and where to tell it what.

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
            serve()
            status = 0
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


def serve_files(hand: Hand | None) -> None:
    """Serve a container's files until they are unmounted; all its servers share the ``hand``."""

    def serve(given: Given, fd: int, ready: Callable[[], None]) -> None:
        options = pickle.loads(given.what)
        vzfs_server.serve(fd, options, given.resumed, hand=hand, ready=ready)

    _serve("vzfs", serve)


def serve_view() -> None:
    """Serve a container's view of /proc while somebody looks."""

    def serve(given: Given, fd: int, ready: Callable[[], None]) -> None:
        procview.serve(fd, pickle.loads(given.what))

    _serve("procview", serve)


def _serve(name: str, body: Callable[[Given, int, Callable[[], None]], None]) -> None:
    """Wait to be told what to serve, and run ``body``; nothing is done when nothing comes.

    It is given what it was told, the connection and how to say that requests are answered. What it
    raises is logged and ends the process with status 1.
    """
    sock = socket.socket(fileno=_CHANNEL_FD)
    data, fds, _flags, _address = socket.recv_fds(sock, LONGEST, 1)
    if not fds:
        return
    given: Given = pickle.loads(data)
    syscalls.set_name(f"{name}-{given.ctid}")

    def ready() -> None:
        with sock, suppress(OSError):
            sock.send(_READY)

    try:
        body(given, fds[0], ready)
    except BaseException:
        given.log.write(f"{name}: {traceback.format_exc()}", ctid=given.ctid)
        os._exit(1)
