"""vzctl: containers under the commands that OpenVZ's administrators know."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tools import recover, reinstall, verbs_container, verbs_life, verbs_quota, verbs_state
from tools._command import Program
from tools._command import main as run_program

PROGRAM = Program(
    "vzctl",
    "Create, run and change containers.",
    verbs=(
        *verbs_container.VERBS,
        *verbs_life.VERBS,
        *verbs_state.VZCTL,
        *verbs_quota.VERBS,
        *reinstall.VERBS,
        *recover.VERBS,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzctl; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
