"""Which templates there are: those in the template area, and the shipped ones copied into it.

The area is ``OS/VERSION/ARCH/`` for each system (EZ layout), with ``config/`` the definitions,
``tree/BUILD/`` whole file trees, and package directories; ``cache/NAME.json`` says which tree is
the current cache of a template; ``store/`` holds each distinct file once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime import files
from runtime.paths import Paths
from templates import lock, names
from templates.errors import NotCached, TemplateBroken, TemplateNotFound
from templates.names import DEFAULT_SET, Name
from templates.recipe import Recipe

SHIPPED = Path(__file__).resolve().parent / "recipes.d"
_MARKS = ".recipes.json"


@dataclass(frozen=True, slots=True)
class Cache:
    """What a built cache is: where its tree lies and what is in it."""

    #: Tree of the cache, relative to the template area.
    tree: str
    build: str
    #: When it was built, in seconds since the epoch.
    created_s: float
    distribution: str
    #: "systemd", "sysvinit", "openrc", "busybox", "other", or "own" where it has none.
    init: str
    #: The signal that makes the init halt the container.
    halt_signal: int
    #: Which cgroup hierarchy the inside shall see: "v2" or "hybrid".
    cgroup_view: str
    #: (name, version, architecture) of each package.
    packages: tuple[tuple[str, str, str], ...] = ()
    #: Application templates that are part of it.
    applications: tuple[str, ...] = ()
    #: Counts of the build: files, bytes, shared_files, shared_bytes, seconds.
    figures: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        return {
            "tree": self.tree,
            "build": self.build,
            "created_s": self.created_s,
            "distribution": self.distribution,
            "init": self.init,
            "halt_signal": self.halt_signal,
            "cgroup_view": self.cgroup_view,
            "packages": [list(package) for package in self.packages],
            "applications": list(self.applications),
            "figures": self.figures,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Cache:
        """Return what `to_json` wrote; raises KeyError, TypeError."""
        return cls(
            tree=body["tree"],
            build=body["build"],
            created_s=body["created_s"],
            distribution=body["distribution"],
            init=body["init"],
            halt_signal=body["halt_signal"],
            cgroup_view=body["cgroup_view"],
            packages=tuple((p[0], p[1], p[2]) for p in body.get("packages", ())),
            applications=tuple(body.get("applications", ())),
            figures=dict(body.get("figures", {})),
        )


@dataclass(frozen=True, slots=True)
class Template:
    """An OS template as it was when it was looked up."""

    parts: Name
    area: Path
    recipe: Recipe
    cache: Cache | None
    #: Application templates which are part of the cache, with their definitions.
    applications: tuple[tuple[str, Recipe], ...] = ()

    @property
    def name(self) -> str:
        """Its full name, without a leading dot."""
        return str(self.parts)

    @property
    def cache_name(self) -> str:
        """What its cache is called: the name, and the applications in it."""
        return "+".join([self.name, *(name for name, _recipe in self.applications)])

    @property
    def recipes(self) -> list[Recipe]:
        """Its definition, and those of its applications."""
        return [self.recipe, *(recipe for _name, recipe in self.applications)]

    @property
    def cached(self) -> bool:
        """Whether a container can be made from it at once."""
        return self.cache is not None

    @property
    def how_to_build(self) -> str:
        """The command that makes its cache."""
        if not self.applications:
            return f"vzpkg create cache {self.name}"
        words = ",".join(name for name, _recipe in self.applications)
        return f"vzpkg create appcache --ostemplate {self.name} --apptemplate {words}"

    @property
    def place(self) -> Path:
        """Its directory in the template area."""
        return self.area / self.parts.place

    @property
    def distribution(self) -> str:
        """What its files in the ``dists`` directory are called."""
        return self.cache.distribution if self.cache else self.parts.short

    def built(self) -> Cache:
        """Return its cache; raises NotCached."""
        if self.cache is None:
            raise NotCached(f"OS template {self.cache_name} has no cache", hint=self.how_to_build)
        return self.cache

    def layers(self) -> tuple[Path, ...]:
        """Return the file trees containers see below their own, top-most first; raises NotCached."""
        return (self.area / self.built().tree,)


def cache_file(area: Path, name: str) -> Path:
    """Return the file which says what the cache ``name`` is."""
    return area / "cache" / f"{name}.json"


def read_cache(area: Path, name: str) -> Cache | None:
    """Return the cache ``name``, None when it is not built or its tree is gone.

    Raises TemplateBroken when its description cannot be understood.
    """
    file = cache_file(area, name)
    try:
        cache = Cache.from_json(json.loads(file.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise TemplateBroken(
            f"{file} is damaged", hint=f"vzpkg create cache -f {name} builds it anew"
        ) from error
    return cache if (area / cache.tree).is_dir() else None


def find(paths: Paths, name: str, applications: Sequence[str] = ()) -> Template:
    """Return the OS template called ``name``; a leading dot or a missing architecture is fine.

    ``busybox`` or ``debian-12`` will do where they mean one template. With ``applications`` its
    cache is the one that has these application templates installed. Raises TemplateNotFound,
    BadName, TemplateBroken.
    """
    found = _find(paths, name)
    if not applications:
        return found
    wanted = sorted({names.check_application(word) for word in applications})
    recipes = tuple((word, application(found.area, found.parts, word)) for word in wanted)
    with_them = replace(found, applications=recipes)
    return replace(with_them, cache=read_cache(found.area, with_them.cache_name))


def _find(paths: Paths, name: str) -> Template:
    bare = names.check(name)
    area = paths.template
    install_shipped(area)
    exact = names.parse(bare)
    if exact is not None:
        if is_installed(area, exact):
            return _template(area, exact)
    else:
        fitting = [found for found in installed(area) if _means(bare, found)]
        if len(fitting) == 1:
            return _template(area, fitting[0])
        if fitting:
            raise TemplateNotFound(
                f"{bare} may be any of {', '.join(map(str, fitting))}", hint="give the full name"
            )
    raise TemplateNotFound(f"OS template {bare} is not installed", hint=_suggestion(area, bare))


def _means(short: str, name: Name) -> bool:
    if name.set != DEFAULT_SET or name.arch not in (names.host_arch(), "any"):
        return False
    return short in (name.os, name.short)


def _suggestion(area: Path, wanted: str) -> str:
    import difflib

    with suppress(TemplateNotFound):
        return f"vzpkg install template {shipped_name(wanted)}"

    known = [str(name) for name in installed(area)]
    near = difflib.get_close_matches(wanted, known, 3, 0.5)
    return f"did you mean {', '.join(near)}?" if near else "vzpkg list -O shows the templates"


def _template(area: Path, parts: Name) -> Template:
    return Template(parts, area, recipe(area, parts), read_cache(area, str(parts)))


def recipe(area: Path, parts: Name) -> Recipe:
    """Return the definition of an installed OS template or set."""
    config = area / parts.place / "config" / "os"
    base = Recipe(config / DEFAULT_SET)
    return base if parts.set == DEFAULT_SET else Recipe(config / parts.set, base)


def is_installed(area: Path, parts: Name) -> bool:
    """Tell whether the definition of a template is in the area."""
    return (area / parts.place / "config" / "os" / parts.set / "packages").is_file()


def installed(area: Path) -> list[Name]:
    """Return the names of all OS templates in the area, sorted."""
    found = []
    for packages in area.glob("*/*/*/config/os/*/packages"):
        system, version, arch = packages.relative_to(area).parts[:3]
        name = names.parse(f"{system}-{version}-{arch}")
        if name is not None and not system.startswith("."):
            found.append(Name(system, version, arch, packages.parent.name))
    return sorted(found)


def every(paths: Paths) -> list[Template]:
    """Return all OS templates, by name."""
    install_shipped(paths.template)
    return [_template(paths.template, name) for name in installed(paths.template)]


# the shipped definitions


def shipped() -> dict[str, Path]:
    """Return the shipped templates: name for this server's architecture → definition."""
    found = {}
    for directory in sorted(SHIPPED.iterdir()):
        if (directory / "os" / DEFAULT_SET / "packages").is_file():
            found[f"{directory.name}-{names.host_arch()}"] = directory
    return found


