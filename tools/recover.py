"""``recover``: a container's system files as its template has them, its users' files untouched.

Where ``reinstall`` builds everything anew, this takes away only what hides a template's files:
deletions, changes outside packages, other modes of directories (guide §3.12.4).
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from runtime import locks, privatearea
from runtime.errors import RecoverFailed
from runtime.registry import printable
from tools import environments, lifecycle
from tools._command import DRY_RUN, Context, Verb, option
from tools.verbs_container import ID, prepare

if TYPE_CHECKING:
    from runtime.container import Container
    from vzfs.restoring import Restored


def recover(context: Context, args: argparse.Namespace) -> None:
    """Restore a container's template files; it is stopped for that and started again."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "recover"):
        prepare(context, ct)
        status = ct.status()
        if not args.dry_run:
            if status.running:
                ct.stop()
            elif status.mounted:
                ct.umount()
        _recover(context, ct, test=args.dry_run)
        if status.running and not args.dry_run:
            lifecycle.start(context, ct)


def _recover(context: Context, ct: Container, *, test: bool) -> None:
    from templates import recovery
    from tools.vzcache import settle
    from tools.vzfsutil import open_area
    from vzfs.restoring import Restorer

    progress = context.progress(ct.ctid)
    progress.say(f"Recovering Container private area: {ct.private}")
    area_path = context.paths.template
    layers = privatearea.layers(ct.private, area_path)
    if not test:
        # Before anything is freed: killed half-way, the quota is counted anew all the same.
        settle(context, [ct])
    area = open_area(ct.private, area_path, modify=not test)
    try:
        policy = recovery.policy(layers, ct.private)
        done = Restorer(area).restore(policy.wanted, test=test)
    except OSError as error:
        raise RecoverFailed(
            f"the private area cannot be recovered: {error.strerror} ({error.filename})",
            hint="what was restored so far stays; run it again, or reinstall",
        ) from error
    finally:
        area.close()
    _tell(context, ct, done, policy.changed, test=test)


def _tell(
    context: Context, ct: Container, done: Restored, foreign: set[str], *, test: bool
) -> None:
    progress = context.progress(ct.ctid)
    tell = progress.say if test else progress.detail
    for path in done.paths:
        tell(printable(os.fsdecode(path), limit=400))
    for path, why in done.kept.items():
        progress.warn(
            f"{printable(os.fsdecode(path), limit=200)} stays: {printable(why, limit=200)}"
        )
    if foreign:
        names = ", ".join(sorted(foreign))
        progress.say(f"Left to the container's own package manager: {names}")
    progress.say(f"Files and directories {'to restore' if test else 'restored'}: {len(done.paths)}")
    if not test:
        progress.say("Recovering Container completed successfully")


VERBS: tuple[Verb, ...] = (
    Verb(
        "recover",
        "restore the template's files of a container, leaving its users' files alone",
        recover,
        (
            ID,
            option(
                "--skiplock",
                help="accepted: a lock never outlives the command that holds it",
                action="store_true",
            ),
            DRY_RUN,
        ),
    ),
)
