"""Which files a disk image draws its content from: an image from elsewhere could name any file.

A backing file, an external data file (qcow2), an extent (vmdk) are opened by QEMU on the image's
word alone, and the guest reads them; so they must lie where the image does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.errors import VzError
from runtime.registry import printable
from vmm import images

#: A chain longer than this is a ring.
_LONGEST = 64


def check(
    path: Path,
    format: str | None,
    within: Path,
    error: type[VzError],
    hint: str = "make it whole with qemu-img convert where you trust it",
) -> None:
    """Raise ``error`` if an image draws on a file outside of the directory ``within``."""
    waiting: list[tuple[Path, str | None]] = [(path, format)]
    seen = 0
    while waiting:
        image, kind = waiting.pop()
        seen += 1
        if seen > _LONGEST:
            raise error(f"{path} is based on itself")
        if kind == "raw":
            continue
        for name, below in _references(image, kind):
            place = (image.parent / name).resolve()
            # "nbd://…", "json:{…}": a protocol of QEMU's instead of a file
            plain = ":" not in name.partition("/")[0]
            if not plain or not place.is_relative_to(within.resolve()):
                raise error(
                    f"{path} takes content from outside of {within}: {printable(name)}",
                    hint=hint,
                )
            if below is not None and place != image.resolve():
                waiting.append((place, below))


def _references(image: Path, format: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield each file an image names, and its format when that may name others in turn."""
    facts = images.facts(image, format)
    if facts.get("backing-filename"):
        yield facts["backing-filename"], facts.get("backing-filename-format", "qcow2")
    data = facts.get("format-specific", {}).get("data", {})
    if data.get("data-file"):
        yield data["data-file"], None
    for extent in data.get("extents", ()):
        yield extent["filename"], None
