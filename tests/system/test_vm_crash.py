"""libvirtd or our own process killed in the middle of a verb: what the next command finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.test_vm_disks import make_file_system
from vmm.daemon import Daemon

if TYPE_CHECKING:
    from tests.system.machines import Lab

pytest_plugins = ("tests.system.machines",)
pytestmark = pytest.mark.kvm

DELAYS_S = (0.12, 0.2, 0.35)


def kill_libvirtd(lab: Lab) -> None:
    """Kill our libvirtd at once."""
    pid = Daemon(lab.paths).pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def bundles(lab: Lab) -> list[Path]:
    """Return every bundle, at its old or its new place."""
    return [*lab.homes.glob("*.pvm"), *(lab.root / "moved").glob("*.pvm")]


def works(lab: Lab) -> None:
    """Whatever state the machine is in, it can be brought to answer, with its memory or without."""
    deadline = time.monotonic() + 60
    while lab.run("pctl", "exec", "demo", "true").returncode != 0:
        state = lab.state()
        assert state in ("running", "paused", "suspended", "stopped"), state
        assert time.monotonic() < deadline, state
        if state != "running":
            # A libvirtd which comes back lets some machines go on by itself.
            assert lab.run("pctl", "start", "demo").returncode in (0, 32)
        time.sleep(0.3)


@pytest.mark.parametrize("verb", ["suspend", "snapshot", "stop"])
def test_a_verb_whose_libvirtd_is_killed_leaves_a_machine_that_works(
    running: Lab, verb: str
) -> None:
    process = running.popen("pctl", verb, "demo", stdout=-1, stderr=-1)
    time.sleep(0.25)
    kill_libvirtd(running)
    _out, error = process.communicate(timeout=150)
    assert b"Traceback" not in error
    works(running)
    names = [path.name for path in running.home.iterdir() if path.name.startswith(".tmp")]
    assert names == []


def test_libvirtd_killed_under_verbs_of_a_stopped_machine(stopped: Lab) -> None:
    for words in (
        ("start", "demo"),
        ("set", "demo", "--device-add", "hdd", "--size", "64"),
        ("set", "demo", "--name", "demo2"),
        ("set", "demo2", "--name", "demo"),
        ("move", "demo", "--dst", str(stopped.root / "moved")),
    ):
        if stopped.run("pctl", "status", "demo").stdout.split()[-1:] == ["running"]:
            stopped.run("pctl", "stop", "demo", "--kill")
        process = stopped.popen("pctl", *words, stdout=-1, stderr=-1)
        time.sleep(0.2)
        kill_libvirtd(stopped)
        _out, error = process.communicate(timeout=150)
        assert b"Traceback" not in error, words
        rows = json.loads(stopped.vm("list", "-a", "-j", "-o", "name,home"))
        assert len(rows) == 1, words
        if rows[0]["name"] != "demo":
            stopped.vm("set", "demo2", "--name", "demo")
    works(stopped)
    assert len(bundles(stopped)) == 1


def test_killed_verbs_of_a_stopped_machine_lose_nothing(stopped: Lab) -> None:
    stopped.vm("snapshot", "demo", "-n", "base")
    for words in (
        ("start", "demo"),
        ("stop", "demo", "--kill"),
        ("snapshot", "demo", "-n", "late"),
        ("snapshot-switch", "demo", "-i", "base"),
        ("snapshot-delete", "demo", "-i", "late"),
        ("set", "demo", "--memsize", "320", "--device-add", "cdrom"),
        ("set", "demo", "--name", "demo2"),
        ("set", "demo", "--name", "demo"),
        ("move", "demo", "--dst", str(stopped.root / "moved")),
    ):
        process = stopped.popen("pctl", *words, stdout=-1, stderr=-1)
        time.sleep(0.17)
        process.kill()
        process.communicate()
        (row,) = json.loads(stopped.vm("list", "-a", "-j", "-o", "name"))
        if row["name"] != "demo":
            stopped.vm("set", row["name"], "--name", "demo")
        # Any locked command settles what was left.
        stopped.run("pctl", "umount", "demo")
        held = subprocess.run(
            ["qemu-img", "snapshot", "-U", "-l", stopped.facts()["devices"][0]["image"]],  # type: ignore[index] # JSON
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        listed = {one["uuid"] for one in json.loads(stopped.vm("snapshot-list", "demo", "-j"))}
        assert {word for word in held.split() if word.count("-") == 4 and len(word) == 36} == listed
    works(stopped)
    assert "base" in stopped.vm("snapshot-list", "demo", "-t")
    assert len(bundles(stopped)) == 1


@pytest.mark.parametrize("verb", ["suspend", "snapshot"])
def test_a_killed_verb_leaves_a_machine_that_works(running: Lab, verb: str) -> None:
    for delay_s in DELAYS_S:
        if running.state() == "suspended":
            running.vm("resume", "demo")
        process = running.popen("pctl", verb, "demo", stdout=-1, stderr=-1)
        time.sleep(delay_s)
        process.kill()
        process.communicate()
    works(running)


def test_a_delete_that_was_killed_is_finished_by_the_next_command(stopped: Lab) -> None:
    from runtime import journal

    uuid = str(stopped.facts()["uuid"])
    # As the verb leaves it when killed between its record and its first act.
    journal.record(stopped.paths, uuid, "delete", home=str(stopped.home))
    assert "has been deleted" in stopped.fails(14, "pctl", "start", "demo")
    assert not stopped.home.exists()
    assert stopped.fails(14, "pctl", "status", "demo")


def test_a_missing_bundle_is_told_and_can_be_forgotten(stopped: Lab) -> None:
    stopped.home.rename(stopped.homes / "hidden")
    assert "bundle" in stopped.fails(14, "pctl", "start", "demo")
    (stopped.homes / "hidden").rename(stopped.home)
    stopped.vm("start", "demo")
    stopped.vm("stop", "demo", "--kill")
    stopped.home.rename(stopped.homes / "hidden.pvm")
    stopped.vm("unregister", "demo")
    assert stopped.fails(14, "pctl", "status", "demo")


def test_killed_disk_tools_leave_a_whole_disk(stopped: Lab, tmp_path: Path) -> None:
    make_file_system(stopped, tmp_path)
    tool = "prl_disk_tool"
    plain, grows = ("convert", "--plain"), ("convert", "--expanding")
    for words in (
        ("resize", "--size", "320M", "--resize_partition"),
        ("compact",),
        ("resize", "--size", "128M", "--resize_partition"),
        plain,
        grows,
    ):
        for delay_s in DELAYS_S:
            process = stopped.popen(tool, *words, "--hdd", image(stopped), stdout=-1, stderr=-1)
            time.sleep(delay_s)
            process.kill()
            process.communicate()
            works_on_disk(stopped)
    # Once more to its end: nothing a killed one left is in the way.
    stopped.ok(tool, "resize", "--size", "300M", "--resize_partition", "--hdd", image(stopped))
    works_on_disk(stopped)


@pytest.mark.parametrize("described", ["old", "new"])
def test_a_conversion_killed_with_both_images_there_keeps_the_described_one(
    stopped: Lab, tmp_path: Path, described: str
) -> None:
    from runtime import journal
    from vmm.disktool import CONVERT

    make_file_system(stopped, tmp_path)
    old = image(stopped)
    new = str(Path(old).with_suffix(".raw"))
    copy = tmp_path / "copy"
    if described == "old":
        subprocess.run(["qemu-img", "convert", "-O", "raw", old, new], check=True)
    else:
        copy.write_bytes(Path(old).read_bytes())
        stopped.ok("prl_disk_tool", "convert", "--plain", "--hdd", old)
        Path(old).write_bytes(copy.read_bytes())
    journal.record(stopped.paths, str(stopped.facts()["uuid"]), CONVERT, images=[old, new])
    works_on_disk(stopped)
    assert image(stopped) == (old if described == "old" else new)


def image(lab: Lab) -> str:
    """Return the image of the machine's only disk, as its description has it."""
    (found,) = (one["image"] for one in lab.facts()["devices"] if "image" in one)  # type: ignore[attr-defined] # JSON
    return str(found)


