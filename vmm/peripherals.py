"""Ports, sound card, USB controller, devices of the server: what is that are neither disks nor adapters."""

from __future__ import annotations

import re

from lxml.builder import E

from vmm.device import Device


class _Port(Device):
    """A serial or parallel port: a pseudo-terminal, a file, a device or a socket."""

    @classmethod
    def new(cls, way: str, path: str = "", *, server: bool = True) -> _Port:
        """Return a port; ``way`` is pty, file, dev or unix."""
        element = E(cls.kind, type=way)
        if way == "unix":
            element.append(E.source(mode="bind" if server else "connect", path=path))
        elif path:
            element.append(E.source(path=path))
        return cls(element)

    @property
    def path(self) -> str:
        """Where its data go, or an empty string."""
        source = self.element.find("source")
        return source.get("path", "") if source is not None else ""

    def details(self) -> str:
        way = {"file": "output", "dev": "real", "unix": "socket"}
        return " ".join(
            word
            for word in (
                way.get(self.element.get("type", ""), "console"),
                f"'{self.path}'" if self.path else "",
            )
            if word
        )

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "backend": self.element.get("type", ""), "path": self.path}


class Serial(_Port):
    """A serial port."""

    kind = "serial"


class Parallel(_Port):
    """A parallel port."""

    kind = "parallel"


class Sound(Device):
    """A sound card."""

    kind = "sound"

    @classmethod
    def new(cls, model: str = "ac97") -> Sound:
        """Return a sound card."""
        return cls(E.sound(model=model))

    def details(self) -> str:
        return f"card={self.element.get('model', '')}"


class Usb(Device):
    """The USB controller: devices of the server can be handed to the machine through it."""

    kind = "usb"

    @classmethod
    def new(cls, model: str = "qemu-xhci") -> Usb:
        """Return a controller."""
        return cls(E.controller(type="usb", index="0", model=model))

    @property
    def name(self) -> str:
        return "usb"

    @name.setter
    def name(self, value: str) -> None:
        """There is one, and libvirt names controllers itself."""


class Pci(Device):
    """A PCI device of the server."""

    kind = "pci"
    hot = True

    @classmethod
    def new(cls, address: str) -> Pci:
        """Return the device at ``DOMAIN:BUS:SLOT.FUNCTION``, taken from its driver at the start."""
        domain, bus, slot, function = re.split("[:.]", address)
        place = E.address(
            domain=f"0x{domain}", bus=f"0x{bus}", slot=f"0x{slot}", function=f"0x{function}"
        )
        return cls(E.hostdev(E.source(place), mode="subsystem", type="pci", managed="yes"))

    @property
    def address(self) -> str:
        """Where it is on the server."""
        place = self.element.find("source/address")
        if place is None:
            return ""
        words = {key: str(value).removeprefix("0x") for key, value in place.attrib.items()}
        return (
            f"{words.get('domain', '0'):0>4}:{words.get('bus', '0'):0>2}:"
            f"{words.get('slot', '0'):0>2}.{words.get('function', '0')}"
        )

    def details(self) -> str:
        return f"real='{self.address}'"

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "address": self.address}
