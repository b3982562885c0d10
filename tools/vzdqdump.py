"""vzdqdump: print limits and grace of a quota, for vzdqload (vzdqdump(8))."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import InvalidOption
from tools._command import Context, Option, Program, option
from tools._command import main as run_program
from tools.vzquota import exit_code, guard, quota_path, translate
from vzfs import quotadump, quotaerror, quotastate

#: Options common to vzdqdump and vzdqload.
OPTIONS: tuple[Option, ...] = (
    option("id", help="quota id, by default that of the container", metavar="QUOTA_ID"),
    option("-c", "--quota-file", help="use this quota file", metavar="FILE", type=Path),
    option("-G", "--gracetime", "--grace", help="grace periods", action="store_true"),
    option("-U", "--limits", help="limits of users and groups", action="store_true"),
    option("-T", "--exptimes", help="when the grace of users and groups ends", action="store_true"),
    option("-F", "--first-level", help="limits of the container", action="store_true"),
)


def parts_of(args: argparse.Namespace) -> quotadump.Parts:
    """Return what the options choose; raises InvalidOption when nothing is."""
    parts = quotadump.Parts(args.gracetime, args.limits, args.exptimes, args.first_level)
    if not parts:
        raise InvalidOption("say what to dump or load: -G -U -T -F")
    return parts


def _run(context: Context, args: argparse.Namespace) -> None:
    parts = parts_of(args)
    state = quotastate.snapshot(quota_path(context, args), exact=args.force)
    if args.force and not state.running:
        raise quotaerror.QuotaError(quotaerror.EXIT_NOT_RUNNING, "Quota accounting is off")
    for line in quotadump.dump(state, parts):
        print(line)


PROGRAM = Program(
    "vzdqdump",
    "Print limits and grace of users and groups (and of the container) for vzdqload.",
    run=guard(_run),
    options=(
        *OPTIONS,
        option("-f", "--kernel", help="of the running quota", action="store_true", dest="force"),
    ),
    usage_code=quotaerror.EXIT_USAGE,
    exit_code=exit_code,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzdqdump; return its exit status."""
    return run_program(PROGRAM, translate(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
