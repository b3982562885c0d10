"""``pctl events``: what happened, and what happens."""

from __future__ import annotations

import argparse
import dataclasses
import json

from runtime import events
from tools._command import JSON, Context, Verb, option


def show(context: Context, args: argparse.Namespace) -> int:
    """Print events, oldest first; with --follow those to come, until interrupted."""
    for event in events.read(context.paths, follow=args.follow):
        if args.ident and event.ident != args.ident:
            continue
        print(json.dumps(dataclasses.asdict(event)) if args.json else event.line(), flush=True)
    return 0


VERBS: tuple[Verb, ...] = (
    Verb(
        "events",
        "show what happened to environments",
        show,
        (
            option("ident", help="only this CTID or machine", nargs="?", metavar="ID"),
            option("-f", "--follow", help="go on with what happens", action="store_true"),
            JSON,
        ),
        changes=False,
    ),
)
