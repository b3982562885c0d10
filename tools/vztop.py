"""vztop: top with the container of every process."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from runtime import registry
from runtime.errors import InvalidValue
from runtime.sizing import parse_meminfo
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program
from tools._processes import ORDERS, Row, Snapshot, rows, snapshot, user
from tools._pstat_view import Line

_MIB = 1 << 20
_FIRST_S = 0.5


def _run(context: Context, args: argparse.Namespace) -> int:
    wanted = None
    if args.environment is not None:
        wanted = (
            0 if args.environment == "0" else registry.find(context.paths, args.environment).ctid
        )
    try:
        delay_s, count = float(args.delay), int(args.count) if args.count is not None else None
    except ValueError:
        delay_s, count = 0.0, None
    if not 0.1 <= delay_s <= 3600 or (count is not None and count < 1):
        raise InvalidValue("a delay is 0.1 to 3600 seconds, a count at least 1")
    top = _Top(context, wanted, delay_s, whole_commands=args.whole)
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if args.json:
        import json

        time.sleep(_FIRST_S)
        print(json.dumps(top.objects(), indent=2))
        return 0
    if args.batch or not terminal:
        limit = count if count is not None else (None if args.batch else 1)
        done = 0
        while limit is None or done < limit:
            time.sleep(_FIRST_S if done == 0 else delay_s)
            if done:
                print()
            print("\n".join(line.text for line in top.make()), flush=True)
            done += 1
        return 0
    from tools import _screen

    time.sleep(_FIRST_S)
    _screen.show(top.make, top.key, lambda: top.delay_s)
    return 0


class _Top:
    """The state of the screen: what is shown, in which order."""

    def __init__(
        self, context: Context, wanted: int | None, delay_s: float, *, whole_commands: bool
    ) -> None:
        self.paths = context.paths
        self.wanted = wanted
        self.delay_s = delay_s
        self.order = "P"
        self.whole_commands = whole_commands
        self.with_ctid = True
        self.before: Snapshot = snapshot(self.paths, wanted)
        self.ticks = _ticks()

    def _next(self) -> list[Row]:
        after = snapshot(self.paths, self.wanted)
        found = rows(self.before, after)
        self.before = after
        _heading, weight = ORDERS[self.order]
        return sorted(found, key=weight, reverse=self.order != "N")

    def make(self) -> list[Line]:
        """Return the next screen."""
        found = self._next()
        return [*self._head(found), Line(""), *self._table(found)]

    def _head(self, found: list[Row]) -> list[Line]:
        letters = [row.process.state for row in found]
        with open("/proc/loadavg", encoding="ascii") as file:
            load = ", ".join(file.read().split()[:3])
        now, before = _ticks(), self.ticks
        self.ticks = now
        spent = [new - old for new, old in zip(now, before, strict=True)]
        whole = max(sum(spent), 1)
        user_part = 100 * (spent[0] + spent[1]) / whole
        idle, wait = 100 * spent[3] / whole, 100 * spent[4] / whole
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            memory = parse_meminfo(meminfo.read())
        free = memory.get("MemAvailable", memory["MemFree"])
        return [
            Line(f"vztop - {time.strftime('%H:%M:%S')}, load average: {load}"),
            Line(
                f"Tasks: {len(found)} total, {letters.count('R')} running, "
                f"{sum(letter in 'SI' for letter in letters)} sleeping, "
                f"{letters.count('D')} unint, "
                f"{sum(letter in 'Tt' for letter in letters)} stopped, {letters.count('Z')} zombie"
            ),
            Line(
                f"%Cpu: {user_part:5.1f} us, {max(100 - user_part - idle - wait, 0):5.1f} sy, "
                f"{idle:5.1f} id, {wait:5.1f} wa"
            ),
            Line(f"MiB Mem : {memory['MemTotal'] / _MIB:.1f} total, {free / _MIB:.1f} available"),
            Line(
                f"MiB Swap: {memory.get('SwapTotal', 0) / _MIB:.1f} total, "
                f"{memory.get('SwapFree', 0) / _MIB:.1f} free"
            ),
        ]

    def _table(self, found: list[Row]) -> list[Line]:
        """Return headings and rows; narrow enough for 80 columns to show what runs."""
        wide = max((len(str(row.process.ctid)) for row in found), default=4)
        wide = max(wide, len("CTID"))
        left = f"{'CTID':>{wide}} " if self.with_ctid else ""
        out = [
            Line(
                f"{left}{'PID':>7} {'USER':<8} {'PR':>3} {'NI':>3} {'VIRT':>7} {'RES':>7} S "
                f"{'%CPU':>5} {'%MEM':>4} {'TIME+':>8} COMMAND",
                head=True,
            )
        ]
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for row in found:
            process = row.process
            clock = f"{int(process.cpu_s // 60)}:{process.cpu_s % 60:05.2f}"
            priority = "rt" if process.priority < -99 else str(process.priority)
            left = f"{process.ctid:>{wide}} " if self.with_ctid else ""
            command = process.command if self.whole_commands else process.name
            out.append(
                Line(
                    f"{left}{process.pid:>7} {user(process.uid)[:8]:<8} {priority:>3} "
                    f"{process.nice:>3} {_size(process.virtual):>7} {_size(process.resident):>7} "
                    f"{process.state} {row.cpu_percent:>5.1f} "
                    f"{100 * process.resident / total:>4.1f} {clock:>8} {command}"
                )
            )
        return out

    def objects(self) -> list[dict[str, object]]:
        """Return the rows with field names."""
        return [
            {
                "ctid": row.process.ctid,
                "pid": row.process.pid,
                "user": user(row.process.uid),
                "state": row.process.state,
                "cpu_percent": round(row.cpu_percent, 2),
                "resident_bytes": row.process.resident,
                "virtual_bytes": row.process.virtual,
                "cpu_seconds": round(row.process.cpu_s, 2),
                "command": row.process.command,
            }
            for row in self._next()
        ]

    def key(self, letter: str) -> bool:
        """Follow a key of the screen; return False to leave."""
        if letter in ORDERS:
            self.order = letter
        elif letter == "c":
            self.whole_commands = not self.whole_commands
        elif letter == "e":
            self.with_ctid = not self.with_ctid
        elif letter == "t":
            self.delay_s = {1.0: 3.0, 3.0: 10.0}.get(self.delay_s, 1.0)
        return True


def _ticks() -> list[int]:
    with open("/proc/stat", encoding="ascii") as file:
        return list(map(int, file.readline().split()[1:9]))


def _size(size_bytes: int) -> str:
    """Return KiB as top does, in larger units where that would be too wide."""
    kib = size_bytes // 1024
    if kib < 1_000_000:
        return str(kib)
    return f"{kib / (1 << 20):.1f}g" if kib < 1 << 30 else f"{kib / (1 << 30):.1f}t"


PROGRAM = Program(
    "vztop",
    "Show processes as top does, with the container each belongs to (0 is the server).",
    run=_run,
    options=(
        option("-E", dest="environment", help="only this container", metavar="CTID"),
        option("-d", dest="delay", help="seconds between screens", metavar="SEC", default="3"),
        option("-n", dest="count", help="leave after so many", metavar="N"),
        option("-b", dest="batch", help="plain text, no screen", action="store_true"),
        option("-c", dest="whole", help="whole command lines", action="store_true"),
        JSON,
    ),
    usage_code=1,
    exit_code=lambda error: 1,
    epilog="Keys: P M T N E order, c commands, e CTID column, t delay, arrows scroll, q leaves.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vztop; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
