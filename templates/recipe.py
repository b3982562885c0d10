"""The definition of a template as EZ files: one directory, one file a field (vzpkgproc layout).

An OS template's base lies in ``config/os/default``, another set of it in ``config/os/SET``, an
application template in ``config/app/NAME/default``. What a set leaves out it has from the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from templates.errors import BadRecipe, TemplateBroken

#: Files which are scripts, run around the building of a cache or in the container.
SCRIPTS = (
    "pre-cache",
    "post-cache",
    "pre-install",
    "post-install",
    "pre-install-hn",
    "post-install-hn",
    "pre-upgrade",
    "post-upgrade",
    "pre-remove",
    "post-remove",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one configuration directory says; ``base`` is the OS template's own for a set."""

    directory: Path
    base: Recipe | None = None

    def text(self, name: str, default: str = "") -> str:
        """Return the content of the file ``name``, the base's where this set has none."""
        try:
            return (self.directory / name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return self.base.text(name, default) if self.base else default
        except (OSError, UnicodeDecodeError) as error:
            raise BadRecipe(f"cannot read {self.directory / name}: {error}") from error

    def own_lines(self, name: str) -> list[str]:
        """Return the lines of this directory's own file, without comments and blanks."""
        try:
            text = (self.directory / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise BadRecipe(f"cannot read {self.directory / name}: {error}") from error
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return [line for line in lines if line]

    def lines(self, name: str) -> list[str]:
        """Return the lines of the base's file and then of the set's own."""
        before = self.base.lines(name) if self.base else []
        return before + [line for line in self.own_lines(name) if line not in before]

    @property
    def packages(self) -> list[str]:
        """The packages to install, with ``=VERSION`` where one is asked for."""
        found = self.lines("packages")
        for number in range(10):
            found += [p for p in self.lines(f"packages_{number}") if p not in found]
        return found

    @property
    def package_manager(self) -> str:
        """Which package manager it is made with (dpkg, dpkgx64, busybox, tar)."""
        word = self.text("package_manager")
        if not word:
            raise TemplateBroken(f"{self.directory} has no file package_manager")
        return word

    @property
    def repositories(self) -> list[str]:
        """Where packages come from, in order of priority."""
        return self.lines("repositories") + self.lines("mirrorlist")

    @property
    def distribution(self) -> str:
        """What its files in the ``dists`` directory are called."""
        return self.text("distribution")

    @property
    def summary(self) -> str:
        """One line about it."""
        return self.text("summary")

    @property
    def environment(self) -> dict[str, str]:
        """Variables for its scripts and for the package manager."""
        pairs = (line.partition("=") for line in self.lines("environment"))
        return {key: value.strip('"') for key, sep, value in pairs if sep}

    def scripts(self, name: str) -> list[Path]:
        """Return the scripts ``name`` to run: the base's, then the set's own."""
        before = self.base.scripts(name) if self.base else []
        own = self.directory / name
        return [*before, own] if own.is_file() else before
