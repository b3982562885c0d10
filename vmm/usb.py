"""USB devices of the server in machines: assigned by what and where they are.

A device is called ``PORT|VENDOR|PRODUCT|SPEED|KM|SERIAL`` as in the product ('2-1.4.3|0a5c|3503|
full|KM|Empty'). Assigned devices are noted in the machine's settings; those present are plugged in
at once and after each start, others when they appear (``usbwatch``). The description never names
them: libvirt would refuse to start a machine on a server without USB.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lxml.builder import E

from runtime.errors import DevicesFailed, InvalidValue
from runtime.paths import Paths
from runtime.registry import printable
from vmm import devices, registry, status
from vmm.change import Change
from vmm.domain import Domain, Element, text
from vmm.machine import Machine
from vmm.registry import MachineRecord

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
    #: Where the kernel has it now, as libvirt counts; it changes each time it is plugged in.
    bus: int = 0
    number: int = 0

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
                int(_read(place, "busnum") or 0),
                int(_read(place, "devnum") or 0),
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
            for ident in assigned(Domain.load(record.config)):
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
    change.domain.set_setting("usb", "\n".join([*assigned(change.domain), ident]))
    for found in present():
        if found.ident == device.ident:
            change.attach(_element(found))
    change.apply()
    if change.running:
        watch(machine.paths)


def plug_in(machine: Machine) -> None:
    """Give a running machine those of its devices that are there and it has not, take back the gone.

    A device that cannot be given is told of; the others are given.
    """
    import libvirt

    wanted = assigned(machine.read_domain())
    if not wanted:
        return
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    here = [device for device in present() if device.ident in wanted]
    raw, have = machine.raw(), []
    for element in machine.live().devices.findall("hostdev"):
        if element.get("type") != "usb":
            continue
        if any(_is(element, device) for device in here):
            have.append(element)
        else:
            # Pulled out, or pulled out and back in: QEMU holds on to what is no longer there.
            with suppress(libvirt.libvirtError):
                raw.detachDeviceFlags(text(element), live)
    for device in here:
        if not any(_is(element, device) for element in have):
            try:
                raw.attachDeviceFlags(text(_element(device)), live)
            except libvirt.libvirtError as error:
                machine.progress.warn(f"USB device {device.ident}: {error.get_error_message()}")


def waiting(paths: Paths) -> list[MachineRecord]:
    """Return the running machines to which devices are assigned."""
    return [
        record
        for record in registry.records(paths)
        if record.config.is_file()
        and assigned(Domain.load(record.config))
        and status.state(paths, record) is status.State.RUNNING
    ]


def watch(paths: Paths) -> None:
    """Have the process that gives devices to machines as they appear; it ends by itself."""
    top = Path(__file__).resolve().parents[1]
    environment = {"PATH": os.defpath, "LC_ALL": "C", "PYTHONPATH": str(top)}
    process = subprocess.Popen(
        [sys.executable, "-m", "vmm.usbwatch", os.fspath(paths.root)],
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # It is meant to outlive us: no warning about a child that was not waited for.
    process.returncode = 0


def release(machine: Machine, ident: str) -> None:
    """Take a device back; raises DevicesFailed."""
    import libvirt

    device = parse(ident)
    change = Change(machine)
    left = [word for word in assigned(change.domain) if word != ident]
    change.domain.set_setting("usb", "\n".join(left) or None)
    if change.running:
        plugged = machine.live().devices.findall("hostdev")
        found = next((element for element in plugged if _is(element, device)), None)
        if found is not None:
            xml = text(found)
            live = libvirt.VIR_DOMAIN_AFFECT_LIVE
            change.hot("unplug", lambda: change.raw.detachDeviceFlags(xml, live))
    change.apply()


def assigned(domain: Domain) -> list[str]:
    """Return the identifiers of the devices assigned to a machine."""
    return domain.setting("usb").split("\n") if domain.setting("usb") else []


def _element(device: UsbDevice) -> Element:
    # Two devices of one kind differ by their place alone.
    place = [E.address(bus=str(device.bus), device=str(device.number))] if device.number else []
    element: Element = E.hostdev(
        E.source(
            E.vendor(id=f"0x{device.vendor}"),
            E.product(id=f"0x{device.product}"),
            *place,
            # A suspended machine goes on without what was pulled out meanwhile.
            startupPolicy="optional",
        ),
        mode="subsystem",
        type="usb",
    )
    return element


def _is(element: Element, device: UsbDevice) -> bool:
    vendor, product = element.find("source/vendor"), element.find("source/product")
    place = element.find("source/address")
    return (
        vendor is not None
        and product is not None
        and vendor.get("id") == f"0x{device.vendor}"
        and product.get("id") == f"0x{device.product}"
        and (
            place is None
            or not device.number
            or (place.get("bus"), place.get("device")) == (str(device.bus), str(device.number))
        )
    )
