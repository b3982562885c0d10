"""vzcheckovr: whether the server's memory is given out more than its warning levels allow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime.errors import BadConfig
from runtime.sizing import server, total
from tools._command import Context
from tools._command import main as run_program
from tools._sizing import checker, finite, percent, shares

#: Check → key in vz.conf and its level in percent where that is not set.
_LEVELS = {
    "LowMem": ("OVERCOMMIT_LEVEL_LOWMEM", 100.0),
    "Mem+Swap": ("OVERCOMMIT_LEVEL_MEMSWAP", 100.0),
    "AllocMem": ("OVERCOMMIT_LEVEL_ALLOCMEM", 100.0),
    "TotalAlloc": ("OVERCOMMIT_LEVEL_ALLOCMEM_TOT", 400.0),
    "MaxAlloc": ("OVERCOMMIT_LEVEL_ALLOCMEM_MAX", 100.0),
}


def _run(context: Context, args: argparse.Namespace) -> int:
    host = server()
    demands = [row.promised for row in shares(context)]
    whole = percent(total(demands), host)
    largest = max((percent(demand, host).alloc_limit for demand in demands), default=0.0)
    found = {
        "LowMem": whole.low,
        "Mem+Swap": whole.both,
        "AllocMem": whole.alloc,
        "TotalAlloc": whole.alloc_limit,
        "MaxAlloc": largest,
    }
    levels = _levels(context)
    over = {name for name, value in found.items() if value > levels[name]}
    if args.json:
        import json

        rows = [
            {"check": n, "percent": finite(v), "level": levels[n], "ok": n not in over}
            for n, v in found.items()
        ]
        print(json.dumps({"ok": not over, "checks": rows}, indent=2))
        return 1 if over else 0
    if args.verbose_table:
        print(f"{'Check':<12}{'Commit(%)':>12}{'Level(%)':>12}")
        for name, value in found.items():
            mark = "  OVER" if name in over else ""
            print(f"{name:<12}{value:>12.2f}{levels[name]:>12.2f}{mark}")
    for name, value in found.items():
        if name in over:
            text = f"{name} is committed to {value:.2f}%, the warning level is"
            print(f"Warning: {text} {levels[name]:.2f}%", file=sys.stderr)
    return 1 if over else 0


def _levels(context: Context) -> dict[str, float]:
    found = {}
    for name, (key, usual) in _LEVELS.items():
        text = context.server().get(key)
        try:
            found[name] = float(text) if text else usual
        except ValueError:
            raise BadConfig(f"{key} in vz.conf is not a number: {text!r}") from None
    return found


PROGRAM = checker(
    "vzcheckovr",
    "Check whether memory is given out beyond the warning levels in vz.conf.",
    _run,
    each="show every check",
    epilog="Exit status: 0 within the levels, 1 above one of them.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzcheckovr; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
