"""What the network's commands share: verbs below a verb, and interfaces as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.errors import InvalidOption
from tools._command import Context, Program, Verb, find_verb, overview, verb_parser

if TYPE_CHECKING:
    import argparse


def group(name: str, help: str, verbs: tuple[Verb, ...], *, program: str) -> Verb:
    """Return a verb whose first word is one of ``verbs``."""
    inner = Program(f"{program} {name}", help, verbs=verbs)

    def run(context: Context, args: argparse.Namespace) -> int:
        return dispatch(context, inner, args.rest)

    words = ", ".join(verb.name for verb in verbs)
    lines = [f"  {verb.name:<10}{verb.help}" for verb in verbs]
    return Verb(
        name,
        f"{help}: {words}",
        run,
        rest=True,
        description="\n".join([f"{help}.", "", *lines]),
        changes=False,
    )


def dispatch(context: Context, program: Program, words: Sequence[str]) -> int:
    """Run the verb that ``words`` begin with; raises InvalidOption."""
    if not words:
        raise InvalidOption(
            f"{program.name} needs one of: {', '.join(verb.name for verb in program.verbs)}"
        )
    if words[0] in ("help", "--help", "-h"):
        print(overview(program))
        return 0
    verb = find_verb(program, words[0], context, list(words[1:]))
    args = verb_parser(program, verb).parse_args(list(words[1:]))
    args.verb = verb.name
    return verb.function()(context, args) or 0


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings, left-aligned, the last column as it is."""
    widths = [max([len(head), *(len(row[i]) for row in rows)]) for i, head in enumerate(heads)]
    for row in (heads, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*cells, row[-1]]).rstrip())
