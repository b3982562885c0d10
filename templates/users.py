"""Who uses what of a template area: the private areas of every system that shares it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from runtime import files, registry
from runtime.config import ConfigFile
from runtime.errors import VzError
from runtime.paths import Paths
from templates.trees import magic_links

_ROOTS = ".roots"
#: Mark in ``templates/`` of a private area: its tree holds magic links.
LINKS = "links"


def remember(paths: Paths) -> None:
    """Note that the system at ``paths`` makes containers from its template area."""
    import hashlib

    root = str(paths.root)
    directory = paths.template / _ROOTS
    link = directory / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    if os.path.lexists(link):
        return
    directory.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        files.replace_symlink(link, root)


def systems(paths: Paths) -> list[Paths]:
    """Return every system known to use the template area of ``paths``, that one included."""
    found = {paths.root: paths}
    area = paths.template.resolve()
    try:
        links = list((paths.template / _ROOTS).iterdir())
    except FileNotFoundError:
        links = []
    for link in links:
        other = _moved(Paths(Path(os.readlink(link))))
        if other.template.resolve() == area:
            found[other.root] = other
        elif not other.root.exists():
            link.unlink(missing_ok=True)
    return list(found.values())


def _moved(paths: Paths) -> Paths:
    """Return the places of another system as its vz.conf moves them."""
    with suppress(OSError, VzError):
        return paths.with_template(ConfigFile.read(paths.global_config).get("TEMPLATE"))
    return paths


def private_areas(paths: Paths) -> Iterator[Path]:
    """Yield the private areas of one system: in the usual place, and where configurations say."""
    seen: set[Path] = set()
    places: list[Path] = []
    with suppress(FileNotFoundError):
        places += sorted(paths.private_dir.iterdir())
    for record, file in registry.records(paths):
        value = file.get("VE_PRIVATE")
        if value:
            expanded = value.replace("${VEID}", "$VEID").replace("$VEID", str(record.ctid))
            places.append(paths.area(expanded))
    for place in places:
        if place not in seen and (place / "templates" / "layers").is_file():
            seen.add(place)
            yield place


def trees_in_use(paths: Paths) -> dict[str, list[Path]]:
    """Return tree (relative to the template area) → private areas that lie above it."""
    found: dict[str, list[Path]] = {}
    for system in systems(paths):
        for private in private_areas(system):
            with suppress(OSError):
                for line in (private / "templates" / "layers").read_text().splitlines():
                    if line.strip():
                        found.setdefault(line.strip(), []).append(private)
    return found


def places_in_doubt(paths: Paths) -> tuple[str, ...]:
    """Return the template directories that containers may use whose private areas are not there.

    ``OS/VERSION/ARCH/`` each; every tree is in doubt where a container's template is unknown.
    """
    found: set[str] = set()
    for system in systems(paths):
        for record, file in registry.records(system):
            value = file.get("VE_PRIVATE") or "/vz/private/$VEID"
            expanded = value.replace("${VEID}", "$VEID").replace("$VEID", str(record.ctid))
            if not (system.area(expanded) / "templates" / "layers").is_file():
                name = (file.get("OSTEMPLATE") or "").lstrip(".")
                parts = name.split("-")[:3]
                found.add("".join(f"{part}/" for part in parts) if all(parts) else "")
    return tuple(found)


def of_template(paths: Paths, name: str) -> list[str]:
    """Return what was made from the OS template ``name``: private areas and containers, as text."""
    found = []
    for system in systems(paths):
        for private in private_areas(system):
            with suppress(OSError, ValueError):
                made = json.loads((private / "templates" / "os.json").read_bytes())
                if made.get("name") == name:
                    found.append(str(private))
        for record, file in registry.records(system):
            if (file.get("OSTEMPLATE") or "").lstrip(".") == name:
                private = system.private(record.ctid)
                if str(private) not in found:
                    found.append(f"container {record.ctid}")
    return found


def of_application(paths: Paths, name: str) -> list[str]:
    """Return the containers that have the application template ``name``, as text."""
    return [
        f"container {record.ctid}"
        for system in systems(paths)
        for record, file in registry.records(system)
        if name in (word.lstrip(".") for word in (file.get("TEMPLATES") or "").split())
    ]


def linked(paths: Paths) -> frozenset[str]:
    """Return what magic links of all private areas lead to, relative to the template area.

    Only areas that say they have such links (``templates/links``) are read through.
    """
    found: set[str] = set()
    for system in systems(paths):
        for private in private_areas(system):
            if (private / "templates" / LINKS).exists():
                found.update(target for _path, target in magic_links(private / "root"))
    return frozenset(found)


def linked_packages(paths: Paths) -> frozenset[str]:
    """Return the package directories magic links lead into, relative to the template area."""
    return frozenset(
        "/".join(parts[:4])
        for parts in (target.split("/") for target in linked(paths))
        if parts[4:]
    )
