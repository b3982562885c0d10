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
    old, new = inside(before).rlimits, inside(after).rlimits
    changed = {which for which in old.keys() | new.keys() if old.get(which) != new.get(which)}
    if changed:
        from runtime.figures import Figures

        for pid in Figures(ct.paths.tag, ct.ctid).pids():
            for which in changed:
                _set(pid, which, new.get(which))
    tell_view(ct, after)


def _set(pid: int, which: int, value: int | None) -> None:
    """Set one limit of one process; a lifted one becomes what this process has itself."""
    if value is None:
        value = resource.getrlimit(which)[1]
    try:
        now = resource.prlimit(pid, which)[1]
        # A limit beyond the kernel's own (fs.nr_open) is as good as that one.
        if which == resource.RLIMIT_NOFILE and value > 1 << 20:
            value = max(now, 1 << 20)
        resource.prlimit(pid, which, (value, value))
    except ProcessLookupError:
        return
    except (OSError, ValueError) as error:
        raise ResourcesFailed(f"the kernel refuses a limit of process {pid}: {error}") from error


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
