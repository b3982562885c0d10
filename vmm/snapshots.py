"""Snapshots inside qcow2 images: disks, memory and description of a moment, in a tree.

libvirt keeps their descriptions in directories which a reboot empties, so the bundle has a copy of
each (snapshots/UUID.xml) from which they are made known again. The identifier is libvirt's name of
the snapshot; the name people give is kept beside it, in snapshots/index.json.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lxml.builder import E

from runtime import files, journal
from runtime.errors import (
    SnapshotDeleteFailed,
    SnapshotFailed,
    SnapshotSwitchFailed,
)
from runtime.registry import new_uuid, printable
from vmm import devices, firmware, images, networks, registry, undo
from vmm.domain import parse, text
from vmm.faults import NO_DOMAIN_SNAPSHOT, translate, translated
from vmm.status import State

if TYPE_CHECKING:
    import libvirt

    from vmm.machine import Machine
    from vmm.registry import MachineRecord

#: More than this makes every write to the disks slow.
MOST = 60


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot: when it was made (seconds since 1970) and what the machine was doing."""

    uuid: str
    parent: str | None
    name: str
    description: str
    created_s: int
    state: str
    current: bool

    @property
    def braced(self) -> str:
        """The identifier as the product prints it."""
        return "{" + self.uuid + "}"

    @property
    def date(self) -> str:
        """When it was made, for people."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.created_s))

    @property
    def word(self) -> str:
        """poweron, poweroff or suspended."""
        return {"running": "poweron", "paused": "suspended"}.get(self.state, "poweroff")


def create(machine: Machine, name: str, description: str) -> Snapshot:
    """Make a snapshot of a running, paused or stopped machine; raises SnapshotFailed."""
    import libvirt

    raw = _ready(machine)
    have = listing(machine.record)
    if len(have) >= MOST:
        raise SnapshotFailed(
            f"machine {machine.label} has {len(have)} snapshots",
            hint="delete some: each slows the disks down",
        )
    uuid = new_uuid()
    element = E.domainsnapshot(E.name(uuid), E.description(description))
    name = name or f"Snapshot {len(have) + 1}"
    # If we or libvirt die on the way, the next command brings image, libvirt and bundle together.
    entry = journal.record(machine.paths, machine.record.uuid, "snapshots", uuid=uuid, name=name)
    with translated(f"cannot take a snapshot of {machine.label}", instead=SnapshotFailed):
        raw.snapshotCreateXML(text(element), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC)
    store(machine.record, raw, _names(machine.record) | {uuid: name})
    entry.clear()
    return find(machine.record, uuid)


def switch(machine: Machine, ident: str) -> Snapshot:
    """Return the machine to a snapshot, its present state is lost; raises SnapshotSwitchFailed."""
    raw = machine.raw()
    wanted = find(machine.record, ident)
    if wanted.word != "poweroff":
        networks.attach(machine.paths, list(networks.wanted(machine.current())))
    with translated(f"cannot switch to {wanted.braced}", instead=SnapshotSwitchFailed):
        raw.revertToSnapshot(_lookup(raw, wanted.uuid), 0)
    if wanted.word == "poweroff":
        networks.detach(machine.paths, machine.record.uuid)
    # A state saved on another branch belongs to disks that are no longer there.
    from vmm.status import SAVED

    files.remove(machine.record.home / SAVED)
    store(machine.record, raw, _names(machine.record))
    machine.save()
    return wanted


def delete(machine: Machine, ident: str, *, children: bool) -> list[Snapshot]:
    """Delete a snapshot; its children move to its parent, or go too; return those deleted."""
    import libvirt

    raw = machine.raw()
    wanted = find(machine.record, ident)
    have = listing(machine.record)
    doomed = [wanted, *(_below(have, wanted.uuid) if children else [])]
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN if children else 0
    entry = journal.record(machine.paths, machine.record.uuid, "snapshots", uuid=wanted.uuid)
    with translated(f"cannot delete {wanted.braced}", instead=SnapshotDeleteFailed):
        _lookup(raw, wanted.uuid).delete(flags)
    gone = {snapshot.uuid for snapshot in doomed}
    names = {key: value for key, value in _names(machine.record).items() if key not in gone}
    store(machine.record, raw, names)
    entry.clear()
    return doomed


def settle(machine: Machine, details: dict[str, Any]) -> bool:
    """Bring image, libvirt and bundle together after a snapshot's making or deletion was killed.

    Return False when that has to wait until the machine is stopped; raises VzError.
    """
    import libvirt

    record, uuid, raw = machine.record, details["uuid"], machine.raw()
    with translated(f"reading the snapshots of {record.name}"):
        known = uuid in raw.snapshotListNames(0)
    holding = [
        path
        for disk in devices.disks(machine.current())
        if disk.format == "qcow2" and (path := Path(disk.image)).is_file()
        if uuid in images.info(path, format="qcow2").snapshots
    ]
    if known and not holding:
        # Gone from the image, but libvirt died before it wrote that down.
        with translated(f"snapshot {uuid}", instead=SnapshotDeleteFailed):
            _lookup(raw, uuid).delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    elif holding and not known:
        if machine.state().active:
            return False
        for path in holding:
            images.drop_snapshot(path, uuid)
    names = _names(record)
    if details.get("name"):
        names[uuid] = details["name"]
    store(record, raw, names)
    return True


def _below(have: list[Snapshot], uuid: str) -> list[Snapshot]:
    out = []
    for snapshot in have:
        if snapshot.parent == uuid:
            out += [snapshot, *_below(have, snapshot.uuid)]
    return out


def listing(record: MachineRecord) -> list[Snapshot]:
    """Return the snapshots of a machine by age; needs no libvirt. Raises BadConfig."""
    place = record.home / "snapshots"
    index = _index(record)
    found = []
    for path in place.glob("*.xml"):
        root = parse(path.read_bytes(), str(path))
        uuid = root.findtext("name") or path.stem
        found.append(
            Snapshot(
                uuid,
                root.findtext("parent/name"),
                index["names"].get(uuid, ""),
                root.findtext("description") or "",
                int(root.findtext("creationTime") or 0),
                root.findtext("state") or "shutoff",
                uuid == index["current"],
            )
        )
    return sorted(found, key=lambda snapshot: (snapshot.created_s, snapshot.uuid))


def find(record: MachineRecord, ident: str) -> Snapshot:
    """Return the snapshot with an identifier or a name; raises SnapshotSwitchFailed."""
    uuid = registry.parse_uuid(ident)
    have = listing(record)
    for snapshot in have:
        if snapshot.uuid == uuid:
            return snapshot
    named = [snapshot for snapshot in have if snapshot.name == ident]
    if len(named) == 1:
        return named[0]
    raise SnapshotMissing(
        f"machine {record.name} has no snapshot {printable(ident)}",
        hint=f"pctl snapshot-list {record.name}",
    )


class SnapshotMissing(SnapshotSwitchFailed):
    """The snapshot does not exist."""

    code = 159


def exist(record: MachineRecord) -> bool:
    """Whether the machine has any snapshot."""
    return any((record.home / "snapshots").glob("*.xml"))


def store(record: MachineRecord, raw: libvirt.virDomain, names: dict[str, str]) -> None:
    """Copy what libvirt knows of the snapshots into the bundle."""
    import libvirt

    place = record.home / "snapshots"
    place.mkdir(mode=0o700, exist_ok=True)
    with translated(f"reading the snapshots of {record.name}"):
        found = {
            snapshot.getName(): snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
            for snapshot in raw.listAllSnapshots(0)
        }
        current = raw.snapshotCurrent(0).getName() if raw.hasCurrentSnapshot(0) else None
    for name, description in found.items():
        path = place / f"{name}.xml"
        data = description.encode()
        if not path.exists() or path.read_bytes() != data:
            files.replace(path, data, mode=0o600)
    for path in place.glob("*.xml"):
        if path.stem not in found:
            files.remove(path)
    body = {"current": current, "names": names}
    files.replace(place / "index.json", json.dumps(body).encode(), mode=0o600)


def redefine(record: MachineRecord, raw: libvirt.virDomain) -> None:
    """Make the bundle's snapshots known to a libvirt which lost them; raises SnapshotFailed."""
    import libvirt

    have = listing(record)
    known: set[str | None] = {None}
    while have:
        ready = [snapshot for snapshot in have if snapshot.parent in known]
        if not ready:
            raise SnapshotFailed(f"the snapshots of {record.name} have lost their parents")
        for snapshot in ready:
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
            if snapshot.current:
                flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
            path = record.home / "snapshots" / f"{snapshot.uuid}.xml"
            with translated(f"snapshot {snapshot.braced}", instead=SnapshotFailed):
                raw.snapshotCreateXML(path.read_text(), flags)
            known.add(snapshot.uuid)
        have = [snapshot for snapshot in have if snapshot.uuid not in known]


