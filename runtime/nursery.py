"""A small idle process that supervisors are forked from.

What a supervisor never writes to it shares with the process it was forked from, and with all that
came from there, for as long as that process does not write to it either. A command or the service
writes all the time; this one waits, forks and waits. It also has no more loaded than supervisors
need, which makes each of their forks shorter. It ends when nobody can ask it any more.

Wire, one message a fork: N or - (a network is wanted), G or - (the first of the group's descriptors
is a v2 directory), the packed order; descriptors: the answer's pipe, plan, report, standard ones,
control group. The answer is an errno, 4 bytes, 0 for success.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import signal
import socket
from contextlib import ExitStack, suppress
from typing import NoReturn

from runtime import supervisor, syscalls
from runtime.cgroups import Cgroup, Entrance
from runtime.plan import Order

_LONGEST = 1 << 16
_MOST_FDS = 64
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
    if os.fork() == 0:
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
        if syscalls.clone3(0, cgroup_fd=entrance.v2_fd) == 0:
            supervisor.ignore_signals()
            supervisor.run(order.pack(), plan_fd, report_fd, entrance)


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
    while True:
        data, fds, _flags, _address = socket.recv_fds(sock, _LONGEST, _MOST_FDS)
        if not data:
            os._exit(0)
        answer = fds[0]
        number = 0
        try:
            if data[:1] == b"N":
                importlib.import_module(_NETWORK)
            v2 = data[1:2] == b"G"
            if syscalls.clone3(0, cgroup_fd=fds[6] if v2 else -1) == 0:
                sock.close()
                _be_supervisor(data[2:], fds, v2=v2)
        except OSError as error:
            number = error.errno or errno.EIO
        with suppress(OSError):
            os.write(answer, number.to_bytes(4, "little"))
        for fd in fds:
            os.close(fd)


def _be_supervisor(order: bytes, fds: list[int], *, v2: bool) -> NoReturn:
    for target, fd in enumerate(fds[3:6]):
        os.dup2(fd, target, inheritable=True)
    group = fds[6:]
    entrance = Entrance(group[0], tuple(group[1:])) if v2 else Entrance(-1, tuple(group))
    supervisor.run(order, fds[1], fds[2], entrance)
