"""vzlist: the containers of this server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime import registry
from runtime.errors import ConfigMissing, InvalidOption, VzError
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program
from tools._entries import BASE, Entry, all_fields, counted_fields, entries
from tools._listing import Field, choose, matching, print_fields, print_json, print_table, sort

_DEFAULT = "ctid,numproc,status,ip,hostname"
_DEFAULT_NAMES = "ctid,numproc,status,ip,name"


class NotListed(VzError):
    """Container(s) not found."""

    code = 1


def _run(context: Context, args: argparse.Namespace) -> int:
    if args.list_fields:
        print_fields(all_fields())
        return 0
    fields = all_fields()
    names = args.output or ("ctid" if args.one else _DEFAULT_NAMES if args.names else _DEFAULT)
    chosen = choose(fields, names)
    rows = _selected(context, args)
    for pattern, text in (
        (args.hostname, lambda entry: entry.config.get("HOSTNAME")),
        (args.name_pattern, lambda entry: entry.record.name),
        (args.description, lambda entry: entry.config.get("DESCRIPTION")),
        (args.netif, lambda entry: " ".join(_words(BASE["netif"].value(entry)))),
    ):
        if pattern is not None:
            rows = matching(rows, text, pattern)
    key = args.sort or "ctid"
    descending = key.startswith("-")
    rows = sort(rows, choose(fields, key.lstrip("-"))[0], descending=descending)
    if args.json:
        print_json(rows, chosen if args.output else [*BASE.values(), *_held()])
    elif args.one:
        for row in rows:
            print(row.ctid)
    else:
        print_table(rows, chosen, heading=not args.no_header)
    return 0 if rows or not args.ctids else NotListed.code


def _held() -> list[Field[Entry]]:
    return [field for name, field in counted_fields().items() if "." not in name]


def _words(value: object) -> list[str]:
    return value if isinstance(value, list) else []


def _selected(context: Context, args: argparse.Namespace) -> list[Entry]:
    if args.ctids:
        wanted: set[int] = set()
        for ident in args.ctids:
            try:
                wanted.add(registry.find(context.paths, ident).ctid)
            except (ConfigMissing, InvalidOption) as error:
                raise NotListed(
                    f"Container(s) not found: {registry.printable(ident)}", hint=error.hint
                ) from None
        return [entry for entry in entries(context) if entry.ctid in wanted]
    rows = entries(context)
    if args.stopped:
        return [entry for entry in rows if not entry.status.running]
    if args.all:
        return rows
    return [entry for entry in rows if entry.status.running]


PROGRAM = Program(
    "vzlist",
    "List the containers of this server.",
    run=_run,
    options=(
        option(
            "ctids", help="only these containers (CTID, name or UUID)", nargs="*", metavar="CTID"
        ),
        option("-a", "--all", help="also those that do not run", action="store_true"),
        option("-S", "--stopped", help="only those that do not run", action="store_true"),
        option("-n", "--names", help="show names instead of host names", action="store_true"),
        option("-H", "--no-header", help="print no headings", action="store_true"),
        option("-t", "--no-trim", help="accepted; columns are never cut", action="store_true"),
        JSON,
        option("-o", "--output", help="show these fields", metavar="FIELD[,FIELD…]"),
        option("-1", "--one", help="print ids only, one a line", action="store_true"),
        option(
            "-s",
            "--sort",
            dashed=True,
            help="sort by a field; '-' before it: descending",
            metavar="[-]FIELD",
        ),
        option("-h", "--hostname", help="only matching host names", metavar="PATTERN"),
        option(
            "-N",
            "--name_filter",
            dest="name_pattern",
            help="only matching names",
            metavar="PATTERN",
        ),
        option("-d", "--description", help="only matching descriptions", metavar="PATTERN"),
        option("-i", "--netif", help="only those with a matching adapter", metavar="PATTERN"),
        option("-L", "--list", dest="list_fields", help="list the fields", action="store_true"),
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzlist; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
