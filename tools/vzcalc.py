"""vzcalc: how much of the server one container uses, was promised, and can use at most."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime import registry, status, ubc
from runtime.config import ConfigFile
from runtime.sizing import Demand, server
from runtime.units import UNLIMITED
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program
from tools._sizing import finite, percent, share


def _run(context: Context, args: argparse.Namespace) -> int:
    record = registry.find(context.paths, args.ctid)
    config = context.config(record.ctid, ConfigFile.read(record.conf))
    private = context.paths.area(config["VE_PRIVATE"])
    running = status.status(context.paths, record.ctid, private).running
    host = server()
    mine = share(context, record.ctid, config, running=running)
    now = None if mine.used is None else percent(mine.used, host)
    told = percent(mine.promised, host)
    numproc = ubc.lenient("NUMPROC", config.get("NUMPROC"))
    processes_now = None if mine.processes is None else mine.processes * 100 / host.threads_max
    processes_most = (
        0.0
        if numproc is None or numproc.limit >= UNLIMITED
        else numproc.limit * 100 / host.threads_max
    )
    current = None if now is None else max(now.low, now.ram, now.both, now.alloc)
    if current is not None and processes_now is not None:
        current = max(current, processes_now)
    # What may be allocated without a limit is not what can be used: RAM and swap are the end.
    most = max(
        told.low, told.both, told.alloc if told.alloc_limit == float("inf") else told.alloc_limit
    )
    whole = (current, max(told.low, told.both, told.alloc), most)
    rows: tuple[tuple[str, tuple[float | None, ...]], ...] = (
        ("Low Mem", (_part(now, "low"), told.low, told.low)),
        ("Total RAM", (_part(now, "ram"), None, None)),
        ("Mem + Swap", (_part(now, "both"), told.both, None)),
        ("Alloc. Mem", (_part(now, "alloc"), told.alloc, told.alloc_limit)),
        ("Num. Proc", (processes_now, None, processes_most)),
    )
    if args.json:
        import json

        keys = ("current", "promised", "max")
        table = {
            name: dict(zip(keys, (v if v is None else finite(v) for v in row), strict=True))
            for name, row in (*rows, ("Memory", whole))
        }
        print(json.dumps({"ctid": record.ctid, "running": running, "percent": table}, indent=2))
        return 0
    print("Resource     Current(%)  Promised(%)  Max(%)")
    if args.verbose_table:
        for name, row in rows:
            print(f"{name:<10} " + " ".join(map(_cell, row)))
        print("-" * 44)
    print(f"{'Memory':<10} " + " ".join(map(_cell, whole)))
    return 0


def _part(demand: Demand | None, name: str) -> float | None:
    return None if demand is None else float(getattr(demand, name))


def _cell(value: float | None) -> str:
    return f"{'n/a':>10}" if value is None else f"{value:10.2f}"


PROGRAM = Program(
    "vzcalc",
    "Show how much of the server a container uses and was promised.",
    run=_run,
    options=(
        option("ctid", help="container", metavar="CTID"),
        option("-v", dest="verbose_table", help="one line per resource", action="store_true"),
        JSON,
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzcalc; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
