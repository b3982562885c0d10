"""vzcpucheck: whether more CPU units were given out than the server has."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime.sizing import server
from tools._command import Context
from tools._command import main as run_program
from tools._sizing import OVERCOMMITTED, XML, checker, shares


def _run(context: Context, args: argparse.Namespace) -> int:
    own = context.config(0, None).get("VE0CPUUNITS", "1000")
    rows = [(0, int(own) if own.isdecimal() else 1000)]
    for row in shares(context):
        text = row.config.get("CPUUNITS", "1000")
        rows.append((row.ctid, int(text) if text.isdecimal() else 1000))
    current = sum(units for _ctid, units in rows)
    power = server().power
    if args.json:
        import json

        units_of = [{"ctid": ctid, "units": units} for ctid, units in rows]
        print(json.dumps({"units": units_of, "utilization": current, "power": power}, indent=2))
        return 0
    if args.xml:
        part = current / power if power else 0.0
        print(f"<cpu><utilization>{part:.2f}</utilization></cpu>")
        return 0
    if args.verbose_table:
        print(f"{'veid':<10} {'units':>10}")
        for ctid, units in rows:
            print(f"{ctid:<10} {units:>10}")
    print(f"Current CPU utilization: {current}")
    print(f"Power of the node: {power:.0f}")
    if current > power:
        print(OVERCOMMITTED)
    return 0


PROGRAM = checker(
    "vzcpucheck",
    "Show the CPU units given out and those the server has.",
    _run,
    XML,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzcpucheck; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
