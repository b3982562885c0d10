"""PCI devices of a made-up server, and the CD with the guest tools."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from runtime.errors import DevicesFailed, InvalidValue
from vmm import guesttools, iso9660, pci
from vmm.peripherals import Pci


@pytest.fixture
def host(tmp_path: Path) -> pci.Host:
    """A server with a NIC and a sound card in one group behind a bridge, and a card in none."""
    bus = tmp_path / "bus/pci/devices"
    for address, kind in (
        ("0000:01:00.0", "0x020000"),
        ("0000:01:00.1", "0x040300"),
        ("0000:00:01.0", "0x060400"),
        ("0000:02:00.0", "0x010802"),
    ):
        (bus / address).mkdir(parents=True)
        (bus / address / "class").write_text(kind + "\n")
    group = tmp_path / "kernel/iommu_groups/1/devices"
    group.mkdir(parents=True)
    for address in ("0000:01:00.0", "0000:01:00.1", "0000:00:01.0"):
        (group / address).touch()
        (bus / address / "iommu_group").symlink_to(group.parent)
    (bus / "0000:01:00.0/net/eno1").mkdir(parents=True)
    interface = tmp_path / "class/net/eno1"
    interface.mkdir(parents=True)
    (interface / "device").symlink_to(bus / "0000:01:00.0")
    return pci.Host(tmp_path)


def test_a_device_is_found_by_address_and_by_interface(host: pci.Host) -> None:
    assert host.find("01:00.0") == host.find("0000:01:00.0") == host.find("eno1")
    assert host.interfaces("0000:01:00.0") == ["eno1"]
    for bad in ("", "01:00", "0000:01:00.8", "../../x", "eno1/device"):
        with pytest.raises(InvalidValue):
            host.find(bad)
    with pytest.raises(DevicesFailed, match="has no PCI device"):
        host.find("0000:09:00.0")


def test_what_goes_with_a_device_is_told_bridges_left_out(host: pci.Host) -> None:
    assert host.check("0000:01:00.0") == ["0000:01:00.1"]
    with pytest.raises(DevicesFailed, match="bridges stay"):
        host.check("0000:00:01.0")
    with pytest.raises(DevicesFailed, match="no IOMMU"):
        host.check("0000:02:00.0")


def test_a_device_tells_its_address_back() -> None:
    device = Pci.new("0000:01:1f.7")
    device.name = "pci0"
    assert device.address == "0000:01:1f.7"
    assert device.line() == "pci0 (+) real='0000:01:1f.7'"


def test_the_cd_holds_what_was_put_on_it(tmp_path: Path) -> None:
    files = {"install.sh": b"#!/bin/sh\n" * 500, "readme.txt": b"", "a.b": b"x" * 2048}
    data = iso9660.image("TEST", files, made_s=0)
    assert len(data) % iso9660.SECTOR_BYTES == 0
    head = data[16 * 2048 :]
    assert head[:7] == b"\x01CD001\x01"
    (sectors,) = struct.unpack("<I", head[80:84])
    assert sectors * 2048 == len(data)
    # Read back as ECMA-119, 9.1 describes: length, …, place, …, size, …, name.
    root = data[20 * 2048 : 21 * 2048]
    found = {}
    place = 0
    while root[place]:
        record = root[place : place + root[place]]
        where, size = struct.unpack("<I", record[2:6])[0], struct.unpack("<I", record[10:14])[0]
        name = record[33 : 33 + record[32]]
        if len(name) > 1:
            real = record[record.index(b"NM") + 5 :].rstrip(b"\0").decode()
            assert name.decode() == f"{real.upper()};1"
            found[real] = data[where * 2048 : where * 2048 + size]
        place += root[place]
    assert found == files


@pytest.mark.parametrize("name", ["", "toolongname.sh", "a.html5", "ä.sh", "a/b", "."])
def test_names_a_cd_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        iso9660.image("TEST", {name: b""})


def test_the_installer_is_a_script_the_shell_accepts(tmp_path: Path) -> None:
    for text in (guesttools._INSTALL, guesttools._UPDATE):
        script = tmp_path / "script"
        script.write_text(text)
        subprocess.run(["sh", "-n", script], check=True)
        assert "@" not in text.replace('"$@"', "")


@pytest.mark.parametrize("tool", ["apt-get", "dnf", "zypper", "apk"])
def test_the_installer_asks_the_package_manager_there_is(tmp_path: Path, tool: str) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    (place / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >>{tmp_path}/asked\n')
    (place / tool).chmod(0o755)
    script = tmp_path / "install.sh"
    script.write_text(guesttools._INSTALL)
    done = subprocess.run(
        ["/bin/sh", script], env={"PATH": os.fspath(place)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "are installed" in done.stdout
    assert "qemu-guest-agent" in (tmp_path / "asked").read_text().splitlines()[-1]


def test_a_failed_installation_is_not_called_a_success(tmp_path: Path) -> None:
    (tmp_path / "apk").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "apk").chmod(0o755)
    script = tmp_path / "install.sh"
    script.write_text(guesttools._INSTALL)
    done = subprocess.run(
        ["/bin/sh", script], env={"PATH": os.fspath(tmp_path)}, capture_output=True, check=False
    )
    assert done.returncode == 7
    assert b"installed" not in done.stdout
