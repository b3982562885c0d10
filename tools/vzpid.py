"""vzpid: which container a process of the host belongs to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime import registry
from runtime.errors import ConfigMissing
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program


def _run(context: Context, args: argparse.Namespace) -> int:
    from runtime import membership

    words = args.pids
    if words == ["-"]:
        words = sys.stdin.read().split()
    if not words:
        print("usage: vzpid PID… | -", file=sys.stderr)
        return 1
    rows = []
    for word in words:
        if not word.isdecimal():
            print(f"vzpid: not a process id: {registry.printable(word)}", file=sys.stderr)
            return 1
        ctid = membership.container_of(context.paths, int(word))
        if ctid is not None:
            rows.append((int(word), ctid, _name(context, ctid)))
    if args.json:
        import json

        keys = ("pid", "ctid", "name")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
        return 0
    print("Pid\tVEID\tName")
    for pid, ctid, name in rows:
        print(f"{pid}\t{ctid}\t{name}")
    return 0


def _name(context: Context, ctid: int) -> str:
    if ctid == 0:
        return ""
    try:
        return registry.record(context.paths, ctid).name or ""
    except ConfigMissing:
        return ""


PROGRAM = Program(
    "vzpid",
    "Show which container a process of the host belongs to (0 is the host).",
    run=_run,
    options=(
        option("pids", help="process ids, or - to read them from stdin", nargs="*", metavar="PID"),
        JSON,
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzpid; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
