"""A Debian container is a Debian machine: its init, its tools, its package manager."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from _templates import debian

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def system(shared_system):
    """A system whose container 101 runs Debian, its start complete."""
    shared_system.create(101, debian(shared_system), "--hostname", "deb.example.com")
    out = shared_system.ok("vzctl", "start", 101, "--wait")
    assert "Container started" in out
    return shared_system


def inside(system, script: str) -> str:
    return system.ok("vzctl", "exec2", 101, script)


def test_its_init_is_systemd_and_no_unit_has_failed(system):
    assert inside(system, "cat /proc/1/comm").strip() == "systemd"
    assert inside(system, "systemctl is-system-running; true").strip() == "running"
    assert "State: running" in inside(system, "systemctl status")


def test_it_sees_its_own_processes_only(system):
    names = inside(system, "ps -eo comm=").split()
    assert "systemd" in names
    host = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in (1, os.getpid())}
    assert not host & (set(names) - {"systemd"})
    assert len(names) < 40


def test_its_name_is_the_configured_one(system):
    assert inside(system, "hostname").strip() == "deb.example.com"
    assert inside(system, "cat /etc/hostname").strip() == "deb.example.com"


def test_a_user_can_be_made_and_become(system):
    inside(system, "id bob 2>/dev/null || useradd -m bob")
    assert inside(system, "su - bob -c 'id -un; pwd'").split() == ["bob", "/home/bob"]


def test_job_control_works_in_an_interactive_shell(system):
    script = "script -qec 'bash -i' /dev/null <<'E'\nsleep 100 &\njobs\nkill %1\nexit\nE"
    out = inside(system, script)
    assert "Running" in out
    assert "no job control" not in out


def test_a_package_of_the_host_installs_with_dpkg(system, tmp_path):
    build = tmp_path / "hello-pyvz"
    (build / "DEBIAN").mkdir(parents=True)
    (build / "DEBIAN/control").write_text(
        "Package: hello-pyvz\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\n"
        "Description: test\n"
    )
    (build / "usr/bin").mkdir(parents=True)
    (build / "usr/bin/hello-pyvz").write_text("#!/bin/sh\necho hello from a package\n")
    (build / "usr/bin/hello-pyvz").chmod(0o755)
    deb = tmp_path / "hello.deb"
    subprocess.run(["dpkg-deb", "--build", build, deb], check=True, capture_output=True)
    system.ok("vzctl", "exec2", 101, "cat > /tmp/hello.deb", stdin=deb.read_bytes())
    inside(system, "dpkg -i /tmp/hello.deb")
    assert inside(system, "hello-pyvz") == "hello from a package\n"
    inside(system, "dpkg -r hello-pyvz")


def test_what_it_mounts_is_not_mounted_on_the_host(system):
    before = Path("/proc/self/mountinfo").read_text()
    inside(system, "mount -t tmpfs none /mnt && touch /mnt/x")
    assert Path("/proc/self/mountinfo").read_text() == before
    inside(system, "umount /mnt")


def test_a_service_is_managed_from_the_host(system):
    unit = "[Service]\\nExecStart=/bin/sleep 1000\\n"
    inside(system, f"printf '{unit}' > /etc/systemd/system/napper.service")
    system.ok("pctl", "svc", 101, "start", "napper")
    assert "napper.service" in system.ok("pctl", "svc", 101, "list")
    assert inside(system, "systemctl is-active napper").strip() == "active"
    system.ok("pctl", "svc", 101, "stop", "napper")
    assert system.run("pctl", "svc", 101, "status", "napper").returncode == 3
    system.fails(21, "pctl", "svc", 101, "start", "a;reboot")


def test_diagnosis_finds_nothing_wrong_with_a_good_start(system):
    found = json.loads(system.ok("pctl", "diagnose", 101, "start", "--json"))
    assert {row["verdict"] for row in found} <= {"ok"}


def test_a_report_holds_the_facts_and_no_secrets(system, tmp_path):
    import tarfile

    conf = system.paths.ct_conf(101)
    conf.write_text(conf.read_text() + 'MY_PASSWORD="hunter2"\n')
    target = tmp_path / "report.tar.xz"
    done = system.run("pctl", "problem-report", 101, "-o", target)
    assert done.returncode == 0
    assert done.stderr.startswith("sha256 ")
    with tarfile.open(target) as archive:
        names = {Path(name).name for name in archive.getnames()}
        texts = [archive.extractfile(member).read() for member in archive if member.isfile()]
    assert {"container.conf", "vzctl.log", "diagnose.txt", "versions.json"} <= names
    assert not any(b"hunter2" in text for text in texts)


def test_it_restarts_from_inside_and_stops_by_its_own_halt(system):
    pid = json.loads(system.paths.ct_state(101).read_text())["init"]["pid"]
    system.run("vzctl", "exec2", 101, "shutdown -r now")
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        try:
            now = json.loads(system.paths.ct_state(101).read_text())["init"]
        except (FileNotFoundError, ValueError):
            now = None
        if now is not None and now["pid"] != pid and system.status(101)["running"]:
            break
        time.sleep(0.2)
    else:
        raise AssertionError("it did not come back")
    begin = time.monotonic()
    out = system.ok("vzctl", "stop", 101)
    assert "Killing" not in out
    assert time.monotonic() - begin < 30


def test_a_damaged_system_is_recovered_and_a_removed_package_stays_removed(system):
    if not system.status(101)["running"]:
        system.ok("vzctl", "start", 101, "--wait")
    inside(
        system,
        "dpkg --purge nano >/dev/null 2>&1; rm -r /usr/bin/perl* /usr/share/doc /etc/apt;"
        "chmod o-rwx /usr/lib/x86_64-linux-gnu/*; echo broken > /usr/bin/dpkg;"
        "echo '# mine' >> /etc/profile",
    )
    done = system.run("pctl", "recover", 101)
    assert done.returncode == 0, done.stderr
    assert "package manager: nano" in done.stdout
    assert inside(system, "dpkg --verify") == ""
    assert inside(system, "tail -n 1 /etc/profile; perl -e 'print 1'") == "# mine\n1"
    assert system.run("vzctl", "exec2", 101, "test -e /usr/bin/nano").returncode == 1
    assert system.run("vzctl", "exec2", 101, "test -d /usr/share/doc/bash").returncode == 0
