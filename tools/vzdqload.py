"""vzdqload: load limits and grace which vzdqdump printed into a quota that is off (vzdqload(8))."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tools._command import Context, Program
from tools._command import main as run_program
from tools.vzdqdump import OPTIONS, parts_of
from tools.vzquota import exit_code, guard, quota_path, translate
from vzfs import quota, quotadump
from vzfs.quotaerror import EXIT_USAGE


def _run(context: Context, args: argparse.Namespace) -> None:
    parts = parts_of(args)
    path = quota_path(context, args)
    quota.load(path, quotadump.parse(sys.stdin, parts), parts)


PROGRAM = Program(
    "vzdqload",
    "Load limits and grace of users and groups (and of the container) from standard input.",
    run=guard(_run),
    options=OPTIONS,
    usage_code=EXIT_USAGE,
    exit_code=exit_code,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzdqload; return its exit status."""
    return run_program(PROGRAM, translate(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
