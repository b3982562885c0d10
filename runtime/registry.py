"""Which containers exist: CTID, name and UUID, from the configuration files alone.

The file ``CTID.conf`` is the record; ``names/NAME`` links are an index into it, rebuilt when they
disagree. Ids up to 100 are reserved (vzctl(8)); 0 is the host.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime.config import ConfigFile
from runtime.errors import ConfigMissing, InvalidOption, InvalidValue, NameFailed
from runtime.paths import Paths

RESERVED = 100
LARGEST = 2147483644
_CONF = re.compile(r"(\d+)\.conf")
_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Record:
    """A container that is configured: its id, its name (or None), its UUID (or None)."""

    ctid: int
    name: str | None
    uuid: str | None
    conf: Path

    @property
    def label(self) -> str:
        """The name people gave it, else the id."""
        return self.name or str(self.ctid)


def check_new_ctid(text: str) -> int:
    """Return ``text`` as the id of a new container.

    Raises InvalidOption when it is no number, InvalidValue when the number is reserved.
    """
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise InvalidOption(
            f"invalid container id: {printable(text)}", hint=f"use a number above {RESERVED}"
        )
    ctid = int(text)
    if ctid <= RESERVED:
        raise InvalidValue(
            f"container ids up to {RESERVED} are reserved: {ctid}", hint="use 101 or above"
        )
    if ctid > LARGEST:
        raise InvalidValue(f"the largest container id is {LARGEST}: {ctid}")
    return ctid


def check_name(text: str) -> str:
    """Return ``text`` as a container's name, NFC-normalised; raises NameFailed.

    Letters and digits of any script, and ``-_.`` and space inside; a name of digits alone would
    be taken for an id.
    """
    name = unicodedata.normalize("NFC", text)
    legal = all(char.isalnum() or char in "-_. " for char in name)
    if not name or not legal or not name[0].isalnum() or name[-1] == " ":
        raise NameFailed(
            f"invalid name: {printable(text)}",
            hint="letters, digits, '-', '_', '.' and inner spaces are allowed",
        )
    if len(os.fsencode(name)) > _NAME_LENGTH:
        raise NameFailed(f"the name is longer than {_NAME_LENGTH} bytes")
    if name.isdecimal():
        raise NameFailed(f"a name of digits alone would be an id: {name}")
    return name


def printable(text: str, *, limit: int = 60) -> str:
    """Return ``text`` fit for one line of a terminal or log, shortened."""
    shown = ascii(text) if any(not char.isprintable() for char in text) else f"'{text}'"
    return shown if len(shown) <= limit else shown[: limit - 1] + "…'"


def configured(paths: Paths) -> list[int]:
    """Return the ids of all configured containers, sorted."""
    try:
        names = os.listdir(paths.conf_dir)
    except FileNotFoundError:
        return []
    matches = (_CONF.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match and int(match[1]) > RESERVED)


def record(paths: Paths, ctid: int) -> Record:
    """Return the record of ``ctid``; raises ConfigMissing."""
    conf = paths.ct_conf(ctid)
    file = ConfigFile.read(conf, missing=ConfigMissing)
    return from_file(ctid, file, conf)


def from_file(ctid: int, file: ConfigFile, conf: Path) -> Record:
    """Return the record that an already parsed configuration describes."""
    uuid = file.get("UUID")
    return Record(ctid, file.get("NAME") or None, uuid.strip("{}").lower() if uuid else None, conf)


def records(paths: Paths) -> Iterator[tuple[Record, ConfigFile]]:
    """Yield every configured container with its parsed file, by id."""
    for ctid in configured(paths):
        conf = paths.ct_conf(ctid)
        # Destroyed between the listing and the reading: no longer configured.
        with suppress(ConfigMissing):
            file = ConfigFile.read(conf)
            yield from_file(ctid, file, conf), file


def find(paths: Paths, ident: str) -> Record:
    """Return the container called ``ident``: a CTID, a name, or a UUID with or without braces.

    Raises ConfigMissing when there is none, InvalidOption when ``ident`` can be neither.
    """
    if re.fullmatch(r"[0-9]{1,10}", ident):
        try:
            return record(paths, int(ident))
        except ConfigMissing:
            raise ConfigMissing(
                f"container {int(ident)} does not exist", hint="vzlist -a shows those that do"
            ) from None
    bare = ident.strip("{}").lower()
    if _is_uuid(bare):
        for found, _file in records(paths):
            if found.uuid == bare:
                return found
        raise ConfigMissing(f"no container has the UUID {bare}", hint="vzlist -a -o uuid,ctid")
    try:
        name = check_name(ident)
    except NameFailed:
        raise InvalidOption(
            f"invalid container id or name: {printable(ident)}", hint="vzlist -a shows the ids"
        ) from None
    found_by_name = by_name(paths, name)
    if found_by_name is None:
        raise ConfigMissing(
            f"no container is called {printable(name)}", hint="vzlist -an shows the names in use"
        )
    return found_by_name


def by_name(paths: Paths, name: str) -> Record | None:
    """Return the container called ``name``, or None.

    The link is only a shortcut: where it is missing or lies, the configuration files decide.
    """
    with suppress(OSError):
        match = _CONF.fullmatch(Path(os.readlink(paths.names / name)).name)
        if match is not None:
            with suppress(ConfigMissing):
                found = record(paths, int(match[1]))
                if found.name == name:
                    return found
    for found, _file in records(paths):
        if found.name == name:
            return found
    return None


def claim_name(paths: Paths, ctid: int, name: str) -> None:
    """Make the link ``names/NAME`` point to ``ctid``; raises NameFailed when another has it."""
    holder = by_name(paths, name)
    if holder is not None and holder.ctid != ctid:
        raise NameFailed(f"the name {printable(name)} belongs to container {holder.ctid}")
    paths.names.mkdir(parents=True, exist_ok=True)
    files.replace_symlink(paths.names / name, f"../conf/{ctid}.conf")


def release_names(paths: Paths, ctid: int, *, keep: str | None = None) -> None:
    """Remove every name link that points to ``ctid``, except ``keep``."""
    try:
        entries = list(os.scandir(paths.names))
    except FileNotFoundError:
        return
    for entry in entries:
        with suppress(OSError):
            if entry.name != keep and Path(os.readlink(entry.path)).name == f"{ctid}.conf":
                os.unlink(entry.path)


def new_uuid() -> str:
    """Return a fresh random UUID, lower case, without braces."""
    import uuid

    return str(uuid.uuid4())


def _is_uuid(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None
