"""Where packages come from: a template's ``repositories``, completed from this server.

A line is ``URL`` or, for dpkg systems, ``URL SUITE COMPONENT…``; ``$NAME_SERVER`` in it stands for
an address from ``/etc/vztt/url.map``, else from the server's own package sources: an administrator
who has a mirror has it there already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.paths import Paths
from templates.errors import BadRecipe, NoRepository

_VARIABLE = re.compile(r"\$\{?([A-Z][A-Z0-9_]*)\}?")
_LINE = re.compile(
    r"(?:deb\s+)?(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>.*)"
)
_KEYRINGS = Path("/usr/share/keyrings")


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of apt's sources (sources.list(5)): for one address, all suites and components."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    #: Other options of the one-line style, without brackets.
    options: str = ""

    @property
    def line(self) -> str:
        """The entry of its first suite in the one-line style."""
        words = [f"signed-by={self.signed_by}"] if self.signed_by else []
        words += self.options.split()
        options = f"[{' '.join(words)}] " if words else ""
        return f"deb {options}{self.uri} {self.suites[0]} {' '.join(self.components)}".rstrip()


def host_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Return the binary sources this server's apt uses; none when it has no apt."""
    found: list[Source] = []
    lists = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
    for file in lists:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found += _one_line_style(text)
    for file in sorted((etc / "sources.list.d").glob("*.sources")):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found += _deb822_style(text)
    return found


def _one_line_style(content: str) -> Iterator[Source]:
    for line in content.splitlines():
        text = line.partition("#")[0].strip()
        match = _LINE.fullmatch(text) if text.startswith("deb ") else None
        if match is not None:
            options = dict(
                word.split("=", 1) for word in (match["options"] or "").split() if "=" in word
            )
            signed_by = options.get("signed-by", "")
            yield Source(match["uri"], (match["suite"],), tuple(match["rest"].split()), signed_by)


def _deb822_style(text: str) -> Iterator[Source]:
    from debian.deb822 import Deb822

    for stanza in Deb822.iter_paragraphs(text.splitlines(keepends=True)):
        fields = {key.lower(): str(value) for key, value in stanza.items()}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        signed_by = fields.get("signed-by", "").strip()
        for uri in fields.get("uris", "").split():
            yield Source(
                uri,
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                signed_by if signed_by.startswith("/") else "",
            )


def host_system(path: Path = Path("/etc/os-release")) -> tuple[str, str]:
    """Return this server's ID and VERSION_CODENAME (os-release(5)), empty when unknown."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return "", ""
    pairs = (line.partition("=") for line in text.splitlines())
    fields = {key: value.strip().strip("\"'") for key, sep, value in pairs if sep}
    return fields.get("ID", ""), fields.get("VERSION_CODENAME", "")


def server_variables(
    sources: list[Source] | None = None, system: tuple[str, str] | None = None
) -> dict[str, Source]:
    """Return what this server's sources give: ``DEBIAN_SERVER``, ``DEBIAN_SECURITY_SERVER``, ….

    Of several that fit, the one that looks most like the distribution's own archive.
    """
    name, codename = system if system is not None else host_system()
    if not name or not codename:
        return {}
    found: dict[str, Source] = {}
    best: dict[str, int] = {}
    for source in host_sources() if sources is None else sources:
        if "main" not in source.components:
            continue
        suites = set(source.suites)
        for variable, fitting in (
            (f"{name.upper()}_SERVER", {codename}),
            (f"{name.upper()}_SECURITY_SERVER", {f"{codename}-security", f"{codename}/updates"}),
        ):
            if not suites & fitting:
                continue
            score = 1 + (f"{name}-archive-keyring" in source.signed_by)
            score += source.uri.rstrip("/").rpartition("/")[2].startswith(name)
            score += len(suites & {f"{codename}-updates"})
            if score > best.get(variable, 0):
                best[variable], found[variable] = score, source
    return found


def url_map(paths: Paths) -> dict[str, str]:
    """Return the addresses of ``/etc/vztt/url.map``: ``$NAME URL`` lines."""
    try:
        text = (paths.root / "etc/vztt/url.map").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) == 2 and words[0].startswith("$"):
            found[words[0][1:].strip("{}")] = words[1]
    return found


def expand(paths: Paths, line: str, known: dict[str, Source]) -> tuple[str, str]:
    """Return a repository line with its variables replaced, and the keyring that signs it or "".

    Raises NoRepository for one nobody knows.
    """
    mapped = url_map(paths)
    keyring = ""

    def value(match: re.Match[str]) -> str:
        nonlocal keyring
        name = match[1]
        if name in mapped:
            return mapped[name]
        if name in known:
            keyring = known[name].signed_by
            return known[name].uri
        raise NoRepository(
            f"nothing says where ${name} is: neither url.map nor this server's package sources",
            hint=f"add a line '${name} URL' to {paths.root / 'etc/vztt/url.map'}",
        )

    return _VARIABLE.sub(value, line), keyring


def apt_sources(paths: Paths, repositories: list[str], system: str) -> list[Source]:
    """Return the apt sources of a template's repositories, in their order.

    ``system`` ("debian") names the keyring where nothing else does. Raises NoRepository,
    BadRecipe.
    """
    known = server_variables()
    found = []
    for line in repositories:
        text, keyring = expand(paths, line, known)
        match = _LINE.fullmatch(text)
        if match is None:
            raise BadRecipe(f"a repository line is [OPTIONS] URL SUITE [COMPONENT...]: {line!r}")
        options = (match["options"] or "").split()
        signed = [word.partition("=")[2] for word in options if word.startswith("signed-by=")]
        usual = _KEYRINGS / f"{system}-archive-keyring.gpg"
        if signed:
            keyring = signed[0]
        elif "trusted=yes" in options:
            keyring = ""
        elif not keyring and usual.exists():
            keyring = str(usual)
        found.append(
            Source(
                match["uri"],
                (match["suite"],),
                tuple(match["rest"].split()),
                keyring,
                " ".join(word for word in options if not word.startswith("signed-by=")),
            )
        )
    if not found:
        raise NoRepository("the template has no repositories")
    return found
