"""What a running container uses now, resource by resource, for lists.

The numbers come from its cgroups and from the processes in them; a resource that no kernel of
today counts per container (socket buffers, for one) has no number.
"""

from __future__ import annotations

import os
from contextlib import suppress

from runtime.cgroups import Cgroup
from runtime.paths import Paths
from runtime.units import KIB, PAGE


def current(paths: Paths, ctid: int, resource: str) -> int | None:
    """Return what ``ctid`` holds of ``resource`` (a name of vzlist(8)), None when nobody counts.

    Pages are 4 KiB, disk space is 1-KiB blocks; the suffix ``.m`` asks for the highest so far,
    ``.f`` for how often it was refused.
    """
    name, _, suffix = resource.partition(".")
    if name in ("diskspace", "diskinodes"):
        return _disk(paths, ctid, name)
    if suffix:
        return None
    group = Cgroup(paths.tag, ctid)
    if name in ("physpages", "privvmpages", "oomguarpages"):
        memory = group.stats().get("memory_bytes")
        return None if memory is None else memory // PAGE
    if name == "swappages":
        swap = group.stats().get("swap_bytes")
        return None if swap is None else swap // PAGE
    if name == "numproc":
        tasks = group.stats().get("tasks")
        return len(group.pids()) if tasks is None else tasks
    if name == "numfile":
        return sum(_open_files(pid) for pid in group.pids())
    if name in ("numtcpsock", "numothersock"):
        pids = group.pids()
        return _sockets(pids[0], tcp=name == "numtcpsock") if pids else None
    return None


def _disk(paths: Paths, ctid: int, name: str) -> int | None:
    with suppress(OSError):
        stats = os.statvfs(paths.ct_root(ctid))
        if name == "diskspace":
            return (stats.f_blocks - stats.f_bfree) * stats.f_frsize // KIB
        return stats.f_files - stats.f_ffree
    return None


def _open_files(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _sockets(pid: int, *, tcp: bool) -> int | None:
    """Count the sockets in the network namespace of ``pid`` (proc_pid_net(5))."""
    tables = ("tcp", "tcp6") if tcp else ("udp", "udp6", "unix", "raw", "raw6", "packet")
    count = 0
    for table in tables:
        with suppress(OSError), open(f"/proc/{pid}/net/{table}", "rb") as file:
            count += max(0, sum(1 for _ in file) - 1)
    return count


def load_average(paths: Paths, ctid: int) -> str | None:
    """Return how many of the container's tasks run or wait uninterruptibly, as "n.nn".

    The kernel keeps no load average per container: this is the number at this moment, which an
    average over time would approach.
    """
    pids = Cgroup(paths.tag, ctid).pids()
    if not pids:
        return None
    active = 0
    for pid in pids:
        with suppress(OSError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
            active += line[line.rindex(b")") + 2 : line.rindex(b")") + 3] in (b"R", b"D")
    return f"{active:.2f}"
