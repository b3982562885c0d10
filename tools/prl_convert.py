"""prl_convert: disk images of other products, and back."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import ConfigMissing, ImageConvertFailed, InvalidOption
from tools._command import Context, Program, option
from tools._command import main as run_program

#: --to → QEMU's name of the format, and the suffix of the new image.
_TO = {
    "expanding": ("qcow2", ".qcow2"),
    "plain": ("raw", ".raw"),
    "vmdk": ("vmdk", ".vmdk"),
    "vdi": ("vdi", ".vdi"),
    "vhd": ("vpc", ".vhd"),
    "vhdx": ("vhdx", ".vhdx"),
}


def _convert(context: Context, args: argparse.Namespace) -> int:
    """Write a disk image in another format; the original is only read."""
    from runtime import files
    from vmm import images, reach, registration

    source = Path(args.source).absolute()
    if not source.is_file():
        raise ConfigMissing(f"there is no disk image {source}")
    kind, suffix = _TO[args.to]
    target = Path(args.dst).absolute() if args.dst else source.with_suffix(suffix)
    if target.is_dir():
        target = target / source.with_suffix(suffix).name
    if target.exists():
        raise ImageConvertFailed(f"{target} exists", hint="--dst FILE, or remove it")
    if not target.parent.is_dir():
        raise InvalidOption(f"there is no directory {target.parent}")
    format = images.FOREIGN.get(source.suffix.lower())
    reach.check(source, format, source.parent, ImageConvertFailed)
    user = registration.image_user(context.paths, source, but="")
    progress = context.progress()
    if user is not None:
        progress.warn(f"machine {user} uses {source}: what it writes meanwhile may be missing")
    files.sweep_temporaries(target.parent)
    partial = target.with_name(f".tmp-{target.name}.{os.getpid()}")
    try:
        images.convert(
            source, partial, to=kind, source_format=format,
            progress=lambda percent: progress.amount(f"Converting {source.name}", percent, 100),
        )  # fmt: skip
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    files.fsync_directory(target.parent)
    progress.say(f"The disk has been successfully converted: {target}")
    return 0


PROGRAM = Program(
    "prl_convert",
    "Write a disk image of one product in the format of another.",
    run=_convert,
    options=(
        option("source", help="vmdk, vhd, vhdx, vdi, Parallels, qcow2 or raw image", metavar="FILE"),
        option("--dst", help="the new image, or a directory for it", metavar="PATH"),
        option("--to", help="its format (default: expanding)", choices=tuple(_TO), default="expanding"),
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run prl_convert; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
