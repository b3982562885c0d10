"""apt of this server, working on somebody else's package database: the only module that runs it.

State, lists and fetched packages lie in the template's ``pm/``; the database is that of a tree or
of a container. Nothing is installed here: apt only decides and fetches.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.paths import Paths
from runtime.progress import Progress
from templates import lock, sources
from templates.catalogue import Template
from templates.dpkg import ARCHES
from templates.errors import FetchFailed, ManagerFailed, ObjectNotFound, ProgramFailed
from templates.recipe import Recipe

#: METADATA_EXPIRE of vztt.conf(5): package lists older than this are fetched anew.
EXPIRE_S = 86400.0
_CHANGE = re.compile(
    r"(?P<act>Inst|Remv) (?P<name>\S+)(?: \[(?P<old>[^]]+)\])?(?: \((?P<new>\S+) .*\))?"
)
#: What apt needs to know of an installed package; nothing else of a container is shown to it.
_FIELDS = (
    "Package",
    "Status",
    "Essential",
    "Architecture",
    "Multi-Arch",
    "Version",
    "Installed-Size",
    "Replaces",
    "Provides",
    "Depends",
    "Pre-Depends",
    "Recommends",
    "Breaks",
    "Conflicts",
)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_VALUE = re.compile(r"[A-Za-z0-9 .,+~:|()<>=\[\]!_${}/-]*")


@dataclass(frozen=True, slots=True)
class Change:
    """What would happen to one package; ``old`` or ``new`` is empty when it is not there then."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        if not self.new:
            return f"{self.name} {self.old} is removed"
        if not self.old:
            return f"{self.name} {self.new} is installed"
        return f"{self.name} {self.old} becomes {self.new}"


def clean_status(stanzas: Iterator[Mapping[str, str]]) -> str:
    """Return a package database with only what apt must know, each value of known letters only.

    A container writes its own database, and apt reads it here as root.
    """
    out = []
    for fields in stanzas:
        if not _PACKAGE.fullmatch(fields.get("Package", "")):
            continue
        lines = []
        for name in _FIELDS:
            value = " ".join(fields.get(name, "").split())
            if value and _VALUE.fullmatch(value) and len(value) < 65536:
                lines.append(f"{name}: {value}\n")
        if len(lines) >= 4:
            out.append("".join(lines) + "Maintainer: -\nDescription: -\n\n")
    return "".join(out)


