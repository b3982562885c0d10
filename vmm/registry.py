"""Which machines exist: one small file per machine which says where its bundle is.

The bundle holds everything else, so that a machine is found again after libvirt lost it. Reading
needs neither libvirt nor an XML parser.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime import registry as containers
from runtime.errors import ConfigMissing, InvalidOption, NameFailed
from runtime.paths import Paths
from runtime.registry import printable

_UUID = re.compile(r"\{?([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\}?")


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine: its UUID (lower case, no braces), its name, its bundle directory."""

    uuid: str
    name: str
    home: Path

    @property
    def config(self) -> Path:
        """Its description, in libvirt's XML."""
        return self.home / "config.xml"

    @property
    def braced(self) -> str:
        """The UUID as the product prints it."""
        return "{" + self.uuid + "}"


def directory(paths: Paths) -> Path:
    """Return where the records are."""
    return paths.lib / "machines"


def records(paths: Paths) -> list[MachineRecord]:
    """Return every machine, by name."""
    try:
        names = os.listdir(directory(paths))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        uuid = name.removesuffix(".json")
        if uuid != name and _UUID.fullmatch(uuid):
            record = _read(paths, uuid)
            if record is not None:
                found.append(record)
    return sorted(found, key=lambda record: record.name)


def find(paths: Paths, ident: str) -> MachineRecord:
    """Return the machine called ``ident``, a name or a UUID; raises ConfigMissing."""
    uuid = parse_uuid(ident)
    if uuid is not None:
        record = _read(paths, uuid)
        if record is not None:
            return record
    name = unicodedata.normalize("NFC", ident)
    for record in records(paths):
        if record.name == name:
            return record
    raise ConfigMissing(
        f"no virtual machine is called {printable(ident)}", hint="pctl list -a --vmtype vm"
    )


def is_machine(paths: Paths, ident: str) -> bool:
    """Whether a machine has this name or UUID."""
    try:
        find(paths, ident)
    except ConfigMissing:
        return False
    return True


def parse_uuid(text: str) -> str | None:
    """Return a UUID with or without braces as we store it, or None when ``text`` is none."""
    match = _UUID.fullmatch(text)
    return match[1].lower() if match else None


def check_new(paths: Paths, name: str, uuid: str | None = None) -> tuple[str, str]:
    """Return the name and UUID for a new machine; raises NameFailed, InvalidOption.

    Call it with the registry's lock held. A name is used by containers and machines together.
    """
    name = check_name(name)
    if is_machine(paths, name):
        raise NameFailed(f"a virtual machine is already called {printable(name)}")
    with suppress(ConfigMissing, InvalidOption):
        holder = containers.find(paths, name)
        raise NameFailed(f"the name {printable(name)} belongs to container {holder.ctid}")
    if uuid is None:
        return name, containers.new_uuid()
    wanted = parse_uuid(uuid)
    if wanted is None:
        raise InvalidOption(f"not a UUID: {printable(uuid)}")
    taken = _read(paths, wanted)
    if taken is not None:
        raise NameFailed(f"the UUID {wanted} belongs to {printable(taken.name)}")
    return name, wanted


def check_name(name: str) -> str:
    """Return a legal machine name; raises NameFailed. It becomes the name of a directory too."""
    name = containers.check_name(name)
    # QEMU's monitor lives in a directory named after the machine; its socket's path is short.
    if len(os.fsencode(name)) > 100:
        raise NameFailed("the name of a machine is at most 100 bytes long")
    return name


def save(paths: Paths, record: MachineRecord) -> None:
    """Write a record, durably."""
    where = directory(paths)
    where.mkdir(parents=True, exist_ok=True)
    body = {"uuid": record.uuid, "name": record.name, "home": os.fspath(record.home)}
    files.replace(where / f"{record.uuid}.json", json.dumps(body).encode(), mode=0o600)


def remove(paths: Paths, uuid: str) -> None:
    """Forget a machine; unknown is success."""
    files.remove(directory(paths) / f"{uuid}.json")


def _read(paths: Paths, uuid: str) -> MachineRecord | None:
    try:
        with open(directory(paths) / f"{uuid}.json", "rb") as file:
            body = json.load(file)
        return MachineRecord(body["uuid"], body["name"], Path(body["home"]))
    except (FileNotFoundError, ValueError, KeyError):
        return None
