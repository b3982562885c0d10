"""``pctl sharing``: what containers share with their templates, on disk and in memory.

On disk: the template's files a container sees unchanged cost it nothing. In memory: RSS counts a
page for every process that maps it, PSS divides it among them (proc(5), smaps_rollup), so that
their difference is what is shared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime import registry
from runtime.cgroups import Cgroup
from runtime.units import human
from tools._command import JSON, Context, Verb, option
from tools._entries import Entry, entries
from tools._listing import Field, print_table

#: Target of a magic link: four slashes, then a path below the template area (vzfs.magic).
_MAGIC = "////"


@dataclass(frozen=True, slots=True)
class Sharing:
    """What one container shares; bytes on disk are those of allocated blocks."""

    name: str
    shared_files: int = 0
    private_files: int = 0
    magic_links: int = 0
    saved_bytes: int = 0
    private_bytes: int = 0
    rss_bytes: int = 0
    pss_bytes: int = 0

    def __add__(self, other: Sharing) -> Sharing:
        numbers = (
            getattr(self, field.name) + getattr(other, field.name)
            for field in dataclasses.fields(self)[1:]
        )
        return Sharing(self.name, *numbers)


def of(entry: Entry) -> Sharing:
    """Return what the container of a list entry shares; walks its private area and its layers."""
    upper = entry.private / "root"
    private_files = magic = private_bytes = 0
    for place, _dirs, names in os.walk(upper):
        for name in names:
            facts = os.lstat(os.path.join(place, name))
            if stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0:
                continue  # a whiteout
            if stat.S_ISLNK(facts.st_mode) and os.readlink(os.path.join(place, name)).startswith(
                _MAGIC
            ):
                magic += 1
                continue
            private_files += 1
            private_bytes += facts.st_blocks * 512
    shared, saved = _shared(_layers(entry), upper)
    rss, pss = _memory(entry)
    return Sharing(entry.record.label, shared, private_files, magic, saved, private_bytes, rss, pss)


def _layers(entry: Entry) -> list[Path]:
    area = entry.context.paths.area(entry.config["TEMPLATE"])
    with suppress(OSError):
        text = (entry.private / "templates" / "layers").read_text(encoding="utf-8")
        return [area / line for line in text.splitlines() if line]
    return []


def _shared(layers: list[Path], upper: Path) -> tuple[int, int]:
    """Return how many template files are seen unchanged, and the bytes they occupy."""
    count = size = 0
    seen: set[tuple[int, int]] = set()
    for layer in layers:
        for place, _dirs, names in os.walk(layer):
            own = upper / os.path.relpath(place, layer)
            changed = set(os.listdir(own)) if own.is_dir() else set()
            for name in names:
                if name in changed:
                    continue
                facts = os.lstat(os.path.join(place, name))
                if not stat.S_ISREG(facts.st_mode):
                    continue
                count += 1
                if (facts.st_dev, facts.st_ino) not in seen:
                    seen.add((facts.st_dev, facts.st_ino))
                    size += facts.st_blocks * 512
    return count, size


def _memory(entry: Entry) -> tuple[int, int]:
    if not entry.status.running:
        return 0, 0
    rss = pss = 0
    for pid in Cgroup(entry.context.paths.tag, entry.ctid).pids():
        with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                word, _, rest = line.partition(":")
                if word == "Rss":
                    rss += int(rest.split()[0]) * 1024
                elif word == "Pss":
                    pss += int(rest.split()[0]) * 1024
    return rss, pss


_FIELDS: tuple[Field[Sharing], ...] = (
    Field("name", "CONTAINER", -16, lambda row: row.name),
    Field("shared_files", "SHARED", 8, lambda row: row.shared_files),
    Field("private_files", "PRIVATE", 8, lambda row: row.private_files),
    Field("magic_links", "MAGIC", 6, lambda row: row.magic_links),
    Field("saved_bytes", "SAVED", 8, lambda row: human(row.saved_bytes)),
    Field("private_bytes", "OWN", 8, lambda row: human(row.private_bytes)),
    Field("rss_bytes", "RSS", 8, lambda row: human(row.rss_bytes)),
    Field("pss_bytes", "PSS", 8, lambda row: human(row.pss_bytes)),
)


def show(context: Context, args: argparse.Namespace) -> int:
    """Print what one container, or each and all together, share."""
    rows = entries(context)
    if args.ident:
        ctid = registry.find(context.paths, args.ident).ctid
        rows = [row for row in rows if row.ctid == ctid]
    found = [of(row) for row in rows]
    total = sum(found, Sharing("total"))
    if args.json:
        body = {
            "containers": [dataclasses.asdict(row) for row in found],
            "total": dataclasses.asdict(total),
        }
        print(json.dumps(body, indent=2))
        return 0
    print_table([*found, total] if len(found) > 1 else found, _FIELDS)
    return 0


VERBS: tuple[Verb, ...] = (
    Verb(
        "sharing",
        "what containers share with their templates, on disk and in memory",
        show,
        (option("ident", help="only this container", nargs="?", metavar="ID"), JSON),
        changes=False,
    ),
)
