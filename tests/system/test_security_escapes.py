"""Escapes from a container, tried from inside as its root; each must fail."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import attacks
from tests.system.conftest import System

pytestmark = pytest.mark.root

CT = 101
#: The attacker's tools: the server's Python, shown read-only.
_TOOLS = ("/usr", "/lib", "/lib64")


@pytest.fixture(scope="module")
def victim(shared_system: System) -> Iterator[System]:
    """A running container whose root has a Python at hand."""
    system = shared_system
    system.create(CT)
    binds = " ".join(
        f"{os.path.realpath(place)}:{place},ro" for place in _TOOLS if Path(place).exists()
    )
    private = system.paths.private(CT)
    for place in _TOOLS:
        target = private / "root" / place.lstrip("/")
        if not target.exists():
            target.mkdir(parents=True)
    os.mknod(private / "root/node", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(private / "root/node", 0o666)
    with open(system.paths.ct_conf(CT), "a") as file:
        file.write(f'BINDMOUNT="{binds}"\n')
    system.ok("vzctl", "start", CT)
    yield system
    system.ok("vzctl", "stop", CT, "--fast")


def attempt(system: System, name: str, **variables: str) -> str:
    """Run one attack inside and return what it says."""
    source = Path(attacks.__file__).read_bytes()
    words = [f"{key}={value}" for key, value in variables.items()]
    return system.ok(
        "vzctl", "exec3", CT, "/usr/bin/env", *words, "/usr/bin/python3", "-I", "-c",
        "import sys; exec(compile(sys.stdin.read(), 'attacks', 'exec'))", name, stdin=source,
    )  # fmt: skip


_WITH_HELP = {"abstract_socket", "program_of_helper", "environment_of_caller", "signal_outside"}


@pytest.mark.parametrize("name", sorted(set(attacks.ATTACKS) - _WITH_HELP))
def test_an_escape_is_blocked(victim: System, name: str) -> None:
    said = attempt(victim, name)
    assert said.startswith("blocked"), said


def test_an_abstract_socket_of_the_server_is_out_of_reach(victim: System) -> None:
    name = f"pyvz-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + name)
        listener.listen()
        assert attempt(victim, "abstract_socket", ABSTRACT=name).startswith("blocked")


def test_a_process_of_the_server_cannot_be_signalled(victim: System) -> None:
    said = attempt(victim, "signal_outside", HOST_PID=str(os.getpid()))
    assert said.startswith("blocked"), said


def test_the_environment_of_the_caller_stays_outside(
    victim: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim._environment["SERVER_SECRET"] = "x"
    try:
        said = attempt(victim, "environment_of_caller")
    finally:
        del victim._environment["SERVER_SECRET"]
    assert said.startswith("blocked"), said


def test_nothing_of_the_server_is_in_reach_while_commands_enter(victim: System) -> None:
    """The class of CVE-2019-5736: /proc/PID/exe of who enters is the server's interpreter."""
    said: list[str] = []
    watcher = threading.Thread(
        target=lambda: said.append(attempt(victim, "program_of_helper", WATCH_S="4"))
    )
    watcher.start()
    deadline = time.monotonic() + 3.5
    while time.monotonic() < deadline:
        victim.ok("vzctl", "exec3", CT, "/bin/true")
    watcher.join()
    assert said and said[0].startswith("blocked"), said


@pytest.mark.parametrize("place", ["dev", "proc", "sys"])
def test_a_link_in_the_tree_does_not_lead_a_mount_outside(system: System, place: str) -> None:
    system.create(CT)
    target = system.root / "outside"
    target.mkdir()
    link = system.paths.private(CT) / "root" / place
    link.symlink_to(os.path.relpath(target, "/"))
    link.unlink()
    link.symlink_to(target)
    said = system.fails(47, "vzctl", "start", CT)
    assert "plain director" in said or "symbolic link" in said or "symlink" in said.lower()
    assert list(target.iterdir()) == []
    assert not system.mounts()
    system.ok("vzctl", "destroy", CT)


def test_the_servers_view_of_the_tree_gives_no_setuid_and_no_devices(victim: System) -> None:
    root = victim.paths.ct_root(CT)
    with open("/proc/self/mountinfo") as file:
        options = next(line.split()[5] for line in file if line.split()[4] == str(root))
    assert {"nosuid", "nodev"} <= set(options.split(",")) or root.parent.stat().st_mode & 0o77 == 0
    assert "nosuid" in options.split(",")
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700


def test_root_of_the_container_is_nobody_on_the_server(victim: System) -> None:
    pid = victim.ok("vzctl", "exec", CT, "cat /proc/self/uid_map").split()
    first = int(pid[1])
    assert first >= 524288
    run = subprocess.run(
        ["stat", "-c", "%u", f"/proc/{_init_pid(victim)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) in (first, 0) and _uid(_init_pid(victim)) == first


def _init_pid(system: System) -> int:
    from runtime import state

    run = state.load(system.paths, CT)
    assert run is not None and run.init is not None
    return run.init.pid


def _uid(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    raise AssertionError
