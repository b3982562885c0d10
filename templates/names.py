"""Names of OS templates: ``centos-5-x86_64``, of a set ``centos-5-x86_64-server`` (EZ templates)."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from runtime.registry import printable
from templates.errors import BadName

#: The set every OS template has: the base.
DEFAULT_SET = "default"

_ARCHES = {"x86_64": "x86_64", "aarch64": "aarch64", "i686": "x86", "i386": "x86"}
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.+]*"
_NAME = re.compile(
    rf"(?P<os>{_WORD})-(?P<version>{_WORD})-(?P<arch>x86_64|aarch64|x86|ia64|any)"
    rf"(?:-(?P<set>{_WORD}(?:-{_WORD})*))?"
)
_SHORT = re.compile(rf"{_WORD}(?:-{_WORD})?")
_APPLICATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def host_arch() -> str:
    """Return the architecture part of template names for this server."""
    machine = platform.machine()
    return _ARCHES.get(machine, machine)


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """The parts of an OS template's name."""

    os: str
    version: str
    arch: str
    set: str = DEFAULT_SET

    def __str__(self) -> str:
        base = f"{self.os}-{self.version}-{self.arch}"
        return base if self.set == DEFAULT_SET else f"{base}-{self.set}"

    @property
    def base(self) -> Name:
        """The name of the base template of a set."""
        return Name(self.os, self.version, self.arch)

    @property
    def place(self) -> Path:
        """Where the template lies, relative to the template area."""
        return Path(self.os, self.version, self.arch)

    @property
    def short(self) -> str:
        """The name without the architecture: what a distribution's files are called after."""
        return f"{self.os}-{self.version}"


def parse(text: str) -> Name | None:
    """Return the parts of a full name, None when it is no full name."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    return Name(match["os"], match["version"], match["arch"], match["set"] or DEFAULT_SET)


def check(text: str) -> str:
    """Return ``text`` without the leading dot of EZ templates; raises BadName."""
    bare = text.removeprefix(".")
    if (parse(bare) is None and _SHORT.fullmatch(bare) is None) or len(bare) > 200:
        raise BadName(
            f"invalid template name: {printable(text)}",
            hint="names are like debian-12-x86_64; vzpkg list -O shows them",
        )
    return bare


def check_application(text: str) -> str:
    """Return ``text`` as the name of an application template or set; raises BadName."""
    bare = text.removeprefix(".")
    if _APPLICATION.fullmatch(bare) is None or len(bare) > 100:
        raise BadName(f"invalid template name: {printable(text)}")
    return bare
