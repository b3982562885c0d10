"""vzdiskcheck: whether disk quotas promise more than the file systems hold."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InvalidValue
from runtime.units import KIB, UNLIMITED, Pair, pair
from tools._command import Context
from tools._command import main as run_program
from tools._sizing import OVERCOMMITTED, XML, checker, shares


@dataclass(frozen=True, slots=True)
class _Quota:
    """One container's limits; None: none."""

    ctid: int
    place: Path
    space_kib: int | None
    inodes: int | None


@dataclass(frozen=True, slots=True)
class _Report:
    """One file system and what was promised of it."""

    path: str
    size_kib: int
    free_kib: int
    promised_kib: int
    inodes: int
    promised_inodes: int
    #: Containers without a limit.
    unlimited: list[int]


def _run(context: Context, args: argparse.Namespace) -> int:
    rows = []
    for row in shares(context, running_only=False):
        limited = row.config.get("DISK_QUOTA") != "no"
        space, inodes = (
            _limit(row.config.get(key), unit) if limited else None for key, unit in _KEYS
        )
        place = _file_system(context.paths.area(row.config["VE_PRIVATE"]))
        rows.append(_Quota(row.ctid, place, space, inodes))
    places = {row.place for row in rows} or {_file_system(context.paths.private_dir)}
    reports = [_report(place, rows) for place in sorted(places)]
    over = any(report.promised_kib > report.size_kib for report in reports)
    if args.json:
        import json

        found = [dataclasses.asdict(report) for report in reports]
        print(json.dumps({"overcommitted": over, "filesystems": found}, indent=2))
        return 0
    size = sum(report.size_kib for report in reports)
    if args.xml:
        told = sum(report.promised_kib for report in reports)
        print(f"<disk><utilization>{told / size if size else 0.0:.2f}</utilization></disk>")
        return 0
    if args.verbose_table:
        print(f"{'veid':<10} {'diskspace':>14} {'diskinodes':>12}")
        for quota in rows:
            print(f"{quota.ctid:<10} {_cell(quota.space_kib):>14} {_cell(quota.inodes):>12}")
    for report in reports:
        part = 100 * report.promised_kib / report.size_kib if report.size_kib else 0.0
        line = f"{report.promised_kib} of {report.size_kib} KiB promised ({part:.2f}%)"
        print(f"{report.path}: {line}")
    if over:
        print(OVERCOMMITTED)
    return 0


def _report(place: Path, rows: Sequence[_Quota]) -> _Report:
    stats = os.statvfs(place)
    mine = [row for row in rows if row.place == place]
    return _Report(
        str(place),
        stats.f_blocks * stats.f_frsize // KIB,
        stats.f_bavail * stats.f_frsize // KIB,
        sum(row.space_kib or 0 for row in mine),
        stats.f_files,
        sum(row.inodes or 0 for row in mine),
        [row.ctid for row in mine if row.space_kib is None],
    )


_KEYS = (("DISKSPACE", KIB), ("DISKINODES", 0))


def _file_system(path: Path) -> Path:
    """Return the top of the file system that holds, or would hold, ``path``."""
    while not path.exists():
        path = path.parent
    while path.parent != path and os.stat(path.parent).st_dev == os.stat(path).st_dev:
        path = path.parent
    return path


def _limit(text: str | None, unit: int) -> int | None:
    """Return the hard limit in ``text``; None when there is none."""
    try:
        found = pair(text, unit=unit) if text else Pair(UNLIMITED, UNLIMITED)
    except InvalidValue:
        return None
    return None if found.limit >= UNLIMITED else found.limit


def _cell(value: int | None) -> str:
    return "unlimited" if value is None else str(value)


PROGRAM = checker(
    "vzdiskcheck",
    "Show the disk space promised to containers and what the file systems hold.",
    _run,
    XML,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzdiskcheck; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
