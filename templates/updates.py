"""Whether newer packages are to be had, for a template's cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.paths import Paths
from runtime.progress import Progress
from templates import inspection
from templates.apt import Apt, Change, clean_status, database
from templates.catalogue import Template


@contextmanager
def _apt(paths: Paths, template: Template) -> Iterator[Apt]:
    """Give apt the package database of the template's cache; raises NotCached."""
    (tree, *_rest) = template.layers()
    with database(clean_status(inspection.dpkg_stanzas(tree))) as status:
        yield Apt(paths, template, status)


def of_template(
    paths: Paths,
    template: Template,
    *,
    progress: Progress,
    remote: bool = False,
    cached: bool = False,
) -> list[Change]:
    """Return what building the cache of ``template`` anew would change.

    ``remote`` fetches package lists whatever their age, ``cached`` never. Raises NotCached, and
    what apt raises.
    """
    manager = template.recipe.package_manager
    if manager.startswith("dpkg"):
        with _apt(paths, template) as apt:
            apt.refresh(progress, remote=remote, cached=cached)
            return apt.plan(["dist-upgrade"])
    if manager == "busybox":
        from templates import busybox

        (tree, *_rest) = template.layers()
        if (tree / "bin/busybox").read_bytes() != busybox.PROGRAM.read_bytes():
            return [Change("busybox-static", "another build", "this server's")]
    return []


def refresh(paths: Paths, template: Template, *, progress: Progress, remote: bool = False) -> None:
    """Fetch the package lists of a template; nothing to do where it has no packages."""
    if template.recipe.package_manager.startswith("dpkg"):
        with _apt(paths, template) as apt:
            apt.refresh(progress, remote=remote)


def fetch(paths: Paths, template: Template, *, progress: Progress) -> list[Path]:
    """Fetch the packages an update of the cache would install; return their files."""
    if not template.recipe.package_manager.startswith("dpkg"):
        return []
    with _apt(paths, template) as apt:
        apt.refresh(progress)
        return apt.fetch(["dist-upgrade"], [], progress)
