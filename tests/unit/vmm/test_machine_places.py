"""What is read from files: records, states, images' heads, USB devices, processors' flags."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from runtime.errors import ConfigMissing, InvalidValue, NameFailed
from runtime.paths import Paths
from vmm import acceleration, images, registry, status, usb
from vmm.cpio import Archive
from vmm.registry import MachineRecord
from vmm.status import State

UUID = "12345678-1234-4234-8234-123456789abc"


def record(paths: Paths, name: str = "web") -> MachineRecord:
    """Return a machine that is known."""
    home = paths.machines / f"{name}.pvm"
    home.mkdir(parents=True, exist_ok=True)
    made = MachineRecord(UUID, name, home)
    registry.save(paths, made)
    return made


def test_a_machine_is_found_by_name_and_uuid(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    made = record(paths)
    for ident in ("web", UUID, "{" + UUID.upper() + "}"):
        assert registry.find(paths, ident) == made
    with pytest.raises(ConfigMissing):
        registry.find(paths, "other")
    registry.remove(paths, UUID)
    assert registry.records(paths) == []


def test_a_name_is_used_once_by_both_kinds(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    record(paths)
    paths.conf_dir.mkdir(parents=True)
    (paths.conf_dir / "101.conf").write_text('NAME="ct1"\n')
    for name in ("web", "ct1", "../x", "101", ""):
        with pytest.raises(NameFailed):
            registry.check_new(paths, name)
    with pytest.raises(NameFailed):
        registry.check_new(paths, "new", UUID)
    assert registry.check_new(paths, "new")[0] == "new"


def test_a_damaged_record_hides_only_itself(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    record(paths)
    other = UUID.replace("1234", "4321")
    (registry.directory(paths) / f"{other}.json").write_text("{")
    assert [found.name for found in registry.records(paths)] == ["web"]


def write_state(paths: Paths, text: str) -> None:
    """Write libvirt's state file of the machine "web"."""
    place = paths.run / "libvirt/run/qemu"
    place.mkdir(parents=True, exist_ok=True)
    (place / "web.xml").write_text(text)


@pytest.mark.parametrize(
    ("word", "reason", "state"),
    [
        ("running", "booted", State.RUNNING),
        ("running", "from snapshot", State.RUNNING),
        ("paused", "user", State.PAUSED),
        ("paused", "starting-up", State.STARTING),
        ("shutdown", "user", State.STOPPING),
        ("odd", "x", State.UNKNOWN),
    ],
)
def test_the_state_is_read_from_libvirts_file(
    tmp_path: Path, word: str, reason: str, state: State
) -> None:
    paths = Paths(tmp_path)
    made = record(paths)
    head = f"<domstatus state='{word}' reason='{reason}' pid='{os.getpid()}'>"
    write_state(paths, f"{head}<uuid>{UUID}</uuid></domstatus>")
    assert status.process(paths, made) == (state, os.getpid())


def test_a_dead_process_or_another_machine_is_not_running(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    made = record(paths)
    assert status.state(paths, made) is State.STOPPED
    dead = f"<domstatus state='running' reason='booted' pid='{2**22 + 5}'><uuid>{UUID}</uuid>"
    write_state(paths, dead)
    assert status.state(paths, made) is State.STOPPED
    write_state(
        paths, f"<domstatus state='running' reason='booted' pid='{os.getpid()}'><uuid>0</uuid>"
    )
    assert status.state(paths, made) is State.STOPPED


def test_only_a_complete_image_counts_as_suspended(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    made = record(paths)
    (made.home / status.SAVED).write_bytes(b"LibvirtQemudPart" + bytes(100))
    assert status.state(paths, made) is State.STOPPED
    (made.home / status.SAVED).write_bytes(b"LibvirtQemudSave" + bytes(100))
    assert status.state(paths, made) is State.SUSPENDED


def test_sizes_are_read_from_the_heads_of_images(tmp_path: Path) -> None:
    image = tmp_path / "x.qcow2"
    head = b"QFI\xfb" + struct.pack(">IQIIQ", 3, 0, 0, 16, 5 << 30)
    image.write_bytes(head.ljust(512, b"\0"))
    assert images.virtual_bytes(image) == 5 << 30
    assert images.backing_file(image) is None
    raw = tmp_path / "x.raw"
    raw.write_bytes(bytes(1000))
    assert images.virtual_bytes(raw) == 1000
    assert images.virtual_bytes(tmp_path / "absent") is None


def test_a_backing_file_is_read_from_the_head(tmp_path: Path) -> None:
    image = tmp_path / "x.qcow2"
    name = b"base.qcow2"
    head = b"QFI\xfb" + struct.pack(">IQIIQ", 3, 512, len(name), 16, 1 << 30)
    image.write_bytes(head.ljust(512, b"\0") + name)
    assert images.backing_file(image) == tmp_path / "base.qcow2"


def test_usb_devices_are_read_and_named_as_the_product_does(tmp_path: Path) -> None:
    for name, kind in (("2-1.4", "00"), ("2-1", "09"), ("2-1.4:1.0", "03")):
        place = tmp_path / name
        place.mkdir()
        for key, value in (("bDeviceClass", kind), ("idVendor", "0a5c"), ("idProduct", "3503"),
                           ("speed", "12"), ("manufacturer", "Acme")):  # fmt: skip
            (place / key).write_text(value + "\n")
    found = usb.present(tmp_path)
    assert [device.ident for device in found] == ["2-1.4|0a5c|3503|full|KM|Empty"]
    assert usb.parse(found[0].ident).vendor == "0a5c"
    for bad in ("", "2-1|zz|3503|full|KM|Empty", "x|0a5c|3503|full|KM|Empty", "2-1|0a5c"):
        with pytest.raises(InvalidValue):
            usb.parse(bad)


def test_kvm_needs_the_processors_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for flags, usable in (("fpu vmx sse", True), ("fpu svm", True), ("fpu vmxnet", False)):
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        assert acceleration._has_flags(cpuinfo) is usable
    assert acceleration.choose("kvm") is acceleration.Acceleration.KVM
    assert acceleration.choose("tcg") is acceleration.Acceleration.EMULATED
    with pytest.raises(InvalidValue):
        acceleration.choose("fast")


def test_an_archive_is_one_the_kernel_reads() -> None:
    archive = Archive()
    archive.data("a/b/file", b"content", 0o755)
    archive.link("a/link", "b/file")
    archive.character_device("dev/console", 5, 1)
    packed = archive.pack()
    assert len(packed) % 512 == 0
    assert packed == archive.pack()
    names, place = {}, 0
    while True:
        assert packed[place : place + 6] == b"070701"
        fields = [int(packed[place + 6 + 8 * i : place + 14 + 8 * i], 16) for i in range(13)]
        name = packed[place + 110 : place + 110 + fields[11] - 1].decode()
        data = (place + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            break
        names[name] = (fields[1], packed[data : data + fields[6]], (fields[9], fields[10]))
        place = (data + fields[6] + 3) // 4 * 4
    assert names["a/b/file"] == (0o100755, b"content", (0, 0))
    assert names["a/link"][1] == b"b/file"
    assert names["dev/console"] == (0o020600, b"", (5, 1))
    assert set(names) == {"a", "a/b", "a/b/file", "a/link", "dev", "dev/console"}
