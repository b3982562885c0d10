"""vzmlocal: copy, move and renumber containers on this server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime import errors, registry
from runtime.errors import InvalidOption, VzError
from tools import copying, environments
from tools._command import Context, Program, option
from tools._command import main as run_program

#: vzmigrate(8)'s codes, which vzmlocal shares, by the errors of ours that mean them.
_CODES: tuple[tuple[type[VzError], int], ...] = (
    (errors.InvalidOption, 1),
    (errors.InvalidValue, 1),
    (errors.Locked, 3),
    (errors.PrivateExists, 9),
    (errors.ConfigMissing, 10),
    (errors.NoDiskSpace, 31),
    (errors.StopFailed, 8),
    (errors.NameFailed, 45),
)


@dataclass(frozen=True, slots=True)
class Task:
    """``SRC[:DST[:private[:root]]]``: an empty part stays as it is."""

    source: str
    ctid: int | None
    private: Path | None
    root: Path | None


def parse(word: str) -> Task:
    """Return the task that ``word`` describes; raises InvalidOption, InvalidValue."""
    parts = word.split(":")
    if len(parts) > 4 or not parts[0]:
        raise InvalidOption(f"not SRC[:DST[:private[:root]]]: {registry.printable(word)}")
    parts += [""] * (4 - len(parts))
    ctid = registry.check_new_ctid(parts[1]) if parts[1] else None
    for place in parts[2:]:
        if place and not place.startswith("/"):
            raise InvalidOption(f"not an absolute path: {registry.printable(place)}")
    return Task(
        parts[0],
        ctid,
        Path(parts[2]) if parts[2] else None,
        Path(parts[3]) if parts[3] else None,
    )


def _run(context: Context, args: argparse.Namespace) -> int:
    tasks = [parse(word) for word in args.tasks]
    for task in tasks:
        ct = environments.find_container(context, task.source)
        private = context.paths.area(str(task.private)) if task.private else None
        root = context.paths.area(str(task.root)) if task.root else None
        ctid = task.ctid or ct.ctid
        if args.dry_run:
            word = "copy" if args.copy else "move"
            print(f"would {word} container {ct.ctid} to {ctid}")
        elif args.copy:
            copying.clone(context, ct, ctid, private=private, root=root)
        else:
            if ctid == ct.ctid and private is None and root is None:
                raise InvalidOption(f"nothing to do for container {ct.ctid}")
            copying.move(context, ct, ctid, private=private, root=root)
    return 0


def _exit_code(error: VzError) -> int:
    return next((code for cls, code in _CODES if isinstance(error, cls)), 2)


PROGRAM = Program(
    "vzmlocal",
    "Copy, move and renumber containers on this server.",
    run=_run,
    options=(
        option("tasks", help="SRC[:DST[:private[:root]]]", nargs="+", metavar="TASK"),
        option("-C", "--copy", help="copy instead of moving", action="store_true"),
        option("-f", "--force", help="accepted", action="store_true"),
        option(
            "--online", help="accepted: what runs is stopped and started again", action="store_true"
        ),
        option("-n", "--dry-run", help="say what would be done", action="store_true"),
    ),
    usage_code=1,
    exit_code=_exit_code,
    changes=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzmlocal; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