class Apt:
    """apt for the packages of one OS template, with the database ``status``."""

    def __init__(
        self, paths: Paths, template: Template, status: Path, extra: Sequence[Recipe] = ()
    ) -> None:
        """Use the template's sources, and those of the application templates ``extra``.

        Raises NoRepository, BadRecipe.
        """
        self.template = template
        self.place = template.place / "pm"
        self.archives = self.place / "archives"
        self._program = shutil.which("apt-get", path="/usr/sbin:/usr/bin:/sbin:/bin")
        if self._program is None:
            raise ProgramFailed(
                "this server has no apt, which decides about packages of dpkg systems",
                hint="apt-get is in the package apt of Debian and Ubuntu",
            )
        lines = template.recipe.repositories
        for recipe in extra:
            lines = lines + [line for line in recipe.repositories if line not in lines]
        entries = sources.apt_sources(paths, lines, template.parts.os)
        for directory in ("etc/parts", "lists/partial", "cache", "archives/partial"):
            (self.place / directory).mkdir(parents=True, exist_ok=True)
        self._list = self.place / "etc/sources.list"
        text = "".join(f"{entry.line}\n" for entry in entries)
        self._changed = not self._list.exists() or self._list.read_text() != text
        if self._changed:
            self._list.write_text(text)
        (self.place / "etc/preferences").touch()
        # These come after this server's own settings, which say how packages are reached (proxies).
        settings = {
            "Dir::State": str(self.place),
            "Dir::State::Lists": str(self.place / "lists"),
            "Dir::State::Status": str(status),
            "Dir::Cache": str(self.place / "cache"),
            "Dir::Cache::Archives": str(self.archives),
            # Some servers are set up to keep no caches, and would parse all lists each time.
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Dir::Cache::pkgcache": "",
            "Dir::Etc": str(self.place / "etc"),
            "Dir::Etc::SourceList": str(self._list),
            "Dir::Etc::SourceParts": "parts",
            "Dir::Etc::Preferences": "preferences",
            "Dir::Etc::PreferencesParts": "parts",
            "APT::Architecture": ARCHES.get(template.parts.arch, template.parts.arch),
            "APT::Architectures": ARCHES.get(template.parts.arch, template.parts.arch),
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "APT::Get::Assume-Yes": "true",
            "Debug::NoLocking": "true",
            "Acquire::Retries": "2",
            "Acquire::Languages": "none",
        }
        self._options = [
            word for key, value in settings.items() for word in ("-o", f"{key}={value}")
        ]

    def refresh(self, progress: Progress, *, remote: bool = False, cached: bool = False) -> None:
        """Fetch the package lists when they are old, absent, or ``remote``; never when ``cached``.

        Raises FetchFailed.
        """
        mark = self.place / "lists/fetched"
        try:
            age = time.time() - mark.stat().st_mtime
        except FileNotFoundError:
            age = float("inf")
        if cached or not (remote or self._changed or age > EXPIRE_S):
            return
        progress.say(f"Fetching package lists of {self.template.name}")
        done = self._run(["update", "--error-on=any"])
        if done.returncode:
            raise FetchFailed(
                f"package lists cannot be fetched: {_reason(done.stdout)}",
                hint="check the server's package sources and the network",
            )
        mark.touch()
        self._changed = False

    def plan(self, verb: Sequence[str], objects: Sequence[str] = ()) -> list[Change]:
        """Return what ``verb`` (install, dist-upgrade) would do, in apt's order.

        Raises ObjectNotFound for a package nobody has, ManagerFailed.
        """
        done = self._run(["--simulate", *verb, *objects])
        if done.returncode:
            raise _refusal(done.stdout)
        changes = []
        for line in done.stdout.splitlines():
            match = _CHANGE.match(line)
            if match is not None:
                new = (match["new"] or "") if match["act"] == "Inst" else ""
                changes.append(Change(match["name"], match["old"] or "", new))
        return changes

    def fetch(self, verb: Sequence[str], objects: Sequence[str], progress: Progress) -> list[Path]:
        """Fetch what ``verb`` needs; return all its package files. Raises FetchFailed."""
        done = self._run(["--print-uris", *verb, *objects])
        if done.returncode:
            raise _refusal(done.stdout)
        remote: dict[str, str] = {}
        for line in done.stdout.splitlines():
            match = re.match(r"'([^']+)' (\S+) (\d+)", line)
            if match is not None:
                remote[match[2]] = match[1]
        # What was fetched before is not among them: the plan knows all.
        if remote:
            progress.say(f"Fetching {len(remote)} packages")
            done = self._run(["--download-only", *verb, *objects])
            if done.returncode:
                raise FetchFailed(f"packages cannot be fetched: {_reason(done.stdout)}")
        # apt leaves those of this server's own directories where they are.
        local = [
            Path(urllib.parse.unquote(uri.partition(":")[2]))
            for uri in remote.values()
            if uri.startswith("file:")
        ]
        found, missing = [], []
        for change in self.plan(verb, objects):
            if change.new:
                path = self._archive(change, local)
                if path is not None:
                    found.append(path)
                else:
                    missing.append(change.name)
        if len(missing) > sum(word.startswith("/") for word in objects):
            raise FetchFailed(f"apt fetched no file of {', '.join(missing)}")
        return found

    def _archive(self, change: Change, local: Sequence[Path]) -> Path | None:
        """Return the file of a package, None when it is one the user gave."""
        bare = change.name.partition(":")[0]
        for version in (change.new.replace(":", "%3a"), change.new.partition(":")[2] or change.new):
            start = f"{bare}_{version}_"
            for path in local:
                if path.name.startswith(start):
                    return path
            for path in self.archives.glob(f"{start}*.deb"):
                return path
        return None

    def _run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        assert self._program is not None
        with lock.area(self.template.area, f"apt-{self.template.parts.base}"):
            return subprocess.run(
                [self._program, *self._options, *words],
                env={
                    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "LC_ALL": "C.UTF-8",
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd="/",
                check=False,
            )


@contextmanager
def database(text: str) -> Iterator[Path]:
    """Hold a package database as a file apt can read (it insists on a real path)."""
    with tempfile.NamedTemporaryFile("w", prefix="pyvz-status-", errors="replace") as file:
        file.write(text)
        file.flush()
        yield Path(file.name)


def _reason(output: str) -> str:
    lines = [line[3:] for line in output.splitlines() if line.startswith(("E: ", "W: "))]
    return lines[0] if lines else (output.strip().splitlines() or ["no message"])[-1]


def _refusal(output: str) -> ManagerFailed | ObjectNotFound:
    reason = _reason(output)
    if "Unable to locate package" in reason or "Unsupported file" in reason:
        return ObjectNotFound(f"{reason[0].lower()}{reason[1:]}", hint="vzpkg update metadata")
    return ManagerFailed(f"apt refuses: {reason}", hint="--verbose shows more")
