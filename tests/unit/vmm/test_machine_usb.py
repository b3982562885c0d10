"""USB devices of a made-up server: listed, assigned, given as they come and go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import DevicesFailed, InvalidValue
from vmm import usb, usbwatch
from vmm.domain import Domain, parse
from vmm.machine import Machine

libvirt = pytest.importorskip("libvirt", reason="libvirt-python is missing: tools/bootstrap test")
UUID = "12345678-1234-4234-8234-123456789abc"
STICK = "1-1.4|0951|1666|super|KM|AB_1"


def plug(sysfs: Path, port: str = "1-1.4", number: int = 5, **more: str) -> Path:
    """Put a device into the made-up server."""
    place = sysfs / port
    place.mkdir(parents=True, exist_ok=True)
    facts = {"idVendor": "0951", "idProduct": "1666", "speed": "5000", "serial": "AB|1",
             "bDeviceClass": "00", "busnum": "1", "devnum": str(number), **more}  # fmt: skip
    for name, value in facts.items():
        (place / name).write_text(value + "\n")
    return place


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's devices; none yet."""
    place = tmp_path / "usb"
    place.mkdir()
    monkeypatch.setattr(usb.present, "__defaults__", (place,))
    return place


def test_devices_are_listed_without_hubs_and_interfaces(sysfs: Path) -> None:
    plug(sysfs)
    plug(sysfs, "1-2", bDeviceClass="09")
    plug(sysfs, "1-1.4:1.0")
    assert [device.ident for device in usb.present()] == [STICK]
    assert usb.parse(STICK).port == "1-1.4"
    for bad in ("", "1-1", STICK + "|x", STICK.replace("0951", "zzzz")):
        with pytest.raises(InvalidValue):
            usb.parse(bad)


def test_a_device_belongs_to_one_machine(machine: Machine, sysfs: Path) -> None:
    usb.assign(machine, STICK)
    assert usb.owner(machine.paths, STICK) == UUID
    with pytest.raises(DevicesFailed, match="assigned to"):
        usb.assign(machine, STICK)
    assert usb.waiting(machine.paths) == []
    usb.release(machine, STICK)
    with pytest.raises(DevicesFailed, match="no machine"):
        usb.owner(machine.paths, STICK)


class Running:
    """A running machine's libvirt side: what is attached to it."""

    def __init__(self, before: list[str]) -> None:
        self.attached = before

    def attachDeviceFlags(self, xml: str, _flags: int) -> None:  # libvirt's name
        """Attach."""
        self.attached.append(xml)

    def detachDeviceFlags(self, xml: str, _flags: int) -> None:  # libvirt's name
        """Detach."""
        self.attached.remove(xml)

    def live(self) -> Domain:
        """Return the description of the running machine."""
        root = parse(f"<domain><name>x</name><devices>{''.join(self.attached)}</devices></domain>",
                     "test")  # fmt: skip
        return Domain(root)


def test_devices_are_given_as_they_come_and_taken_as_they_go(
    machine: Machine, sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usb.assign(machine, STICK)
    running = Running([])
    monkeypatch.setattr(machine, "raw", lambda: running)
    monkeypatch.setattr(machine, "live", running.live)
    usb.plug_in(machine)
    assert running.attached == []
    plug(sysfs)
    usb.plug_in(machine)
    usb.plug_in(machine)
    assert len(running.attached) == 1
    assert '<address bus="1" device="5"/>' in running.attached[0]
    # Pulled out and back in it has another number: the old one is let go.
    plug(sysfs, number=6)
    usb.plug_in(machine)
    assert ['device="6"' in xml for xml in running.attached] == [True]
    (sysfs / "1-1.4" / "idProduct").write_text("9999\n")
    usb.plug_in(machine)
    assert running.attached == []


def test_only_whole_usb_devices_wake_the_watch() -> None:
    def event(**fields: str) -> bytes:
        return b"\0".join([b"add@/devices/x", *(f"{k}={v}".encode() for k, v in fields.items())])

    device = {"SUBSYSTEM": "usb", "DEVTYPE": "usb_device"}
    assert usbwatch.is_usb_device(event(ACTION="add", **device))
    assert usbwatch.is_usb_device(event(ACTION="remove", **device))
    assert not usbwatch.is_usb_device(event(ACTION="bind", **device))
    assert not usbwatch.is_usb_device(event(ACTION="add", SUBSYSTEM="usb", DEVTYPE="usb_interface"))
    assert not usbwatch.is_usb_device(event(ACTION="add", SUBSYSTEM="net"))
    assert not usbwatch.is_usb_device(b"")


def test_the_watch_ends_when_no_machine_needs_it(machine: Machine, sysfs: Path) -> None:
    assert usbwatch.run(machine.paths) == 0
    assert os.listdir(machine.paths.run) != []
