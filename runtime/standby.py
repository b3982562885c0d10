"""What a start needs, forked before it is known which start: file server, view, first act.

All of them wait, so that what they cost is not paid when somebody waits for a container.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from runtime import acts, children, syscalls
from runtime.acts import Act, Kept
from runtime.children import Server
from runtime.plan import Order
from vzfs import server as vzfs_server
from vzfs.server import Hand

#: The longest packed order, in bytes.
LONGEST = 1 << 16
#: Descriptors of an order: plan, report, standard ones.
FDS = 5


@dataclass(frozen=True, slots=True)
class Standby:
    """The processes for one start, children of this one, the supervisor."""

    files: tuple[Server, socket.socket]
    view: tuple[Server, socket.socket]
    #: What the file servers share, where the kernel does not keep their requests.
    hand: Hand | None
    #: Where the act is told what to start, and tells what to keep.
    act: socket.socket

    @classmethod
    def fork(cls) -> Standby:
        """Fork them; raises OSError.

        This process has nothing open that they must not have, and nothing done yet: what it has
        written to is twice in memory.
        """
        hand = None if vzfs_server.keeps_requests() else Hand()
        files = children.fork("vzfs", partial(children.serve_files, hand))
        view = children.fork("procview", children.serve_view)
        near, far = children.channel()
        supervisor = os.getpid()
        with far:
            if syscalls.fork() == 0:
                near.close()
                _act(far, supervisor, files, view)
        return cls(files, view, hand, near)

    def obey(self, order: bytes, fds: list[int]) -> Kept:
        """Have them start what the packed ``order`` says; return what the supervisor keeps.

        ``fds`` are its descriptors (``FDS``); those of the caller are closed. Raises OSError.
        """
        socket.send_fds(self.act, [order], fds)
        for fd in fds[2:]:
            os.close(fd)
        kept = _kept(order, fds, os.getpid(), self.files, self.view)
        if kept.view_channel is not None:
            kept.view_channel.close()
        kept.server_says = kept.server_channel
        kept.server_channel = kept.view_channel = None
        kept.hand = self.hand
        return kept


def _kept(
    order: bytes,
    fds: list[int],
    supervisor: int,
    files: tuple[Server, socket.socket],
    view: tuple[Server, socket.socket],
) -> Kept:
    said = Order.unpack(order)
    kept = Kept(
        said.paths,
        said.ctid,
        said.run,
        said.follow,
        said.logging,
        fds[0],
        fds[1],
        supervisor,
        server=files[0],
        server_channel=files[1],
    )
    if said.run:
        kept.view, kept.view_channel = view
    else:
        # It ends when nobody can tell it anything any more.
        view[1].close()
        os.close(view[0].pidfd)
    return kept


def _act(
    sock: socket.socket,
    supervisor: int,
    files: tuple[Server, socket.socket],
    view: tuple[Server, socket.socket],
) -> NoReturn:
    """Wait for the order and start what it says."""
    with suppress(BaseException):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        syscalls.set_name("vz-act")
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        data, fds, _flags, _address = socket.recv_fds(sock, LONGEST, FDS)
        if len(fds) == FDS and os.getppid() == supervisor:
            for target, fd in enumerate(fds[2:]):
                os.dup2(fd, target, inheritable=True)
                os.close(fd)
            acts.do(Act.START, _kept(data, fds, supervisor, files, view), sock, None)
    os._exit(0)
