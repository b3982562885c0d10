"""KEY="value" files: vz.conf, container configurations, samples (vz.conf(5), ctid.conf(5)).

A file is kept as its lines, so that a rewrite changes only the keys that were set: comments,
order, unknown keys and lines nobody understands survive. Values follow the shell's quoting as
far as those files use it; ``$VEID`` is replaced when a value is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime.errors import ConfigMissing, ConfigNotSaved

_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
# By far the most lines: a value without anything that needs a second look.
_PLAIN = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)=(?:"([^"\\$`\r\n]*)"|([A-Za-z0-9_./:,@%+=-]*))\n')
_PIECE = re.compile(r"[^\n]*\n|[^\n]+")
_VEID = re.compile(r"\$(?:VEID\b|\{VEID\})")


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no assignment, comment or blank: ignored, but named in warnings."""

    number: int
    text: str
    reason: str


@dataclass(slots=True)
class _Line:
    """One logical line (a quoted value may span several) as it stands in the file."""

    number: int
    raw: str
    key: str | None = None
    value: str = ""


def unquote(text: str) -> str:
    """Return the value the shell would assign from the right side ``text`` of an assignment.

    Raises ValueError when a quote stays open, or when text follows after white space that is no
    comment (the shell would run it as a command).
    """
    out: list[str] = []
    i = 0
    quote = ""
    while i < len(text):
        char = text[i]
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                out.append(char)
        elif char == "\\" and i + 1 < len(text):
            i += 1
            following = text[i]
            if following == "\n":
                pass
            elif quote and following not in '$`"\\':
                out.append("\\" + following)
            else:
                out.append(following)
        elif quote:
            if char == '"':
                quote = ""
            else:
                out.append(char)
        elif char in "\"'":
            quote = char
        elif char in " \t\n\r;":
            rest = text[i:].lstrip(" \t\n\r;")
            if rest and not rest.startswith("#"):
                raise ValueError("text after the value (a value with spaces needs quotes)")
            break
        else:
            out.append(char)
        i += 1
    if quote:
        raise ValueError(f"the quote {quote} is not closed")
    return "".join(out)


def quote(value: str) -> str:
    """Return ``value`` in double quotes, readable by us and by the shell alike."""
    escaped = re.sub(r'([\\"`])', r"\\\1", value)
    # $VEID stays a reference; any other dollar is literal, for the shell too.
    escaped = re.sub(r"\$(?!VEID\b|\{VEID\})", r"\\$", escaped)
    return f'"{escaped}"'


