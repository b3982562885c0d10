"""File trees of dpkg systems, made by mmdebstrap(1): the only module that runs it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections import deque
from pathlib import Path

from runtime import programs
from runtime.paths import Paths
from runtime.progress import Progress
from templates import sources
from templates.catalogue import Template
from templates.errors import FetchFailed, ProgramFailed
from templates.sources import Source

#: Architecture of a template's name → dpkg's.
ARCHES = {"x86_64": "amd64", "x86": "i386", "aarch64": "arm64"}
#: What mmdebstrap says (on its "I:" lines) → how far it then is, roughly, by time.
_STEPS = (
    ("running apt-get update", 0.05),
    ("downloading packages", 0.15),
    ("extracting archives", 0.25),
    ("installing essential packages", 0.35),
    ("installing remaining packages", 0.5),
    ("running --customize-hook", 0.9),
    ("cleaning package lists", 0.95),
)
_FETCH_SIGNS = ("Failed to fetch", "Temporary failure resolving", "Could not connect", "404 ")
#: Makes this server's own package directories visible to what runs in the tree.
_FILES_HOOK = ("--hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount",)
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


def build(paths: Paths, template: Template, tree: Path, progress: Progress) -> None:
    """Install the template's packages into the empty directory ``tree``.

    Downloaded packages are kept in the template's ``pm/`` and used again. Raises NoRepository,
    FetchFailed, ProgramFailed.
    """
    program = shutil.which("mmdebstrap", path=_ENVIRONMENT["PATH"])
    if program is None:
        raise ProgramFailed("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    repositories, wanted = unique("repositories", template), unique("packages", template)
    entries = sources.apt_sources(paths, repositories, template.parts.os)
    kept = template.place / "pm" / "archives"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pyvz-sources-") as scratch:
        listed = Path(scratch) / "pyvz.list"
        listed.write_text("".join(f"{entry.line}\n" for entry in entries), encoding="utf-8")
        argv = [
            *confined(),
            program,
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--skip=output/dev,download/empty,essential/unlink",
            f"--architectures={ARCHES.get(template.parts.arch, template.parts.arch)}",
            f"--include={','.join(wanted)}",
            # _apt cannot reach the area, which is root's alone.
            '--aptopt=APT::Sandbox::User "root"',
            '--aptopt=Acquire::Retries "2"',
            f"--setup-hook={hook(kept, 'in')}",
            f"--customize-hook={hook(kept, 'out')}",
            *(_FILES_HOOK if any(entry.uri.startswith("file:") for entry in entries) else ()),
            suite_of(entries),
            str(tree),
            str(listed),
        ]
        environment = _ENVIRONMENT | template.recipe.environment
        _run(argv, environment, f"Building {template.cache_name}", progress)
    _settle(tree, entries)
    _trim(kept)


def unique(field: str, template: Template) -> list[str]:
    """Return a list field of the template and of its applications, each entry once."""
    found: list[str] = []
    for recipe in template.recipes:
        found += [entry for entry in getattr(recipe, field) if entry not in found]
    return found


def suite_of(entries: list[Source]) -> str:
    """Return the suite to install: that of the first source."""
    return entries[0].suites[0]


def hook(kept: Path, direction: str) -> str:
    """Return the mmdebstrap hook that brings kept packages in, or takes fetched ones out.

    The directory holds only letters its own path is made of; mmdebstrap hands hooks to a shell.
    """
    from shlex import quote

    place = quote(str(kept))
    if direction == "in":
        return (
            f'mkdir -p "$1/var/cache/apt/archives" && find {place} -maxdepth 1 -name "*.deb"'
            ' -exec cp -t "$1/var/cache/apt/archives" {} +'
        )
    return (
        f'find "$1/var/cache/apt/archives" -maxdepth 1 -name "*.deb" -exec mv -t {place} {{}} + &&'
        ' rm -rf "$1/var/cache/apt/archives/partial" && mkdir -p -m 700'
        ' "$1/var/cache/apt/archives/partial"'
    )


def confined() -> list[str]:
    """Return what runs a command in mount and process namespaces of its own, dying with us.

    What it mounts in the tree then never shows on the server, and no process of it can remain:
    a killed build can be removed at once.
    """
    return [
        *programs.ENDING_WITH_US,
        *("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--"),
    ]


def _run(argv: list[str], environment: dict[str, str], what: str, progress: Progress) -> None:
    last: deque[str] = deque(maxlen=40)
    progress.amount(what, 0.01, 1)
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd="/",
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                text = line.rstrip()
                last.append(text)
                progress.detail(text)
                for sign, share in _STEPS:
                    if text.startswith("I: ") and sign in text:
                        progress.amount(what, share, 1)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise _failure(list(last), process.returncode)
    progress.amount(what, 1, 1)


def _failure(lines: list[str], status: int) -> ProgramFailed | FetchFailed:
    for line in lines:
        if any(sign in line for sign in _FETCH_SIGNS):
            return FetchFailed(
                f"packages cannot be fetched: {line.removeprefix('E: ')}",
                hint="check the server's package sources and the network",
            )
    errors = [line[3:] for line in lines if line.startswith(("E: ", "W: "))]
    reason = next((line for line in errors if "failed" not in line.split()[0:1]), "")
    shown = reason or (lines[-1] if lines else f"it ended with {status}")
    return ProgramFailed(
        f"mmdebstrap failed: {shown}", hint="--verbose shows everything it printed"
    )


def _settle(tree: Path, entries: list[Source]) -> None:
    """Leave only sources that hold inside a container, and none of the builder's settings."""
    for leftover in (
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "etc/apt/sources.list",
    ):
        (tree / leftover).unlink(missing_ok=True)
    for listed in (tree / "etc/apt/sources.list.d").glob("*"):
        listed.unlink()
    lines = []
    for entry in entries:
        inside = entry.signed_by and os.path.lexists(tree / entry.signed_by.lstrip("/"))
        usable = entry if inside else dataclasses.replace(entry, signed_by="")
        if not entry.uri.startswith(("file:", "copy:", "cdrom:")):
            lines.append(usable.line + "\n")
    (tree / "etc/apt/sources.list").write_text("".join(lines), encoding="utf-8")
    for name in ("var/lib/apt/lists", "var/cache/apt"):
        for path in (tree / name).glob("*"):
            if path.is_file():
                path.unlink()


def _trim(kept: Path) -> None:
    """Keep only the newest file of each package among those downloaded."""
    newest: dict[str, Path] = {}
    for file in sorted(kept.glob("*.deb"), key=lambda path: path.stat().st_mtime):
        name, _, rest = file.name.partition("_")
        package = f"{name}_{rest.rpartition('_')[2]}"
        if package in newest:
            newest[package].unlink()
        newest[package] = file
