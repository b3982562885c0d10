"""vzps: ps with the container of every process in front."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from runtime import membership, registry
from runtime.errors import InvalidOption, ScriptMissing
from tools._command import Context, Program, option
from tools._command import main as run_program

#: Options of ps which choose processes; without one of them -E means all of them.
_CHOOSING = ("-e", "-A", "-a", "-p", "-C", "-u", "-U", "-g", "-G", "-t", "-s", "-q", "-N", "-d")
_WIDTH = 10


def _run(context: Context, args: argparse.Namespace) -> int:
    wanted = None
    if args.environment is not None:
        wanted = (
            0 if args.environment == "0" else registry.find(context.paths, args.environment).ctid
        )
    ps = shutil.which("ps", path="/usr/bin:/bin")
    if ps is None:
        raise ScriptMissing("ps is not installed", hint="apt install procps")
    words = list(args.words)
    chooses = any(
        word.startswith(_CHOOSING) if word.startswith("-") else set(word) & set("axtUpq")
        for word in words
    )
    if args.everything and not chooses:
        words.insert(0, "-e")
    # Cut to the terminal here, not there: a column is put in front.
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "COLUMNS": "4096"}
    done = subprocess.run([ps, *words], stdout=subprocess.PIPE, env=environment, check=False)
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode and not lines:
        return done.returncode
    heads = lines[0].split() if lines else []
    if "PID" not in heads:
        raise InvalidOption(
            "the output of ps has no PID column",
            hint="add pid to the list of -o, leave headings on",
        )
    width = _terminal_width()
    print(f"{'CTID':>{_WIDTH}} {lines[0]}"[:width].rstrip())
    column = heads.index("PID")
    for line in lines[1:]:
        cells = line.split(None, column + 1)
        if len(cells) <= column or not cells[column].isdecimal():
            continue
        ctid = membership.container_of(context.paths, int(cells[column]))
        if ctid is not None and (wanted is None or ctid == wanted):
            print(f"{ctid:>{_WIDTH}} {line}"[:width].rstrip())
    return 0


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 1 << 20


PROGRAM = Program(
    "vzps",
    "Show processes as ps does, with the container each belongs to (0 is the server).",
    run=_run,
    options=(
        option("words", help="options of ps(1)", nargs="*", metavar="PS-OPTION"),
        option(
            "-E",
            dest="environment",
            help="only processes of this container (without a value: of all)",
            metavar="CTID",
        ),
        option(
            "--everything", help=argparse.SUPPRESS, action="store_true"
        ),  # set for a bare -E, see split()
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def split(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with our options in front and those of ps behind ``--``."""
    ours: list[str] = []
    theirs: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("--help", "--version"):
            return [word]
        if word in ("--root",) and words:
            ours += [word, words.pop(0)]
        elif word == "-E" or (word.startswith("-E") and not word.startswith("--")):
            ours.append("--everything")
            value = word[2:]
            # A value is an id or a name, never an option of ps.
            if not value and words and not words[0].startswith("-"):
                value = words.pop(0)
            if value:
                ours += ["-E", value]
        else:
            theirs.append(word)
    return [*ours, "--", *theirs]


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzps; return its exit status."""
    return run_program(PROGRAM, split(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
