"""Packages in a running container of a dpkg system.

What to do is decided and fetched on the server, with the template's sources and the container's
package database; the files are handed in and installed there by the container's own tools. So it
needs no network of its own, and packages are fetched once for all containers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runtime import inside
from runtime.config import ConfigFile
from runtime.container import Container
from runtime.errors import NotRunning
from runtime.progress import Progress
from templates import catalogue, inspection, names
from templates.apt import Apt, Change, clean_status, database
from templates.catalogue import Template
from templates.errors import ManagerFailed, NoPackageOperations, NotInContainer, TemplateNotFound
from templates.recipe import Recipe

#: Where package files are put in the container while they are installed.
_PLACE = "/var/cache/pyvz"
_LARGEST_DATABASE_BYTES = 128 << 20
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "UCF_FORCE_CONFFOLD": "1"}
_KEEP_CONFIGURATION = (
    *("-o", "Dpkg::Options::=--force-confdef"),
    *("-o", "Dpkg::Options::=--force-confold"),
)

Package = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a package operation did: (name, version, architecture) of each package."""

    installed: list[Package] = field(default_factory=list)
    updated: list[Package] = field(default_factory=list)
    removed: list[Package] = field(default_factory=list)
    #: What would be done, when it was only asked for.
    planned: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class How:
    """How a package operation shall go about it."""

    #: Only tell.
    test: bool = False
    remote: bool = False
    cached: bool = False
    force: bool = False
    dependencies: bool = False
    timeout_s: float = 3600.0


