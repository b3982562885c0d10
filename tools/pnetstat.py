"""pnetstat, vznetstat: traffic of every environment by class (guide §4.4.3)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime import registry
from runtime.errors import ConfigMissing, VzError
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program

if TYPE_CHECKING:
    from runtime.net.accounting import Traffic

_SCALE = ("", "K", "M", "G")


class BadSelection(VzError):
    """The class or environment asked for is not valid."""

    code = 1


def row(who: str, number: int, traffic: Traffic, *, readable: bool = False) -> str:
    """Return one line of the table: ``%-36s %-2u %20llu%1s %10u %20llu%1s %10u``."""
    cells = []
    for size, packets in (
        (traffic.bytes_in, traffic.packets_in),
        (traffic.bytes_out, traffic.packets_out),
    ):
        value, unit = scaled(size) if readable else (size, "")
        cells.append(f"{value:20d}{unit:1s} {packets:10d}")
    return f"{who:<36s} {number:<2d} {' '.join(cells)}"


def scaled(size: int) -> tuple[int, str]:
    """Return a number of bytes in the largest unit (of 1024) that leaves a whole part."""
    step = 0
    while size >= 1024 and step < len(_SCALE) - 1:
        size //= 1024
        step += 1
    return size, _SCALE[step]


def _heading(program: str) -> str:
    who = "CTID" if program.startswith("vz") else "UUID"
    return f"{who:<36s} Net.Class  Input(bytes) Input(pkts)  Output(bytes) Output(pkts)"


def _selected(context: Context, words: Sequence[str]) -> set[str] | None:
    if not words:
        return None
    found = set()
    for word in words:
        if word == "0":
            found.add("0")
            continue
        try:
            found.add(str(registry.find(context.paths, word).ctid))
        except VzError as error:
            if not word.isdecimal() and len(word.strip("{}")) == 36:
                found.add(word.strip("{}").lower())
                continue
            raise BadSelection(f"Invalid ID: {registry.printable(word)}", hint=error.hint) from None
    return found


def _class_number(word: str) -> int:
    if not word.isdecimal() or int(word) > 15:
        raise BadSelection(f"Invalid classid: {word[:20]}", hint="a number from 0 to 15")
    return int(word)


def _run(context: Context, args: argparse.Namespace) -> int:
    from runtime.net import accounting, classes, taps
    from runtime.net.accounting import Traffic
    from runtime.net.nft import Nft

    selected = _selected(context, args.ids)
    numbers = {_class_number(word) for word in args.classes}
    versions = (
        (4,) if args.ipv4 and not args.ipv6 else (6,) if args.ipv6 and not args.ipv4 else (4, 6)
    )
    with Nft() as nft:
        if accounting.present(nft):
            counters = accounting.read(nft)
        else:
            counters = accounting.saved(context.paths)
    owners = taps.owners(context.paths)
    machines = set(owners.values())
    found = accounting.by_environment(counters, owners, versions)
    if args.all:
        every = classes.read(context.paths).numbers
        for of_one in found.values():
            for number in every:
                of_one.setdefault(number, Traffic())
    lines = []
    for who in sorted(found, key=lambda w: (0, int(w), "") if w.isdecimal() else (1, 0, w)):
        if selected is not None and who not in selected:
            continue
        if (args.kind == "ct" and who in machines) or (
            args.kind == "vm" and who not in machines and who != "0"
        ):
            continue
        for number, traffic in sorted(found[who].items()):
            if numbers and number not in numbers:
                continue
            if args.all or numbers or traffic != Traffic():
                lines.append((who, number, traffic))
    _print(context, args, lines)
    return 0


def _print(
    context: Context, args: argparse.Namespace, lines: list[tuple[str, int, Traffic]]
) -> None:
    if args.json:
        import json

        facts = [
            {
                "id": _shown(context, who),
                "class": number,
                "bytes_in": traffic.bytes_in,
                "packets_in": traffic.packets_in,
                "bytes_out": traffic.bytes_out,
                "packets_out": traffic.packets_out,
            }
            for who, number, traffic in lines
        ]
        print(json.dumps(facts, indent=2))
        return
    print(_heading(context.program))
    for who, number, traffic in lines:
        print(row(_shown(context, who), number, traffic, readable=args.readable))


def _shown(context: Context, who: str) -> str:
    """Return what the first column shows: vznetstat the CTID, pnetstat the UUID where there is one."""
    if who == "0" or not who.isdecimal() or context.program.startswith("vz"):
        return who
    try:
        return registry.record(context.paths, int(who)).uuid or who
    except ConfigMissing:
        return who


def program(name: str) -> Program:
    """Return the command under one of its names."""
    return Program(
        name,
        "Show the traffic of containers and virtual machines by class.",
        run=_run,
        options=(
            option("-4", dest="ipv4", help="IPv4 only", action="store_true"),
            option("-6", dest="ipv6", help="IPv6 only", action="store_true"),
            option("-v", dest="ids", help="this environment only (0: the server)", action="append",
                   default=[], metavar="ID"),
            option("-c", dest="classes", help="this class only", action="append", default=[],
                   metavar="CLASS"),
            option("-a", "--all", help="also classes without traffic", action="store_true"),
            option("-r", dest="readable", help="sizes in K, M, G", action="store_true"),
            option("-t", dest="kind", help="kind of environment", choices=("ct", "vm", "all"),
                   default="all"),
            JSON,
        ),
        usage_code=1,
        exit_code=lambda error: 1,
    )  # fmt: skip


PROGRAM = program("pnetstat")


def main(argv: Sequence[str] | None = None) -> int:
    """Run pnetstat; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
