"""Keeping the template area: installing and removing definitions, removing what nobody uses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime.paths import Paths
from templates import cache, catalogue, lock, names, users
from templates.catalogue import Template
from templates.errors import BaseHasSets, CacheExists, HasApplications, TemplateInUse
from templates.names import DEFAULT_SET, Name


@dataclass(slots=True)
class Cleaned:
    """What was removed, or would be; sizes in bytes."""

    trees: int = 0
    files: int = 0
    packages: int = 0
    bytes: int = 0


def install(paths: Paths, name: str, *, force: bool = False) -> None:
    """Install a definition that comes with the product.

    Raises TemplateNotFound, BadName, CacheExists when it is installed (unless ``force``).
    """
    area = paths.template
    full = catalogue.shipped_name(names.check(name))
    catalogue.install_shipped(area)
    parts = names.parse(full)
    if parts is not None and catalogue.is_installed(area, parts) and not force:
        raise CacheExists(f"template {full} is installed already", hint="-f installs it anew")
    with lock.area(area, "recipes"):
        catalogue.install(area, full)


def remove(paths: Paths, template: Template, *, force: bool = False) -> None:
    """Remove an OS template, its cache and its files.

    Raises TemplateInUse while a container was made from it, BaseHasSets, HasApplications while
    there are application templates that did not come with the product (unless ``force``).
    """
    area, parts = template.area, template.parts
    with lock.area(area, f"template-{template.name}"):
        found = users.of_template(paths, template.name)
        if found:
            raise TemplateInUse(
                f"template {template.name} is used by {', '.join(found[:3])}"
                + (f" and {len(found) - 3} more" if len(found) > 3 else ""),
                hint="destroy those containers first",
            )
        config = template.place / "config"
        if parts.set == DEFAULT_SET:
            sets = [n.set for n in catalogue.installed(area) if n.base == parts and n != parts]
            own = _own_sets(area, parts)
            if set(sets) & own and not force:
                raise BaseHasSets(
                    f"{template.name} has sets of its own: {', '.join(sorted(set(sets) & own))}",
                    hint="remove those first",
                )
            applications = _own_applications(area, parts)
            if applications and not force:
                raise HasApplications(
                    f"{template.name} has application templates: {', '.join(applications)}",
                    hint="remove those first, or use -f",
                )
        if (area / "cache").is_dir():
            for file in (area / "cache").glob(f"{template.name}*.json"):
                if file.stem.removesuffix("-old").partition("+")[0] == template.name:
                    files.remove(file)
        if parts.set == DEFAULT_SET:
            files.remove_tree(config)
        else:
            files.remove_tree(config / "os" / parts.set)
    cache.collect(paths)
    if parts.set == DEFAULT_SET and not any(
        tree.startswith(f"{parts.place}/") for tree in cache.trees(area)
    ):
        files.remove_tree(template.place)
        for parent in (template.place.parent, template.place.parent.parent):
            with suppress(OSError):
                parent.rmdir()
        cache.sweep_stores(paths)


def _own_sets(area: Path, parts: Name) -> set[str]:
    """Return the sets of an OS template that did not come with the product."""
    source = catalogue.shipped().get(str(parts))
    shipped = {path.name for path in source.glob("os/*")} if source else set()
    found = {path.parent.name for path in (area / parts.place).glob("config/os/*/packages")}
    return found - shipped - {DEFAULT_SET}


def _own_applications(area: Path, parts: Name) -> list[str]:
    source = catalogue.shipped().get(str(parts))
    shipped = {path.name for path in source.glob("app/*")} if source else set()
    return sorted({path.name for path in (area / parts.place).glob("config/app/*")} - shipped)


def remove_application(paths: Paths, template: Template, name: str) -> None:
    """Remove an application template of an OS.

    Raises TemplateNotFound, BadName, TemplateInUse while a container has it.
    """
    bare = names.check_application(name)
    recipe = catalogue.application(template.area, template.parts, bare)
    found = users.of_application(paths, bare)
    if found:
        raise TemplateInUse(
            f"application template {bare} is used by {', '.join(found[:3])}",
            hint=f"vzpkg remove CT {bare}",
        )
    with lock.area(template.area, "recipes"):
        files.remove_tree(recipe.directory)
        with suppress(OSError):
            os.rmdir(recipe.directory.parent)


def clean(
    paths: Paths,
    templates: Sequence[Name],
    *,
    packages: bool,
    trees: bool,
    old: bool = False,
    test: bool = False,
) -> Cleaned:
    """Remove fetched packages of ``templates``, or trees and stored files nobody uses.

    ``old`` gives up the caches called ``-old``. ``test`` only counts.
    """
    report = Cleaned()
    area = paths.template
    if packages:
        for parts in templates:
            for file in (area / parts.place / "pm").glob("**/*"):
                if file.is_file():
                    report.packages += 1
                    report.bytes += file.stat().st_size
                    if not test:
                        file.unlink()
    if trees:
        if not test:
            cache.sweep(area)
        report.trees = len(cache.collect(paths, keep_old=not old, test=test))
        directories = _stale_packages(paths)
        if not test:
            for directory in directories:
                files.remove_tree(directory)
        report.files, freed = cache.sweep_stores(paths, test=test)
        report.bytes += freed
    return report


def _stale_packages(paths: Paths) -> list[Path]:
    """Return package directories whose version no tree has, and no magic link leads to."""
    area = paths.template
    if users.places_in_doubt(paths):
        return []
    linked = users.linked_packages(paths)
    wanted: dict[str, set[str]] = {}
    for tree in cache.trees(area):
        place = str(Path(tree).parents[1])
        wanted.setdefault(place, set()).update(_packages_of(area / tree))
    stale = []
    for system in area.glob("*/*/*"):
        place = str(system.relative_to(area))
        if names.parse(place.replace("/", "-")) is None:
            continue
        for directory in system.iterdir():
            if ":" not in directory.name or directory.name.startswith("."):
                continue
            name = str(directory.relative_to(area))
            if directory.name not in wanted.get(place, set()) and name not in linked:
                stale.append(directory)
    return stale


def _packages_of(tree: Path) -> set[str]:
    from templates import inspection

    return {
        inspection.package_directory(name, version, arch)
        for name, version, arch in inspection.packages_of(tree)
    }
