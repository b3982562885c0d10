"""Devices: names, positions, addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import DevicesFailed, InvalidValue
from vmm import blueprint, devices, macs, positions
from vmm.acceleration import Acceleration
from vmm.domain import Domain
from vmm.systems import SYSTEMS


@pytest.fixture
def domain() -> Domain:
    """A machine without disks."""
    return blueprint.blank(
        "x", "12345678-1234-4234-8234-123456789abc", SYSTEMS["linux"], Acceleration.EMULATED
    )


def add(domain: Domain, bus: str, position: int) -> devices.Disk:
    """Add a disk."""
    disk = devices.Disk.new("/x.qcow2", plain=False, bus=bus, position=position)
    disk.name = devices.free_name([d.name for d in devices.all_of(domain)], "hdd")
    domain.devices.append(disk.element)
    return disk


@pytest.mark.parametrize("bus", ["ide", "scsi", "sata", "virtio", "usb"])
def test_a_disk_tells_the_position_it_was_put_at(bus: str) -> None:
    targets = set()
    for position in range(devices.BUSES[bus][2]):
        disk = devices.Disk.new("/x", plain=True, bus=bus, position=position)
        assert (disk.bus, disk.format) == (bus, "raw")
        if bus != "usb":
            assert disk.position == position
        targets.add(disk.target)
    assert len(targets) == devices.BUSES[bus][2]


def test_targets_of_all_interfaces_differ(domain: Domain) -> None:
    for bus in ("ide", "scsi", "sata", "virtio", "usb"):
        for position in range(devices.BUSES[bus][2]):
            element = devices.Disk.new("/x", plain=True, bus=bus, position=position).element
            domain.devices.append(element)
    targets = [
        element.get("dev") for element in domain.devices.iter("target") if element.get("bus")
    ]
    disks = [target for target in targets if target]
    assert len(disks) == len(set(disks))


def test_a_used_position_is_refused_and_named(domain: Domain) -> None:
    add(domain, "ide", 1)
    with pytest.raises(DevicesFailed, match="position 1 of ide is used by hdd0"):
        positions.check_position(domain, "ide", 1)
    assert positions.check_position(domain, "ide", 2) == 2
    for bad in (-1, 4):
        with pytest.raises(InvalidValue):
            positions.check_position(domain, "ide", bad)


def test_a_full_interface_is_refused(domain: Domain) -> None:
    for position in range(4):
        add(domain, "ide", position)
    with pytest.raises(DevicesFailed, match="all 4 positions of ide"):
        positions.free_position(domain, "ide")
    assert positions.free_position(domain, "scsi") == 0


def test_there_are_at_most_sixteen_adapters(domain: Domain) -> None:
    names = [f"net{n}" for n in range(16)]
    with pytest.raises(DevicesFailed, match="at most 16"):
        devices.free_name(names, "net")
    assert devices.free_name([n for n in names if n != "net3"], "net") == "net3"


def test_devices_without_names_get_them(domain: Domain) -> None:
    disk = add(domain, "virtio", 0)
    disk.element.remove(disk.element.find("alias"))  # type: ignore[arg-type] # it is there
    assert [d.name for d in devices.disks(domain)] == ["hdd0"]


@given(st.binary(min_size=6, max_size=6))
def test_hardware_addresses_come_back_as_they_are_written(raw: bytes) -> None:
    text = raw.hex().upper()
    spelled = "-".join(text[i : i + 2] for i in range(0, 12, 2))
    if raw[0] & 1 or raw == bytes(6):
        with pytest.raises(InvalidValue):
            macs.check(spelled)
    else:
        assert macs.check(spelled).replace(":", "") == raw.hex()


@pytest.mark.parametrize(
    "text", ["", "00:1c:42", "00:1c:42:zz:00:00", "00:1c:42:00:00:00:00", "auto"]
)
def test_what_is_no_hardware_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        macs.check(text)


def test_new_hardware_addresses_are_valid_and_differ() -> None:
    made = {macs.new() for _ in range(50)}
    assert len(made) == 50
    assert all(macs.check(mac) == mac for mac in made)


def test_an_adapter_joins_another_network_without_losing_itself() -> None:
    adapter = devices.Adapter.new("shared", mac="00:1c:42:00:00:01", card="e1000")
    adapter.join("bridged", "br7")
    assert (adapter.type, adapter.bridge) == ("bridged", "br7")
    assert (adapter.mac, adapter.card) == ("00:1c:42:00:00:01", "e1000")
    assert adapter.connected
    adapter.connected = False
    assert not adapter.connected
    adapter.join("routed")
    assert (adapter.type, adapter.bridge) == ("routed", "")


def test_a_drive_without_a_medium_is_disconnected() -> None:
    drive = devices.Cdrom.new("", bus="ide", position=0)
    assert not drive.connected
    drive.image = "/iso/x.iso"
    assert drive.connected
    drive.image = "/dev/sr0"
    assert drive.element.get("type") == "block"
    drive.image = ""
    assert not drive.connected
