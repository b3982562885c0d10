"""The file server of one container, as its supervisor keeps it: started again when it died, or rests.

    serves ──died──────────────► serves (another; whoever uses files only waited)
       │ ▲
       │ └── a request comes ──┐
       └── nobody asked ──► rests: no process, what it knew is in descriptors kept here

A server that dies too often is not started again.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

from runtime import children, events, resources, state
from runtime.state import Process

if TYPE_CHECKING:
    from runtime.acts import Kept

#: One that dies more often than this is not started again.
_RESTARTS = 5
_WITHIN_S = 30.0
#: Between two tries to have one.
_PAUSE_S = 0.2


class Ended(Enum):
    """What the end of a server means."""

    #: Nothing is to be done.
    NOTHING = auto()
    #: Nothing is mounted any more.
    UNMOUNTED = auto()
    #: It rests, or another serves.
    REPLACED = auto()
    #: It keeps dying.
    HOPELESS = auto()


class FileServer:
    """Keeps what is in ``Kept`` of the file server."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        #: Nobody serves until the connection, ``Kept.fuse_fd``, has a request, or ends.
        self.rests = False
        #: What the server left that rests.
        self._left: list[int] = []
        #: That another serves, or none, is not in the run state yet.
        self.replaced = False
        self._ends: list[float] = []

    def ended(self, code: int) -> Ended:
        """Go on after the server, which was reaped, ended with ``code``."""
        kept = self._kept
        assert kept.server is not None
        os.close(kept.server.pidfd)
        kept.server = None
        if kept.fuse_fd < 0:
            return Ended.NOTHING  # it never served, or is not to any more
        if code == 0:
            return Ended.UNMOUNTED
        if code == children.RESTED:
            assert kept.server_says is not None
            self._left = children.take_left(kept.server_says)
            self.rests = self.replaced = True
            return Ended.REPLACED
        now = time.monotonic()
        self._ends = [then for then in self._ends if now - then < _WITHIN_S] + [now]
        if len(self._ends) > _RESTARTS:
            kept.log.write("the file server keeps dying: the container is killed", ctid=kept.ctid)
            return Ended.HOPELESS
        kept.log.write(f"the file server died ({code}) and is started again", ctid=kept.ctid)
        events.emit(kept.paths, kept.ctid, "file-server-restarted")
        self._serve()
        return Ended.REPLACED

    def wake(self) -> None:
        """Have the files served again if nobody serves them."""
        if self.rests:
            self._serve()

    def _serve(self) -> None:
        """Have another server go on, with what the former one left if it rested.

        If there is no room for a process now, it is tried again while requests wait.
        """
        kept = self._kept
        serve = partial(children.serve_files, kept.hand)
        try:
            server, says = children.fork("vzfs", serve)
        except OSError as error:
            kept.log.write(f"cannot serve its files just now: {error.strerror}", ctid=kept.ctid)
            self.rests = True
            time.sleep(_PAUSE_S)
            return
        if kept.server_says is not None:
            kept.server_says.close()
        kept.server, kept.server_says = server, says
        kept.give(says, kept.options, [kept.fuse_fd, *self._left], resumed=True)
        self._forget()
        self.replaced = True

    def drop(self) -> None:
        """Keep nothing any more: whatever becomes of the server, it is not started again."""
        self._forget()
        if self._kept.fuse_fd >= 0:
            os.close(self._kept.fuse_fd)
            self._kept.fuse_fd = -1

    def _forget(self) -> None:
        self.rests = False
        for fd in self._left:
            os.close(fd)
        self._left = []

    def note(self) -> None:
        """Write down which process serves the files now, and limit it as the former one was."""
        paths, ctid = self._kept.paths, self._kept.ctid
        self.replaced = False
        server, now = self._kept.server, state.load(paths, ctid)
        if now is None:
            return
        if server is not None:
            resources.share_server(paths.tag, ctid, server.pid)
        replace(now, server=Process.of(server.pid) if server is not None else None).save(paths)
