"""Hardware, resources and settings of machines, seen from inside the guest."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.machines import Lab

pytest_plugins = ("tests.system.machines",)
pytestmark = pytest.mark.kvm


def until(lab: Lab, script: str, wanted: str, timeout_s: float = 10) -> None:
    """Wait until a command inside prints ``wanted``."""
    deadline = time.monotonic() + timeout_s
    while (out := lab.run("pctl", "exec", "demo", script).stdout.strip()) != wanted:
        assert time.monotonic() < deadline, f"{script}: {out!r}, not {wanted!r}"
        time.sleep(0.1)


def test_processors_are_plugged_in_and_seen(running: Lab) -> None:
    assert running.inside("demo", "nproc") == "1\n"
    running.vm("set", "demo", "--cpus", 2)
    until(running, "cat /sys/devices/system/cpu/present", "0-1")
    until(running, "nproc", "2")
    done = running.run("pctl", "set", "demo", "--cpus", 1)
    assert done.returncode == 0
    assert "after the machine's next start" in done.stderr
    assert running.facts()["cpus"] == 1


def test_memory_is_plugged_in_and_seen(running: Lab) -> None:
    before = int(running.inside("demo", "grep MemTotal /proc/meminfo").split()[1])
    running.vm("set", "demo", "--memsize", 384)
    after = int(running.inside("demo", "grep MemTotal /proc/meminfo").split()[1])
    assert after - before == 128 * 1024
    assert "by 128 MB" in running.fails(35, "pctl", "set", "demo", "--memsize", 400)
    assert running.facts()["memory_bytes"] == 384 << 20


def test_the_balloon_takes_memory_back(running: Lab) -> None:
    before = int(running.inside("demo", "grep MemTotal /proc/meminfo").split()[1])
    running.vm("set", "demo", "--memquota", "128:192")
    deadline = time.monotonic() + 15
    while int(running.inside("demo", "grep MemTotal /proc/meminfo").split()[1]) > before - 60_000:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_disk_is_plugged_in_with_its_size_and_out_again(running: Lab) -> None:
    out = running.vm("set", "demo", "--device-add", "hdd", "--size", 100)
    assert re.search(r"Creating hdd1 \(\+\) virtio:1 image='.*hdd1.qcow2' .*100Mb", out)
    until(running, "cat /sys/block/vdb/size", "204800")
    running.vm("set", "demo", "--device-del", "hdd1", "--destroy-image")
    until(running, "ls /sys/block", "vda")
    assert not (running.home / "hdd1.qcow2").exists()


@pytest.mark.parametrize("iface", ["scsi", "ide"])
def test_disks_of_other_interfaces(running: Lab, iface: str) -> None:
    done = running.run(
        "pctl", "set", "demo", "--device-add", "hdd", "--size", 64, "--iface", iface,
        "--type", "plain", "--position", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    image = running.home / "hdd1.raw"
    assert image.stat().st_blocks * 512 >= 64 << 20
    if iface == "scsi":
        until(running, "cat /sys/block/sda/size", "131072")
    else:
        assert "next start" in done.stderr
        running.vm("stop", "demo", "--kill")
        running.vm("start", "demo", "--wait")
        until(running, "cat /sys/block/sd?/size", "131072")
    error = running.fails(
        86, "pctl", "set", "demo", "--device-add", "hdd", "--size", 64, "--iface", iface,
        "--position", 1,
    )  # fmt: skip
    assert "used by hdd1" in error


def test_an_adapter_is_plugged_in_with_its_address(running: Lab) -> None:
    running.vm(
        "set", "demo", "--device-add", "net", "--type", "shared", "--mac", "001C42010203",
        "--ipadd", "192.0.2.7/24",
    )  # fmt: skip
    until(running, "cat /sys/class/net/eth1/address", "00:1c:42:01:02:03")
    assert "192.0.2.7/24" in running.inside("demo", "ip addr show eth1")
    listed = json.loads(running.vm("list", "-a", "-j", "-o", "name,ip,mac"))
    assert listed[0]["ip"] == ["192.0.2.7"]
    assert "00:1c:42:01:02:03" in listed[0]["mac"]
    running.vm("set", "demo", "--device-disconnect", "net1")
    until(running, "ip link set eth1 up; cat /sys/class/net/eth1/carrier", "0")
    assert "state=disconnected" in running.vm("list", "-i", "demo")
    running.vm("set", "demo", "--device-connect", "net1")
    until(running, "cat /sys/class/net/eth1/carrier", "1")
    running.vm("set", "demo", "--device-set", "net1", "--ipdel", "all", "--ipadd", "192.0.2.9/24")
    shown = running.inside("demo", "ip addr show eth1")
    assert "192.0.2.9/24" in shown
    assert "192.0.2.7" not in shown
    running.vm("set", "demo", "--device-del", "net1")
    until(running, "ls -d /sys/class/net/eth1 2>/dev/null | wc -l", "0")


def test_a_cd_is_inserted_read_and_taken_out(stopped: Lab, tmp_path: Path) -> None:
    image = tmp_path / "cd.iso"
    # Any bytes do: what matters is that the guest reads these.
    image.write_bytes(b"content of the CD".ljust(1 << 20, b"."))
    stopped.vm("set", "demo", "--device-add", "cdrom")
    stopped.vm("start", "demo", "--wait")
    stopped.vm("set", "demo", "--device-set", "cdrom0", "--image", image)
    # The first read after a change of medium reports the change.
    until(stopped, "head -c 17 /dev/sr0 2>/dev/null", "content of the CD")
    stopped.vm("set", "demo", "--device-disconnect", "cdrom0")
    assert "cdrom0 (+) ide:0 image='' state=disconnected" in stopped.vm("list", "-i", "demo")
    stopped.vm("set", "demo", "--device-connect", "cdrom0")
    assert f"image='{image}'" in stopped.vm("list", "-i", "demo")
    error = stopped.fails(
        86, "pctl", "set", "demo", "--device-set", "cdrom0", "--image", "/nonexistent.iso"
    )
    assert "does not exist" in error


def test_what_cannot_be_plugged_in_is_stored_for_the_next_start(running: Lab) -> None:
    for kind in ("sound", "fdd", "serial", "parallel"):
        done = running.run("pctl", "set", "demo", "--device-add", kind)
        assert done.returncode == 0, done.stderr
        assert "after the machine's next start" in done.stderr
    names = [device["name"] for device in running.facts()["devices"]]  # type: ignore[union-attr,index,call-overload] # JSON
    assert {"sound0", "fdd0", "serial1", "parallel0"} <= set(names)
    running.vm("stop", "demo", "--kill")
    running.vm("start", "demo", "--wait")
    assert running.inside("demo", "ls /sys/class/tty | grep -c ttyS").strip() != "0"


def test_a_serial_port_writes_to_its_file(stopped: Lab, tmp_path: Path) -> None:
    target = tmp_path / "port"
    stopped.vm("set", "demo", "--device-add", "serial", "--output", target)
    stopped.vm("start", "demo", "--wait")
    stopped.inside("demo", "echo out of the port >/dev/ttyS1")
    deadline = time.monotonic() + 5
    while "out of the port" not in target.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_limits_apply_live_and_are_stored(running: Lab) -> None:
    running.vm("set", "demo", "--cpulimit", 50, "--cpuunits", 500, "--cpumask", 0, "--iolimit", 1)
    facts = running.facts()
    assert (facts["cpulimit"], facts["cpuunits"], facts["iolimit"]) == (50, 500, 1 << 20)
    # Two MiB read at one MiB a second, after the burst of a tenth of a second.
    began = time.monotonic()
    running.inside("demo", "dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct 2>/dev/null")
    assert time.monotonic() - began > 1.5
    running.vm("set", "demo", "--iolimit", 0)
    began = time.monotonic()
    running.inside("demo", "dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct 2>/dev/null")
    assert time.monotonic() - began < 1.5


def test_passwords_and_names_are_set_inside(running: Lab) -> None:
    out = running.vm("set", "demo", "--userpasswd", "root:s3cret:x", "--hostname", "web.example")
    assert "successfully" in out
    assert running.inside("demo", "hostname") == "web.example\n"
    shadow = running.inside("demo", "grep ^root: /etc/shadow")
    assert shadow.startswith("root:$6$")
    salt = shadow.split(":")[1].split("$")[2]
    made = running.inside("demo", f"mkpasswd -m sha512 -S '{salt}' s3cret:x").strip()
    assert shadow.split(":")[1] == made
    assert "s3cret" not in running.home.joinpath("config.xml").read_text()
    assert running.fails(74, "pctl", "set", "demo", "--userpasswd", "nobody-here:x")
    assert running.fails(74, "pctl", "set", "demo", "--userpasswd", "nocolon")
    running.vm("set", "demo", "--nameserver", "192.0.2.53", "--searchdomain", "example.com")
    assert running.inside("demo", "cat /etc/resolv.conf") == (
        "search example.com\nnameserver 192.0.2.53\n"
    )


def test_settings_inside_need_a_running_machine(stopped: Lab) -> None:
    assert "not running" in stopped.fails(31, "pctl", "set", "demo", "--userpasswd", "root:x")


def test_a_bad_value_changes_nothing(stopped: Lab) -> None:
    before = (stopped.home / "config.xml").read_bytes()
    for code, options in (
        (21, ("--cpus", "0")),
        (21, ("--cpus", "many")),
        (21, ("--memsize", "1")),
        (21, ("--memsize", "99999999999")),
        (146, ("--cpumask", "99")),
        (149, ("--nodemask", "99")),
        (21, ("--memquota", "5:1")),
        (21, ("--ioprio", "8")),
        (21, ("--iolimit", "5G")),
        (21, ("--onboot", "perhaps")),
        (21, ("--videosize", "33")),
        (21, ("--vnc-mode", "manual")),
        (86, ("--device-bootorder", "hdd7")),
        (86, ("--device-del", "hdd7")),
        (20, ("--device-add", "flux")),
        (21, ("--device-add", "hdd", "--size", "0")),
        (20, ("--device-add", "hdd", "--iface", "mfm")),
        (86, ("--device-add", "hdd", "--image", "/nonexistent/x.qcow2", "--size", "64")),
        (86, ("--device-add", "hdd", "--image", "/tmp/no-such-image.qcow2")),
        (136, ("--device-add", "net", "--network", "nowhere")),
        (86, ("--device-add", "hdd", "--image", "/tmp")),
        (86, ("--device-add", "hdd", "--image", "/etc/hostname")),
        (86, ("--device-add", "hdd", "--image", "/etc/hostname", "--recreate")),
        (20, ("--device-add", "hdd", "--split")),
        (20, ("--device-add", "hdd", "--passthr")),
        (86, ("--device-add", "cdrom", "--image", "/tmp")),
        (21, ("--undo-disks", "perhaps")),
        (21, ("--host-admin", "nobody-here")),
        (21, ("--rate", "1:7")),
        (21, ("--ratebound", "perhaps")),
        (21, ("--tools-autoupdate", "perhaps")),
        (21, ("--select-boot-device", "perhaps")),
        (21, ("--device-add", "net", "--type", "shared", "--mac", "xx")),
        (71, ("--device-set", "net0", "--ipadd", "300.1.1.1")),
        (20, ()),
    ):
        assert stopped.fails(code, "pctl", "set", "demo", *options)
        assert (stopped.home / "config.xml").read_bytes() == before, options
    # One bad value of several: the good ones are not set either.
    assert stopped.fails(21, "pctl", "set", "demo", "--description", "new", "--cpus", "0")
    assert (stopped.home / "config.xml").read_bytes() == before
    assert sorted(path.name for path in stopped.home.glob("hdd*")) == ["hdd0.qcow2"]


def test_images_in_use_and_damaged_ones_are_refused(stopped: Lab, tmp_path: Path) -> None:
    stopped.vm("create", "other", "-d", "golden")
    taken = stopped.homes / "other.pvm" / "hdd0.qcow2"
    error = stopped.fails(86, "pctl", "set", "demo", "--device-add", "hdd", "--image", taken)
    assert "in use by machine other" in error
    error = stopped.fails(86, "pctl", "set", "demo", "--device-add", "hdd", "--image", stopped.disk)
    assert "hdd0 of this machine" in error
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(taken.read_bytes()[:4096] + b"\xff" * 65536)
    assert stopped.fails(35, "pctl", "set", "demo", "--device-add", "hdd", "--image", broken)
    taken.unlink()
    assert "is missing" in stopped.fails(86, "pctl", "start", "other")


def test_a_display_listens_where_it_is_told(stopped: Lab) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stopped.vm("set", "demo", "--vnc-mode", "manual", "--vnc-port", port, "--vnc-passwd", "s3cret")
    assert f"mode=manual port={port}" in stopped.vm("list", "-i", "demo")
    stopped.vm("start", "demo")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        assert link.recv(12) == b"RFB 003.008\n"
        link.sendall(b"RFB 003.008\n")
        # RFC 6143, 7.1.2: one security type, 2 (VNC authentication).
        assert link.recv(2) == b"\x01\x02"
    stopped.vm("create", "other", "-d", "golden", "--no-hdd")
    error = stopped.fails(
        21, "pctl", "set", "other", "--vnc-mode", "manual", "--vnc-port", port, "--vnc-nopasswd"
    )
    assert "display of machine demo" in error
    error = stopped.fails(
        21, "pctl", "set", "other", "--vnc-mode", "auto", "--vnc-address", "0.0.0.0"
    )
    assert "without a password" in error
    assert (
        b"s3cret" not in stopped.popen("pctl", "problem-report", "demo", stdout=-1).communicate()[0]
    )


def test_statistics_count_what_the_guest_does(running: Lab) -> None:
    def read() -> dict[str, int]:
        counters: dict[str, int] = json.loads(running.vm("statistics", "demo", "-j"))["demo"]
        return counters

    before = read()
    running.inside("demo", "dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null")
    after = read()
    read_bytes = after["devices.virtio0.read_total"] - before["devices.virtio0.read_total"]
    assert read_bytes >= 1 << 20
    assert after["guest.cpu.time"] > before["guest.cpu.time"]
    assert after["guest.ram.total"] > 100_000
    only = running.vm("statistics", "demo", "--filter", "guest.ram.*").split()
    assert only and all(word.startswith("guest.ram.") for word in only[::2])
