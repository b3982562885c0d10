"""vzcfgvalidate: whether a container's configuration is consistent, and its repair."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime import registry
from runtime.config import ConfigFile
from runtime.errors import ConfigMissing
from runtime.memory import memory_of
from runtime.sizing import server
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program
from tools._validation import Finding, Level, Surroundings, addresses_of, findings


def _run(context: Context, args: argparse.Namespace) -> int:
    path = configuration(context, args.file)
    try:
        file = ConfigFile.read(path)
    except IsADirectoryError:
        raise ConfigMissing(f"{path} is a directory") from None
    repaired = 0

    def decide(finding: Finding) -> bool:
        nonlocal repaired
        if not (args.repair or args.interactive):
            return False
        assert finding.repair is not None
        value = ", ".join(finding.repair.values())
        print(f"{finding}\nset to {value}", file=sys.stderr, end="")
        agreed = args.repair or _agreed()
        if args.repair:
            print(file=sys.stderr)
        repaired += agreed
        return agreed

    found = list(findings(file, surroundings(context, path), decide))
    if repaired:
        file.save(path, mode=path.stat().st_mode & 0o7777)
    failed = any(finding.level is not Level.RECOMMENDATION for finding in found)
    if args.json:
        import json

        rows = [{"level": f.level.lower(), "text": f.text} for f in found]
        print(json.dumps({"ok": not failed, "findings": rows}, indent=2))
        return 2 if failed else 0
    for finding in found:
        print(finding, file=sys.stderr)
    if not failed:
        print("Validation completed: success")
    return 2 if failed else 0


def configuration(context: Context, text: str) -> Path:
    """Return the configuration file ``text`` names: a path, or the id of a container."""
    if "/" not in text and not os.path.exists(text) and text.isdecimal():
        return registry.record(context.paths, int(text)).conf
    return Path(text)


def surroundings(context: Context, path: Path) -> Surroundings:
    """Return what a configuration at ``path`` is judged against on this server."""
    place = context.paths.private_dir
    while not place.exists():
        place = place.parent
    stats = os.statvfs(place)
    guaranteed, addresses = 0, {}
    for record, file in registry.records(context.paths):
        if record.conf.resolve() != path.resolve():
            values = file.items()
            guaranteed += memory_of(values).guarantee_bytes
            addresses.update(dict.fromkeys(addresses_of(values), record.ctid))
    return Surroundings(server(), stats.f_blocks * stats.f_frsize, guaranteed, addresses)


def _agreed() -> bool:
    """Ask; the empty answer agrees, the end of the input does not."""
    while True:
        print(" (y/n) [y] ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return False
        word = line.strip().lower()
        if word in ("", "y", "yes"):
            return True
        if word in ("n", "no"):
            return False


PROGRAM = Program(
    "vzcfgvalidate",
    "Check whether a container's configuration is consistent.",
    run=_run,
    options=(
        option("file", help="configuration file, sample, or CTID", metavar="FILE"),
        option("-r", "--repair", help="repair everything that can be", action="store_true"),
        option("-i", "--interactive", help="ask before each repair", action="store_true"),
        JSON,
    ),
    usage_code=1,
    exit_code=lambda error: 1,
    epilog="Exit status: 0 consistent (recommendations do not count), 1 error, 2 not consistent.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzcfgvalidate; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
