"""Settings of machines whose effect shows at a start or an end: undo disks, accounts, tools, UEFI."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.daemon import alive

if TYPE_CHECKING:
    from tests.system.machines import Lab

pytest_plugins = ("tests.system.machines",)
pytestmark = pytest.mark.kvm

WRITE = (
    "dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=notrunc 2>/dev/null; echo {} >/dev/vda; sync"
)
READ = "head -n 1 /dev/vda | tr -d '\\000'"


def content(lab: Lab) -> str:
    """Return the first line of the machine's disk, read on the server."""
    done = subprocess.run(
        ["qemu-img", "dd", "-U", "-O", "raw", f"if={lab.disk}", f"of={lab.root / 'head'}",
         "bs=512", "count=1"], check=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0
    return (lab.root / "head").read_bytes().split(b"\n")[0].replace(b"\0", b"").decode()


def overlays(lab: Lab) -> list[str]:
    """Return the names of undo overlays in the bundle."""
    return sorted(path.name for path in lab.home.glob("*.undo.*"))


def kill_qemu(lab: Lab) -> None:
    """Kill the machine's QEMU and wait until it is seen."""
    pid = alive(lab.paths.run / "libvirt" / "run" / "qemu" / "demo.pid")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while lab.state() != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_undo_disks_discard_what_a_session_writes(stopped: Lab) -> None:
    stopped.vm("set", "demo", "--undo-disks", "discard")
    stopped.vm("start", "demo", "--wait")
    stopped.inside("demo", WRITE.format("session"))
    assert overlays(stopped) == ["hdd0.undo.qcow2"]
    assert "exclude snapshots" in stopped.fails(156, "pctl", "snapshot", "demo")
    out = stopped.vm("stop", "demo")
    assert "have been discarded" in out
    assert overlays(stopped) == []
    assert content(stopped) == ""
    assert f"image='{stopped.disk}'" in stopped.vm("list", "-i", "demo")
    # A session that nobody ended by a command: the next one finds it over.
    stopped.vm("start", "demo")
    kill_qemu(stopped)
    stopped.vm("set", "demo", "--description", "anything")
    assert overlays(stopped) == []


def test_undo_disks_ask_and_wait_for_the_answer(stopped: Lab) -> None:
    stopped.vm("set", "demo", "--undo-disks", "ask")
    stopped.vm("start", "demo", "--wait")
    stopped.inside("demo", WRITE.format("first"))
    stopped.vm("stop", "demo", "--kill")
    # Nobody was there to ask: the session is neither kept nor lost.
    assert overlays(stopped) == ["hdd0.undo.qcow2"]
    assert "undecided" in stopped.vm("list", "-i", "demo")
    for words in (("clone", "demo", "--name", "x"), ("set", "demo", "--undo-disks", "off"),
                  ("set", "demo", "--device-del", "hdd0")):  # fmt: skip
        assert "neither kept nor discarded" in stopped.fails(86, "pctl", *words)
    error = stopped.fails(
        86, "prl_disk_tool", "resize", "--hdd", stopped.disk, "--size", "1G"
    )  # fmt: skip
    assert "neither kept nor discarded" in error
    done = stopped.run("pctl", "start", "demo", "--wait")
    assert done.returncode == 0
    assert "goes on with" in done.stderr
    assert stopped.inside("demo", READ) == "first\n"
    stopped.inside("demo", WRITE.format("second"))
    stopped.vm("stop", "demo", "--kill")
    # Decided about later, with the machine stopped; whatever is killed meanwhile is finished.
    for delay_s in (0.15, 0.25, 0.35):
        process = stopped.popen("pctl", "stop", "demo", "--undo", "keep", stdout=-1, stderr=-1)
        time.sleep(delay_s)
        process.kill()
        process.communicate()
    stopped.run("pctl", "stop", "demo", "--undo", "keep")
    stopped.vm("set", "demo", "--description", "anything")
    assert (overlays(stopped), content(stopped)) == ([], "second")
    stopped.vm("start", "demo")
    assert "have been discarded" in stopped.vm("stop", "demo", "--kill", "--undo", "discard")
    stopped.vm("start", "demo")
    assert "have been kept" in stopped.vm("stop", "demo", "--kill", "--undo", "keep")
    assert (overlays(stopped), content(stopped)) == ([], "second")
    stopped.vm("set", "demo", "--undo-disks", "off")
    assert stopped.fails(20, "pctl", "stop", "demo", "--undo", "keep")


def test_a_machine_runs_as_an_account_without_rights(stopped: Lab) -> None:
    assert stopped.fails(21, "pctl", "set", "demo", "--start-as-user", "nobody-here")
    os.chmod(stopped.root, 0o700)
    stopped.vm("set", "demo", "--start-as-user", "nobody")
    assert "is closed to others" in stopped.fails(86, "pctl", "start", "demo")
    os.chmod(stopped.root, 0o755)
    stopped.vm("start", "demo", "--wait")
    pid = alive(stopped.paths.run / "libvirt" / "run" / "qemu" / "demo.pid")
    uid = pwd.getpwnam("nobody").pw_uid
    assert pid is not None
    assert os.stat(f"/proc/{pid}").st_uid in (uid, 0)
    assert f"Uid:\t{uid}\t{uid}\t" in Path(f"/proc/{pid}/status").read_text()
    assert os.stat(stopped.disk).st_uid == uid
    assert os.stat(stopped.home / "config.xml").st_uid == 0
    stopped.inside("demo", WRITE.format("nobody"))
    # Everything that touches files works for it, too.
    stopped.vm("capture", "demo", "--file", stopped.root / "screen.png")
    stopped.vm("snapshot", "demo")
    stopped.vm("suspend", "demo")
    stopped.vm("resume", "demo")
    assert stopped.inside("demo", READ) == "nobody\n"
    stopped.vm("stop", "demo", "--kill")
    stopped.vm("set", "demo", "--start-as-user", "administrator")


def test_an_administrator_answers_for_a_machine(stopped: Lab) -> None:
    stopped.vm("set", "demo", "--host-admin", "daemon")
    assert "Owner: daemon" in stopped.vm("list", "-i", "demo")
    stopped._environment["SUDO_USER"] = "games"
    try:
        assert "daemon answers for" in stopped.fails(12, "pctl", "start", "demo")
        assert stopped.state() == "stopped"
        stopped._environment["SUDO_USER"] = "daemon"
        stopped.vm("set", "demo", "--description", "mine")
    finally:
        del stopped._environment["SUDO_USER"]
    stopped.vm("set", "demo", "--host-admin", "none")


def test_the_tools_come_on_a_cd_which_the_guest_runs(stopped: Lab) -> None:
    out = stopped.vm("installtools", "demo")
    assert "mount /dev/cdrom /mnt; sh /mnt/install.sh" in out
    stopped.vm("set", "demo", "--tools-autoupdate", "on")
    stopped.vm("start", "demo", "--wait")
    # The update of the start found no package manager here, and said so.
    deadline = time.monotonic() + 15
    while (
        "no package manager"
        not in stopped.run("pctl", "exec", "demo", "cat /tmp/vztools.log").stdout
    ):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    # A package manager that only writes down what it is asked for.
    stopped.inside(
        "demo",
        "printf '#!/bin/sh\\necho apt-get \"$@\" >>/tmp/asked\\n' >/bin/apt-get; "
        "chmod 755 /bin/apt-get; mkdir -p /cd; mount -t iso9660 -o ro /dev/sr0 /cd",
    )
    assert "The guest tools are installed." in stopped.inside("demo", "sh /cd/install.sh")
    assert stopped.inside("demo", "cat /tmp/asked") == (
        "apt-get -q update\napt-get -q -y install qemu-guest-agent\n"
    )
    assert "VZTOOLS" in stopped.inside("demo", "dd if=/dev/sr0 bs=2k skip=16 count=1 | strings")
    assert "answer already" in stopped.vm("installtools", "demo")


def test_tools_need_a_drive(running: Lab) -> None:
    assert "has no CD drive" in running.fails(86, "pctl", "installtools", "demo")


def test_the_uptime_begins_anew(running: Lab) -> None:
    assert running.facts()["uptime_s"] is not None
    time.sleep(1.2)
    before = running.facts()["uptime_s"]
    running.vm("reset-uptime", "demo")
    assert int(str(running.facts()["uptime_s"])) < int(str(before)) + 1
    running.vm("stop", "demo", "--kill")
    assert running.fails(31, "pctl", "reset-uptime", "demo")


def test_pci_devices_are_given_only_where_that_is_possible(stopped: Lab) -> None:
    add = ("pctl", "set", "demo", "--device-add", "pci")
    assert "which PCI device" in stopped.fails(21, *add)
    assert "neither a PCI address" in stopped.fails(21, *add, "--device", "x")
    assert "has no PCI device" in stopped.fails(86, *add, "--device", "ffff:ff:1f.7")
    real = sorted(os.listdir("/sys/bus/pci/devices"))
    if real and not Path(f"/sys/bus/pci/devices/{real[-1]}/iommu_group").exists():
        assert "no IOMMU" in stopped.fails(86, *add, "--device", real[-1])


@pytest.mark.skipif(
    not list(Path("/usr/share/qemu/firmware").glob("*.json")),
    reason="no UEFI firmware: apt-get install ovmf",
)
def test_a_machine_boots_by_uefi_and_keeps_its_variables(stopped: Lab) -> None:
    stopped.vm("set", "demo", "--efi-boot", "on", "--select-boot-device", "on")
    assert "EFI boot: on" in stopped.vm("list", "-i", "demo")
    stopped.vm("start", "demo", "--wait", timeout_s=300)
    assert stopped.inside("demo", "test -d /sys/firmware/efi && echo efi") == "efi\n"
    assert (stopped.home / "nvram.fd").stat().st_size > 100_000
    assert "UEFI firmware" in stopped.fails(156, "pctl", "snapshot", "demo")
    stopped.vm("stop", "demo", "--kill")
    stopped.vm("set", "demo", "--name", "other")
    assert (stopped.home / "nvram.fd").exists()
    # The bundle goes elsewhere with its variables.
    stopped.vm("unregister", "other")
    stopped.vm("register", stopped.home)
    stopped.vm("clone", "other", "--name", "copy")
    assert (stopped.homes / "copy.pvm" / "nvram.fd").exists()
    stopped.vm("set", "other", "--efi-boot", "off")
    assert "nvram" not in (stopped.home / "config.xml").read_text()


def test_a_name_that_cannot_be_had_leaves_every_setting_as_it_was(stopped: Lab) -> None:
    before = (stopped.home / "config.xml").read_text()
    stopped.fails(137, "pctl", "set", "demo", "--memsize", "300", "--name", "demo")
    assert (stopped.home / "config.xml").read_text() == before


def test_the_boot_menu_is_offered(stopped: Lab) -> None:
    stopped.vm("set", "demo", "--select-boot-device", "on")
    config = (stopped.home / "config.xml").read_text()
    assert '<bootmenu enable="yes" timeout="10000"/>' in config
    stopped.vm("set", "demo", "--select-boot-device", "off")
    assert "bootmenu" not in (stopped.home / "config.xml").read_text()


def test_a_machine_on_which_others_are_based_is_not_started(stopped: Lab) -> None:
    stopped.vm("clone", "demo", "--name", "linked", "--linked")
    # What it writes would be seen, in parts, by its clones.
    assert "linked clones share disks" in stopped.fails(86, "pctl", "start", "demo")
    for words in (("pctl", "mount", "demo", "-o", "rw"),
                  ("prl_disk_tool", "compact", "--hdd", str(stopped.disk))):  # fmt: skip
        assert "linked clones share disks" in stopped.fails(86, *words)
    stopped.ok("prl_disk_tool", "merge", "--hdd", stopped.homes / "linked.pvm" / "hdd0.qcow2")
    stopped.vm("start", "demo")
