"""pctl: containers and virtual machines under the same verbs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tools import (
    counters,
    diagnose,
    recover,
    reinstall,
    report,
    sharing,
    verbs_container,
    verbs_events,
    verbs_life,
    verbs_list,
    verbs_quota,
    verbs_state,
    verbs_svc,
    verbs_vm,
)
from tools._command import Context, Program, Verb
from tools._command import main as run_program
from tools.environments import Kind

_CONTAINER_VERBS = (
    *verbs_container.VERBS,
    *verbs_life.VERBS,
    *verbs_state.VERBS,
    *verbs_quota.VERBS,
    *diagnose.VERBS,
    *report.VERBS,
    *reinstall.VERBS,
    *recover.VERBS,
    *verbs_svc.VERBS,
)
#: The rows of each kind by word, aliases included.
_ROWS: dict[Kind, dict[str, Verb]] = {
    Kind.CONTAINER: {
        word: verb for verb in _CONTAINER_VERBS for word in (verb.name, *verb.aliases)
    },
}


def _choose(context: Context, word: str, tail: Sequence[str]) -> Verb | None:
    """Return the row of ``word`` for the kind of environment that the command line names."""
    return verbs_vm.choose(context, word, tail) or _ROWS[Kind.CONTAINER].get(word)


PROGRAM = Program(
    "pctl",
    "Create, run and change containers and virtual machines.",
    verbs=(
        *_CONTAINER_VERBS,
        *verbs_list.VERBS,
        *verbs_events.VERBS,
        *sharing.VERBS,
        *counters.VERBS,
        *verbs_vm.only(_CONTAINER_VERBS),
    ),
    choose=_choose,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run pctl; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
