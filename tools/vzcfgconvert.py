"""vzcfgconvert: configurations of old versions brought to the present format, once."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from runtime import locks, registry
from runtime.config import ConfigFile
from tools._command import DRY_RUN, Context, Program, option
from tools._command import main as run_program
from tools._conversion import convert, is_old, to_vswap


def _run(context: Context, args: argparse.Namespace) -> int:
    if args.ctid is not None:
        ctids = [registry.find(context.paths, args.ctid).ctid]
    else:
        ctids = registry.configured(context.paths)
    for ctid in ctids:
        with locks.environment(context.paths, ctid, "convert"):
            _convert(context, args, ctid)
    return 0


def _convert(context: Context, args: argparse.Namespace, ctid: int) -> None:
    path = context.paths.ct_conf(ctid)
    file = ConfigFile.read(path)
    changed = is_old(file)
    if changed:
        convert(file)
    if args.vswap:
        changed = to_vswap(file) or changed
    if not changed:
        print(f"Nothing to convert: Container {ctid} config file is new", file=sys.stderr)
        return
    if args.dry_run:
        sys.stdout.write(file.text())
        return
    shutil.copy2(path, path.with_name(f"{path.name}.bak"))
    file.save(path, mode=path.stat().st_mode & 0o7777)
    print(f"Container {ctid} config file converted: success", file=sys.stderr)


PROGRAM = Program(
    "vzcfgconvert",
    "Convert the configuration of a container (default: all) from older versions.",
    run=_run,
    options=(
        option("ctid", help="container; default: every one", nargs="?", metavar="CTID"),
        option(
            "--vswap",
            help="also turn SLM or beancounters into RAM, swap and overcommit",
            action="store_true",
        ),
        DRY_RUN,
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzcfgconvert; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
