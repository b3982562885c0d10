"""Verbs that stop a container where it is: pause, suspend, resume."""

from __future__ import annotations

import argparse
from dataclasses import replace

from runtime import events, locks, suspension
from runtime.errors import CheckpointFailed, NotRunning, RestoreFailed
from tools import environments
from tools._command import Context, Verb, option
from tools.verbs_container import ID, prepare


def pause(context: Context, args: argparse.Namespace) -> None:
    """Freeze a container's processes; its state stays in memory. Paused already is success."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "pause"):
        prepare(context, ct)
        ct.freeze()
        events.emit(context.paths, ct.ctid, "paused")
        context.progress(ct.ctid).say("Container was paused")


def suspend(context: Context, args: argparse.Namespace) -> None:
    """Refuse to save a container's state on disk, telling why; raises CheckpointFailed."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "suspend"):
        prepare(context, ct)
        if not ct.status().running:
            raise NotRunning("Container is not running", hint=f"vzctl start {ct.ctid}")
        raise CheckpointFailed(
            f"Container cannot be suspended: {suspension.obstacle()}",
            hint=f"pctl pause {ct.ctid} keeps its state in memory",
        )


def resume(context: Context, args: argparse.Namespace) -> None:
    """Let a paused container go on; raises RestoreFailed when there is nothing to resume."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "resume"):
        prepare(context, ct)
        status = ct.status()
        if status.running and ct.cgroup.is_frozen():
            ct.thaw()
            events.emit(context.paths, ct.ctid, "resumed")
            context.progress(ct.ctid).say("Container was resumed")
            return
        if status.suspended:
            raise RestoreFailed(
                f"the dump in {ct.private / 'dump'} cannot be resumed: {suspension.obstacle()}",
                hint=f"vzctl start {ct.ctid} starts the container anew and drops the dump",
            )
        raise RestoreFailed(
            "Container is neither paused nor suspended", hint=f"vzctl status {ct.ctid}"
        )


_DUMPFILE = option("--dumpfile", help="file of the dump", metavar="FILE")
_FSCK = option("--skip-fsck", help="accepted; nothing is checked", action="store_true")

_RESUME = Verb("resume", "let a paused container go on", resume, (ID, _DUMPFILE, _FSCK))
VERBS: tuple[Verb, ...] = (
    Verb("pause", "stop a container's processes where they are", pause, (ID,)),
    Verb(
        "suspend",
        "save a container's state on disk (refused, with the reason)",
        suspend,
        (ID, _DUMPFILE, _FSCK),
        aliases=("chkpnt",),
    ),
    _RESUME,
)
#: vzctl's word for resume; pctl's restores backups.
VZCTL = (*VERBS[:-1], replace(_RESUME, aliases=("restore",)))
