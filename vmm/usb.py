"""USB devices of the server in machines: assigned by what and where they are.

A device is called ``PORT|VENDOR|PRODUCT|SPEED|KM|SERIAL`` as in the product ('2-1.4.3|0a5c|3503|
full|KM|Empty'). Assigned devices are noted in the machine's settings; those present are plugged in at
once and after each start. The description never names them: libvirt would refuse to start a machine on
a server without USB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lxml.builder import E

from runtime.errors import DevicesFailed, InvalidValue
from runtime.paths import Paths
from runtime.registry import printable
from vmm import devices, registry
from vmm.change import Change
from vmm.domain import Domain, Element, text
from vmm.machine import Machine

_SYSFS = Path("/sys/bus/usb/devices")
_SPEED = {"1.5": "low", "12": "full", "480": "high", "5000": "super", "10000": "super+"}
_IDENT = re.compile(r"([0-9]+-[0-9.]+)\|([0-9a-f]{4})\|([0-9a-f]{4})\|([a-z+]+)\|([^|]*)\|([^|]*)")


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """One device: place in the tree of ports, vendor and product id, speed, serial number."""

    port: str
    vendor: str
    product: str
    speed: str
    serial: str
    name: str = ""

    @property
    def ident(self) -> str:
        """What the product calls it."""
        return "|".join(
            (self.port, self.vendor, self.product, self.speed, "KM", self.serial or "Empty")
        )

    def facts(self) -> dict[str, str]:
        """Return what ``--json`` prints."""
        return {"id": self.ident, "name": self.name, "port": self.port, "vendor": self.vendor,
                "product": self.product, "speed": self.speed}  # fmt: skip


def parse(ident: str) -> UsbDevice:
    """Return the device an identifier means; raises InvalidValue."""
    match = _IDENT.fullmatch(ident)
    if match is None:
        raise InvalidValue(
            f"not a USB device: {printable(ident)}", hint="psrvctl usb list shows them"
        )
    serial = "" if match[6] == "Empty" else match[6]
    return UsbDevice(match[1], match[2], match[3], match[4], serial)


def present(sysfs: Path = _SYSFS) -> list[UsbDevice]:
    """Return the devices plugged into the server, hubs left out."""
    found = []
    for place in sorted(sysfs.glob("*-*")) if sysfs.is_dir() else ():
        # 1-1:1.0 are interfaces of a device; class 09 are hubs.
        if ":" in place.name or _read(place, "bDeviceClass") == "09":
            continue
        found.append(
            UsbDevice(
                place.name,
                _read(place, "idVendor"),
                _read(place, "idProduct"),
                _SPEED.get(_read(place, "speed"), "full"),
                _read(place, "serial").replace("|", "_"),
                f"{_read(place, 'manufacturer')} {_read(place, 'product')}".strip() or "USB device",
            )
        )
    return found


def _read(place: Path, name: str) -> str:
    try:
        return (place / name).read_text(errors="replace").strip()
    except OSError:
        return ""


def assignments(paths: Paths) -> dict[str, str]:
    """Return the UUID of the machine each assigned device belongs to."""
    found = {}
    for record in registry.records(paths):
        if record.config.is_file():
            for ident in _assigned(Domain.load(record.config)):
                found[ident] = record.uuid
    return found


def owner(paths: Paths, ident: str) -> str:
    """Return the UUID of the machine a device is assigned to; raises DevicesFailed."""
    parse(ident)
    found = assignments(paths).get(ident)
    if found is None:
        raise DevicesFailed(f"the device is assigned to no machine: {ident}")
    return found


def assign(machine: Machine, ident: str) -> None:
    """Give a device to a machine; raises DevicesFailed, InvalidValue."""
    device = parse(ident)
    holder = assignments(machine.paths).get(ident)
    if holder is not None:
        raise DevicesFailed(f"the device is assigned to {{{holder}}}", hint="psrvctl usb del")
    change = Change(machine)
    if not any(found.kind == "usb" for found in devices.all_of(change.domain)):
        raise DevicesFailed(
            f"machine {machine.label} has no USB controller",
            hint=f"pctl set {machine.label} --device-add usb",
        )
    change.domain.set_setting("usb", "\n".join([*_assigned(change.domain), ident]))
    if device.ident in [found.ident for found in present()]:
        change.attach(_element(device))
    change.apply()


def plug_in(machine: Machine) -> None:
    """Give a machine that was just started its devices; one that cannot be given is told."""
    import libvirt

    wanted = _assigned(machine.read_domain())
    for device in present() if wanted else ():
        if device.ident in wanted:
            try:
                machine.raw().attachDeviceFlags(
                    text(_element(device)), libvirt.VIR_DOMAIN_AFFECT_LIVE
                )
            except libvirt.libvirtError as error:
                machine.progress.warn(f"USB device {device.ident}: {error.get_error_message()}")


def release(machine: Machine, ident: str) -> None:
    """Take a device back; raises DevicesFailed."""
    import libvirt

    device = parse(ident)
    change = Change(machine)
    left = [word for word in _assigned(change.domain) if word != ident]
    change.domain.set_setting("usb", "\n".join(left) or None)
    if change.running:
        plugged = machine.live().devices.findall("hostdev")
        found = next((element for element in plugged if _is(element, device)), None)
        if found is not None:
            xml = text(found)
            live = libvirt.VIR_DOMAIN_AFFECT_LIVE
            change.hot("unplug", lambda: change.raw.detachDeviceFlags(xml, live))
    change.apply()


def _assigned(domain: Domain) -> list[str]:
    return domain.setting("usb").split("\n") if domain.setting("usb") else []


def _element(device: UsbDevice) -> Element:
    element: Element = E.hostdev(
        E.source(
            E.vendor(id=f"0x{device.vendor}"),
            E.product(id=f"0x{device.product}"),
        ),
        mode="subsystem",
        type="usb",
    )
    return element


def _is(element: Element, device: UsbDevice) -> bool:
    vendor, product = element.find("source/vendor"), element.find("source/product")
    return (
        vendor is not None
        and product is not None
        and vendor.get("id") == f"0x{device.vendor}"
        and product.get("id") == f"0x{device.product}"
    )
