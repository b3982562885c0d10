"""pstat: what the server, its containers and its machines do right now."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from runtime import registry
from runtime.errors import InvalidValue
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program
from tools._monitor import look
from tools._pstat_view import Detail, Line, Table, lines, objects, terse
from tools._rates import Thresholds

#: Most containers that can be watched together (vzstat(8)).
_MOST = 20
#: How long a single report looks, in seconds.
_ONCE_S = 0.3


def _run(context: Context, args: argparse.Namespace) -> int:
    try:
        delay_s = float(args.delay)
    except ValueError:
        delay_s = 0.0
    if not 0.1 <= delay_s <= 3600:
        raise InvalidValue(f"not a delay: {args.delay}", hint="0.1 to 3600 seconds")
    if len(args.ctids) > _MOST:
        raise InvalidValue(f"at most {_MOST} containers can be watched together")
    only = frozenset(registry.find(context.paths, ident).ctid for ident in args.ctids)
    thresholds = Thresholds(context.paths)
    detail = Detail.BRIEF if args.brief else Detail.VERBOSE if args.detailed else Detail.STANDARD
    table = Table.DISK if args.disk else Table.ACCOUNTING if args.io else Table.GENERAL
    watch = _Watch(context, only, thresholds, detail, table, delay_s)
    if args.once or args.json:
        watch.sleep(_ONCE_S)
        watch.print(json_wanted=args.json, terse_wanted=args.terse)
    elif args.terse or not (sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"):
        while True:
            watch.sleep(delay_s)
            watch.print(json_wanted=False, terse_wanted=args.terse)
            print(flush=True)
    else:
        from tools import _screen

        watch.sleep(min(_ONCE_S, delay_s))
        _screen.show(watch.make, watch.key, lambda: watch.delay_s)
    return 0


class _Watch:
    """Two looks, the newer of which becomes the older at the next."""

    def __init__(
        self,
        context: Context,
        only: frozenset[int],
        thresholds: Thresholds,
        detail: Detail,
        table: Table,
        delay_s: float,
    ) -> None:
        self.context = context
        self.only = only
        self.thresholds = thresholds
        self.detail = detail
        self.table = table
        self.delay_s = delay_s
        self.before = look(context, only)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def make(self) -> list[Line]:
        after = look(self.context, self.only)
        shown = lines(self.before, after, self.thresholds, detail=self.detail, table=self.table)
        self.before = after
        return shown

    def key(self, letter: str) -> bool:
        """Follow a key of the screen; return False to leave."""
        details = {"b": Detail.BRIEF, "s": Detail.STANDARD, "v": Detail.VERBOSE}
        tables = {"g": Table.GENERAL, "a": Table.DISK, "i": Table.ACCOUNTING}
        if letter in details:
            self.detail = details[letter]
        elif letter in tables:
            self.table = tables[letter]
        elif letter == "t":
            steps = (0.5, 1.0, 2.0, 5.0, 10.0)
            self.delay_s = next((step for step in steps if step > self.delay_s), steps[0])
        return True

    def print(self, *, json_wanted: bool, terse_wanted: bool) -> None:
        if json_wanted or terse_wanted:
            after = look(self.context, self.only)
            if json_wanted:
                import json

                print(json.dumps(objects(self.before, after), indent=2))
            else:
                print("\n".join(terse(self.before, after)))
            self.before = after
            return
        print("\n".join(line.text for line in self.make()))


PROGRAM = Program(
    "pstat",
    "Show what the server, its containers and machines do right now.",
    run=_run,
    options=(
        option("-l", dest="once", help="print once and leave", action="store_true"),
        option("-d", dest="delay", help="seconds between reports", metavar="SEC", default="1"),
        option(
            "-p",
            dest="ctids",
            help="only this container (up to 20)",
            metavar="CTID",
            action="append",
            default=[],
        ),
        option("-b", dest="brief", help="the server only", action="store_true"),
        option("-v", dest="detailed", help="more of everything", action="store_true"),
        option("-t", dest="terse", help="for scripts: unaligned, top ten", action="store_true"),
        option("-a", dest="disk", help="disk I/O of containers and machines", action="store_true"),
        option("-i", dest="io", help="disk I/O since their start", action="store_true"),
        JSON,
    ),
    usage_code=1,
    exit_code=lambda error: 1,
    epilog="Keys: b s v detail, g a i table, t delay, arrows scroll, q leaves.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run pstat; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