def shipped_name(short: str) -> str:
    """Return the full name of the shipped template ``short`` means; raises TemplateNotFound."""
    every_name = [name for name in map(names.parse, shipped()) if name is not None]
    for fitting in (
        [name for name in every_name if str(name) == short],
        [name for name in every_name if _means(short, name)],
    ):
        if len(fitting) == 1:
            return str(fitting[0])
    raise TemplateNotFound(
        f"template {short} is not among those that come with the product",
        hint="vzpkg list --available shows those that do",
    )


def install_shipped(area: Path) -> None:
    """Copy into the area the shipped definitions it has never had, and newer ones of unchanged.

    What an administrator changed or removed stays as it is.
    """
    marks = _read_marks(area)
    wanted = [name for name, source in shipped().items() if _is_newer(area, name, source, marks)]
    if not wanted:
        return
    with lock.area(area, "recipes"):
        marks = _read_marks(area)
        for name in wanted:
            source = shipped()[name]
            if _is_newer(area, name, source, marks):
                install(area, name)
                marks[name] = digest(source)
        os.chmod(area, 0o700)
        files.replace(area / _MARKS, json.dumps(marks, indent=1).encode(), mode=0o600)


def install(area: Path, name: str) -> None:
    """Copy the shipped definition ``name`` into the area, replacing one that is there.

    Raises TemplateNotFound.
    """
    full = shipped_name(name)
    source, parts = shipped()[full], names.parse(full)
    assert parts is not None
    target = area / parts.place / "config"
    for directory in _configurations(source):
        place = target / directory.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        files.remove_tree(place)
        with files.new_directory(place) as fresh:
            shutil.copytree(directory, fresh, dirs_exist_ok=True)


