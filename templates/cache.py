"""Caches of OS templates: building, updating, removing, and clearing up after killed builds.

A cache is a whole file tree in ``OS/VERSION/ARCH/tree/BUILD``, and ``cache/NAME.json`` which says
that it is the current one. Steps of a build, each of which leaves the area whole when it is the
last one taken: the tree grows under a temporary name; its files enter the store; it takes its
name; the description of the old cache becomes ``NAME-old``; the new description takes its place;
trees nobody uses go. Lock order: the template, then the store.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from runtime import files
from runtime.errors import Locked, NoDiskSpace, NotPermitted
from runtime.paths import Paths
from runtime.progress import Progress, Silent
from templates import catalogue, dpkg, identity, inspection, lock, names, packages, users
from templates.catalogue import Cache, Template
from templates.errors import (
    CacheExists,
    NoPackageManager,
    NoPackageOperations,
    NotCached,
    ProgramFailed,
)
from templates.store import Store, shared_store

#: Makes the tree of a template in an empty directory.
Builder = Callable[[Paths, Template, Path, Progress], None]
_FULL_BELOW_BYTES = 64 << 20


def builder_of(manager: str) -> Builder:
    """Return what makes trees for a package manager; raises NoPackageManager."""
    if manager.startswith("dpkg"):
        return dpkg.build
    if manager == "busybox":
        from templates import busybox

        return busybox.build
    if manager == "archive":
        from templates import archive

        return archive.build
    raise NoPackageManager(
        f"no way to build templates of package manager {manager!r} on this server",
        hint="dpkg, dpkgx64, busybox and archive are known",
    )


def create(
    paths: Paths, template: Template, *, progress: Progress | None = None, force: bool = False
) -> Cache:
    """Build the cache of ``template`` and return it.

    One that another command finishes while this one waits for it is taken as it is. ``force``
    replaces a cache that exists; the old one stays as ``NAME-old``, and for the containers made
    from it as long as they are. Raises CacheExists, NotPermitted, NoDiskSpace, NoPackageManager,
    what the builder raises; the area is then as before.
    """
    report = progress or Silent()
    if os.geteuid() != 0:
        raise NotPermitted("caches are built by root")
    area, name = template.area, template.cache_name
    build = builder_of(template.recipe.package_manager)
    if template.applications and not template.recipe.package_manager.startswith("dpkg"):
        raise NoPackageOperations(f"{template.name} has no packages, so no applications either")
    with lock.area(area, f"template-{name}") as waited:
        sweep(area)
        current = catalogue.read_cache(area, name)
        if current is not None and waited and not template.cached:
            return current
        if current is not None and not force:
            raise CacheExists(
                f"the cache of {name} exists already",
                hint=f"{template.how_to_build} -f replaces it",
            )
        stats = os.statvfs(area)
        if stats.f_bavail * stats.f_frsize < _FULL_BELOW_BYTES:
            raise NoDiskSpace(f"{area} is full")
        report.say(f"Creating OS template cache for {name}")
        try:
            cache = _build(paths, template, build, report)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoDiskSpace(f"{area} became full while {name} was built") from error
            raise ProgramFailed(f"cannot build {name}: {error}") from error
        install(area, name, cache)
    collect(paths)
    report.say(f"OS template cache for {name} was created")
    return cache


def _build(paths: Paths, template: Template, build: Builder, progress: Progress) -> Cache:
    """Build the tree, put its files into the store and the tree into its place."""
    started = time.monotonic()
    place = template.place / "tree"
    place.mkdir(parents=True, exist_ok=True)
    ident = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    with files.new_directory(place / ident) as tree:
        run_scripts(template, "pre-cache", tree, progress)
        build(paths, template, tree, progress)
        run_scripts(template, "post-cache", tree, progress)
        for application, recipe in template.applications:
            for script in recipe.scripts("post-install"):
                run_script(
                    [*dpkg.confined(), "chroot", str(tree), "/bin/sh", "-s"],
                    script,
                    {**recipe.environment, "APPTEMPLATE": application},
                    progress,
                )
        identity.reset(tree)
        adopted = Store(template.area).adopt(tree, progress)
        packages.link_packages(tree, template.place)
        files.replace(groups_file(place / ident), json.dumps(adopted.groups).encode())
        init, halt_signal = inspection.init_of(tree)
        installed = inspection.packages_of(tree)
    return Cache(
        tree=str(template.parts.place / "tree" / ident),
        build=ident,
        created_s=time.time(),
        distribution=template.recipe.distribution or template.parts.short,
        init=init,
        halt_signal=halt_signal,
        cgroup_view=template.recipe.text("cgroup", "v2"),
        packages=installed,
        applications=tuple(name for name, _recipe in template.applications),
        figures={
            "files": adopted.files,
            "bytes": adopted.bytes,
            "shared_files": adopted.shared_files,
            "shared_bytes": adopted.shared_bytes,
            "seconds": round(time.monotonic() - started, 3),
        },
    )


def groups_file(tree: Path) -> Path:
    """Return the file beside a tree which lists its genuine hard links."""
    return tree.with_name(f"{tree.name}.groups")


def run_scripts(template: Template, name: str, tree: Path, progress: Progress) -> None:
    """Run the recipe's scripts ``name`` on the server, with VE_ROOT the tree; raises ProgramFailed."""
    variables = {**template.recipe.environment, "VE_ROOT": str(tree), "OSTEMPLATE": template.name}
    for script in template.recipe.scripts(name):
        run_script(["/bin/sh", "-s", str(tree)], script, variables, progress)


