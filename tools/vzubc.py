"""vzubc: the counted resources of containers for people: held, most held, limits, refusals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime import registry, status, ubc
from runtime.config import ConfigFile
from runtime.ubc import BEANCOUNTERS, Unit
from runtime.units import PAGE, UNLIMITED, Pair, human
from runtime.usage import Held, Usage
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program

#: With -q only what is above this part of its barrier, or was refused.
_QUIET_PERCENT = 50
_RULE = "-" * 80


def _run(context: Context, args: argparse.Namespace) -> int:
    if args.ctids:
        ctids = [registry.find(context.paths, ident).ctid for ident in args.ctids]
    else:
        ctids = registry.configured(context.paths)
    objects = []
    for ctid in ctids:
        config = context.config(ctid, ConfigFile.read(context.paths.ct_conf(ctid)))
        private = context.paths.area(config["VE_PRIVATE"])
        if not status.status(context.paths, ctid, private).running:
            continue
        usage = Usage(context.paths, ctid)
        rows = [
            (row, usage.held(row.name), ubc.lenient(row.key, config.get(row.key)))
            for row in BEANCOUNTERS
        ]
        if args.json:
            objects.append({"ctid": ctid, "resources": [_object(*row) for row in rows]})
            continue
        lines = [
            _line(*row)
            for row in rows
            if row[1].now is not None or row[2] is not None
            if not args.quiet_rows or _notable(row[1], row[2])
        ]
        if lines or not args.quiet_rows:
            print(_RULE)
            print(
                f"CT {ctid:<10} | {'HELD':>6} Bar% Lim% | {'MAXH':>6} Bar% Lim% | {'BAR':>6} | {'LIM':>6} | FAIL"
            )
            print(
                "-" * 14
                + "+"
                + "-" * 18
                + "+"
                + "-" * 18
                + "+"
                + "-" * 8
                + "+"
                + "-" * 8
                + "+------"
            )
            print("\n".join(lines))
    if args.json:
        import json

        print(json.dumps(objects, indent=2))
    elif not args.quiet_rows:
        print(_RULE)
    return 0


def _object(row: ubc.Beancounter, held: Held, limits: Pair | None) -> dict[str, object]:
    return {
        "resource": row.name,
        "unit": row.unit.value,
        "held": held.now,
        "maxheld": held.peak,
        "barrier": None if limits is None else limits.barrier,
        "limit": None if limits is None else limits.limit,
        "failcnt": held.failures,
    }


def _notable(held: Held, limits: Pair | None) -> bool:
    if held.failures:
        return True
    reference = None if limits is None else limits.barrier or limits.limit
    if not reference or reference >= UNLIMITED:
        return False
    return max(held.now or 0, held.peak or 0) * 100 > _QUIET_PERCENT * reference


def _line(row: ubc.Beancounter, held: Held, limits: Pair | None) -> str:
    bounds = limits or Pair(UNLIMITED, UNLIMITED)
    # The barrier 0 of physpages and swappages means nothing.
    barrier = bounds.limit if row.limit_only else bounds.barrier
    cells = []
    for value in (held.now, held.peak):
        percents = [_percent(value, barrier), _percent(value, bounds.limit)]
        cells.append(f"{_amount(row, value):>6} {percents[0]:>4} {percents[1]:>4}")
    fails = "-" if held.failures is None else str(held.failures)
    return (
        f"{row.name:>13} | {cells[0]} | {cells[1]} | {_amount(row, barrier):>6} | "
        f"{_amount(row, bounds.limit):>6} | {fails:>4}"
    )


def _amount(row: ubc.Beancounter, value: int | None) -> str:
    if value is None or value >= UNLIMITED:
        return "-"
    if row.unit is Unit.ITEMS:
        return str(value)
    return human(value * (PAGE if row.unit is Unit.PAGES else 1))


def _percent(value: int | None, of: int) -> str:
    if value is None or of >= UNLIMITED or of == 0:
        return "-"
    return f"{min(value * 100 // of, 999)}%"


PROGRAM = Program(
    "vzubc",
    "Show the counted resources of running containers.",
    run=_run,
    options=(
        option("ctids", help="only these containers", nargs="*", metavar="CTID"),
        option(
            "-q",
            dest="quiet_rows",
            help="only what is above half of its barrier or was refused",
            action="store_true",
        ),
        JSON,
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzubc; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
