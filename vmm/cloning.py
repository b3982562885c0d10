"""Copies of machines: full, linked (sharing what is not changed), and templates."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime import files, journal, locks
from runtime.errors import DevicesFailed, DirectoryFailed
from runtime.paths import Paths
from vmm import creation, devices, images, macs, registry, snapshots, undo, upkeep
from vmm.domain import Domain, drop, parse
from vmm.machine import Machine
from vmm.registry import MachineRecord

#: What a bundle holds beside disks and description that a copy needs too.
_CARRIED = ("vmlinuz", "initrd", "nvram.fd", "tools.iso")


@dataclass(frozen=True, slots=True)
class Wish:
    """How a copy is to be made."""

    name: str
    destination: Path | None = None
    linked: bool = False
    template: bool = False
    uuid: str | None = None
    #: Leave out disks whose images are outside of the bundle.
    detach_external: bool = True


def clone(machine: Machine, wish: Wish) -> Machine:
    """Return a copy with its own UUID and hardware addresses; raises VzError.

    A machine which runs is refused; nothing is left behind on failure.
    """
    machine.stopped("clone")
    paths, source = machine.paths, machine.current()
    undo.check_settled(machine, source, "cloning it")
    if wish.linked and snapshots.exist(machine.record):
        raise DevicesFailed(
            f"machine {machine.label} has snapshots: a linked clone would lose its base with them",
            hint="delete the snapshots, or make a full clone",
        )
    with locks.registry(paths):
        creation.sweep(paths)
        name, uuid = registry.check_new(paths, wish.name, wish.uuid)
        home = creation.home_of(paths, name, wish.destination)
        machine.progress.say(
            f"Cloning the {machine.label} VM to {'the template' if wish.template else 'a VM'} {name}..."
        )
        with creation.new_bundle(paths, uuid, home) as bundle:
            domain = source.copy()
            domain.name, domain.uuid = name, uuid
            domain.set_setting("template", "yes" if wish.template else None)
            _copy_disks(machine, domain, bundle, home, wish)
            for file in _CARRIED:
                if (machine.record.home / file).exists():
                    shutil.copyfile(machine.record.home / file, bundle / file)
            rehome(domain, machine.record.home, home)
            renew(domain)
            creation.write_config(bundle, domain)
        record = MachineRecord(uuid, name, home)
        made = creation.enlist(paths, record, machine.hypervisor, machine.progress)
    machine.progress.say("The VM has been successfully cloned.")
    return made


def _copy_disks(machine: Machine, domain: Domain, bundle: Path, home: Path, wish: Wish) -> None:
    for disk in devices.disks(domain):
        if not disk.image:
            continue
        path = Path(disk.image)
        inside = path.is_relative_to(machine.record.home)
        if not inside and wish.detach_external:
            domain.devices.remove(disk.element)
            continue
        file = path.name if inside else f"{disk.name}.qcow2"
        if wish.linked:
            file = Path(file).stem + ".qcow2"
            images.create_linked(bundle / file, path, disk.format)
            disk.format = "qcow2"
        else:
            copy_image(path, bundle / file, disk.format, _bar(machine, disk.name))
        disk.image = str(home / file)


def _bar(machine: Machine, name: str) -> Callable[[float], None]:
    return lambda percent: machine.progress.amount(f"Copying {name}", percent, 100)


def copy_image(
    source: Path, target: Path, format: str, progress: Callable[[float], None] | None = None
) -> None:
    """Copy an image with its holes; by shared extents where the file system can do that.

    A qcow2 copy by qemu-img leaves behind snapshots and a backing file: it is whole by itself.
    """
    from vzfs import syscalls

    if format == "raw":
        with open(source, "rb") as have, open(target, "xb") as made:
            try:
                syscalls.ficlone(made.fileno(), have.fileno())
                return
            except OSError:
                pass  # no shared extents on this file system: copy below
        target.unlink()
    images.check(source, format)
    images.convert(source, target, to=format, source_format=format, progress=progress)


def rehome(domain: Domain, old: Path, new: Path) -> None:
    """Let every path below ``old`` in the description lead below ``new``."""
    for element in domain.root.iter():
        for key, value in element.attrib.items():
            moved = _moved(str(value), old, new)
            if moved is not None:
                element.set(key, moved)
        if element.tag in ("kernel", "initrd", "nvram", "loader") and element.text:
            moved = _moved(element.text, old, new)
            if moved is not None:
                element.text = moved


def _moved(text: str, old: Path, new: Path) -> str | None:
    prefix = f"{old}/"
    return f"{new}/{text.removeprefix(prefix)}" if text.startswith(prefix) else None


def renew(domain: Domain) -> None:
    """Give a copy its own hardware addresses, and drop what belongs to the original."""
    for adapter in devices.adapters(domain):
        adapter.mac = macs.new()
        drop(adapter.element, "target")
    drop(domain.root, "genid")


def dependents(paths: Paths, record: MachineRecord) -> list[str]:
    """Return the machines whose disks are based on images in the bundle of ``record``."""
    users = []
    for other in registry.records(paths):
        if other.uuid != record.uuid and _depends(other, record.home):
            users.append(other.name)
    return users


def _depends(other: MachineRecord, home: Path) -> bool:
    for image in other.home.glob("*.qcow2"):
        backing = images.backing_file(image)
        if backing is not None and backing.is_relative_to(home):
            return True
    return False


def move(machine: Machine, destination: Path) -> None:
    """Move a stopped machine's bundle to another directory; raises VzError."""
    paths, old = machine.paths, machine.record
    machine.stopped("move")
    users = dependents(paths, old)
    if users:
        raise DevicesFailed(f"linked clones share disks of {old.name}: {', '.join(users)}")
    with locks.registry(paths):
        creation.sweep(paths)
        home = creation.home_of(paths, old.home.name.removesuffix(".pvm"), destination)
        machine.progress.say(f"Moving the VM to {home}...")
        machine.save()
        entry = journal.record(paths, old.uuid, "move", old=str(old.home), home=str(home))
        try:
            _transfer(paths, old, home)
        except OSError as error:
            entry.clear()
            raise DirectoryFailed(f"cannot move to {home}: {error.strerror}") from error
        except BaseException:
            entry.clear()
            raise
        _settle(machine, old.home, home)
        entry.clear()
    machine.progress.say("The VM has been successfully moved.")


