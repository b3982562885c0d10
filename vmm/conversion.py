"""Machines of other products: a VMX (VMware) or OVF (DMTF DSP0243) description with its disks.

Disks are converted into a new bundle; the original is only read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from runtime import locks
from runtime.errors import BadConfig, ImageConvertFailed, InvalidOption
from runtime.paths import Paths
from runtime.progress import Progress
from runtime.registry import printable
from vmm import (
    blueprint,
    creation,
    devices,
    images,
    memory,
    networks,
    positions,
    reach,
    registry,
    systems,
)
from vmm.connection import Hypervisor
from vmm.domain import Element, parse
from vmm.machine import Machine
from vmm.registry import MachineRecord

_MIB = 1 << 20
_CARDS = {"e1000": "e1000", "e1000e": "e1000e", "vmxnet3": "virtio", "vmxnet": "virtio",
          "pcnet32": "rtl8139", "virtio": "virtio"}  # fmt: skip
#: CIM_ResourceAllocationSettingData.ResourceType
_CPU, _MEMORY, _ADAPTER, _DISK = "3", "4", "10", "17"
_CONTROLLERS = {"5": "ide", "6": "scsi", "20": "sata"}


@dataclass(slots=True)
class Foreign:
    """What a description says; memory in bytes, disks as interface and image."""

    name: str
    system: str = "other"
    cpus: int = 1
    memory_bytes: int = 1 << 30
    disks: list[tuple[str, Path]] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)


def convert(
    paths: Paths,
    source: Path,
    hypervisor: Hypervisor,
    progress: Progress,
    *,
    destination: Path | None = None,
    name: str | None = None,
) -> Machine:
    """Make a machine from a description, or from a disk image alone; raises VzError."""
    found = read(source)
    system, _ = systems.choose(found.system, None)
    with locks.registry(paths):
        creation.sweep(paths)
        chosen, uuid = registry.check_new(paths, name or found.name)
        home = creation.home_of(paths, chosen, destination)
        progress.say(f"Converting {source} to the VM {chosen}...")
        domain = blueprint.blank(chosen, uuid, system, hypervisor.acceleration)
        memory.set_size(domain, max(found.memory_bytes, memory.SMALLEST_BYTES))
        domain.put("vcpu", str(found.cpus), placement="static")
        with creation.new_bundle(paths, uuid, home) as bundle:
            for number, (bus, image) in enumerate(found.disks):
                target = f"hdd{number}.qcow2"
                _take(image, bundle / target, progress)
                disk = devices.Disk.new(
                    home / target, plain=False, bus=bus,
                    position=positions.free_position(domain, bus),
                )  # fmt: skip
                disk.name = f"hdd{number}"
                domain.devices.append(disk.element)
            network = networks.default(paths)
            for number, card in enumerate(found.cards[: devices.MOST["net"]]):
                adapter = networks.adapter(paths, network, card=card)
                adapter.name = f"net{number}"
                domain.devices.append(adapter.element)
                networks.remember(domain, adapter.name, network)
            creation.write_config(bundle, domain)
        machine = creation.enlist(paths, MachineRecord(uuid, chosen, home), hypervisor, progress)
    progress.say("The VM has been successfully converted.")
    return machine


def _take(image: Path, target: Path, progress: Progress) -> None:
    """Convert a foreign disk image; raises ImageConvertFailed."""
    format = images.FOREIGN.get(image.suffix.lower())
    if not image.is_file():
        raise ImageConvertFailed(f"the disk image is missing: {image}")
    backing = images.info(image, format=format).backing
    if backing is not None:
        raise ImageConvertFailed(
            f"{image} is based on another image: {backing}", hint="merge it with its product first"
        )
    reach.check(image, format, image.parent, ImageConvertFailed)
    images.convert(
        image, target, to="qcow2", source_format=format,
        progress=lambda percent: progress.amount(f"Converting {image.name}", percent, 100),
    )  # fmt: skip
    target.chmod(0o600)


def read(source: Path) -> Foreign:
    """Read a description; raises BadConfig, InvalidOption for an unknown kind."""
    suffix = source.suffix.lower()
    try:
        if suffix == ".vmx":
            return read_vmx(source)
        if suffix == ".ovf":
            return read_ovf(source)
    except OSError as error:
        raise BadConfig(f"cannot read {source}: {error.strerror}") from error
    if suffix in images.FOREIGN and source.is_file():
        return Foreign(source.stem, disks=[("sata", source)], cards=["e1000"])
    raise InvalidOption(
        f"{printable(str(source))} is neither a VMX nor an OVF description nor a disk image",
        hint=f"disk images: {' '.join(images.FOREIGN)}",
    )


def read_vmx(source: Path) -> Foreign:
    """Read a VMX file: lines KEY = "VALUE"; raises BadConfig, OSError."""
    values: dict[str, str] = {}
    for line in source.read_text("utf-8", "replace").splitlines():
        match = re.fullmatch(r'\s*([\w.:]+)\s*=\s*"(.*)"\s*', line)
        if match is not None:
            values[match[1].lower()] = match[2]
    if not values:
        raise BadConfig(f"{source} is no VMX file")
    found = Foreign(
        values.get("displayname") or source.stem,
        _system(values.get("guestos", "")),
        _whole(values.get("numvcpus", "1"), source),
        _whole(values.get("memsize", "1024"), source) * _MIB,
    )
    for key, value in sorted(values.items()):
        disk = re.fullmatch(r"(ide|scsi|sata|nvme)(\d+):(\d+)\.filename", key)
        if disk is not None:
            place = key.removesuffix(".filename")
            kind = values.get(f"{place}.devicetype", "disk")
            if values.get(f"{place}.present", "true").lower() == "true" and "cdrom" not in kind:
                bus = "virtio" if disk[1] == "nvme" else disk[1]
                found.disks.append((bus, _beside(source, value)))
        card = re.fullmatch(r"ethernet(\d+)\.present", key)
        if card is not None and value.lower() == "true":
            model = values.get(f"ethernet{card[1]}.virtualdev", "e1000")
            found.cards.append(_CARDS.get(model.lower(), "e1000"))
    return found


def read_ovf(source: Path) -> Foreign:
    """Read an OVF envelope; raises BadConfig, OSError."""
    root = parse(source.read_bytes(), str(source))
    if _tag(root) != "Envelope":
        raise BadConfig(f"{source} is no OVF envelope")
    files = {_at(f, "id"): _at(f, "href") for f in root.iter("{*}File")}
    disks = {_at(d, "diskId"): files.get(_at(d, "fileRef"), "") for d in root.iter("{*}Disk")}
    system = next(root.iter("{*}VirtualSystem"), None)
    if system is None:
        raise BadConfig(f"{source} describes no machine")
    name = system.findtext("{*}Name") or _at(system, "id") or source.stem
    found = Foreign(
        name, _system(system.findtext("{*}OperatingSystemSection/{*}Description") or "")
    )
    items = list(system.iter("{*}Item"))
    buses = {
        item.findtext("{*}InstanceID"): _CONTROLLERS.get(item.findtext("{*}ResourceType") or "")
        for item in items
    }
    for item in items:
        kind = item.findtext("{*}ResourceType")
        quantity = item.findtext("{*}VirtualQuantity") or "1"
        if kind == _CPU:
            found.cpus = _whole(quantity, source)
        elif kind == _MEMORY:
            found.memory_bytes = _whole(quantity, source) * _unit(item)
        elif kind == _ADAPTER:
            model = (item.findtext("{*}ResourceSubType") or "e1000").lower()
            found.cards.append(_CARDS.get(model, "e1000"))
        elif kind == _DISK:
            reference = (item.findtext("{*}HostResource") or "").rpartition("/")[2]
            if disks.get(reference):
                bus = buses.get(item.findtext("{*}Parent")) or "sata"
                found.disks.append((bus, _beside(source, disks[reference])))
    return found


def _unit(item: Element) -> int:
    unit = (item.findtext("{*}AllocationUnits") or "MegaBytes").replace(" ", "").lower()
    match = re.fullmatch(r"byte\*2\^(\d+)", unit)
    if match is not None:
        return 1 << int(match[1])
    return {"gigabytes": 1 << 30, "kilobytes": 1 << 10}.get(unit, _MIB)


def _beside(source: Path, name: str) -> Path:
    """Return a disk of a description: only files below its own directory."""
    path = (source.parent / name).resolve()
    if not path.is_relative_to(source.parent.resolve()):
        raise BadConfig(f"{source} reaches out of its directory: {printable(name)}")
    return path


def _whole(text: str, source: Path) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or int(text) == 0:
        raise BadConfig(f"{source}: not a number: {printable(text)}")
    return int(text)


def _system(text: str) -> str:
    word = text.lower()
    for name in ("debian", "ubuntu", "centos", "rhel", "fedora", "sles", "suse", "freebsd"):
        if name in word:
            return name
    if "win" in word and "darwin" not in word:
        return "windows"
    return "linux" if "linux" in word else "other"


def _tag(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _at(element: Element, name: str) -> str:
    """Return an attribute in whatever name space it is."""
    for key, value in element.attrib.items():
        if str(key).rpartition("}")[2] == name:
            return str(value)
    return ""