class Guest:
    """The packages of one running container. Use it with the container's lock held."""

    def __init__(self, ct: Container, progress: Progress) -> None:
        """Look at ``ct``; raises NotRunning, TemplateNotFound, NoPackageOperations."""
        self.ct = ct
        self.progress = progress
        if not ct.status().running:
            raise NotRunning("Container is not running", hint=f"vzctl start {ct.ctid}")
        name = ct.config.get("OSTEMPLATE") or ""
        if not name.strip("."):
            raise TemplateNotFound(f"container {ct.ctid} names no OS template")
        self.template: Template = catalogue.find(ct.paths, name)
        manager = self.template.recipe.package_manager
        if not manager.startswith("dpkg"):
            raise NoPackageOperations(
                f"{self.template.name} has no packages to work on ({manager})"
            )

    # what there is

    def stanzas(self) -> list[dict[str, str]]:
        """Return the fields of every installed package."""
        done = inside.run(
            self.ct, ["cat", "/var/lib/dpkg/status"], keep_bytes=_LARGEST_DATABASE_BYTES
        )
        if done.status:
            raise ManagerFailed("the container's package database cannot be read")
        return list(inspection.parse_status(done.output))

    def packages(self) -> dict[tuple[str, str], str]:
        """Return (name, architecture) → version of every installed package."""
        return {
            (fields.get("Package", ""), fields.get("Architecture", "")): fields.get("Version", "")
            for fields in self.stanzas()
        }

    def applications(self) -> list[str]:
        """Return the application templates the container has, without leading dots."""
        return [word.lstrip(".") for word in (self.ct.config.get("TEMPLATES") or "").split()]

    def updates(self, how: How) -> list[Change]:
        """Return what an update of everything would change."""
        with database(clean_status(iter(self.stanzas()))) as status:
            return self._apt(status, how).plan(["dist-upgrade"])

    # changing it

    def install(self, objects: Sequence[str], how: How, *, packages: bool) -> Outcome:
        """Install application templates, or packages. Raises what apt and dpkg raise."""
        if packages:
            return self._change(["install"], list(objects), how)
        recipes = [self._recipe(name) for name in objects]
        wanted = [package for recipe in recipes for package in recipe.packages]
        if not how.test:
            self._scripts(recipes, "pre-install")
        outcome = self._change(["install"], wanted, how, extra=recipes)
        if not how.test:
            self._scripts(recipes, "post-install")
            self._record(sorted({*self.applications(), *map(names.check_application, objects)}))
        return outcome

    def install_files(self, files: Sequence[Path], how: How) -> Outcome:
        """Install package files of the server's, with what they depend on."""
        paths = [str(file.resolve()) for file in files]
        return self._change(["install"], paths, how)

    def update(self, objects: Sequence[str], how: How, *, packages: bool) -> Outcome:
        """Update everything, or only some application templates or packages."""
        if not objects:
            return self._change(["dist-upgrade"], [], how)
        if packages:
            return self._change(["install", "--only-upgrade"], list(objects), how)
        recipes = [self._own_recipe(name) for name in objects]
        wanted = [package for recipe in recipes for package in recipe.packages]
        if not how.test:
            self._scripts(recipes, "pre-upgrade")
        outcome = self._change(["install", "--only-upgrade"], wanted, how, extra=recipes)
        if not how.test:
            self._scripts(recipes, "post-upgrade")
        return outcome

    def remove(self, objects: Sequence[str], how: How, *, packages: bool) -> Outcome:
        """Remove application templates, or packages.

        Raises NotInContainer for what is not there, ManagerFailed when others depend on it and
        ``how.dependencies`` is not given.
        """
        recipes = [] if packages else [self._own_recipe(name) for name in objects]
        wanted = (
            list(objects)
            if packages
            else [word.partition("=")[0] for recipe in recipes for word in recipe.packages]
        )
        before = self.packages()
        have = {name for name, _arch in before}
        missing = [name for name in wanted if name not in have]
        if missing and packages:
            raise NotInContainer(f"package {missing[0]} is not installed in the container")
        wanted = [name for name in wanted if name in have]
        cleaning = ["--auto-remove"] if how.dependencies else []
        command = ["apt-get", "-y", *cleaning, "remove", "--", *wanted]
        planned = self._simulated(command) if wanted else []
        others = [change.name for change in planned if change.name.split(":")[0] not in wanted]
        if others and not how.dependencies and not how.force:
            raise ManagerFailed(
                f"other packages depend on it: {', '.join(others[:5])}",
                hint="add -w to remove them",
            )
        if how.test:
            return Outcome(planned=planned)
        self._scripts(recipes, "pre-remove")
        if wanted:
            self._inside(command, how)
        self._scripts(recipes, "post-remove")
        if not packages:
            gone = {names.check_application(name) for name in objects}
            self._record([name for name in self.applications() if name not in gone])
        return _difference(before, self.packages())

    # how it is done

    def _apt(self, status: Path, how: How, extra: Sequence[Recipe] = ()) -> Apt:
        own: list[Recipe] = []
        for name in self.applications():
            # One whose definition was removed meanwhile offers nothing new.
            with suppress(TemplateNotFound):
                own.append(self._recipe(name))
        apt = Apt(self.ct.paths, self.template, status, [*own, *extra])
        apt.refresh(self.progress, remote=how.remote, cached=how.cached)
        return apt

    def _change(
        self, verb: Sequence[str], objects: list[str], how: How, extra: Sequence[Recipe] = ()
    ) -> Outcome:
        before = self.packages()
        with database(clean_status(iter(self.stanzas()))) as status:
            apt = self._apt(status, how, extra)
            planned = apt.plan(verb, objects)
            if how.test or not planned:
                return Outcome(planned=planned if how.test else [])
            files = apt.fetch(verb, objects, self.progress)
        files += [Path(name) for name in objects if name.startswith("/")]
        try:
            inner = self._hand_in(files)
            self.progress.say(f"Installing {len(inner)} packages")
            self._inside(["apt-get", "-y", *_KEEP_CONFIGURATION, "install", "--", *inner], how)
        finally:
            inside.run(self.ct, ["rm", "-rf", _PLACE])
        after = self.packages()
        outcome = _difference(before, after)
        asked = {name.partition("=")[0] for name in objects}
        pulled = [name for name, _version, _arch in outcome.installed if name not in asked]
        if pulled and not any(name.startswith("/") for name in objects):
            inside.run(self.ct, ["apt-mark", "auto", *pulled], environment=_ENVIRONMENT)
        return outcome

    def _hand_in(self, files: Sequence[Path]) -> list[str]:
        """Copy package files into the container; return their paths there."""
        made = inside.run(self.ct, ["mkdir", "-p", "-m", "700", _PLACE])
        if made.status:
            raise ManagerFailed(f"cannot make {_PLACE} in the container: {made.output.strip()}")
        inner = []
        for number, file in enumerate(files):
            goal = f"{_PLACE}/{file.name}"
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = inside.run(self.ct, ["/bin/sh", "-c", 'cat >"$1"', "sh", goal], stdin=fd)
            finally:
                os.close(fd)
            if done.status:
                raise ManagerFailed(f"cannot copy {file.name} into the container: {done.output}")
            inner.append(goal)
            self.progress.amount("Copying packages", number + 1, len(files))
        return inner

    def _inside(self, command: list[str], how: How) -> None:
        done = inside.run(
            self.ct,
            command,
            environment=_ENVIRONMENT,
            timeout_s=how.timeout_s,
            on_line=self.progress.detail,
        )
        if done.status:
            lines = [line[3:] for line in done.output.splitlines() if line.startswith("E: ")]
            last = (lines or done.output.strip().splitlines() or ["no message"])[-1]
            raise ManagerFailed(
                f"{command[0]} ended with {done.status} in the container: {last}",
                hint="--verbose shows everything it printed",
            )

    def _simulated(self, command: list[str]) -> list[Change]:
        done = inside.run(self.ct, [*command[:1], "-s", *command[1:]], environment=_ENVIRONMENT)
        if done.status:
            raise ManagerFailed(f"apt refuses: {done.output.strip().splitlines()[-1:]}")
        changes = []
        for line in done.output.splitlines():
            words = line.split()
            if words[:1] == ["Remv"] and len(words) > 2:
                changes.append(Change(words[1], words[2].strip("[]"), ""))
        return changes

    def _recipe(self, name: str) -> Recipe:
        return catalogue.application(self.template.area, self.template.parts, name)

    def _own_recipe(self, name: str) -> Recipe:
        bare = names.check_application(name)
        if bare not in self.applications():
            raise NotInContainer(f"application template {bare} is not installed in the container")
        return self._recipe(bare)

    def _scripts(self, recipes: Sequence[Recipe], name: str) -> None:
        """Run scripts of application templates: ``NAME-hn`` on the server, ``NAME`` inside."""
        for recipe in recipes:
            environment: Mapping[str, str] = {**recipe.environment, "VEID": str(self.ct.ctid)}
            before = name.startswith("pre-")
            for kind in (f"{name}-hn", name) if before else (name, f"{name}-hn"):
                for script in recipe.scripts(kind):
                    if kind.endswith("-hn"):
                        _on_host(script, environment)
                        continue
                    done = inside.run_script(
                        self.ct, script.read_bytes(), environment={**_ENVIRONMENT, **environment}
                    )
                    if done.status:
                        raise ManagerFailed(
                            f"{script} ended with {done.status} in the container: "
                            f"{(done.output.strip().splitlines() or ['no message'])[-1]}"
                        )

    def _record(self, applications: Sequence[str]) -> None:
        """Write which application templates the container has into its configuration."""
        file = ConfigFile.read(self.ct.record.conf)
        if applications:
            file.set("TEMPLATES", " ".join(f".{name}" for name in applications))
        else:
            file.unset("TEMPLATES")
        file.save()


def _on_host(script: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        ["/bin/sh", str(script)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ManagerFailed(f"{script} ended with {done.returncode}: {last}")


def _difference(
    before: Mapping[tuple[str, str], str], after: Mapping[tuple[str, str], str]
) -> Outcome:
    def rows(
        keys: Iterator[tuple[str, str]], versions: Mapping[tuple[str, str], str]
    ) -> list[Package]:
        return sorted((name, versions[name, arch], arch) for name, arch in keys)

    return Outcome(
        installed=rows((key for key in after if key not in before), after),
        updated=rows((k for k in after if k in before and after[k] != before[k]), after),
        removed=rows((key for key in before if key not in after), before),
    )
