"""Whether newer packages are to be had, for a template's cache."""

from __future__ import annotations

from runtime.paths import Paths
from runtime.progress import Progress
from templates import inspection
from templates.apt import Apt, Change, clean_status, database
from templates.catalogue import Template


def of_template(
    paths: Paths,
    template: Template,
    *,
    progress: Progress,
    remote: bool = False,
    cached: bool = False,
) -> list[Change]:
    """Return what building the cache of ``template`` anew would change, or the first reason.

    ``remote`` fetches package lists whatever their age, ``cached`` never. Raises NotCached, and
    what apt raises.
    """
    (tree, *_rest) = template.layers()
    manager = template.recipe.package_manager
    if manager.startswith("dpkg"):
        text = clean_status(inspection.dpkg_stanzas(tree))
        with database(text) as status:
            apt = Apt(paths, template, status)
            apt.refresh(progress, remote=remote, cached=cached)
            return apt.plan(["dist-upgrade"])
    if manager == "busybox":
        from templates import busybox

        if (tree / "bin/busybox").read_bytes() != busybox.PROGRAM.read_bytes():
            return [Change("busybox-static", "another build", "this server's")]
    return []
