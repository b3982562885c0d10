"""A real distribution in a container: Debian with systemd boots, works, reboots, halts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from runtime import state
from tests.system import _templates
from tests.system.conftest import System

pytestmark = pytest.mark.root

CT = 101


@pytest.fixture(scope="module")
def debian(shared_system: System) -> Iterator[System]:
    """A Debian container that has booted."""
    shared_system.create(CT, _templates.debian(shared_system))
    shared_system.ok("vzctl", "start", CT, "--wait")
    yield shared_system
    shared_system.run("vzctl", "stop", CT, "--fast")


def test_every_unit_starts(debian: System) -> None:
    assert debian.ok("vzctl", "exec", CT, "systemctl is-system-running").strip() == "running"


def test_a_login_waits_on_both_consoles(debian: System) -> None:
    out = debian.ok("vzctl", "exec", CT, "ps -o tty= -C agetty")
    assert sorted(out.split()) == ["pts/0", "pts/1"]


def test_processes_of_the_server_are_not_seen(debian: System) -> None:
    out = debian.ok("vzctl", "exec", CT, "ps ax -o args")
    assert "vzctl start" not in out and "python" not in out
    assert "systemd-journald" in out


def test_other_users_work_and_systemd_makes_groups(debian: System) -> None:
    debian.ok("vzctl", "exec", CT, "id worker >/dev/null 2>&1 || useradd -m worker")
    out = debian.ok("vzctl", "exec", CT, "su - worker -c 'id -un; pwd'")
    assert out.split() == ["worker", "/home/worker"]
    assert "system.slice" in debian.ok("vzctl", "exec", CT, "ls /sys/fs/cgroup")


def test_mounts_made_inside_stay_inside(debian: System) -> None:
    debian.ok("vzctl", "exec", CT, "mkdir -p /mnt/x && mount -t tmpfs none /mnt/x")
    assert not [point for point in debian.mounts() if point.endswith("/mnt/x")]
    debian.ok("vzctl", "exec", CT, "umount /mnt/x")


def test_a_reboot_from_inside_comes_back_and_a_stop_halts_it(debian: System) -> None:
    before = state.load(debian.paths, CT)
    assert before is not None
    debian.run("vzctl", "exec", CT, "shutdown -r now")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = state.load(debian.paths, CT)
        if now is not None and now.phase == "running" and now.init != before.init:
            break
        time.sleep(0.05)
    else:
        pytest.fail("it did not come back")
    debian.ok("vzctl", "exec", CT, "systemctl is-system-running --wait || true")
    said = debian.ok("vzctl", "stop", CT)
    assert "Killing" not in said
    debian.ok("vzctl", "start", CT, "--wait")