def works_on_disk(lab: Lab) -> None:
    """The disk the machine has is whole and the only one, and its file is there."""
    point = Path(lab.vm("mount", "demo").split(" on ")[1].strip())
    assert (point / "file").read_text() == "data\n"
    lab.vm("umount", "demo")
    if image(lab).endswith(".qcow2"):
        subprocess.run(["qemu-img", "check", "-q", image(lab)], check=True)
    images = sorted(p.name for p in lab.home.iterdir() if p.suffix in (".qcow2", ".raw"))
    assert images == [Path(image(lab)).name]
    assert [p.name for p in lab.home.iterdir() if p.name.startswith(".")] == []


def test_a_killed_mount_is_finished_or_undone(stopped: Lab, tmp_path: Path) -> None:
    make_file_system(stopped, tmp_path)
    for words in (("mount", "demo", "-o", "rw"), ("umount", "demo")):
        for delay_s in (0.1, *DELAYS_S):
            process = stopped.popen("pctl", *words, stdout=-1, stderr=-1)
            time.sleep(delay_s)
            process.kill()
            process.communicate()
            if words[0] == "umount":
                stopped.run("pctl", "mount", "demo")
            else:
                stopped.run("pctl", "umount", "demo")
                assert stopped.fails(40, "pctl", "umount", "demo")
    stopped.run("pctl", "umount", "demo")
    works_on_disk(stopped)
    assert stopped.mounts() == []
    stopped.vm("start", "demo")
    works(stopped)


