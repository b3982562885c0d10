"""Package directories of the template area: the files of each package, as links into the store.

``<name>-<epoch>:<version>-<release>.<arch>/`` holds the files as the package ships them; a file
the container's own package equals can be replaced by a magic link to it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from runtime import files
from templates import inspection

_MAXIMUM_NAME = 255


def link_packages(tree: Path, place: Path) -> int:
    """Make the directories of the tree's packages that are missing; return how many were made.

    A file that no longer is what its package shipped is left out. Raises OSError.
    """
    files.sweep_temporaries(place)
    made = 0
    directories: dict[str, Path | None] = {}
    for stanza in inspection.dpkg_stanzas(tree):
        name, arch = stanza["Package"], stanza.get("Architecture", "")
        target = place / inspection.package_directory(name, stanza["Version"], arch)
        if target.exists() or len(os.fsencode(target.name)) > _MAXIMUM_NAME - 20:
            continue
        with files.new_directory(target) as fresh:
            for path, digest in shipped_files(tree, stanza):
                directory, _, base = path.rpartition("/")
                if directory not in directories:
                    directories[directory] = inspection.resolve(tree, directory)
                real = directories[directory]
                if real is None or not _is_shipped(real / base, digest):
                    continue
                goal = fresh / path
                goal.parent.mkdir(parents=True, exist_ok=True)
                os.link(real / base, goal, follow_symlinks=False)
        made += 1
    return made


def shipped_files(tree: Path, stanza: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (path without leading slash, MD5 digest) of what a package ships."""
    info = tree / "var/lib/dpkg/info"
    name, arch = stanza["Package"], stanza.get("Architecture", "")
    for candidate in (f"{name}.md5sums", f"{name}:{arch}.md5sums"):
        try:
            text = (info / candidate).read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            continue
        for line in text.splitlines():
            digest, _, path = line.partition("  ")
            if path and ".." not in path.split("/"):
                yield path.lstrip("/"), digest
        break
    for line in stanza.get("Conffiles", "").split("\n"):
        words = line.split()
        if len(words) == 2 and ".." not in words[0].split("/"):
            yield words[0].lstrip("/"), words[1]


def _is_shipped(path: Path, digest: str) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.md5(usedforsecurity=False)
        ).hexdigest() == (digest)
