"""Snapshots, clones, disks and bundles of machines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.machines import Lab

pytest_plugins = ("tests.system.machines",)
pytestmark = pytest.mark.kvm
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def snapshot(lab: Lab, name: str) -> str:
    """Take a snapshot and return its id."""
    out = lab.vm("snapshot", "demo", "-n", name, "-d", f"about {name}")
    match = re.search(r"The snapshot with ID (\{[0-9a-f-]{36}\}) has been", out)
    assert match is not None, out
    return match[1]


def test_a_snapshot_brings_memory_and_disk_back(running: Lab) -> None:
    running.inside("demo", "echo one >/tmp/mark; mke2fs -q -F /dev/vda && mount /dev/vda /mnt")
    running.inside("demo", "echo one >/mnt/mark; sync")
    first = snapshot(running, "first")
    running.inside("demo", "echo two | tee /tmp/mark /mnt/mark; sync")
    second = snapshot(running, "second")
    running.vm("snapshot-switch", "demo", "-i", first)
    assert running.inside("demo", "cat /tmp/mark /mnt/mark") == "one\none\n"
    third = snapshot(running, "third")
    have = {row["uuid"]: row for row in json.loads(running.vm("snapshot-list", "demo", "-j"))}
    ids = [one.strip("{}") for one in (first, second, third)]
    assert [have[one]["parent"] for one in ids] == [None, ids[0], ids[0]]
    assert [have[one]["current"] for one in ids] == [False, False, True]
    lines = running.vm("snapshot-list", "demo").splitlines()
    assert lines[0] == "PARENT_SNAPSHOT_ID                      SNAPSHOT_ID"
    assert f"{first} *{third}" in lines
    shown = running.vm("snapshot-list", "demo", "-i", second)
    assert "Name: second\n" in shown
    assert "Current: no\nState: poweron\nDescription: <![CDATA[about second]]>" in shown
    # Deleting the first moves its children up; with -c they go too.
    running.vm("snapshot-delete", "demo", "-i", first)
    have = {row["uuid"]: row for row in json.loads(running.vm("snapshot-list", "demo", "-j"))}
    assert {row["parent"] for row in have.values()} == {None}
    running.vm("snapshot-switch", "demo", "-i", second)
    assert running.inside("demo", "cat /tmp/mark") == "two\n"
    fourth = snapshot(running, "fourth")
    assert fourth.strip("{}") in running.vm("snapshot-list", "demo", "-t")
    running.vm("snapshot-delete", "demo", "-i", second, "-c")
    left = json.loads(running.vm("snapshot-list", "demo", "-j"))
    assert [row["uuid"] for row in left] == [third.strip("{}")]
    assert "no snapshot" in running.fails(159, "pctl", "snapshot-switch", "demo", "-i", second)


def test_snapshots_forbid_what_would_spoil_them(stopped: Lab) -> None:
    snapshot(stopped, "kept")
    for words in (
        ("prl_disk_tool", "resize", "--hdd", stopped.disk, "--size", "1G"),
        ("prl_disk_tool", "compact", "--hdd", stopped.disk),
        ("prl_disk_tool", "convert", "--plain", "--hdd", stopped.disk),
    ):
        assert "snapshots" in stopped.fails(154, *words)
    assert "snapshots" in stopped.fails(86, "pctl", "set", "demo", "--device-del", "hdd0")
    assert "snapshots" in stopped.fails(86, "pctl", "clone", "demo", "--name", "x", "--linked")


def test_a_plain_disk_cannot_have_snapshots_and_says_so(stopped: Lab) -> None:
    stopped.vm("set", "demo", "--device-add", "hdd", "--size", 16, "--type", "plain")
    error = stopped.fails(156, "pctl", "snapshot", "demo")
    assert "plain disk" in error
    assert "convert --expanding" in error


def test_clones_differ_in_everything_that_must(stopped: Lab) -> None:
    stopped.vm("clone", "demo", "--name", "full")
    stopped.vm("clone", "demo", "--name", "linked", "--linked")
    rows = json.loads(stopped.vm("list", "-a", "-j", "-o", "uuid,name,mac"))
    assert len({row["uuid"] for row in rows}) == len({row["mac"][0] for row in rows}) == 3
    assert "linked clones share disks of demo: linked" in stopped.fails(
        86, "pctl", "delete", "demo"
    )
    stopped.vm("start", "linked", "--wait")
    assert stopped.inside("linked", "cat /sys/class/net/eth0/address").strip() == next(
        row["mac"][0] for row in rows if row["name"] == "linked"
    )
    stopped.vm("stop", "linked", "--kill")
    linked = stopped.homes / "linked.pvm" / "hdd0.qcow2"
    stopped.ok("prl_disk_tool", "merge", "--hdd", linked)
    stopped.vm("delete", "demo")
    stopped.vm("start", "linked", "--wait")


def test_a_running_machine_is_not_cloned(running: Lab) -> None:
    assert "it is running" in running.fails(32, "pctl", "clone", "demo", "--name", "x")
    assert not (running.homes / "x.pvm").exists()


def test_a_template_is_never_started_but_makes_machines(stopped: Lab) -> None:
    stopped.vm("clone", "demo", "--name", "tpl", "--template")
    assert "tpl" in stopped.vm("list", "-t")
    assert "tpl" not in stopped.vm("list", "-a")
    assert "template" in stopped.fails(105, "pctl", "start", "tpl")
    stopped.vm("create", "made", "--vmtype", "vm", "-t", "tpl")
    assert stopped.facts("made")["template"] is False
    assert stopped.fails(20, "pctl", "create", "x", "--vmtype", "vm", "-t", "made")


def test_a_killed_clone_leaves_nothing(stopped: Lab) -> None:
    subprocess.run(["qemu-img", "resize", "-q", stopped.disk, "2G"], check=True)
    for delay_s in (0.1, 0.2, 0.4):
        process = stopped.popen("pctl", "clone", "demo", "--name", "copy", stdout=-1, stderr=-1)
        time.sleep(delay_s)
        process.kill()
        process.communicate()
        stopped.run("pctl", "delete", "copy")
    stopped.vm("clone", "demo", "--name", "copy")
    names = sorted(path.name for path in stopped.homes.iterdir())
    assert names == ["copy.pvm", "demo.pvm"]


def test_renaming_keeps_snapshots_and_bundle(stopped: Lab) -> None:
    one = snapshot(stopped, "one")
    stopped.vm("set", "demo", "--name", "renamed")
    assert stopped.fails(14, "pctl", "status", "demo")
    stopped.vm("start", "renamed")
    stopped.vm("snapshot-switch", "renamed", "-i", one)
    assert stopped.state("renamed") == "stopped"
    assert stopped.home.is_dir()
    stopped.vm("create", "other", "-d", "golden", "--no-hdd")
    assert stopped.fails(137, "pctl", "set", "other", "--name", "renamed")


def test_a_bundle_moves_and_is_registered_again(stopped: Lab, tmp_path: Path) -> None:
    snapshot(stopped, "kept")
    stopped.vm("move", "demo", "--dst", tmp_path)
    moved = tmp_path / "demo.pvm"
    assert not stopped.home.exists()
    stopped.vm("start", "demo", "--wait")
    stopped.vm("stop", "demo", "--kill")
    stopped.vm("snapshot-switch", "demo", "-i", "kept")
    stopped.vm("unregister", "demo")
    assert stopped.fails(14, "pctl", "status", "demo")
    elsewhere = tmp_path / "else.pvm"
    moved.rename(elsewhere)
    stopped.vm("register", elsewhere)
    stopped.vm("start", "demo", "--wait")
    assert "registered" in stopped.fails(140, "pctl", "register", elsewhere)


def test_foreign_bundles_are_not_trusted(stopped: Lab, tmp_path: Path) -> None:
    def bundle(name: str, change: tuple[str, str]) -> Path:
        place = tmp_path / f"{name}.pvm"
        place.mkdir()
        text = (stopped.home / "config.xml").read_text()
        text = text.replace("<name>demo<", f"<name>{name}<").replace(str(stopped.home), str(place))
        uuid = str(stopped.facts()["uuid"])
        text = text.replace(uuid, uuid[:-4] + f"{os.getpid() % 65536:04x}")
        assert change[0] in text
        (place / "config.xml").write_text(text.replace(*change))
        shutil.copyfile(stopped.disk, place / "hdd0.qcow2")
        return place

    serial = bundle(
        "a", ("<devices>", "<devices><serial type='file'><source path='/etc/x'/></serial>")
    )
    assert "reaches out" in stopped.fails(140, "pctl", "register", serial)
    options = bundle(
        "b",
        (
            "<devices>",
            f"<q:commandline xmlns:q='{QEMU}'><q:arg value='-snapshot'/></q:commandline><devices>",
        ),
    )
    assert "options to QEMU" in stopped.fails(140, "pctl", "register", options)
    entity = bundle(
        "c", ("<domain", '<!DOCTYPE domain [<!ENTITY e SYSTEM "file:///etc/shadow">]><domain')
    )
    assert stopped.fails(85, "pctl", "register", entity)
    assert stopped.fails(140, "pctl", "register", tmp_path / "none.pvm")
    assert json.loads(stopped.vm("list", "-a", "-j", "-o", "name")) == [{"name": "demo"}]


def make_file_system(lab: Lab, tmp_path: Path) -> None:
    """Put an ext4 file system with a file on the first disk, with deleted data in it."""
    tree, raw = tmp_path / "tree", tmp_path / "disk.raw"
    tree.mkdir()
    (tree / "file").write_text("data\n")
    (tree / "big").write_bytes(os.urandom(30 << 20))
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, raw, "256M"], check=True
    )
    # What debugfs unlinks is freed by the check of the file system.
    subprocess.run(["debugfs", "-w", "-R", "rm big", raw], check=True, capture_output=True)
    subprocess.run(["e2fsck", "-fy", raw], check=False, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, lab.disk], check=True)


def test_disks_are_mounted_resized_compacted_and_converted(stopped: Lab, tmp_path: Path) -> None:
    make_file_system(stopped, tmp_path)
    assert re.fullmatch(
        r"hdd0 partition 0: 256 Mb at 0 Mb, ext\d\n", stopped.vm("mount", "demo", "--info")
    )
    point = Path(stopped.vm("mount", "demo").split(" on ")[1].strip())
    assert (point / "file").read_text() == "data\n"
    with pytest.raises(OSError):
        (point / "new").touch()
    assert "mounted" in stopped.fails(41, "pctl", "start", "demo")
    assert "mounted" in stopped.fails(41, "pctl", "delete", "demo")
    stopped.vm("umount", "demo")
    assert stopped.fails(40, "pctl", "umount", "demo")
    point = Path(stopped.vm("mount", "demo", "-o", "rw").split(" on ")[1].strip())
    (point / "new").write_text("written here\n")
    stopped.vm("umount", "demo")

    tool = ("prl_disk_tool",)
    stopped.ok(*tool, "resize", "--hdd", stopped.disk, "--size", "400M", "--resize_partition")
    facts = json.loads(stopped.ok(*tool, "resize", "-i", "-j", "--hdd", stopped.disk))
    assert facts["size_bytes"] == 400 << 20
    assert facts["minimum_bytes"] < 64 << 20
    before = facts["actual_bytes"]
    stopped.ok(*tool, "compact", "--hdd", stopped.disk)
    facts = json.loads(stopped.ok(*tool, "resize", "-i", "-j", "--hdd", stopped.disk))
    assert facts["actual_bytes"] < before - (12 << 20)
    assert "--resize_partition" in stopped.fails(
        154, *tool, "resize", "--hdd", stopped.disk, "--size", "100M"
    )
    assert "the data need" in stopped.fails(
        154, *tool, "resize", "--hdd", stopped.disk, "--size", "1M", "--resize_partition"
    )
    stopped.ok(*tool, "resize", "--hdd", stopped.disk, "--size", "100M", "--resize_partition")
    stopped.ok(*tool, "convert", "--plain", "--hdd", stopped.disk)
    plain = stopped.disk.with_suffix(".raw")
    assert plain.stat().st_blocks * 512 >= 100 << 20
    assert not stopped.disk.exists()
    assert "single files" in stopped.fails(155, *tool, "convert", "--split", "--hdd", plain)
    stopped.vm("start", "demo", "--wait")
    size = int(stopped.inside("demo", "cat /sys/block/vda/size"))
    assert size == (100 << 20) // 512
    assert stopped.inside("demo", "mount /dev/vda /mnt; cat /mnt/file /mnt/new") == (
        "data\nwritten here\n"
    )
    assert "running" in stopped.fails(32, *tool, "convert", "--expanding", "--hdd", plain)


def test_mounts_and_moves_that_cannot_be(stopped: Lab, tmp_path: Path) -> None:
    assert "no disk" in stopped.fails(152, "pctl", "mount", "demo")
    make_file_system(stopped, tmp_path)
    point = Path(stopped.vm("mount", "demo").split(" on ")[1].strip())
    with (point / "file").open():
        assert "busy" in stopped.fails(153, "pctl", "umount", "demo")
    stopped.vm("umount", "demo")
    (tmp_path / "plain").touch()
    stopped.fails(54, "pctl", "move", "demo", "--dst", str(tmp_path / "plain" / "below"))
    assert stopped.home.is_dir()


def test_an_unknown_file_system_is_not_resized(stopped: Lab) -> None:
    subprocess.run(
        ["qemu-io", "-c", "write -P 0 0 64k", stopped.disk], check=True, capture_output=True
    )
    # What tells a FAT32 file system: its name in the boot sector.
    (stopped.home / "head").write_bytes(b"\0" * 82 + b"FAT32".ljust(430, b"\0"))
    subprocess.run(
        ["qemu-io", "-c", f"write -s {stopped.home / 'head'} 0 512", stopped.disk],
        check=True,
        capture_output=True,
    )
    error = stopped.fails(
        154, "prl_disk_tool", "resize", "--hdd", stopped.disk, "--size", "1G", "--resize_partition"
    )
    assert "vfat" in error


@pytest.mark.parametrize("format", ["vmdk", "vdi", "vhdx", "vpc"])
def test_machines_of_other_products_are_converted(
    stopped: Lab, tmp_path: Path, format: str
) -> None:
    make_file_system(stopped, tmp_path)
    suffix = "vhd" if format == "vpc" else format
    image = tmp_path / f"disk.{suffix}"
    subprocess.run(
        ["qemu-img", "convert", "-O", format, stopped.disk, image], check=True, capture_output=True
    )
    (tmp_path / "box.vmx").write_text(
        f'displayName = "box"\nmemsize = "512"\nnumvcpus = "2"\nguestOS = "debian10-64"\n'
        f'sata0:0.fileName = "disk.{suffix}"\nethernet0.present = "TRUE"\n'
    )
    stopped.vm("convert", tmp_path / "box.vmx")
    facts = stopped.facts("box")
    assert (facts["cpus"], facts["memory_bytes"], facts["os"]) == (2, 512 << 20, "debian")
    point = Path(stopped.vm("mount", "box").split(" on ")[1].strip())
    assert (point / "file").read_text() == "data\n"
    stopped.vm("umount", "box")


def test_a_report_holds_what_is_needed(running: Lab, tmp_path: Path) -> None:
    data = running.popen("pctl", "problem-report", "demo", stdout=-1).communicate()[0]
    file = tmp_path / "report.tar.gz"
    file.write_bytes(data)
    with tarfile.open(file) as archive:
        names = {name.rpartition("/")[2] for name in archive.getnames()}
    assert {"config.xml", "info.json", "snapshots.json", "libvirtd.log", "demo.log"} <= names
