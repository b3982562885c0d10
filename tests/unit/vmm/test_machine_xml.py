"""Descriptions of machines: golden files, libvirt's schema, foreign XML."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lxml import etree

from runtime.errors import BadConfig
from vmm import blueprint, devices, memory, peripherals
from vmm.acceleration import Acceleration
from vmm.device import Device
from vmm.domain import Domain, bytes_of, parse
from vmm.systems import SYSTEMS, System, choose

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "vmm"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
UUID = "12345678-1234-4234-8234-123456789abc"


def machine(system: System) -> Domain:
    """Return a machine with one device of each kind."""
    domain = blueprint.blank("golden", UUID, system, Acceleration.EMULATED)
    home = Path("/var/parallels/golden.pvm")
    made: list[Device] = [
        devices.Disk.new(home / "hdd0.qcow2", plain=False, bus=system.disk_bus, position=0),
        devices.Disk.new(home / "hdd1.raw", plain=True, bus="scsi", position=3),
        devices.Disk.new("/dev/vg/lv", plain=True, bus="virtio", position=5),
        devices.Cdrom.new("", bus="ide", position=2),
        devices.Floppy.new("/iso/floppy.img"),
        devices.Adapter.new("bridged", bridge="br0", mac="00:1c:42:00:00:01", card=system.card),
        devices.Adapter.new("shared", mac="00:1c:42:00:00:02"),
        devices.Adapter.new("routed", mac="00:1c:42:00:00:03"),
        peripherals.Serial.new("unix", "/run/serial", server=False),
        peripherals.Parallel.new("file", "/tmp/printed"),
        peripherals.Sound.new(),
    ]
    names: list[str] = []
    for device in made:
        device.name = devices.free_name([*names, "serial0"], device.kind)
        names.append(device.name)
        domain.devices.append(device.element)
    return domain


@pytest.mark.parametrize("name", ["debian", "win-2022", "win-7", "other"])
def test_the_description_of_a_new_machine_is_the_golden_one(name: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the golden files are those of x86-64")
    text = machine(SYSTEMS[name]).xml
    path = GOLDEN / f"{name}.xml"
    if os.environ.get("REGENERATE"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    """libvirt's schema of descriptions."""
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is missing: apt-get install libvirt0")
    return etree.RelaxNG(etree.parse(SCHEMA))


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=str)
def test_every_system_has_a_description_the_schema_accepts(
    system: System, schema: etree.RelaxNG
) -> None:
    domain = machine(system)
    domain.description = "a & b < c"
    domain.set_setting("mem-hotplug", "on")
    memory.set_size(domain, 2 << 30)
    assert schema.validate(parse(domain.xml, "test")), schema.error_log


def test_the_schema_rejects_what_is_wrong(schema: etree.RelaxNG) -> None:
    domain = machine(SYSTEMS["linux"])
    domain.devices.find("disk/target").set("bus", "floppy-tape")  # type: ignore[union-attr] # is there
    assert not schema.validate(parse(domain.xml, "test"))


def test_unknown_elements_survive_a_change() -> None:
    domain = Domain.parse(
        f"<domain type='kvm'><name>x</name><uuid>{UUID}</uuid>"
        "<launchSecurity type='sev'/><devices><tpm model='tpm-tis'/></devices></domain>",
        "test",
    )
    domain.description = "changed"
    domain.set_setting("onboot", "yes")
    again = Domain.parse(domain.xml, "test")
    assert again.root.find("launchSecurity") is not None
    assert again.devices.find("tpm") is not None
    assert again.setting("onboot") == "yes"
    again.set_setting("onboot", None)
    assert again.settings == {}


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE d [<!ENTITY e SYSTEM "file:///etc/shadow">]><domain><name>&e;</name></domain>',
        '<!DOCTYPE d [<!ENTITY a "aaaa">]><domain><name>x</name></domain>',
        "<domain><name>x</name>",
        "<network><name>x</name></network>",
        "<domain/>",
        "",
        "<domain><name>" + "x" * (5 << 20) + "</name></domain>",
    ],
    ids=["external", "internal", "cut", "other", "nameless", "empty", "huge"],
)
def test_foreign_xml_which_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(BadConfig):
        Domain.parse(text, "foreign.xml")


def test_sizes_are_read_in_every_unit() -> None:
    for text, unit, size in (("1", "GiB", 1 << 30), ("4", "KB", 4000), ("7", None, 7168)):
        element = etree.Element("memory")
        element.text = text
        if unit:
            element.set("unit", unit)
        assert bytes_of(element) == size


def test_acceleration_changes_only_what_it_must() -> None:
    domain = machine(SYSTEMS["linux"])
    assert not blueprint.set_acceleration(domain, Acceleration.EMULATED)
    assert blueprint.set_acceleration(domain, Acceleration.KVM)
    cpu = domain.root.find("cpu")
    assert cpu is not None and cpu.get("mode") == "host-passthrough"
    cpu.set("mode", "custom")
    blueprint.set_acceleration(domain, Acceleration.EMULATED)
    assert cpu.get("mode") == "custom"


def test_an_unknown_system_gets_the_nearest_hardware() -> None:
    assert choose("debian-12-x86_64", None) == (SYSTEMS["debian"], False)
    assert choose("templeos", None) == (SYSTEMS["other"], False)
    assert choose(None, "windows") == (SYSTEMS["windows"], True)
    assert choose(None, None) == (SYSTEMS["linux"], True)