def _transfer(paths: Paths, old: MachineRecord, home: Path) -> None:
    """Have the bundle at its new place: renamed, or a whole copy beside the original."""
    home.parent.mkdir(parents=True, exist_ok=True)
    if old.home.stat().st_dev == home.parent.stat().st_dev:
        old.home.rename(home)
        files.fsync_directory(home.parent)
        return
    with creation.new_bundle(paths, old.uuid, home) as bundle:
        shutil.copytree(old.home, bundle, dirs_exist_ok=True, symlinks=True)


def finish_move(machine: Machine, old: Path, home: Path) -> None:
    """Finish a move that was killed, or undo it where the machine is still at its old place."""
    if home.is_dir() and (machine.record.home == home or not old.is_dir()):
        with locks.registry(machine.paths):
            _settle(machine, old, home)
    elif home.is_dir():
        files.remove_tree(home)
    if home.parent.is_dir():
        files.sweep_temporaries(home.parent)


def _settle(machine: Machine, old: Path, home: Path) -> None:
    """Let everything that names the old place name the new one; may be repeated."""
    domain = Domain.load(home / "config.xml")
    rehome(domain, old, home)
    creation.write_config(home, domain)
    record = MachineRecord(machine.record.uuid, machine.record.name, home)
    for path in (home / "snapshots").glob("*.xml"):
        taken = Domain(parse(path.read_bytes(), str(path)))
        rehome(taken, old, home)
        files.replace(path, taken.xml.encode(), mode=0o600)
    # libvirt would go on with the snapshots as it remembers them, at the old place.
    known = machine.hypervisor.find(record.uuid)
    if known is not None:
        upkeep.undefine(known)
    registry.save(machine.paths, record)
    machine.record = record
    snapshots.redefine(record, machine.commit(domain))
    files.remove_tree(old)
