"""vzcfgscale: a configuration with every limit multiplied."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.config import ConfigFile
from runtime.errors import ConfigNotSaved, InvalidValue
from tools._command import Context, Program, option
from tools._command import main as run_program
from tools._scaling import Coefficients, remove_personal, scale
from tools.vzcfgvalidate import configuration


def _run(context: Context, args: argparse.Namespace) -> int:
    path = configuration(context, args.file)
    target = None if args.output is None else Path(args.output)
    every = _coefficient(args.all)
    chosen = Coefficients(
        cpu=_coefficient(args.cpu) or every,
        disk=_coefficient(args.disk) or every,
        ubc=_coefficient(args.ubc) or every,
        network=_coefficient(args.network) or every,
    )
    file = ConfigFile.read(path)
    if target is not None and target.is_dir():
        raise ConfigNotSaved(f"output file {target} is a directory")
    if target is not None and target.exists() and os.path.samefile(path, target):
        raise ConfigNotSaved(
            f"{target} is the file to read too", hint="write to another file, then move it"
        )
    scale(file, chosen)
    if args.remove:
        remove_personal(file)
    if target is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(file.text().encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    else:
        if target.exists():
            shutil.copy2(target, target.with_name(f"{target.name}.bak"))
        file.save(target)
    print("Scale completed: success", file=sys.stderr)
    return 0


def _coefficient(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise InvalidValue(f"Bad parameter {text}", hint="a coefficient is a number above 0")
    return value


PROGRAM = Program(
    "vzcfgscale",
    "Multiply the limits in a configuration file.",
    run=_run,
    options=(
        option("file", help="configuration file, sample, or CTID", metavar="FILE"),
        option("-o", "--output-file", dest="output", help="write to OUT", metavar="OUT"),
        option("-a", "--all", help="scale everything", metavar="COEF"),
        option("-c", "--cpu-only", dest="cpu", help="scale CPU limits", metavar="COEF"),
        option("-d", "--disk-only", dest="disk", help="scale disk quotas", metavar="COEF"),
        option(
            "-u", "--ubc-only", dest="ubc", help="scale memory and beancounters", metavar="COEF"
        ),
        option("-n", "--network-only", dest="network", help="scale bandwidth", metavar="COEF"),
        option(
            "-r",
            "--remove",
            help="remove what belongs to one container (for samples)",
            action="store_true",
        ),
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzcfgscale; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
