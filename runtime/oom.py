"""Watching for processes of a container that the kernel killed for want of memory.

The kernel tells at once: on cgroup v2 a change of ``memory.events`` makes the file readable with
priority (cgroup-v2.rst), on v1 an eventfd registered for ``memory.oom_control`` does (memory.rst
of v1, section 10). Who was killed stands in the kernel's log, which knows the control group.
"""

from __future__ import annotations

import os
import re
import select
import time
from contextlib import suppress
from dataclasses import dataclass

from runtime.cgroups import hierarchies
from runtime.log import one_line

#: v1 tells when the kernel begins to look for a victim: so long may the killing take, in seconds.
_PATIENCE_S = 0.1
#: A record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg): prefix;text.
_RECORD = re.compile(rb"[^;]*;oom-kill:(.*)")
_FIELD = re.compile(rb"(task_memcg|task|pid)=([^,\n]*)")
_COUNT = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)
_READ = os.O_RDONLY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Kills:
    """What happened since the last time: how many processes were killed, and those known by name."""

    count: int
    #: "NAME (PID on the server)".
    victims: tuple[str, ...] = ()


class Watch:
    """Waits for kills in one container; where the kernel tells nothing, none are seen."""

    def __init__(self, tag: str, ctid: int) -> None:
        """Watch container ``ctid`` of the system with ``tag``, whose control groups are there."""
        name = f"pyvz{tag}/{ctid}"
        self._group = f"/{name}".encode()
        self._counter = self._eventfd = self._log = -1
        self._poller: select.epoll | None = None
        self._seen = 0
        hosts = hierarchies()
        with suppress(OSError):
            if "memory" in hosts.v1:
                self._watch_v1(f"{hosts.v1['memory']}/{name}")
            elif hosts.v2 is not None:
                self._counter = os.open(f"{hosts.v2}/{name}/memory.events", _READ)
                self._poller = select.epoll()
                self._poller.register(self._counter, select.EPOLLPRI | select.EPOLLERR)
        if self._counter < 0:
            return
        self._seen = self._count()
        with suppress(OSError):
            self._log = os.open("/dev/kmsg", _READ | os.O_NONBLOCK)
            # From here on only what comes is read.
            os.lseek(self._log, 0, os.SEEK_END)

    def _watch_v1(self, place: str) -> None:
        self._counter = os.open(f"{place}/memory.oom_control", _READ)
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        registry = os.open(f"{place}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(registry, b"%d %d" % (self._eventfd, self._counter))
        finally:
            os.close(registry)

    def descriptors(self) -> list[int]:
        """Return what becomes readable when something was killed, for poll(2)."""
        if self._poller is not None:
            return [self._poller.fileno()]
        return [self._eventfd] if self._eventfd >= 0 else []

    def kills(self) -> Kills:
        """Return what was killed since the last call."""
        awaited = False
        if self._eventfd >= 0:
            with suppress(BlockingIOError):
                os.eventfd_read(self._eventfd)
                awaited = True
        count = self._count()
        deadline = time.monotonic() + _PATIENCE_S
        while awaited and count == self._seen and time.monotonic() < deadline:
            time.sleep(0.01)
            count = self._count()
        new, self._seen = count - self._seen, count
        return Kills(new, self._victims()) if new > 0 else Kills(0)

    def _count(self) -> int:
        """Return how many were killed since the start; reading also re-arms v2's file."""
        try:
            match = _COUNT.search(os.pread(self._counter, 4096, 0))
        except OSError:
            # The group is gone: its file would be readable for ever.
            self.close()
            return self._seen
        return int(match[1]) if match else 0

    def _victims(self) -> tuple[str, ...]:
        found = []
        while self._log >= 0:
            try:
                record = os.read(self._log, 8192)
            except BrokenPipeError:
                # Overwritten before it was read: the next one is there.
                continue
            except OSError:
                break
            match = _RECORD.match(record)
            if match is None:
                continue
            facts = dict(_FIELD.findall(match[1]))
            group = facts.get(b"task_memcg", b"")
            if group == self._group or group.startswith(self._group + b"/"):
                name = one_line(facts.get(b"task", b"?").decode("utf-8", "replace"))
                found.append(f"{name} ({facts.get(b'pid', b'?').decode('ascii', 'replace')})")
        return tuple(found)

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        for fd in (self._counter, self._eventfd, self._log):
            if fd >= 0:
                os.close(fd)
        self._counter = self._eventfd = self._log = -1
