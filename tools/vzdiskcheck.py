"""vzdiskcheck: whether disk quotas promise more than the file systems hold."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from runtime.errors import InvalidValue
from runtime.units import KIB, UNLIMITED, Pair, pair
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program
from tools._sizing import shares


def _run(context: Context, args: argparse.Namespace) -> int:
    rows = []
    for row in shares(context, running_only=False):
        private = context.paths.area(row.config["VE_PRIVATE"])
        place = private
        while not place.exists():
            place = place.parent
        limited = row.config.get("DISK_QUOTA") != "no"
        space, inodes = (
            _limit(row.config.get(key), unit) if limited else None for key, unit in _KEYS
        )
        rows.append((row.ctid, os.stat(place).st_dev, str(place), space, inodes))
    if not rows:
        area = context.paths.vz if context.paths.vz.exists() else context.paths.root
        rows_by_device = {os.stat(area).st_dev: str(area)}
    else:
        rows_by_device = {device: place for _ctid, device, place, _space, _inodes in rows}
    reports = []
    for device, place in rows_by_device.items():
        stats = os.statvfs(place)
        mine = [row for row in rows if row[1] == device]
        size_kib = stats.f_blocks * stats.f_frsize // KIB
        reports.append(
            {
                "path": place,
                "size_kib": size_kib,
                "free_kib": stats.f_bavail * stats.f_frsize // KIB,
                "promised_kib": sum(row[3] or 0 for row in mine),
                "inodes": stats.f_files,
                "promised_inodes": sum(row[4] or 0 for row in mine),
                "unlimited": [row[0] for row in mine if row[3] is None],
            }
        )
    over = any(int(str(r["promised_kib"])) > int(str(r["size_kib"])) for r in reports)
    if args.json:
        import json

        print(json.dumps({"overcommitted": over, "filesystems": reports}, indent=2))
        return 0
    if args.xml:
        size = sum(int(str(r["size_kib"])) for r in reports)
        told = sum(int(str(r["promised_kib"])) for r in reports)
        print(f"<disk><utilization>{told / size if size else 0.0:.2f}</utilization></disk>")
        return 0
    if args.verbose_table:
        print(f"{'veid':<10} {'diskspace':>14} {'diskinodes':>12}")
        for ctid, _device, _place, space, inodes in rows:
            print(f"{ctid:<10} {_cell(space):>14} {_cell(inodes):>12}")
    for report in reports:
        told, size = int(str(report["promised_kib"])), int(str(report["size_kib"]))
        part = 100 * told / size if size else 0.0
        print(f"{report['path']}: {told} of {size} KiB promised ({part:.2f}%)")
    if over:
        print("Warning: hardware node is overcommited")
    return 0


_KEYS = (("DISKSPACE", KIB), ("DISKINODES", 0))


def _limit(text: str | None, unit: int) -> int | None:
    """Return the hard limit in ``text``; None when there is none."""
    try:
        found = pair(text, unit=unit) if text else Pair(UNLIMITED, UNLIMITED)
    except InvalidValue:
        return None
    return None if found.limit >= UNLIMITED else found.limit


def _cell(value: int | None) -> str:
    return "unlimited" if value is None else str(value)


PROGRAM = Program(
    "vzdiskcheck",
    "Show the disk space promised to containers and what the file systems hold.",
    run=_run,
    options=(
        option("-v", dest="verbose_table", help="one line per container", action="store_true"),
        option("-x", "--xml", help="print XML", action="store_true"),
        JSON,
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzdiskcheck; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
