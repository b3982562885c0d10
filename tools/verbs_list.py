"""``pctl list``: both kinds of environment in one table."""

from __future__ import annotations

import argparse
import fnmatch

from runtime import registry
from tools._command import JSON, Context, Verb, option
from tools._entries import BASE, Entry, entries, ostemplate
from tools._listing import Field, Value, choose, print_fields, print_json, print_table, sort
from tools._machine_entries import MachineEntry, machine_entries
from tools.environments import Kind, kind_of
from vmm import registry as machines

_DEFAULT = "status,ip,name"
_DEFAULT_LONG = "uuid,status,ip_configured,type,name"
_DEFAULT_TEMPLATES = "uuid,dist,type,name"


def _base(name: str, heading: str, width: int, of: str | None = None) -> Field[Entry]:
    return Field(name, heading, width, BASE[of or name].value)


def _nproc(entry: Entry) -> Value:
    return entry.usage("numproc")


FIELDS: dict[str, Field[Entry]] = {
    field.name: field
    for field in (
        Field[Entry](
            "uuid", "UUID", -39, lambda e: "{" + e.record.uuid + "}" if e.record.uuid else None
        ),
        _base("envid", "ENVID", -10, "ctid"),
        _base("ctid", "CTID", -10),
        _base("home", "HOME", -32, "private"),
        Field[Entry]("type", "T", -2, lambda e: "CT"),
        Field[Entry]("name", "NAME", -32, lambda e: e.record.label),
        _base("status", "STATUS", -12),
        Field[Entry]("dist", "DIST", -15, lambda e: e.config.get("DISTRIBUTION") or ostemplate(e)),
        Field[Entry]("owner", "OWNER", -32, lambda e: "root"),
        Field[Entry]("system-flags", "SYSTEM_FLAGS", -16, lambda e: None),
        _base("description", "DESCRIPTION", -32),
        Field[Entry]("numproc", "NPROC", 9, _nproc),
        _base("ip", "IP_ADDR", -15),
        _base("ip_configured", "IP_ADDR", -15, "ip"),
        _base("hostname", "HOSTNAME", -32),
        _base("netif", "NETIF", -16),
        _base("mac", "MAC", -36),
        _base("ostemplate", "OSTEMPLATE", -24),
        _base("features", "FEATURES", -15),
        _base("location", "LOCATION", -32, "private"),
        _base("iolimit", "IOLIMIT", -10),
        _base("netdev", "NETDEV", -16, "host_ifname"),
        _base("ha_enable", "HA_ENABLE", -9),
        _base("ha_prio", "HA_PRIO", -7),
        _base("uptime", "UPTIME", -15),
    )
}


Row = Entry | MachineEntry


def _of_both(field: Field[Entry]) -> Field[Row]:
    """Return the field as both kinds of environment have it."""

    def value(row: Row) -> Value:
        return row.value(field.name) if isinstance(row, MachineEntry) else field.value(row)

    return Field(field.name, field.heading, field.width, value, field.show)


def _running(row: Row) -> bool:
    return row.running if isinstance(row, MachineEntry) else row.status.running


def _label(row: Row) -> str:
    return row.label if isinstance(row, MachineEntry) else row.record.label


def _rows(context: Context, args: argparse.Namespace) -> list[Row]:
    """Return the environments the command line asks for, by kind."""
    rows: list[Row] = []
    if not args.template and args.vmtype != "vm":
        rows += entries(context)
    if args.vmtype != "ct":
        rows += [row for row in machine_entries(context) if row.is_template == args.template]
    return rows


def _print_pages(context: Context, rows: list[Row], *, as_json: bool) -> None:
    """Print everything about each environment; a machine that cannot be read spoils no other."""
    import json

    from tools import container_info

    pages: list[dict[str, object]] = []
    texts: list[list[str]] = []
    for row in rows:
        if isinstance(row, Entry):
            page = container_info.facts(context, row)
            pages.append(page)
            texts.append(container_info.lines(page))
        elif row.domain is not None:
            facts, text = row.page()
            pages.append(facts)
            texts.append(text)
    if as_json:
        print(json.dumps(pages, indent=2, ensure_ascii=False, default=str))
    else:
        print("\n\n".join("\n".join(text) for text in texts))


def list_(context: Context, args: argparse.Namespace) -> int:
    """Print the environments, running ones unless told otherwise."""
    if args.list_fields:
        print_fields(FIELDS)
        return 0
    if args.output:
        names = args.output
    elif args.template:
        names = _DEFAULT_TEMPLATES
    else:
        names = _DEFAULT_LONG if args.long else _DEFAULT
    fields = {name: _of_both(field) for name, field in FIELDS.items()}
    chosen = choose(fields, names, unknown="The {} field name is unknown.")
    rows = _rows(context, args)
    if args.ident and kind_of(context, args.ident) is Kind.MACHINE:
        uuid = machines.find(context.paths, args.ident).uuid
        rows = [r for r in rows if isinstance(r, MachineEntry) and r.record.uuid == uuid]
    elif args.ident:
        wanted = registry.find(context.paths, args.ident)
        rows = [row for row in rows if isinstance(row, Entry) and row.ctid == wanted.ctid]
    elif not args.all and not args.template:
        rows = [row for row in rows if _running(row)]
    if args.name_pattern:
        rows = [row for row in rows if fnmatch.fnmatchcase(_label(row), args.name_pattern)]
    key = args.sort or "name"
    field = choose(fields, key.lstrip("-"), unknown="The {} field name is unknown.")[0]
    rows = sort(rows, field, descending=key.startswith("-"))
    if args.info:
        _print_pages(context, rows, as_json=args.json)
    elif args.json:
        print_json(rows, chosen if args.output else list(fields.values()))
    else:
        print_table(rows, chosen, heading=not args.no_header)
    return 0


VERBS: tuple[Verb, ...] = (
    Verb(
        "list",
        "list containers and virtual machines",
        list_,
        (
            option("ident", help="only this one", nargs="?", metavar="ID"),
            option("-a", "--all", help="also those that do not run", action="store_true"),
            option("-i", "--info", help="everything about each", action="store_true"),
            option("-n", "--long", help="also UUIDs and types", action="store_true"),
            option("-H", "--no-header", help="print no headings", action="store_true"),
            JSON,
            option("-o", "--output", help="show these fields", metavar="FIELD[,FIELD…]"),
            option(
                "-s",
                "--sort",
                dashed=True,
                help="sort by a field; '-' before it: descending",
                metavar="[-]FIELD",
            ),
            option(
                "-N",
                "--name_filter",
                dest="name_pattern",
                help="only matching names",
                metavar="PATTERN",
            ),
            option("-t", "--template", help="list templates of machines", action="store_true"),
            option("--vmtype", help="only this kind", choices=("ct", "vm", "all"), default="all"),
            option(
                "-L", "--fields", dest="list_fields", help="list the fields", action="store_true"
            ),
        ),
        changes=False,
    ),
)