def _configurations(source: Path) -> Iterator[Path]:
    """Yield the directories of a definition: OS sets, and sets of applications."""
    yield from sorted(source.glob("os/*"))
    yield from sorted(source.glob("app/*/*"))


def digest(source: Path) -> str:
    """Return what a definition's content is known by."""
    total = hashlib.sha256()
    for directory in _configurations(source):
        for file in sorted(directory.iterdir()):
            total.update(f"{file.relative_to(source)}\0".encode())
            total.update(file.read_bytes() + b"\0")
    return total.hexdigest()


def _is_newer(area: Path, name: str, source: Path, marks: dict[str, str]) -> bool:
    """Tell whether the shipped definition is to be copied: new here, or here unchanged but older."""
    mark = marks.get(name)
    if mark is None:
        return True
    if mark == digest(source):
        return False
    parts = names.parse(name)
    if parts is None or not is_installed(area, parts):
        return False
    return digest(area / parts.place / "config") == mark


def _read_marks(area: Path) -> dict[str, str]:
    try:
        marks: dict[str, str] = json.loads((area / _MARKS).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return marks


# applications


def applications(area: Path, parts: Name) -> list[str]:
    """Return the application templates of an OS, sorted; sets of one as ``NAME-SET``."""
    found = []
    for packages in (area / parts.place / "config" / "app").glob("*/*/packages"):
        name, kind = packages.parts[-3], packages.parts[-2]
        found.append(name if kind == DEFAULT_SET else f"{name}-{kind}")
    return sorted(found)


def application(area: Path, parts: Name, name: str) -> Recipe:
    """Return the definition of the application template ``name`` of an OS.

    Raises TemplateNotFound, BadName.
    """
    bare = names.check_application(name)
    config = area / parts.place / "config" / "app"
    if (config / bare / DEFAULT_SET / "packages").is_file():
        return Recipe(config / bare / DEFAULT_SET)
    for cut in range(len(bare) - 1, 0, -1):
        if bare[cut] == "-" and (config / bare[:cut] / bare[cut + 1 :] / "packages").is_file():
            return Recipe(
                config / bare[:cut] / bare[cut + 1 :], Recipe(config / bare[:cut] / DEFAULT_SET)
            )
    known = applications(area, parts)
    raise TemplateNotFound(
        f"{parts.base} has no application template {bare}",
        hint=f"it has {', '.join(known)}" if known else f"add {config / bare}/default/packages",
    )
