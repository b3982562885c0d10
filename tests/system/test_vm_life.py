"""A machine's life under a real libvirtd and QEMU, driven by pctl."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.daemon import Daemon, alive

if TYPE_CHECKING:
    from tests.system.machines import Lab

pytest_plugins = ("tests.system.machines",)
pytestmark = pytest.mark.kvm


def test_exec_returns_output_byte_for_byte_and_the_status(running: Lab) -> None:
    done = running.run("pctl", "exec", "demo", "printf 'a\\000b\\377'; echo bad >&2; exit 7")
    assert done.returncode == 7
    assert done.stderr == "bad\n"
    raw = running.popen("pctl", "exec", "demo", "seq 1 60000", stdout=-1).communicate()[0]
    assert raw == b"".join(b"%d\n" % n for n in range(1, 60001))


def test_exec_passes_standard_input_on(running: Lab) -> None:
    out = running.vm("exec", "demo", "wc -c; cat", stdin=b"x" * 100_000)
    assert out.split()[0] == "100000"
    assert running.vm("exec", "demo", "-", stdin=b"echo from $((40+2))\n") == "from 42\n"


def test_exec_on_a_stopped_machine_is_refused(stopped: Lab) -> None:
    assert "not running" in stopped.fails(31, "pctl", "exec", "demo", "true")


def test_a_silent_agent_is_told_clearly(running: Lab) -> None:
    running.inside("demo", "(sleep 0.3; killall -STOP qemu-ga) >/dev/null 2>&1 &")
    time.sleep(1)
    assert "guest agent does not answer" in running.fails(31, "pctl", "exec", "demo", "true")


def test_stop_presses_the_power_button(running: Lab) -> None:
    out = running.vm("stop", "demo")
    assert "The VM has been successfully stopped." in out
    assert running.state() == "stopped"
    assert running.fails(31, "pctl", "stop", "demo")


def test_pause_stops_time_inside_and_resume_goes_on(running: Lab) -> None:
    running.vm("pause", "demo")
    assert running.state() == "paused"
    assert running.fails(31, "pctl", "exec", "demo", "true")
    assert running.fails(33, "pctl", "stop", "demo")
    running.vm("start", "demo")
    assert running.inside("demo", "echo on") == "on\n"


def test_a_suspended_machine_keeps_its_memory(running: Lab) -> None:
    running.inside("demo", "echo kept >/tmp/mark")
    running.vm("suspend", "demo")
    assert running.state() == "suspended"
    assert running.daemons() != []
    running.vm("start", "demo")
    assert running.inside("demo", "cat /tmp/mark") == "kept\n"
    assert not (running.home / "suspended.sav").exists()


def test_start_twice_is_refused(running: Lab) -> None:
    assert "already running" in running.fails(32, "pctl", "start", "demo")


def test_reset_boots_again(running: Lab) -> None:
    running.inside("demo", "echo x >/tmp/mark")
    running.vm("reset", "demo")
    deadline = time.monotonic() + 60
    while running.run("pctl", "exec", "demo", "test -e /tmp/mark").returncode in (0, 31):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_delete_refuses_a_running_machine_and_names_its_uuid(running: Lab) -> None:
    error = running.fails(41, "pctl", "delete", "demo")
    assert "running" in error
    assert str(running.facts()["uuid"]) in error
    running.vm("stop", "demo", "--kill")
    running.vm("delete", "demo")
    assert not running.home.exists()
    assert running.fails(14, "pctl", "status", "demo")


def test_a_killed_libvirtd_loses_nothing(running: Lab) -> None:
    pid = Daemon(running.paths).pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    # Told from libvirt's state file and the process, without starting anything.
    assert running.state() == "running"
    assert Daemon(running.paths).pid() is None
    assert running.inside("demo", "echo alive") == "alive\n"


def test_a_rebooted_server_finds_its_machines_again(running: Lab) -> None:
    running.vm("snapshot", "demo", "-n", "before")
    running.vm("stop", "demo", "--kill")
    running.stop_daemons()
    shutil.rmtree(running.paths.run / "libvirt" / "etc" / "qemu")
    shutil.rmtree(running.paths.run / "libvirt" / "lib" / "qemu" / "snapshot", ignore_errors=True)
    assert running.state() == "stopped"
    running.vm("snapshot-switch", "demo", "-i", "before")
    assert running.state() == "running"
    assert running.inside("demo", "echo back") == "back\n"


def test_a_qemu_that_died_is_told_as_stopped(running: Lab) -> None:
    place = running.paths.run / "libvirt" / "run" / "qemu" / "demo.pid"
    pid = alive(place)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while running.state() != "stopped" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running.state() == "stopped"
    running.vm("start", "demo", "--wait")


def test_a_killed_create_leaves_nothing_and_its_name_free(lab: Lab) -> None:
    for delay_s in (0.05, 0.15, 0.25):
        process = lab.popen("pctl", "create", "late", "-d", "golden")
        time.sleep(delay_s)
        process.kill()
        process.wait()
        lab.run("pctl", "delete", "late")
    lab.vm("create", "late", "-d", "golden")
    assert [path.name for path in lab.homes.iterdir()] == ["late.pvm"]
    lab.vm("delete", "late")


def test_bad_names_and_systems(lab: Lab) -> None:
    lab.vm("create", "one", "-d", "golden", "--no-hdd")
    try:
        assert "already" in lab.fails(137, "pctl", "create", "one", "-d", "golden")
        assert lab.fails(137, "pctl", "create", "../evil", "-d", "golden")
        uuid = str(lab.facts("one")["uuid"])
        assert "belongs to" in lab.fails(
            137, "pctl", "create", "two", "-d", "golden", "--uuid", uuid
        )
        assert lab.fails(20, "pctl", "create", "two", "-d", "golden", "--uuid", "xyz")
        done = lab.run("pctl", "create", "three", "-d", "templeos")
        assert done.returncode == 0
        assert "not known" in done.stderr
        assert lab.facts("three")["os"] == "other"
        listing = lab.vm("create", "x", "-d", "list")
        assert re.search(r"^  debian +Debian$", listing, re.M)
    finally:
        lab.sweep()
    assert [path.name for path in lab.homes.iterdir()] == []


def test_list_shows_everything_known(running: Lab) -> None:
    facts = running.facts()
    assert facts["state"] == "running"
    assert facts["memory_bytes"] == 256 << 20
    assert json.loads(running.vm("list", "-i", "-j"))[0]["uuid"] == facts["uuid"]
    text = running.vm("list", "-i", "demo")
    assert f"ID: {{{facts['uuid']}}}" in text
    assert re.search(r"^  hdd0 \(\+\) virtio:0 image='.*hdd0\.qcow2' .*256Mb$", text, re.M)
    assert re.search(r"^  net0 \(\+\) type=shared .*mac=001C42[0-9A-F]{6} card=virtio", text, re.M)


def test_status_needs_no_libvirt(stopped: Lab) -> None:
    stopped.stop_daemons()
    status = json.loads(stopped.vm("status", "demo", "--json"))
    assert status["state"] == "stopped"
    assert stopped.daemons() == []


def test_capture_is_a_png(running: Lab, tmp_path: Path) -> None:
    target = tmp_path / "screen.png"
    running.vm("capture", "demo", "--file", target)
    assert target.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    running.vm("stop", "demo", "--kill")
    assert running.fails(31, "pctl", "capture", "demo", "--file", target)
