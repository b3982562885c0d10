"""Which container a process belongs to, from the name of its cgroup."""

from __future__ import annotations

import re

from runtime.paths import Paths


def container_of(paths: Paths, pid: int) -> int | None:
    """Return the id of the container ``pid`` runs in, 0 for the host; None without such a process.

    The supervisors and file servers of containers belong to the host.
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    match = _pattern(paths).search(text)
    return int(match[1]) if match else 0


def _pattern(paths: Paths) -> re.Pattern[str]:
    # proc_pid_cgroup: "hierarchy:controllers:/pyvz<tag>/<ctid>/…"; see cgroups for the names.
    return re.compile(
        rf"^\d+:[^:]*:(?:/[^\n]*)?/pyvz{re.escape(paths.tag)}/(\d+)(?:/|$)", re.MULTILINE
    )
