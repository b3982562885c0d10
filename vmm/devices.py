"""The devices of a machine: disks and adapters, and the table of all kinds."""

from __future__ import annotations

import os
import re
import string
from pathlib import Path

from lxml.builder import E

from runtime.errors import DevicesFailed
from vmm.device import Device
from vmm.domain import Domain, Element, child, drop
from vmm.peripherals import Parallel, Pci, Serial, Sound, Usb

#: Disk interfaces: libvirt's bus, prefix of the target's name, how many positions there are.
BUSES: dict[str, tuple[str, str, int]] = {
    "ide": ("ide", "hd", 4),
    "scsi": ("scsi", "sd", 7),
    "sata": ("sata", "sd", 6),
    "virtio": ("virtio", "vd", 24),
    "usb": ("usb", "sd", 4),
    "fdc": ("fdc", "fd", 2),
}
#: How many of each kind a machine may have.
MOST = {
    "hdd": 32,
    "cdrom": 4,
    "fdd": 2,
    "net": 16,
    "serial": 4,
    "parallel": 3,
    "sound": 1,
    "usb": 1,
    "pci": 8,
}


class Disk(Device):
    """A hard disk."""

    kind = "hdd"
    hot = True
    device = "disk"

    @classmethod
    def new(cls, image: Path | str, *, plain: bool, bus: str, position: int) -> Disk:
        """Return a disk whose content is a file or block device of the server."""
        path = os.fspath(image)
        block = path.startswith("/dev/")
        disk = cls(
            E.disk(
                E.driver(
                    name="qemu",
                    type="raw" if plain or block else "qcow2",
                    discard="unmap",
                    # Flushes of the guest reach the disk; the server's page cache serves reads.
                    cache="writeback",
                ),
                E.source(**({"dev": path} if block else {"file": path})),
                E.target(),
                type="block" if block else "file",
                device=cls.device,
            )
        )
        disk.place(bus, position)
        return disk

    def pass_through(self) -> None:
        """Let the guest's SCSI commands reach the server's disk itself."""
        self.element.set("device", "lun")
        # Blocks are the device's own business then: QEMU neither caches nor discards.
        driver = child(self.element, "driver")
        driver.attrib.pop("discard", "")
        driver.set("cache", "none")

    def place(self, bus: str, position: int) -> None:
        """Put it at ``position`` of an interface."""
        word, prefix, _most = BUSES[bus]
        target = child(self.element, "target")
        target.set("bus", word)
        target.set("dev", prefix + _letters(position, bus))
        drop(self.element, "address")
        if bus in ("ide", "scsi", "sata", "fdc"):
            self.element.append(_drive_address(bus, position))

    @property
    def bus(self) -> str:
        """Its interface."""
        target = self.element.find("target")
        return target.get("bus", "virtio") if target is not None else "virtio"

    @property
    def target(self) -> str:
        """The name libvirt knows it by, unique in the machine."""
        target = self.element.find("target")
        return target.get("dev", "") if target is not None else ""

    @property
    def position(self) -> int:
        """Its place on the interface."""
        address = self.element.find("address")
        if address is not None and address.get("type") == "drive":
            unit = int(address.get("unit", "0"))
            return unit + 2 * int(address.get("bus", "0")) if self.bus == "ide" else unit
        letters = re.sub(r"^(hd|sd|vd|fd)", "", self.target)
        place = -1
        for letter in letters:
            place = (place + 1) * 26 + string.ascii_lowercase.index(letter)
        return place

    @property
    def image(self) -> str:
        """The path of its content; empty when there is none."""
        source = self.element.find("source")
        return "" if source is None else source.get("file") or source.get("dev") or ""

    @image.setter
    def image(self, path: str) -> None:
        drop(self.element, "source")
        if path:
            source = E.source(**({"dev": path} if path.startswith("/dev/") else {"file": path}))
            self.element.set("type", "block" if path.startswith("/dev/") else "file")
            child(self.element, "target").addprevious(source)

    @property
    def format(self) -> str:
        """QEMU's name of the image format."""
        driver = self.element.find("driver")
        return driver.get("type", "raw") if driver is not None else "raw"

    @format.setter
    def format(self, value: str) -> None:
        child(self.element, "driver").set("type", value)

    def details(self) -> str:
        place = f"{self.bus}:{self.position}" if self.bus != "fdc" else ""
        words = [place, f"image='{self.image}'"]
        if self.kind == "hdd":
            words.append(f"type='{'expanding' if self.format == 'qcow2' else 'plain'}'")
        return " ".join(word for word in words if word)

    def facts(self) -> dict[str, object]:
        return {
            **super().facts(),
            "interface": self.bus,
            "position": self.position,
            "image": self.image,
            "format": self.format,
        }


class Cdrom(Disk):
    """A CD or DVD drive, with or without a medium."""

    kind = "cdrom"
    hot = False
    device = "cdrom"

    @classmethod
    def new(cls, image: Path | str, *, plain: bool = True, bus: str, position: int) -> Cdrom:
        """Return a drive; ``image`` empty means no medium."""
        drive = cls(
            E.disk(
                E.driver(name="qemu", type="raw"), E.target(), E.readonly(),
                type="file", device=cls.device,
            )
        )  # fmt: skip
        drive.place(bus, position)
        drive.image = os.fspath(image)
        return drive

    @property
    def connected(self) -> bool:
        return bool(self.image)


class Floppy(Cdrom):
    """A floppy drive."""

    kind = "fdd"
    device = "floppy"

    @classmethod
    def new(
        cls, image: Path | str, *, plain: bool = True, bus: str = "fdc", position: int = 0
    ) -> Floppy:
        """Return a drive; ``image`` empty means no medium."""
        drive = cls(
            E.disk(
                E.driver(name="qemu", type="raw"), E.target(), type="file", device=cls.device
            )
        )  # fmt: skip
        drive.place("fdc", position)
        drive.image = os.fspath(image)
        return drive