class ConfigFile:
    """The lines of one configuration file, with its assignments by key (the last one wins)."""

    def __init__(self, text: str = "", *, path: Path | None = None) -> None:
        """Parse ``text``; lines that are no assignments land in ``bad``."""
        self.path = path
        self.bad: list[BadLine] = []
        self._newline = "\r\n" if "\r\n" in text else "\n"
        # Editors of other systems begin with it; a line of its own, so that the first one is read.
        mark = text[:1] if text.startswith("\ufeff") else ""
        self._lines = [_Line(0, mark)] if mark else []
        self._lines += self._parse(text[len(mark) :])

    @classmethod
    def read(cls, path: Path, *, missing: type[ConfigMissing] = ConfigMissing) -> ConfigFile:
        """Read ``path``; raises ``missing`` when it is not there, OSError otherwise.

        Bytes which are not UTF-8 are kept as they are.
        """
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise missing(f"configuration file {path} does not exist") from None
        return cls(data.decode("utf-8", "surrogateescape"), path=path)

    def _parse(self, text: str) -> Iterator[_Line]:
        pieces = _PIECE.findall(text)
        i = 0
        while i < len(pieces):
            number, raw = i + 1, pieces[i]
            i += 1
            plain = _PLAIN.fullmatch(raw)
            if plain is not None:
                yield _Line(number, raw, plain[1], plain[2] or plain[3] or "")
                continue
            stripped = raw.strip()
            if not stripped or stripped.startswith("#"):
                yield _Line(number, raw)
                continue
            match = _ASSIGNMENT.fullmatch(raw.rstrip("\r\n"))
            if match is None:
                self.bad.append(BadLine(number, stripped, "not a KEY=value assignment"))
                yield _Line(number, raw)
                continue
            key, right = match[1], match[2]
            try:
                yield _Line(number, raw, key, unquote(right))
                continue
            except ValueError as error:
                reason = str(error)
            # A quoted value may go on over the next lines, until a line that starts another key.
            joined, j = raw, i
            while j < len(pieces) and not _ASSIGNMENT.match(pieces[j]):
                joined += pieces[j]
                j += 1
                whole = _ASSIGNMENT.fullmatch(joined.rstrip("\r\n"))
                try:
                    value = unquote(whole[2]) if whole else None
                except ValueError:
                    continue
                if value is not None:
                    yield _Line(number, joined, key, value)
                    i = j
                    break
            else:
                self.bad.append(BadLine(number, stripped, reason))
                yield _Line(number, raw)

    def __contains__(self, key: str) -> bool:
        return any(line.key == key for line in self._lines)

    def get(self, key: str) -> str | None:
        """Return the raw value of ``key`` (``$VEID`` not replaced), or None."""
        for line in reversed(self._lines):
            if line.key == key:
                return line.value
        return None

    def items(self) -> dict[str, str]:
        """Return every assignment, the last one of a key deciding."""
        return {line.key: line.value for line in self._lines if line.key is not None}

    def set(self, key: str, value: str) -> None:
        """Assign ``value``; the deciding line is rewritten in its place, earlier ones dropped."""
        text = f"{key}={quote(value)}{self._newline}"
        places = [index for index, line in enumerate(self._lines) if line.key == key]
        if places:
            keep = places[-1]
            if self._lines[keep].value != value:
                self._lines[keep] = _Line(self._lines[keep].number, text, key, value)
            for index in reversed(places[:-1]):
                del self._lines[index]
            return
        if self._lines and not self._lines[-1].raw.endswith("\n"):
            self._lines[-1].raw += self._newline
        self._lines.append(_Line(len(self._lines) + 1, text, key, value))

    def unset(self, key: str) -> None:
        """Drop every assignment of ``key``."""
        self._lines = [line for line in self._lines if line.key != key]

    def text(self) -> str:
        """Return the whole file as text."""
        return "".join(line.raw for line in self._lines)

    def save(self, path: Path | None = None, *, mode: int = 0o644) -> None:
        """Write the file durably in one step; raises ConfigNotSaved."""
        target = path or self.path
        if target is None:
            raise ConfigNotSaved("this configuration has no file")
        try:
            files.replace(target, self.text().encode("utf-8", "surrogateescape"), mode=mode)
        except OSError as error:
            raise ConfigNotSaved(f"cannot save {target}: {error.strerror}") from error


class Config(Mapping[str, str]):
    """Effective values by precedence: overrides, container file, global file, built-in defaults."""

    def __init__(
        self,
        *,
        ctid: int,
        overrides: Mapping[str, str] | None = None,
        container: ConfigFile | None = None,
        server: ConfigFile | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> None:
        """Combine the sources; ``ctid`` replaces ``$VEID`` in values."""
        self.ctid = ctid
        self.container = container
        self._overrides = dict(overrides or {})
        layers: list[Mapping[str, str]] = [dict(defaults or {})]
        if server is not None:
            layers.append(server.items())
        if container is not None:
            layers.append(container.items())
        layers.append(self._overrides)
        self._values: dict[str, str] = {}
        for layer in layers:
            self._values.update(layer)

    def __getitem__(self, key: str) -> str:
        return _VEID.sub(str(self.ctid), self._values[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def with_overrides(self, values: Mapping[str, str | None]) -> Config:
        """Return the same configuration with ``values`` deciding; None unsets a key."""
        clone = object.__new__(Config)
        clone.ctid = self.ctid
        clone.container = self.container
        known = {key: value for key, value in values.items() if value is not None}
        clone._overrides = {**self._overrides, **known}
        clone._values = {**self._values, **known}
        for key in values.keys() - known.keys():
            clone._overrides.pop(key, None)
            clone._values.pop(key, None)
        return clone
