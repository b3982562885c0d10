"""prl_disk_tool: sizes and types of the disks of stopped machines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import locks
from runtime.errors import ConfigMissing, ImageConvertFailed, InvalidOption
from tools._command import JSON, Context, Program, Verb, option
from tools._command import main as run_program
from tools.verbs_vm import opened

if TYPE_CHECKING:
    from vmm.disktool import Hdd

_MIB = 1 << 20


@contextmanager
def _hdd(context: Context, path_text: str, purpose: str) -> Iterator[Hdd]:
    """Give the disk at a path, locked together with the machine that uses it."""
    from vmm import diskview, hostmount, images, registration, registry
    from vmm.disktool import Hdd

    path = Path(path_text).absolute()
    if not path.is_file():
        raise ConfigMissing(
            f"there is no disk image {path}", hint="pctl list -i ID shows the images"
        )
    found = "qcow2" if images.is_qcow2(path) else "raw"
    user = registration.image_user(context.paths, path, but="")
    if user is None:
        with locks.environment(context.paths, "images", purpose):
            scratch = context.paths.run / "machines" / "images"
            scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            diskview.sweep(scratch, [path])
            yield Hdd(path, found, scratch, None)
        return
    record = registry.find(context.paths, user)
    with opened(context, record.uuid, purpose) as machine:
        yield Hdd(path, found, hostmount.scratch(machine), machine)


def _resize(context: Context, args: argparse.Namespace) -> None:
    from vmm import disktool

    with _hdd(context, args.hdd, "resize") as hdd:
        if not args.info:
            if args.size is None:
                raise InvalidOption("no size is given", hint="--size 10G, or --info")
            size = disktool.size_of(args.size)
            progress = context.progress(hdd.machine.label if hdd.machine else None)
            disktool.resize(hdd, size, progress, partition=args.resize_partition)
            return
        sizes = disktool.info(hdd)
    facts = {
        "path": str(hdd.path),
        "type": sizes.type,
        "size_bytes": sizes.size_bytes,
        "minimum_bytes": sizes.minimum_bytes,
        "actual_bytes": sizes.actual_bytes,
    }
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    print(f"Disk information:\n  Path: {hdd.path}\n  Type: {sizes.type}")
    print(f"  Size:                          {sizes.size_bytes // _MIB:>10}M")
    print(f"  Minimum:                       {-(-sizes.minimum_bytes // _MIB):>10}M")
    print(f"  Occupied on the server:        {sizes.actual_bytes // _MIB:>10}M")
    for part in sizes.partitions:
        print(f"  Partition {part.number}: {part.size_bytes // _MIB}M {part.file_system or '?'}")


def _compact(context: Context, args: argparse.Namespace) -> None:
    from vmm import disktool, images

    with _hdd(context, args.hdd, "compact") as hdd:
        if args.info:
            found = images.info(hdd.path)
            print(f"Size: {found.virtual_bytes // _MIB}M\nOccupied: {found.actual_bytes // _MIB}M")
            return
        disktool.compact(hdd, context.progress(hdd.machine.label if hdd.machine else None))


def _merge(context: Context, args: argparse.Namespace) -> None:
    from vmm import disktool

    with _hdd(context, args.hdd, "merge") as hdd:
        disktool.merge(hdd, context.progress(hdd.machine.label if hdd.machine else None))


def _convert(context: Context, args: argparse.Namespace) -> None:
    from vmm import disktool

    if args.split or args.merge:
        raise ImageConvertFailed(
            "disks are single files here, never pieces of 2 GB",
            hint="--expanding grows as it is written on every file system in use today",
        )
    if args.plain == args.expanding:
        raise InvalidOption("say --plain or --expanding")
    with _hdd(context, args.hdd, "convert") as hdd:
        disktool.convert(
            hdd, context.progress(hdd.machine.label if hdd.machine else None), plain=args.plain
        )


_HDD = option("--hdd", help="the image", metavar="FILE", required=True)
_INFO = option("-i", "--info", help="only tell the sizes", action="store_true")

PROGRAM = Program(
    "prl_disk_tool",
    "Change the size and type of the disks of stopped machines.",
    verbs=(
        Verb("resize", "change the size of a disk", _resize, (_HDD, _INFO, JSON,
             option("--size", help="new size (a bare number: megabytes)", metavar="N[K|M|G|T]"),
             option("--resize_partition", help="and of the last file system (ext4)",
                    action="store_true"),
             option("--force", help="accepted", action="store_true"))),
        Verb("compact", "give unused blocks back to the server", _compact, (_HDD, _INFO,
             option("--buildmap", help="accepted", action="store_true"))),
        Verb("merge", "make a linked disk independent", _merge, (_HDD,
             option("--external", help="accepted", action="store_true"))),
        Verb("convert", "change the type of a disk", _convert, (_HDD,
             option("--plain", help="fixed size, preallocated", action="store_true"),
             option("--expanding", help="grows as it is written", action="store_true"),
             option("--split", help="refused: disks are single files", action="store_true"),
             option("--merge", help="refused: disks are single files", action="store_true"))),
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run prl_disk_tool; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