class Adapter(Device):
    """A network adapter.

    Types: ``bridged`` and ``host-only`` join a bridge of the server, ``shared`` is QEMU's own
    address translation, ``routed`` is a tap device whose addresses the server routes.
    """

    kind = "net"
    hot = True
    types = ("bridged", "host-only", "shared", "routed")
    cards = ("virtio", "e1000", "e1000e", "rtl8139")

    @classmethod
    def new(cls, kind: str, *, bridge: str = "", mac: str, card: str = "virtio") -> Adapter:
        """Return an adapter of a type; ``bridge`` is the bridge of its network."""
        adapter = cls(E.interface(E.mac(address=mac), E.model(type=card)))
        adapter.join(kind, bridge)
        return adapter

    def join(self, kind: str, bridge: str = "") -> None:
        """Make it one of ``kind``."""
        drop(self.element, "source")
        drop(self.element, "target")
        if kind == "shared":
            self.element.set("type", "user")
        elif kind == "routed":
            self.element.set("type", "ethernet")
        else:
            self.element.set("type", "bridge")
            child(self.element, "mac").addnext(E.source(bridge=bridge))

    @property
    def mac(self) -> str:
        """Its hardware address."""
        mac = self.element.find("mac")
        return mac.get("address", "") if mac is not None else ""

    @mac.setter
    def mac(self, value: str) -> None:
        child(self.element, "mac").set("address", value)

    @property
    def card(self) -> str:
        """The hardware it shows the guest."""
        model = self.element.find("model")
        return model.get("type", "rtl8139") if model is not None else "rtl8139"

    @card.setter
    def card(self, value: str) -> None:
        child(self.element, "model").set("type", value)

    @property
    def type(self) -> str:
        """Its type in libvirt's terms turned back into ours (a bridge says "bridged")."""
        return {"user": "shared", "ethernet": "routed"}.get(self.element.get("type", ""), "bridged")

    @property
    def bridge(self) -> str:
        """The bridge it is on, or an empty string."""
        source = self.element.find("source")
        return source.get("bridge", "") if source is not None else ""

    @property
    def host_device(self) -> str:
        """The server's end of a running adapter, or an empty string."""
        target = self.element.find("target")
        return target.get("dev", "") if target is not None else ""

    @property
    def connected(self) -> bool:
        link = self.element.find("link")
        return link is None or link.get("state") != "down"

    @connected.setter
    def connected(self, value: bool) -> None:
        child(self.element, "link").set("state", "up" if value else "down")

    def details(self) -> str:
        return f"mac={self.mac.replace(':', '').upper()} card={self.card}"

    def facts(self) -> dict[str, object]:
        return {
            **super().facts(),
            "type": self.type,
            "bridge": self.bridge,
            "mac": self.mac,
            "card": self.card,
        }


KINDS: dict[str, type[Device]] = {
    cls.kind: cls for cls in (Disk, Cdrom, Floppy, Adapter, Serial, Parallel, Sound, Usb, Pci)
}


def wrap(element: Element) -> Device | None:
    """Return the device an element of <devices> is, or None for what the product does not show."""
    match element.tag:
        case "disk":
            return {"cdrom": Cdrom, "floppy": Floppy}.get(element.get("device", "disk"), Disk)(
                element
            )
        case "interface":
            return Adapter(element)
        case "serial":
            return Serial(element)
        case "parallel":
            return Parallel(element)
        case "sound":
            return Sound(element)
        case "hostdev" if element.get("type") == "pci":
            return Pci(element)
        case "controller" if element.get("type") == "usb" and element.get("model") != "none":
            return Usb(element)
    return None


def all_of(domain: Domain) -> list[Device]:
    """Return the devices of a machine by kind and number; those without a name get one."""
    found = [device for element in domain.devices if (device := wrap(element)) is not None]
    for device in found:
        if not device.name:
            device.name = free_name([d.name for d in found], device.kind)
    order = list(KINDS)
    return sorted(found, key=lambda device: (order.index(device.kind), device.number))


def disks(domain: Domain) -> list[Disk]:
    """Return the hard disks, by number."""
    return [device for device in all_of(domain) if type(device) is Disk]


def adapters(domain: Domain) -> list[Adapter]:
    """Return the network adapters, by number."""
    return [device for device in all_of(domain) if isinstance(device, Adapter)]


def named(domain: Domain, name: str) -> Device:
    """Return the device called ``name``; raises DevicesFailed."""
    names = []
    for device in all_of(domain):
        if device.name == name:
            return device
        names.append(device.name)
    raise DevicesFailed(
        f"the machine has no device {name!r}", hint=f"it has {', '.join(names) or 'none'}"
    )


def free_name(names: list[str], kind: str) -> str:
    """Return the first name of ``kind`` which is not taken; raises DevicesFailed when all are."""
    if kind == "usb":
        return "usb"
    for number in range(MOST[kind]):
        if f"{kind}{number}" not in names:
            return f"{kind}{number}"
    raise DevicesFailed(f"a machine has at most {MOST[kind]} devices of this kind: {kind}")


def _letters(position: int, bus: str) -> str:
    # SCSI, SATA and USB share the prefix "sd": each begins at a letter of its own.
    offset = {"sata": 8, "usb": 16}.get(bus, 0)
    return string.ascii_lowercase[position + offset]


def _drive_address(bus: str, position: int) -> Element:
    unit, controller_bus = (position % 2, position // 2) if bus == "ide" else (position, 0)
    address: Element = E.address(
        type="drive", controller="0", bus=str(controller_bus), target="0", unit=str(unit)
    )
    return address