def forget(record: MachineRecord) -> None:
    """Remove the bundle's copies; the images are not touched."""
    shutil.rmtree(record.home / "snapshots", ignore_errors=True)


def facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {**asdict(snapshot), "state": snapshot.word, "date": snapshot.date}


def _ready(machine: Machine) -> libvirt.virDomain:
    """Return libvirt's domain if a snapshot can be taken; raises SnapshotFailed with the reason."""
    state = machine.state()
    if state is State.SUSPENDED:
        raise SnapshotFailed(
            f"machine {machine.label} is suspended", hint=f"pctl resume {machine.label}"
        )
    domain = machine.current()
    if undo.mode(domain) != "off":
        raise SnapshotFailed(
            f"machine {machine.label} has undo disks, which exclude snapshots",
            hint=f"pctl set {machine.label} --undo-disks off",
        )
    if firmware.is_efi(domain):
        raise SnapshotFailed(
            f"machine {machine.label} has UEFI firmware, whose variables no snapshot can hold",
            hint="pctl suspend keeps its memory; pctl clone keeps its disks",
        )
    for disk in devices.disks(domain):
        if disk.format != "qcow2":
            raise SnapshotFailed(
                f"{disk.name} of {machine.label} is a plain disk, which cannot hold snapshots",
                hint=f"prl_disk_tool convert --expanding --hdd {disk.image}",
            )
    return machine.raw()


def _lookup(raw: libvirt.virDomain, uuid: str) -> libvirt.virDomainSnapshot:
    import libvirt

    try:
        return raw.snapshotLookupByName(uuid, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == NO_DOMAIN_SNAPSHOT:
            raise SnapshotMissing(f"libvirt does not know the snapshot {{{uuid}}}") from error
        raise translate(error, f"snapshot {{{uuid}}}") from error


def _index(record: MachineRecord) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        body: dict[str, Any] = json.loads(_index_path(record).read_bytes())
        return body
    return {"current": None, "names": {}}


def _names(record: MachineRecord) -> dict[str, str]:
    names: dict[str, str] = _index(record)["names"]
    return dict(names)


def _index_path(record: MachineRecord) -> Path:
    return record.home / "snapshots" / "index.json"
