"""Whether a container exists, is mounted, runs or is suspended: read from files, asking nobody.

Cheap enough for lists of a thousand containers: no process is started, nothing is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime import state
from runtime.paths import Paths
from runtime.state import Phase, RunState


@dataclass(frozen=True, slots=True)
class Status:
    """What ``vzctl status`` tells."""

    exists: bool
    mounted: bool
    running: bool
    suspended: bool
    #: The run state this was read from, when there is a valid one.
    run: RunState | None = None

    @property
    def word(self) -> str:
        """The one word of vzlist(8): running, suspended, mounted or stopped."""
        if self.running:
            return "running"
        if self.suspended:
            return "suspended"
        return "mounted" if self.mounted else "stopped"


def status(paths: Paths, ctid: int, private: Path | None = None) -> Status:
    """Return the status of ``ctid`` whose private area is ``private`` (default: the usual place).

    A container is running while its init lives, its supervisor has not begun to clean up and its
    files are served, or will be again: without supervisor and file server its processes are but
    leftovers (the next command ends them).
    """
    area = private or paths.private(ctid)
    run = state.load(paths, ctid)
    running = (
        run is not None
        and run.phase in (Phase.RUNNING, Phase.STARTING, Phase.STOPPING)
        and run.init is not None
        and run.init.alive
        and run.served
    )
    server = run is not None and (
        (run.server is not None and run.server.alive)
        # Its file server may rest.
        or (run.phase is Phase.MOUNTED and run.served)
    )
    return Status(
        exists=area.is_dir(),
        mounted=running or server,
        running=running,
        suspended=not running and (area / "dump" / "Dump").exists(),
        run=run,
    )
