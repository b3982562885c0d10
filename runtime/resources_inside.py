"""Limits that processes carry themselves: resource limits, pseudo-terminals, shared memory.

Some beancounters have no controller today. The nearest the kernel has is a limit of each process
(getrlimit(2)) or of a namespace; that is what is set, and what the manual says.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime import files, ubc
from runtime.errors import MeminfoFailed, ResourcesFailed
from runtime.memory import memory_of
from runtime.units import PAGE, UNLIMITED

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.container import Container
    from runtime.paths import Paths

#: No process can work with less than that many open files.
_LEAST_FILES = 64


@dataclass(frozen=True, slots=True)
class Inside:
    """What init gets before it runs."""

    #: RLIMIT_… → limit, soft and hard alike.
    rlimits: Mapping[int, int] = field(default_factory=dict)
    #: ``max=`` of its devpts mount; None: the kernel's default.
    terminals: int | None = None
    #: ``kernel.shmall`` of its IPC namespace, in pages; None: the kernel's default.
    shared_pages: int | None = None


def inside(config: Mapping[str, str]) -> Inside:
    """Return what a configuration limits process by process."""
    limits = ubc.limits(config)

    def limit(key: str) -> int | None:
        found = limits.get(key)
        return None if found is None or found.limit >= UNLIMITED else found.limit

    rlimits = {}
    locked, files_open, signals = limit("LOCKEDPAGES"), limit("NUMFILE"), limit("NUMSIGINFO")
    if locked is not None:
        rlimits[resource.RLIMIT_MEMLOCK] = locked * PAGE
    if files_open is not None:
        rlimits[resource.RLIMIT_NOFILE] = max(files_open, _LEAST_FILES)
    if signals is not None:
        rlimits[resource.RLIMIT_SIGPENDING] = signals
    alloc_bytes = memory_of(config).alloc_bytes
    if alloc_bytes < UNLIMITED:
        # Private writable memory of one process, mappings included since Linux 4.7.
        rlimits[resource.RLIMIT_DATA] = alloc_bytes
    return Inside(rlimits, limit("NUMPTY"), limit("SHMPAGES"))


def apply(ct: Container, before: Config, after: Config) -> None:
    """Let the processes of a running container follow; raises ResourcesFailed."""
    old, new = inside(before), inside(after)
    changed = {
        which
        for which in old.rlimits.keys() | new.rlimits.keys()
        if old.rlimits.get(which) != new.rlimits.get(which)
    }
    if changed:
        from runtime.figures import Figures

        kept = False
        for pid in Figures(ct.paths.tag, ct.ctid).pids():
            for which in changed:
                kept = not _set(pid, which, new.rlimits.get(which)) or kept
        if kept:
            ct.progress.warn(
                "this server's root may not raise limits of processes (CAP_SYS_RESOURCE): "
                "those that run keep theirs until the container is restarted"
            )
    if old.shared_pages != new.shared_pages:
        _share(ct.init_pid, new.shared_pages or _SHMALL)
    tell_view(ct, after)


def _set(pid: int, which: int, value: int | None) -> bool:
    """Set one limit of one process; a lifted one becomes what this process has itself.

    Return False when only CAP_SYS_RESOURCE could have raised it. Raises ResourcesFailed.
    """
    most = resource.getrlimit(which)[1]
    if value is None or (most != resource.RLIM_INFINITY and value > most):
        value = most
    try:
        resource.prlimit(pid, which, (value, value))
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    except (OSError, ValueError) as error:
        raise ResourcesFailed(f"the kernel refuses a limit of process {pid}: {error}") from error
    return True


#: Limits that a configuration can set (``inside``).
_CARRIED = (
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_SIGPENDING,
    resource.RLIMIT_DATA,
)


def carried(pid: int) -> tuple[tuple[int, int], ...]:
    """Return the hard limits of process ``pid``, for ``take``; raises OSError."""
    return tuple((which, resource.prlimit(pid, which)[1]) for which in _CARRIED)


def take(limits: tuple[tuple[int, int], ...]) -> None:
    """Never have more than ``limits``: for a process that enters a container; raises OSError."""
    for which, most in limits:
        soft, hard = resource.getrlimit(which)
        if most != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or most < hard):
            lower = most if soft == resource.RLIM_INFINITY else min(soft, most)
            resource.setrlimit(which, (lower, most))


def _share(pid: int, count: int | None) -> None:
    """Set how many pages of System V shared memory the IPC namespace of ``pid`` may have."""
    if count is None:
        return
    from runtime import syscalls

    pidfd = os.pidfd_open(pid)
    child = syscalls.fork()
    if child == 0:
        # The file is that of the namespace its writer is in (ipc_namespaces(7)).
        try:
            syscalls.setns(pidfd, syscalls.CLONE_NEWIPC)
            try:
                fd = os.open("/proc/sys/kernel/shmall", os.O_WRONLY)
            except PermissionError:
                # Newer kernels let only the root of the namespace's owner write there
                # (ipc_permissions() in ipc/ipc_sysctl.c).
                os.seteuid(os.stat(f"/proc/{pid}").st_uid)
                fd = os.open("/proc/sys/kernel/shmall", os.O_WRONLY)
            os.write(fd, str(count).encode())
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise ResourcesFailed(f"the limit of shared memory cannot be set: {os.strerror(code)}")


#: What kernel.shmall is where nobody set it (include/uapi/linux/shm.h): practically no limit.
_SHMALL = 2**64 - 2**24 - 1

#: Keys of the configuration that decide what /proc looks like inside.
VIEW_KEYS = (
    "MEMINFO",
    "PHYSPAGES",
    "SWAPPAGES",
    "VM_OVERCOMMIT",
    "PRIVVMPAGES",
    "SLMMODE",
    "SLMMEMORYLIMIT",
    "CPUS",
    "CPUMASK",
    "CPULIMIT",
    "CPULIMIT_MHZ",
)


def tell_view(ct: Container, config: Config) -> None:
    """Write down what the container's view of /proc is made from; raises MeminfoFailed."""
    try:
        write_view(ct.paths, config)
    except OSError as error:
        raise MeminfoFailed(f"cannot change what the container sees: {error.strerror}") from error


def write_view(paths: Paths, config: Config) -> None:
    """Write the settings of the view of ``config.ctid``; raises OSError."""
    target = paths.run / "procview" / f"{config.ctid}.json"
    os.makedirs(target.parent, mode=0o700, exist_ok=True)
    values = {key: config[key] for key in VIEW_KEYS if key in config}
    files.replace(target, json.dumps(values).encode(), mode=0o600, durable=False)


def forget_view(paths: Paths, ctid: int) -> None:
    """Remove the settings of the view of ``ctid``; absent is success."""
    with suppress(FileNotFoundError):
        os.unlink(paths.run / "procview" / f"{ctid}.json")
