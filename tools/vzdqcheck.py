"""vzdqcheck: count what a directory tree uses, as quotas count it (vzdqcheck(8))."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from tools._command import JSON, Context, Program, option
from tools._command import main as run_program
from tools.vzquota import exit_code, guard, translate
from vzfs.quotaerror import EXIT_CROSSES, EXIT_NO_MOUNT, EXIT_SYSTEM, EXIT_USAGE, QuotaError
from vzfs.quotafile import kib
from vzfs.quotascan import scan


def _run(context: Context, args: argparse.Namespace) -> None:
    path = args.path.absolute()
    try:
        found = scan(path)
    except OSError as error:
        codes = {
            errno.EXDEV: EXIT_CROSSES,
            errno.ENOENT: EXIT_NO_MOUNT,
            errno.ENOTDIR: EXIT_NO_MOUNT,
        }
        code = codes.get(error.errno or 0, EXIT_SYSTEM)
        raise QuotaError(code, f"cannot scan {path}: {error.strerror}") from error
    if args.json:
        import json

        print(json.dumps({"path": str(path), "blocks": kib(found.blocks), "inodes": found.inodes}))
        return
    if not context.quiet:
        print(f"quota usage for {path}")
    print(f"{'blocks':>11}{'inodes':>11}")
    print(f"{kib(found.blocks):11}{found.inodes:11}")


PROGRAM = Program(
    "vzdqcheck",
    "Count the 1k-blocks and inodes a directory tree uses, hard links once.",
    run=guard(_run),
    options=(option("path", help="directory to count", metavar="PATH", type=Path), JSON),
    usage_code=EXIT_USAGE,
    exit_code=exit_code,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzdqcheck; return its exit status."""
    return run_program(PROGRAM, translate(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