def test_a_killed_convert_leaves_nothing_and_its_name_free(stopped: Lab, tmp_path: Path) -> None:
    subprocess.run(
        ["qemu-img", "convert", "-O", "vmdk", stopped.disk, tmp_path / "disk.vmdk"],
        check=True,
        capture_output=True,
    )
    (tmp_path / "box.vmx").write_text(
        'displayName = "box"\nmemsize = "256"\nguestOS = "debian10-64"\n'
        'sata0:0.fileName = "disk.vmdk"\n'
    )
    for delay_s in DELAYS_S:
        process = stopped.popen("pctl", "convert", tmp_path / "box.vmx", stdout=-1, stderr=-1)
        time.sleep(delay_s)
        process.kill()
        process.communicate()
        rows = json.loads(stopped.vm("list", "-a", "-j", "-o", "name"))
        if {"name": "box"} in rows:
            stopped.vm("delete", "box")
        else:
            assert not (stopped.homes / "box.pvm").exists()
    stopped.vm("convert", tmp_path / "box.vmx")
    assert stopped.facts("box")["memory_bytes"] == 256 << 20


def test_a_dead_libvirt_leaves_the_containers_lines(stopped: Lab) -> None:
    stopped.ok("pctl", "create", 101, "--ostemplate", "busybox")
    try:
        stopped.ok("pctl", "start", 101)
        alive = json.loads(stopped.vm("list", "-a", "-j", "-o", "name,ctid,status,type"))
        conf = stopped.paths.global_config
        before = conf.read_text() if conf.exists() else None
        conf.write_text(
            f'{before or ""}\nLIBVIRT_URI="qemu+unix:///system?socket={stopped.root}/nobody"\n'
        )
        try:
            done = stopped.run("pctl", "list", "-a", "-j", "-o", "name,ctid,status,type")
        finally:
            conf.write_text(before) if before is not None else conf.unlink()
        assert "Traceback" not in done.stderr
        assert [row for row in json.loads(done.stdout) if row["ctid"] == 101] == [
            row for row in alive if row["ctid"] == 101
        ]
        (machine,) = (row for row in json.loads(done.stdout) if row["name"] == "demo")
        assert machine["status"] in ("stopped", "unknown")
    finally:
        stopped.ok("pctl", "stop", 101, "--fast")
        stopped.ok("pctl", "destroy", 101)
