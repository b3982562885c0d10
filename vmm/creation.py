"""Makes machines: a bundle built beside its place, renamed in, then made known."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime import files, journal, locks
from runtime.errors import DirectoryFailed, NoDiskSpace, PrivateExists
from runtime.paths import Paths
from runtime.progress import Progress
from vmm import blueprint, devices, goldenguest, images, networks, positions, registry
from vmm.connection import Hypervisor
from vmm.domain import Domain
from vmm.machine import Machine
from vmm.registry import MachineRecord
from vmm.systems import System


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made."""

    name: str
    system: System
    uuid: str | None = None
    #: The directory in which the bundle is made.
    destination: Path | None = None
    disk: bool = True


def home_of(paths: Paths, name: str, destination: Path | None) -> Path:
    """Return the place of a new bundle; raises PrivateExists."""
    home = (destination or paths.machines).absolute() / f"{name}.pvm"
    if home.exists():
        raise PrivateExists(f"{home} exists", hint="pctl register it, or choose another name")
    return home


def create(paths: Paths, order: Order, hypervisor: Hypervisor, progress: Progress) -> Machine:
    """Make a machine; raises VzError, and nothing is left behind then."""
    golden = goldenguest.ensure(paths, progress) if order.system.name == goldenguest.NAME else None
    with locks.registry(paths):
        sweep(paths)
        name, uuid = registry.check_new(paths, order.name, order.uuid)
        home = home_of(paths, name, order.destination)
        progress.say("Creating the virtual machine...")
        domain = blueprint.blank(name, uuid, order.system, hypervisor.acceleration)
        with new_bundle(paths, uuid, home) as bundle:
            if order.disk:
                image = "hdd0.qcow2"
                images.create(bundle / image, order.system.disk_bytes, plain=False)
                disk = devices.Disk.new(
                    home / image, plain=False, bus=order.system.disk_bus, position=0
                )
                disk.name = "hdd0"
                domain.devices.append(disk.element)
            if golden is None:
                _add_cdrom(domain, order.system)
            else:
                shutil.copyfile(golden.kernel, bundle / "vmlinuz")
                shutil.copyfile(golden.initrd, bundle / "initrd")
                blueprint.boot_directly(
                    domain, home / "vmlinuz", home / "initrd", golden.command_line
                )
            _add_adapter(paths, domain, order.system)
            write_config(bundle, domain)
        machine = enlist(paths, MachineRecord(uuid, name, home), hypervisor, progress)
    progress.say("The VM has been successfully created.")
    return machine


def _add_cdrom(domain: Domain, system: System) -> None:
    bus = "sata" if system.disk_bus == "sata" else "ide"
    drive = devices.Cdrom.new("", bus=bus, position=positions.free_position(domain, bus))
    drive.name = "cdrom0"
    domain.devices.append(drive.element)


def _add_adapter(paths: Paths, domain: Domain, system: System) -> None:
    network = networks.default(paths)
    adapter = networks.adapter(paths, network, card=system.card)
    adapter.name = "net0"
    domain.devices.append(adapter.element)
    networks.remember(domain, "net0", network)


@contextmanager
def new_bundle(paths: Paths, uuid: str, home: Path) -> Iterator[Path]:
    """Build the bundle ``home`` beside its place and rename it in; raises DirectoryFailed.

    The journal knows of it until ``enlist`` has made it known: ``sweep`` removes what a killed
    command left. Call it with the registry's lock held.
    """
    parent = home.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        files.sweep_temporaries(parent)
    except OSError as error:
        raise DirectoryFailed(f"cannot create {parent}: {error.strerror}") from error
    entry = journal.record(paths, uuid, "create", home=str(home))
    try:
        with files.new_directory(home, mode=0o711) as bundle:
            yield bundle
    except OSError as error:
        entry.clear()
        if error.errno == errno.ENOSPC:
            raise NoDiskSpace(f"no space left for {home}") from error
        raise DirectoryFailed(f"cannot create {home}: {error.strerror}") from error
    except BaseException:
        entry.clear()
        raise


def enlist(
    paths: Paths, record: MachineRecord, hypervisor: Hypervisor, progress: Progress
) -> Machine:
    """Make a new bundle known, to us and to libvirt; on failure the bundle is removed."""
    machine = Machine(paths, record, hypervisor, progress)
    try:
        registry.save(paths, record)
        machine.commit(machine.read_domain())
    except BaseException:
        registry.remove(paths, record.uuid)
        files.remove_tree(record.home)
        raise
    finally:
        for entry in journal.pending(paths, record.uuid):
            if entry.act == "create":
                entry.clear()
    return machine


def sweep(paths: Paths) -> None:
    """Remove bundles whose making was cut short; call it with the registry's lock held."""
    known = {record.uuid for record in registry.records(paths)}
    try:
        names = os.listdir(paths.journal)
    except FileNotFoundError:
        return
    for name in names:
        uuid, _, act = name.partition(".")
        if act != "create.json" or registry.parse_uuid(uuid) is None:
            continue
        for entry in journal.pending(paths, uuid):
            if entry.act == "create":
                home = Path(entry.details["home"])
                if uuid not in known:
                    files.remove_tree(home)
                    files.sweep_temporaries(home.parent)
                entry.clear()


def write_config(bundle: Path, domain: Domain) -> None:
    """Write the description into a bundle."""
    files.replace(bundle / "config.xml", domain.xml.encode(), mode=0o600)
