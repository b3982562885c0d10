"""vznetstat: pnetstat with container ids in the first column."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tools._command import main as run_program
from tools.pnetstat import program

PROGRAM = program("vznetstat")


def main(argv: Sequence[str] | None = None) -> int:
    """Run vznetstat; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
