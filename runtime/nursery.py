"""A small idle process that supervisors are forked from.

What a supervisor never writes to it shares with the process it was forked from, and with all that
came from there, for as long as that process does not write to it either. A command or the service
writes all the time; this one waits, forks and waits. It also has no more loaded than supervisors
need, which makes each of their forks shorter. It ends when nobody can ask it any more.

When a container has been started, the supervisor of the next one is forked: what does not depend on
the container is done before somebody waits for it (10 ms of 40). Left alone, it ends after a while.

Wire, one message a fork: N or - (a network is wanted), G or - (the first of the group's descriptors
is a v2 directory), the packed order; descriptors: the answer's pipe, those of the order
(``supervisor.run``), control group. The answer is an errno, 4 bytes, 0 for success.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from typing import NoReturn

from runtime import cgroups, children, standby, state, supervisor, syscalls
from runtime.cgroups import Cgroup, Entrance
from runtime.plan import Order

_MOST_FDS = 64
#: Seconds without a start after which the supervisor of the next one is not kept any longer.
_READY_S = 60.0
#: Where the network of a container is made; its libraries are large, most need none.
_NETWORK = "runtime.net.attach"

_asking: socket.socket | None = None


def begin() -> None:
    """Fork the nursery of this process and of all that are forked from it; call it early.

    Only in a process with one thread. Raises OSError.
    """
    global _asking
    supervisor.preload()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.collect()
    gc.freeze()
    if syscalls.fork() == 0:
        ours.close()
        _serve(theirs)
    theirs.close()
    _asking = ours


def fork(order: Order, plan_fd: int, report_fd: int, *, network: bool) -> None:
    """Fork a supervisor from the nursery, if there is one, else from this process.

    Its standard descriptors are those of this process; for the rest see ``supervisor.run``. Raises
    OSError.
    """
    group = Cgroup(order.paths.tag, None)
    group.create()
    entrance = group.entrance()
    with ExitStack() as closing:
        closing.callback(entrance.close)
        with suppress(BrokenPipeError, ConnectionResetError):
            if _asking is not None:
                _ask(_asking, order, (plan_fd, report_fd), entrance, network=network)
                return
        supervisor.preload()
        if network:
            importlib.import_module(_NETWORK)
        orders = _fork(entrance)
        with orders:
            socket.send_fds(orders, [order.pack()], [plan_fd, report_fd, 0, 1, 2])


def _fork(entrance: Entrance) -> socket.socket:
    """Fork a supervisor into its control group; return where it takes its order. Raises OSError."""
    near, far = children.channel()
    with far:
        if syscalls.clone3(0, cgroup_fd=entrance.v2_fd) == 0:
            supervisor.ignore_signals()
            supervisor.run(far, entrance)
    return near


def _ask(
    sock: socket.socket, order: Order, fds: tuple[int, int], entrance: Entrance, *, network: bool
) -> None:
    answer_r, answer_w = os.pipe2(os.O_CLOEXEC)
    with open(answer_r, "rb", buffering=0) as answer:
        try:
            group = [fd for fd in (entrance.v2_fd, *entrance.tasks) if fd >= 0]
            word = (b"N" if network else b"-") + (b"G" if entrance.v2_fd >= 0 else b"-")
            socket.send_fds(sock, [word + order.pack()], [answer_w, *fds, 0, 1, 2, *group])
        finally:
            os.close(answer_w)
        said = answer.read(4)
    if len(said) != 4:
        raise ConnectionResetError
    number = int.from_bytes(said, "little")
    if number:
        raise OSError(number, os.strerror(number))


def _serve(sock: socket.socket) -> NoReturn:
    syscalls.set_name("vz-nursery")
    # Supervisors are nobody's to wait for: who asked hears from them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    supervisor.ignore_signals()
    gc.disable()
    # The standard descriptors of whoever began this are not kept from their readers.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    own = sock.fileno()
    syscalls.close_range(3, own - 1) if own > 3 else None
    syscalls.close_range(own + 1)
    with suppress(BaseException):
        _Nursery(sock).serve()
    os._exit(0)


class _Nursery:
    """The supervisor of the next start, kept ready, and who asks for it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        #: Where the next supervisor waits for its order.
        self._next: socket.socket | None = None
        #: Closes when the last start is over.
        self._last: socket.socket | None = None
        #: Whose supervisors they are, and the way into their control group.
        self._order: Order | None = None
        self._entrance = Entrance(-1, ())

    def serve(self) -> None:
        """Fork supervisors until nobody can ask for one."""
        while True:
            poller = select.poll()
            for waiting in (self._sock, self._next, self._last):
                if waiting is not None:
                    poller.register(waiting, select.POLLIN)
            ready = {fd for fd, _event in poller.poll(_READY_S * 1000 if self._next else None)}
            asked, over, died = (
                waiting is not None and waiting.fileno() in ready
                for waiting in (self._sock, self._last, self._next)
            )
            if died or not ready:
                self._drop()
            if over and self._last is not None:
                self._last.close()
                self._last = None
                if self._next is None:
                    self._next = _fork(self._entrance)
            if asked:
                data, fds, _flags, _address = socket.recv_fds(
                    self._sock, standby.LONGEST, _MOST_FDS
                )
                if not data:
                    return
                self._answer(data, fds)

    def _answer(self, data: bytes, fds: list[int]) -> None:
        number = 0
        first = 1 + standby.FDS
        try:
            self._prepare(Order.unpack(data[2:]), fds[first:], data[:2])
            self._start(data[2:], fds[1:first])
        except OSError as error:
            number = error.errno or errno.EIO
        with suppress(OSError):
            os.write(fds[0], number.to_bytes(4, "little"))
        for fd in fds[:first]:
            os.close(fd)

    def _prepare(self, order: Order, group: list[int], words: bytes) -> None:
        """Note whose supervisors are wanted; one that is ready for another start is let go."""
        fits = self._order is not None and self._order.paths == order.paths
        if words[:1] == b"N" and _NETWORK not in sys.modules:
            importlib.import_module(_NETWORK)
            fits = False
        if not fits:
            self._drop()
        self._entrance.close()
        v2 = words[1:] == b"G"
        self._entrance = Entrance(group[0], tuple(group[1:])) if v2 else Entrance(-1, tuple(group))
        self._order = order

    def _start(self, order: bytes, fds: list[int]) -> None:
        """Give the order to a supervisor that is ready, or else to a new one."""
        if self._last is not None:
            self._last.close()
        self._last, self._next = self._next, None
        if self._last is not None:
            with suppress(OSError):
                socket.send_fds(self._last, [order], fds)
                return
            self._last.close()
        self._last = _fork(self._entrance)
        socket.send_fds(self._last, [order], fds)

    def _drop(self) -> None:
        """Let the supervisor go that is ready; it was the last trace of a system that is gone."""
        if self._next is None:
            return
        with self._next:
            self._next.shutdown(socket.SHUT_WR)
            # It has ended when its side closes.
            self._next.recv(1)
        self._next = None
        if self._order is not None and not state.present(self._order.paths):
            cgroups.prune(self._order.paths.tag)
