"""What a file tree is: its init, its packages; read without running anything of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from runtime import init
from vzfs import syscalls

_PATH = os.O_PATH | os.O_CLOEXEC
_RESOLVE_IN_ROOT = 0x10  # linux/openat2.h


def resolve(tree: Path, path: str) -> Path | None:
    """Return where ``path`` leads inside ``tree``, links followed as if it were the root.

    None when nothing is there.
    """
    root = os.open(tree, _PATH | os.O_DIRECTORY)
    try:
        fd = syscalls.openat2(root, os.fsencode(path.lstrip("/") or "."), _PATH, _RESOLVE_IN_ROOT)
    except OSError:
        return None
    finally:
        os.close(root)
    try:
        return Path(os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def init_of(tree: Path) -> tuple[str, int]:
    """Return which init the tree boots with, and the signal that makes it halt."""
    root = os.open(tree, _PATH | os.O_DIRECTORY)
    try:
        found = init.detect(root)
    finally:
        os.close(root)
    return str(found.kind), int(found.halt_signal)


def dpkg_stanzas(tree: Path) -> Iterator[dict[str, str]]:
    """Yield the fields of every installed package of the tree's dpkg database."""
    try:
        text = (tree / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return
    yield from parse_status(text)


def parse_status(text: str) -> Iterator[dict[str, str]]:
    """Yield the fields of every installed package (dpkg(1), the file status)."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("\n"):
            if line[:1] in (" ", "\t"):
                fields[key] = fields.get(key, "") + "\n" + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields.get("Status", "").endswith(" installed"):
            yield fields


def packages_of(tree: Path) -> tuple[tuple[str, str, str], ...]:
    """Return (name, version, architecture) of every installed package, sorted."""
    return tuple(
        sorted(
            (fields["Package"], fields["Version"], fields.get("Architecture", ""))
            for fields in dpkg_stanzas(tree)
        )
    )


def package_directory(name: str, version: str, arch: str) -> str:
    """Return the name of a package's directory: ``name-epoch:version-release.arch``."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, release = rest.rpartition("-")
    if not dash:
        upstream, release = rest, "0"
    return f"{name}-{epoch}:{upstream}-{release}.{arch}"
