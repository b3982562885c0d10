"""vztactl: load, show, reset traffic accounting (guide §4.4.2)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import registry
from runtime.errors import AccountingFailed
from tools._command import Context, Program, Verb, option
from tools._command import main as run_program

if TYPE_CHECKING:
    from runtime.net.classes import Table


def class_load(context: Context, args: argparse.Namespace) -> None:
    """Check a table of classes, make it the server's, and count by it from now on."""
    from runtime import files
    from runtime.net import accounting, classes
    from runtime.net.server import Server

    path = Path(args.file) if args.file else context.paths.networks_classes
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if args.file:
            raise AccountingFailed(f"{path} does not exist") from None
        text = classes.DEFAULT_TEXT
    except OSError as error:
        raise AccountingFailed(f"cannot read {path}: {error.strerror}") from error
    table = classes.parse(text, source=str(path))
    with Server(context.paths) as server, server.locked():
        accounting.load(server.nft, context.paths, table)
        target = context.paths.networks_classes
        if path.absolute() != target.absolute():
            # Else the next start of the server would count by the old table.
            target.parent.mkdir(parents=True, exist_ok=True)
            files.replace(target, text.encode("utf-8", "surrogateescape"))


def class_unload(context: Context, args: argparse.Namespace) -> None:
    """Stop accounting; what was counted is saved."""
    from runtime.net import accounting
    from runtime.net.server import Server

    with Server(context.paths) as server, server.locked():
        if accounting.present(server.nft):
            accounting.save(context.paths, accounting.read(server.nft))
            accounting.unload(server.nft)


def class_list(context: Context, args: argparse.Namespace) -> None:
    """Print the table of classes in force."""
    from runtime.net import classes

    for network, number in classes.read(context.paths).entries:
        print(f"{number} {network}")


def reset_ve_stat(context: Context, args: argparse.Namespace) -> None:
    """Start an environment's counters from zero."""
    from runtime.net import accounting, names
    from runtime.net.server import Server

    ctid = 0 if args.ident == "0" else registry.find(context.paths, args.ident).ctid
    with Server(context.paths) as server, server.locked():
        if not accounting.present(server.nft):
            accounting.load(server.nft, context.paths, _table(context))
        counted = accounting.read(server.nft)
        doomed = {
            key[0]
            for of_family in counted.values()
            for key in of_family
            if (names.owner(key[0]) or 0) == ctid
        }
        accounting.forget(server.nft, doomed)
        accounting.save(context.paths, accounting.read(server.nft))


def reset_all_stat(context: Context, args: argparse.Namespace) -> None:
    """Start all counters from zero."""
    from runtime.net import accounting
    from runtime.net.server import Server

    with Server(context.paths) as server, server.locked():
        accounting.unload(server.nft)
        accounting.save(context.paths, {})
        accounting.load(server.nft, context.paths, _table(context))


def save(context: Context, args: argparse.Namespace) -> None:
    """Save the counters now, and put back rules that somebody flushed."""
    from runtime.net import server

    server.tick(context.paths)


def _table(context: Context) -> Table:
    from runtime.net import classes

    return classes.read(context.paths)


PROGRAM = Program(
    "vztactl",
    "Control traffic accounting.",
    verbs=(
        Verb("class_load", "count by this table of classes from now on", class_load,
             (option("file", help="table (default: networks_classes)", nargs="?", metavar="FILE"),)),
        Verb("class_unload", "stop accounting", class_unload),
        Verb("class_list", "print the table of classes", class_list, changes=False),
        Verb("reset_ve_stat", "zero an environment's counters", reset_ve_stat,
             (option("ident", help="environment, 0: the server", metavar="ID"),)),
        Verb("reset_all_stat", "zero all counters", reset_all_stat),
        Verb("save", "save the counters now", save, changes=False),
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run vztactl; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
