"""Bundles which come from elsewhere: checked, adapted to their place, made known."""

from __future__ import annotations

from pathlib import Path

from runtime import locks
from runtime.errors import RegisterFailed
from runtime.paths import Paths
from runtime.progress import Progress
from runtime.registry import printable
from vmm import cloning, creation, devices, reach, registry, snapshots, undo
from vmm.connection import Hypervisor
from vmm.domain import Domain, drop
from vmm.machine import Machine
from vmm.registry import MachineRecord

#: libvirt's pass-through to QEMU's command line (libvirt.org/drvqemu.html).
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_HARMLESS = frozenset({"/dev/urandom", "/dev/random"})


def register(
    paths: Paths,
    home: Path,
    hypervisor: Hypervisor,
    progress: Progress,
    *,
    uuid: str | None = None,
    preserve: bool = False,
    force: bool = False,
) -> Machine:
    """Make the bundle at ``home`` known; raises RegisterFailed, BadConfig, NameFailed.

    Its paths are led to where it lies now. A copy gets a new UUID unless ``preserve`` is set or its
    own is free.
    """
    home = home.absolute()
    if not (home / "config.xml").is_file():
        raise RegisterFailed(f"{home} is no machine: it has no config.xml")
    domain = Domain.load(home / "config.xml")
    with locks.registry(paths):
        creation.sweep(paths)
        for record in registry.records(paths):
            if record.home == home:
                raise RegisterFailed(f"{home} is registered as {record.name}")
        wanted = uuid or (domain.uuid if preserve else _free(paths, domain.uuid))
        name, chosen = registry.check_new(paths, domain.name, wanted)
        old = _old_home(domain)
        if old != home:
            cloning.rehome(domain, old, home)
        if not force:
            check_reach(domain, home)
            for disk in devices.disks(domain):
                if disk.image and Path(disk.image).is_file():
                    reach.check(
                        Path(disk.image), disk.format, home, RegisterFailed, "--force accepts that"
                    )
        changed = chosen != domain.uuid
        if changed and snapshots.exist(MachineRecord(chosen, name, home)):
            raise RegisterFailed(
                f"{home} has snapshots, which belong to its UUID {domain.uuid}",
                hint="--preserve-uuid; it is in use if a machine is registered with it",
            )
        domain.uuid = chosen
        creation.write_config(home, domain)
        record = MachineRecord(chosen, name, home)
        registry.save(paths, record)
        machine = Machine(paths, record, hypervisor, progress)
        try:
            raw = machine.commit(domain)
            snapshots.redefine(record, raw)
        except BaseException:
            registry.remove(paths, chosen)
            raise
    progress.say("The VM has been successfully registered.")
    return machine


def check_reach(domain: Domain, home: Path) -> None:
    """Refuse a description that reaches out of its bundle; raises RegisterFailed.

    A bundle may come from anywhere: a disk, a log file or a shared directory of its description
    could be any file of this server, and QEMU's own options could be anything.
    """
    for element in list(domain.root.iter("*")):
        if element.tag.startswith(f"{{{_QEMU}}}"):
            raise RegisterFailed(
                "the description passes options to QEMU itself", hint="--force accepts that"
            )
        if element.tag == "hostdev":
            raise RegisterFailed(
                "the description takes a device of the server", hint="--force accepts that"
            )
        if element.tag == "seclabel":
            label = element.findtext("label") or ""
            if element.get("model") != "dac" or label.startswith(("0:", "+0:", "root:")):
                raise RegisterFailed(
                    "the description chooses the rights QEMU has", hint="--force accepts that"
                )
        if element.tag in ("emulator", "script"):
            drop(element.getparent(), element.tag)  # type: ignore[arg-type] # never the root
            continue
        for value in (element.text or "", *map(str, element.attrib.values())):
            word = value.strip()
            if not word.startswith("/") or word in _HARMLESS:
                continue
            if not Path(word).resolve().is_relative_to(home.resolve()):
                raise RegisterFailed(
                    f"the description reaches out of the bundle: {printable(word)}",
                    hint="--force accepts that",
                )


def image_user(paths: Paths, image: Path, *, but: str) -> str | None:
    """Return the machine (other than the one with UUID ``but``) which uses an image, or None."""
    wanted = image.resolve()
    for record in registry.records(paths):
        if record.uuid == but or not record.config.is_file():
            continue
        domain = Domain.load(record.config)
        images = [Path(disk.image) for disk in devices.disks(domain) if disk.image]
        images += undo.originals(domain, record.home).values()
        if any(image.resolve() == wanted for image in images):
            return record.name
    return None


def _old_home(domain: Domain) -> Path:
    """Return the directory most of its images were in when it was described."""
    places = [
        Path(device.image).parent
        for device in devices.all_of(domain)
        if isinstance(device, devices.Disk) and device.image and device.kind == "hdd"
    ]
    kernel = domain.root.findtext("os/kernel")
    if kernel:
        places.append(Path(kernel).parent)
    homes = [place for place in places if place.suffix == ".pvm"]
    return (homes or places or [Path("/nonexistent.pvm")])[0]


def _free(paths: Paths, uuid: str) -> str | None:
    """Return ``uuid`` if no machine has it."""
    if not uuid or registry.is_machine(paths, uuid):
        return None
    return uuid
