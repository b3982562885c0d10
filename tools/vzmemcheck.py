"""vzmemcheck: how much of the server's memory containers use and were promised."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime.sizing import LOW_MEMORY_SHARE, Demand, Server, server, total
from tools._command import Context, option
from tools._command import main as run_program
from tools._sizing import Share, checker, finite, megabytes, percent, shares

_HEADS = (
    " LowMem  LowMem     RAM MemSwap MemSwap   Alloc   Alloc   Alloc",
    "   util  commit    util    util  commit    util  commit   limit",
)
_KEYS = (
    "lowmem_util",
    "lowmem_commit",
    "ram_util",
    "memswap_util",
    "memswap_commit",
    "alloc_util",
    "alloc_commit",
    "alloc_limit",
)
_RULE = "-" * 73


def _columns(held: Demand, commit: Demand) -> tuple[float, ...]:
    return (
        held.low,
        commit.low,
        held.ram,
        held.both,
        commit.both,
        held.alloc,
        commit.alloc,
        commit.alloc_limit,
    )


def _line(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:7.2f}" for value in values)


def _run(context: Context, args: argparse.Namespace) -> int:
    host = server()
    rows: list[Share] = list(shares(context))

    def shown(demand: Demand) -> Demand:
        return megabytes(demand) if args.absolute else percent(demand, host)

    each = [_columns(shown(row.used or Demand()), shown(row.promised)) for row in rows]
    summary = _columns(
        shown(total(row.used or Demand() for row in rows)),
        shown(total(row.promised for row in rows)),
    )
    if args.json:
        _print_json(rows, each, summary, absolute=args.absolute)
        return 0
    print("Output values in Mbytes" if args.absolute else "Output values in %")
    for head, left in zip(_HEADS, ("veid       ", "           "), strict=True):
        print((left if args.verbose_table else "") + head)
    if args.verbose_table:
        for row, values in zip(rows, each, strict=True):
            print(f"{row.ctid:<10d} {_line(values)}")
        print(_RULE)
    print(("Summary:   " if args.verbose_table else "") + _line(summary))
    if args.absolute:
        print((" " * 11 if args.verbose_table else "") + _line(_whole(host)))
    return 0


def _whole(host: Server) -> tuple[float, ...]:
    """Return what stands for all of it in each column, in MiB."""
    low = host.low_bytes * LOW_MEMORY_SHARE / (1 << 20)
    ram, both = host.ram_bytes / (1 << 20), host.both_bytes / (1 << 20)
    return (low, low, ram, both, both, both, both, both)


def _print_json(
    rows: list[Share],
    each: list[tuple[float, ...]],
    summary: tuple[float, ...],
    *,
    absolute: bool,
) -> None:
    import json

    def named(values: tuple[float, ...]) -> dict[str, float | None]:
        return dict(zip(_KEYS, map(finite, values), strict=True))

    out = {
        "unit": "MiB" if absolute else "percent",
        "containers": [
            {"ctid": row.ctid, **named(values)} for row, values in zip(rows, each, strict=True)
        ],
        "summary": named(summary),
    }
    print(json.dumps(out, indent=2))


PROGRAM = checker(
    "vzmemcheck",
    "Show how much of the server's memory running containers use and were promised.",
    _run,
    option("-A", "--absolute", help="MiB instead of percent", action="store_true"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzmemcheck; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
