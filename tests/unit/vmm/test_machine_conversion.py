"""Descriptions of other products."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.errors import BadConfig, DevicesFailed, InvalidOption
from vmm import conversion, reach

VMX = """.encoding = "UTF-8"
displayName = "Web Server"
guestOS = "debian10-64"
numvcpus = "2"
memsize = "2048"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "web.vmdk"
ide1:0.present = "TRUE"
ide1:0.deviceType = "cdrom-image"
ide1:0.fileName = "x.iso"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
"""
OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References><File ovf:id="f1" ovf:href="{disk}"/></References>
<DiskSection><Disk ovf:diskId="d1" ovf:fileRef="f1"/></DiskSection>
<VirtualSystem ovf:id="vm"><Name>box</Name>
<OperatingSystemSection><Description>Ubuntu_64</Description></OperatingSystemSection>
<VirtualHardwareSection>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
<rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
<Item><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
<rasd:AllocationUnits>byte * 2^30</rasd:AllocationUnits>
<rasd:VirtualQuantity>3</rasd:VirtualQuantity></Item>
<Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>20</rasd:ResourceType></Item>
<Item><rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>3</rasd:Parent>
<rasd:ResourceType>17</rasd:ResourceType><rasd:HostResource>/disk/d1</rasd:HostResource></Item>
<Item><rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType>
<rasd:ResourceSubType>E1000</rasd:ResourceSubType></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>
"""


def test_a_vmx_file_is_understood(tmp_path: Path) -> None:
    source = tmp_path / "web.vmx"
    source.write_text(VMX)
    found = conversion.read(source)
    assert (found.name, found.system, found.cpus) == ("Web Server", "debian", 2)
    assert found.memory_bytes == 2 << 30
    assert found.disks == [("scsi", tmp_path / "web.vmdk")]
    assert found.cards == ["virtio"]


def test_an_ovf_envelope_is_understood(tmp_path: Path) -> None:
    source = tmp_path / "box.ovf"
    source.write_text(OVF.format(disk="box.vmdk"))
    found = conversion.read(source)
    assert (found.name, found.system, found.cpus) == ("box", "ubuntu", 4)
    assert found.memory_bytes == 3 << 30
    assert found.disks == [("sata", tmp_path / "box.vmdk")]
    assert found.cards == ["e1000"]


@pytest.mark.parametrize("disk", ["/etc/shadow", "../secret.vmdk"])
def test_a_description_cannot_reach_out_of_its_directory(tmp_path: Path, disk: str) -> None:
    ovf, vmx = tmp_path / "box.ovf", tmp_path / "box.vmx"
    ovf.write_text(OVF.format(disk=disk))
    vmx.write_text(VMX.replace("web.vmdk", disk))
    for source in (ovf, vmx):
        with pytest.raises(BadConfig, match="reaches out"):
            conversion.read(source)


def test_bad_descriptions_are_refused(tmp_path: Path) -> None:
    for name, text in (
        ("a.vmx", "no keys here"),
        ("b.vmx", VMX.replace('"2048"', '"lots"')),
        ("c.ovf", "<Other/>"),
        ("d.ovf", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><Envelope>&e;</Envelope>'),
    ):
        source = tmp_path / name
        source.write_text(text)
        with pytest.raises(BadConfig):
            conversion.read(source)
    with pytest.raises(BadConfig):
        conversion.read(tmp_path / "absent.vmx")
    with pytest.raises(InvalidOption):
        conversion.read(tmp_path / "what.txt")


needs_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is missing: apt-get install qemu-utils"
)
VMDK = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"
RW 2048 FLAT "{}" 0
ddb.adapterType = "ide"
"""


@needs_qemu_img
@pytest.mark.parametrize("kind", ["backing", "json", "data", "chain", "extent", "link"])
def test_an_image_that_draws_on_foreign_files_is_refused(tmp_path: Path, kind: str) -> None:
    secret, place = tmp_path / "secret", tmp_path / "disks"
    secret.write_bytes(bytes(1 << 20))
    place.mkdir()
    image = place / "evil.qcow2"

    def make(path: Path, *words: str) -> None:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, path, "1M"], check=True)

    format = "qcow2"
    if kind == "backing":
        make(image, "-b", str(secret), "-F", "raw")
    elif kind == "json":
        make(image, "-b", f'json:{{"driver":"raw","file.filename":"{secret}"}}', "-F", "raw")
    elif kind == "data":
        make(image, "-o", f"data_file={secret},data_file_raw=on")
    elif kind == "chain":
        make(place / "middle.qcow2", "-b", str(secret), "-F", "raw")
        make(image, "-b", "middle.qcow2", "-F", "qcow2")
    elif kind == "extent":
        image.write_text(VMDK.format(secret))
        format = "vmdk"
    else:
        (place / "link.raw").symlink_to(secret)
        make(image, "-b", "link.raw", "-F", "raw")
    with pytest.raises(DevicesFailed, match="from outside of"):
        reach.check(image, format, place, DevicesFailed)


@needs_qemu_img
def test_an_image_based_on_its_neighbours_is_accepted(tmp_path: Path) -> None:
    for name, words in (("base.qcow2", ()), ("top.qcow2", ("-b", "base.qcow2", "-F", "qcow2"))):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", *words, tmp_path / name, "1M"], check=True
        )
    reach.check(tmp_path / "top.qcow2", "qcow2", tmp_path, DevicesFailed)
    (tmp_path / "flat.bin").write_bytes(bytes(1 << 20))
    (tmp_path / "good.vmdk").write_text(VMDK.format("flat.bin"))
    reach.check(tmp_path / "good.vmdk", "vmdk", tmp_path, DevicesFailed)