def run_script(
    argv: list[str], script: Path, variables: dict[str, str], progress: Progress
) -> None:
    """Run a script which ``argv`` reads on its standard input; raises ProgramFailed, OSError."""
    progress.detail(f"running {script}")
    done = subprocess.run(
        argv,
        input=script.read_text(encoding="utf-8"),
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            **variables,
        },
        cwd="/",
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise ProgramFailed(f"{script} ended with {done.returncode}: {last[0]}")


def install(area: Path, name: str, cache: Cache) -> None:
    """Make ``cache`` the current one of ``name``; what was current becomes ``NAME-old``."""
    target = catalogue.cache_file(area, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        files.replace(catalogue.cache_file(area, f"{name}-old"), target.read_bytes(), mode=0o600)
    except FileNotFoundError:
        pass
    files.replace(target, json.dumps(cache.to_json(), indent=1).encode(), mode=0o600)


def remove(paths: Paths, template: Template, *, progress: Progress | None = None) -> None:
    """Remove the cache of ``template`` and its old one; trees that containers use stay for them.

    Raises NotCached.
    """
    area, name = template.area, template.cache_name
    with lock.area(area, f"template-{name}"):
        current = catalogue.cache_file(area, name)
        if not current.exists():
            raise NotCached(f"OS template {name} has no cache")
        files.remove(current)
        files.remove(catalogue.cache_file(area, f"{name}-old"))
    collect(paths)
    (progress or Silent()).say(f"OS template cache for {name} was removed")


def trees(area: Path) -> list[str]:
    """Return all trees of the area, relative to it."""
    return sorted(
        str(path.relative_to(area))
        for path in area.glob("*/*/*/tree/*")
        if path.is_dir() and not path.name.startswith(".")
    )


def collect(paths: Paths, *, keep_old: bool = True, test: bool = False) -> list[str]:
    """Remove trees no cache and no container uses, then what the store holds for nobody.

    ``keep_old=False`` gives up the ``-old`` caches too. Returns the trees removed (``test``:
    those that would be). A template being built now is left alone.
    """
    area = paths.template
    if not area.is_dir():
        return []
    with lock.area(area, "trees"):
        removed = _collect(paths, keep_old=keep_old, test=test)
    if removed and not test:
        sweep_stores(paths)
    return removed


def sweep_stores(paths: Paths, *, test: bool = False) -> tuple[int, int]:
    """Remove stored files that no tree, package or magic link needs; return how many, and bytes.

    Nothing is removed while a private area is away: its links are not known then.
    """
    if users.places_in_doubt(paths):
        return 0, 0
    removed = freed = 0
    for store in (Store(paths.template), shared_store(paths.template)):
        count, size = store.sweep(lambda: users.linked(paths), test=test)
        removed, freed = removed + count, freed + size
    return removed, freed


def _collect(paths: Paths, *, keep_old: bool, test: bool) -> list[str]:
    area = paths.template
    used = set(users.trees_in_use(paths))
    # Whose private area is not there now (a disk that is not mounted) may use any of them.
    unknown = users.places_in_doubt(paths)
    for file in (area / "cache").glob("*.json"):
        if not keep_old and file.stem.endswith("-old"):
            if not test:
                files.remove(file)
            continue
        with open(file, "rb") as opened:
            used.add(json.load(opened)["tree"])
    removed = []
    for tree in trees(area):
        if tree in used or tree.startswith(unknown) or _being_made(area, tree):
            continue
        removed.append(tree)
        if not test:
            files.remove(groups_file(area / tree))
            files.remove_tree(area / tree)
    return removed


def _being_made(area: Path, tree: str) -> bool:
    """Tell whether a build may just have put ``tree`` there, not yet named by a description."""
    system, version, arch = Path(tree).parts[:3]
    prefix = f"template-{system}-{version}-{arch}"
    for file in (area / ".lock").glob(f"{prefix}*"):
        try:
            with lock.area(area, file.name, timeout_s=0):
                continue
        except Locked:
            return True
    return False


def sweep(area: Path) -> None:
    """Remove what killed builds left: unfinished trees, descriptions without a tree."""
    for place in area.glob("*/*/*"):
        if names.parse("-".join(place.relative_to(area).parts)) is None:
            continue
        files.sweep_temporaries(place)
        trees_place = place / "tree"
        if trees_place.is_dir():
            files.sweep_temporaries(trees_place)
            for groups in trees_place.glob("*.groups"):
                if not groups.with_suffix("").exists() and not _someone_builds(trees_place):
                    files.remove(groups)
    if (area / "cache").is_dir():
        files.sweep_temporaries(area / "cache")


def _someone_builds(place: Path) -> bool:
    return any(place.glob(".tmp-*"))
