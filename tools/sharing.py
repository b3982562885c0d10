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
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import registry
from runtime.cgroups import Cgroup
from runtime.errors import VzError
from runtime.units import human
from tools._command import JSON, Context, Verb, option
from tools._entries import Entry, entries
from tools._listing import Field, print_table

if TYPE_CHECKING:
    from vzfs.check import Area


@dataclass(frozen=True, slots=True)
class Sharing:
    """What one container shares; bytes on disk are those of allocated blocks."""

    name: str
    shared_files: int = 0
    private_files: int = 0
    magic_links: int = 0
    #: Links whose template file is gone; ``vzfsutil --clink`` names them.
    broken_links: int = 0
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
    from tools.vzfsutil import open_area

    template = entry.context.paths.area(entry.config["TEMPLATE"])
    try:
        area = open_area(entry.private, template, modify=False)
    except VzError as error:
        print(f"container {entry.record.label}: {error}", file=sys.stderr)
        disk = Sharing(entry.record.label)
    else:
        try:
            disk = on_disk(entry.record.label, area)
        finally:
            area.close()
    rss, pss = _memory(entry)
    return dataclasses.replace(disk, rss_bytes=rss, pss_bytes=pss)


def on_disk(name: str, area: Area) -> Sharing:
    """Return what the files seen through an area share, as the file system itself finds them."""
    from vzfs.inodes import Directory, File
    from vzfs.magic import PREFIX

    core = area.core
    shared = private = magic = broken = private_bytes = saved = 0
    counted: set[tuple[int, int]] = set()

    def once(facts: os.stat_result) -> int:
        """Return the bytes of a file's blocks, of each file once."""
        known = (facts.st_dev, facts.st_ino)
        if known in counted:
            return 0
        counted.add(known)
        return facts.st_blocks * 512

    pending = [core.root]
    while pending:
        here = pending.pop()
        try:
            words = core.names(here)
        except OSError:
            continue  # gone meanwhile
        for word in words:
            try:
                node, facts = core.lookup(here, word)
            except OSError:
                continue  # gone meanwhile, or its shared part is
            if isinstance(node, Directory):
                pending.append(node)
                continue
            assert isinstance(node, File)
            if node.magic:
                magic += 1
                saved += once(facts)
            elif stat.S_ISLNK(facts.st_mode) and core.readlink(node).startswith(PREFIX):
                broken += 1
            elif node.has_copy:
                private += 1
                private_bytes += once(facts)
                if node.meta:
                    saved += once(core.stat_lower(node))
            elif stat.S_ISREG(facts.st_mode):
                shared += 1
                saved += once(facts)
            core.discard(node)
        core.trim()
    return Sharing(name, shared, private, magic, broken, saved, private_bytes)


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
    Field("broken_links", "BROKEN", 6, lambda row: row.broken_links),
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
