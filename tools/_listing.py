"""Tables of environments: fields as rows, lazily computed, sorted, printed as text or JSON."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from runtime.errors import InvalidOption
from runtime.log import one_line

Entry = TypeVar("Entry")
Value = str | int | float | bool | list[str] | None


@dataclass(frozen=True)
class Field(Generic[Entry]):
    """One column: its name, heading, width (negative: left-aligned) and how it is obtained.

    ``value`` gives what ``--json`` prints; ``show`` turns it into text, the default being the
    value itself, and ``-`` for None.
    """

    name: str
    heading: str
    width: int
    value: Callable[[Entry], Value]
    show: Callable[[Value], str] | None = None

    def text(self, value: Value) -> str:
        """Return ``value`` as the table shows it."""
        if value is None or value == "":
            return "-"
        if self.show is not None:
            return self.show(value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, list):
            return one_line(" ".join(value)) or "-"
        return one_line(str(value))


def choose(
    fields: dict[str, Field[Entry]], names: str, *, unknown: str = "unknown field: {}"
) -> list[Field[Entry]]:
    """Return the fields named in a comma-separated list; raises InvalidOption with ``unknown``."""
    chosen = []
    for name in names.split(","):
        field = fields.get(name.strip())
        if field is None:
            raise InvalidOption(unknown.format(name.strip()), hint="-L lists the fields")
        chosen.append(field)
    return chosen


def sort(entries: list[Entry], field: Field[Entry], *, descending: bool) -> list[Entry]:
    """Return ``entries`` by ``field``; those without a value come last."""

    def key(entry: Entry) -> tuple[int, str] | tuple[int, float]:
        value = field.value(entry)
        if isinstance(value, (int, float)):
            return (0, float(value))
        return (0, str(value))

    valued = [entry for entry in entries if field.value(entry) is not None]
    rest = [entry for entry in entries if field.value(entry) is None]
    return sorted(valued, key=key, reverse=descending) + rest


def matching(
    entries: Iterable[Entry], text: Callable[[Entry], str | None], pattern: str
) -> list[Entry]:
    """Return the entries whose ``text`` matches the shell ``pattern``."""
    return [entry for entry in entries if fnmatch.fnmatchcase(text(entry) or "", pattern)]


def print_table(
    entries: Sequence[Entry], fields: Sequence[Field[Entry]], *, heading: bool = True
) -> None:
    """Print the table; the last column is never padded or cut, others grow with their content."""
    rows = [[field.text(field.value(entry)) for field in fields] for entry in entries]
    heads = [field.heading for field in fields]
    widths = []
    for index, field in enumerate(fields):
        longest = max((len(row[index]) for row in rows), default=0)
        widths.append(max(abs(field.width), longest, len(heads[index])))
    lines = [heads, *rows] if heading else rows
    out = []
    for line in lines:
        cells = []
        for index, (cell, field) in enumerate(zip(line, fields, strict=True)):
            if index == len(fields) - 1 and field.width < 0:
                cells.append(cell)
            elif field.width < 0:
                cells.append(cell.ljust(widths[index]))
            else:
                cells.append(cell.rjust(widths[index]))
        out.append(" ".join(cells).rstrip() + "\n")
    sys.stdout.write("".join(out))


def print_json(entries: Sequence[Entry], fields: Sequence[Field[Entry]]) -> None:
    """Print an array of objects with the fields' names."""
    objects = [{field.name: field.value(entry) for field in fields} for entry in entries]
    json.dump(objects, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_fields(fields: dict[str, Field[Entry]]) -> None:
    """Print every field with its heading: ``-L``."""
    width = max(len(name) for name in fields) + 2
    for name, field in fields.items():
        print(f"{name:<{width}}{field.heading}")
