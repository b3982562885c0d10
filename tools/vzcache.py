"""vzcache: files that several containers have alike are kept once (guide §4.3.8)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import locks, registry
from runtime.errors import InvalidOption, Mounted
from runtime.units import human
from templates import linking
from tools import environments
from tools._command import Context, Program, option
from tools._command import main as run_program

if TYPE_CHECKING:
    from runtime.container import Container
    from templates.linking import Linked


def run(context: Context, args: argparse.Namespace) -> None:
    """Share what containers have alike, or take one out of that."""
    if args.all == bool(args.idents):
        raise InvalidOption("give containers, or -a for all that are not mounted")
    if args.detach and args.all:
        raise InvalidOption("-r needs the containers by name")
    with ExitStack() as held:
        if args.all:
            found = [
                environments.container(context, r) for r, _f in registry.records(context.paths)
            ]
            chosen = [ct for ct in found if not ct.status().mounted]
        else:
            chosen = [environments.find_container(context, word) for word in args.idents]
        chosen = list({ct.ctid: ct for ct in chosen}.values())
        privates = hold(context, held, chosen, "vzcache")
        area = context.paths.template
        if args.detach:
            reports = {p: linking.detach(area, p) for p in privates} if not args.test else {}
        else:
            reports = linking.share(
                area, list(privates), test=args.test, progress=context.progress()
            )
        settle(context, [privates[p] for p, r in reports.items() if r.files and not args.test])
    verb = "copied back" if args.detach else "would be linked" if args.test else "linked"
    total(context, {privates[p]: report for p, report in reports.items()}, verb)


def hold(
    context: Context, held: ExitStack, chosen: Sequence[Container], purpose: str
) -> dict[Path, Container]:
    """Take the locks of containers; return private area → container.

    Raises Mounted when one is in use, Locked.
    """
    privates = {}
    for ct in sorted(chosen, key=lambda ct: ct.ctid):
        held.enter_context(locks.environment(context.paths, ct.ctid, purpose))
        ct.reconcile()
        if ct.status().mounted:
            raise Mounted(
                f"container {ct.ctid} is mounted: its files are in use",
                hint=f"vzctl stop {ct.ctid}",
            )
        privates[context.paths.area(ct.config["VE_PRIVATE"])] = ct
    return privates


def settle(context: Context, changed: Sequence[Container]) -> None:
    """Let the quota of containers be counted anew when they are next mounted."""
    from vzfs import quota

    for ct in changed:
        file = context.paths.quota_file(ct.ctid)
        if file.exists():
            quota.set_limits(file, quota.Changes(), force=True)


def total(context: Context, reports: dict[Container, Linked], verb: str) -> None:
    """Tell for each container, and in sum, how many files were linked and what that freed."""
    if context.quiet:
        return
    for ct, report in reports.items():
        print(f"CT {ct.ctid}: {report.files} files {verb}, {report.bytes // 1024} KB")
    files = sum(report.files for report in reports.values())
    size = sum(report.bytes for report in reports.values())
    print(f"Total: {files} files {verb}, {size // 1024} KB ({human(size)})")


def link(context: Context, args: argparse.Namespace) -> None:
    """``vzpkg link``: private files equal to a template's become links."""
    from templates import catalogue

    reports = {}
    for word in args.idents:
        ct = environments.find_container(context, word)
        with ExitStack() as held:
            (private,) = hold(context, held, [ct], "vzpkg link")
            if args.slow and not args.test:
                template = catalogue.find(context.paths, ct.config.get("OSTEMPLATE") or "")
                linking.unpack_fetched(template, private, context.progress())
            report = linking.link_private(
                context.paths.template, private, test=args.test, progress=context.progress()
            )
            if report.files and not args.test:
                settle(context, [ct])
        reports[ct] = report
    total(context, reports, "would be linked" if args.test else "linked")


PROGRAM = Program(
    name="vzcache",
    help="keep files that several containers have alike only once",
    run=run,
    options=(
        option("idents", help="containers that are not mounted", metavar="CT", nargs="*"),
        option("-a", "--all", help="all that are not mounted", action="store_true"),
        option("-n", "--test", help="say what would be done, do nothing", action="store_true"),
        option("-r", "--detach", help="give containers copies of their own again",
               action="store_true"),
    ),
    usage_code=1,
    changes=True,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzcache."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
