"""vzcache: files that several containers have alike are kept once (guide §4.3.8)."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import locks, registry
from runtime.errors import InvalidOption, NoDiskSpace, SystemFailure
from runtime.units import human
from templates import linking
from templates.linking import Tree
from tools import environments
from tools._command import Context, Program, option
from tools._command import main as run_program

if TYPE_CHECKING:
    from runtime.container import Container
    from templates.linking import Linked


def run(context: Context, args: argparse.Namespace) -> None:
    """Share what containers have alike, or take some out of that."""
    if args.all == bool(args.idents):
        raise InvalidOption("give containers, or -a for all")
    if args.detach and args.all:
        raise InvalidOption("-r needs the containers by name")
    if args.all:
        found = (environments.container(context, r) for r, _f in registry.records(context.paths))
        chosen = [ct for ct in found if ct.status().exists]
    else:
        chosen = [environments.find_container(context, word) for word in args.idents]
    area = context.paths.template
    with ExitStack() as held, _reported():
        trees = hold(context, held, {ct.ctid: ct for ct in chosen}.values(), "vzcache")
        progress = context.progress()
        if args.detach:
            reports = {
                tree.private: linking.detach(area, tree, test=args.test, progress=progress)
                for tree in trees
            }
        else:
            reports = linking.share(area, list(trees), test=args.test, progress=progress)
        if not args.test:
            settle(context, _counted_later(trees, reports))
    if args.detach:
        verb = "would be copied back" if args.test else "copied back"
    else:
        verb = "would be linked" if args.test else "linked"
    names = {trees[tree]: reports[tree.private] for tree in trees}
    total(context, names, verb, each=args.each)


@contextmanager
def _reported() -> Iterator[None]:
    """Tell of what the disk refuses as the other commands do; raises NoDiskSpace, SystemFailure."""
    try:
        yield
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoDiskSpace(text, hint="raise --diskspace, or free some") from error
        raise SystemFailure(text) from error


def hold(
    context: Context, held: ExitStack, chosen: Iterable[Container], purpose: str
) -> dict[Tree, Container]:
    """Take the locks of containers; return tree → container. Raises Locked."""
    from runtime import privatearea
    from vzfs.orders import Orders

    trees = {}
    for ct in sorted(chosen, key=lambda ct: ct.ctid):
        held.enter_context(locks.environment(context.paths, ct.ctid, purpose))
        ct.reconcile()
        private = privatearea.location(context.paths, ct.config)
        orders = None
        if ct.status().mounted:
            target = privatearea.mount_point(context.paths, ct.config)
            orders = Orders(target, private / "cow")
        trees[Tree(private, orders)] = ct
    return trees


def _counted_later(trees: dict[Tree, Container], reports: dict[Path, Linked]) -> list[Container]:
    """Return the containers whose file server did not count what was changed."""
    return [ct for tree, ct in trees.items() if tree.orders is None and reports[tree.private].files]


def settle(context: Context, changed: Sequence[Container]) -> None:
    """Let the quota of containers be counted anew when they are next mounted."""
    from vzfs import quota

    for ct in changed:
        file = context.paths.quota_file(ct.ctid)
        if file.exists():
            quota.set_limits(file, quota.Changes(), force=True)


def total(
    context: Context, reports: dict[Container, Linked], verb: str, *, each: bool = False
) -> None:
    """Tell for each container, and in sum, how many files were linked and what that freed.

    ``each``: also which files were left alone.
    """
    if context.quiet:
        return
    for ct, report in reports.items():
        print(f"CT {ct.ctid}: {report.files} files {verb}, {report.bytes // 1024} KB")
        for why, left in (("open for writing", report.open), ("changed", report.changed)):
            names = sorted(set(left))
            if names:
                print(f"CT {ct.ctid}: {len(names)} files left alone: {why}")
            for name in names if each else ():
                shown = name.encode("unicode_escape", "surrogateescape").decode("ascii")
                print(f"CT {ct.ctid}: /{shown}: {why}")
    files = sum(report.files for report in reports.values())
    size = sum(report.bytes for report in reports.values())
    print(f"Total: {files} files {verb}, {size // 1024} KB ({human(size)})")


def link(context: Context, args: argparse.Namespace) -> None:
    """``vzpkg link``: private files equal to a template's become links."""
    from templates import catalogue

    reports = {}
    for word in args.idents:
        ct = environments.find_container(context, word)
        with ExitStack() as held, _reported():
            trees = hold(context, held, [ct], "vzpkg link")
            (tree,) = trees
            if args.slow and not args.test:
                template = catalogue.find(context.paths, ct.config.get("OSTEMPLATE") or "")
                linking.unpack_fetched(template, tree, context.progress())
            report = linking.link_private(
                context.paths.template, tree, test=args.test, progress=context.progress()
            )
            if not args.test:
                settle(context, _counted_later(trees, {tree.private: report}))
        reports[ct] = report
    verb = "would be linked" if args.test else "linked"
    total(context, reports, verb, each=context.verbose)


PROGRAM = Program(
    name="vzcache",
    help="keep files that several containers have alike only once",
    run=run,
    options=(
        option("idents", help="containers, running or not", metavar="CT", nargs="*"),
        option("-a", "--all", help="all containers", action="store_true"),
        option("-n", "--test", help="say what would be done, do nothing", action="store_true"),
        option("-r", "--detach", help="give containers copies of their own again",
               action="store_true"),
        option("-v", dest="each", help="name the files that were left alone",
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
