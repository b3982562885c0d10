"""The warm service: commands do the same with it, without it, and when it dies under them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runtime import state, syscalls
from tools import client

pytestmark = pytest.mark.root


def service_pid(system) -> int | None:
    for pid in system.processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"tools.service" in words and _parent_is_gone(pid):
            return pid
    return None


def _parent_is_gone(pid: int) -> bool:
    """Whether the process is the service itself, not a command forked from it."""
    text = Path(f"/proc/{pid}/stat").read_text()
    parent = int(text[text.rindex(")") + 2 :].split()[1])
    try:
        return b"tools.service" not in Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return True


def await_service(system, *, there: bool = True) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        sock = client.connect(str(system.root))
        if sock is not None:
            sock.close()
        if (sock is not None) == there:
            return
        time.sleep(0.02)
    raise AssertionError(f"the service is {'not ' if there else ''}there")


def test_a_changing_command_starts_the_service_and_a_reading_one_does_not(warm_system):
    warm_system.ok("vzlist", "-a")
    warm_system.fails(14, "vzctl", "status", "nobody")
    assert client.connect(str(warm_system.root)) is None
    warm_system.create(101)
    await_service(warm_system)
    warm_system.ok("vzctl", "start", 101)
    assert warm_system.ok("vzctl", "exec", 101, "-", stdin=b"echo hello\n") == "hello\n"
    warm_system.fails(32, "vzctl", "start", 101)
    warm_system.ok("vzctl", "stop", 101)


def test_containers_outlive_the_service(warm_system):
    warm_system.create(101)
    await_service(warm_system)
    warm_system.ok("vzctl", "start", 101)
    pid = service_pid(warm_system)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await_service(warm_system, there=False)
    assert warm_system.ok("vzctl", "exec", 101, "echo alive") == "alive\n"
    assert warm_system.status(101)["running"]


def test_a_command_under_way_survives_the_death_of_the_service(warm_system):
    warm_system.create(101)
    await_service(warm_system)
    warm_system.ok("vzctl", "start", 101)
    process = warm_system.popen("vzctl", "exec2", 101, "sleep 2; echo done; exit 5",
                                stdout=subprocess.PIPE)  # fmt: skip
    time.sleep(0.5)
    pid = service_pid(warm_system)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == (b"done\n", 5)


def test_an_exec_ends_when_its_stub_is_killed(warm_system):
    warm_system.create(101)
    await_service(warm_system)
    warm_system.ok("vzctl", "start", 101)
    process = warm_system.popen("vzctl", "exec2", 101, "exec sleep 4321", stdout=subprocess.DEVNULL)
    time.sleep(0.7)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if "4321" not in warm_system.ok("vzctl", "exec", 101, "ps"):
            return
        time.sleep(0.1)
    raise AssertionError("the program inside goes on though its caller is gone")


def test_a_service_of_older_code_is_replaced(warm_system):
    warm_system.create(101)
    await_service(warm_system)
    first = service_pid(warm_system)
    module = Path(client.__file__)
    stat = module.stat()
    os.utime(module, ns=(stat.st_atime_ns, time.time_ns()))
    try:
        warm_system.ok("vzctl", "start", 101)
        await_service(warm_system)
        second = service_pid(warm_system)
        assert second is not None
        assert second != first
    finally:
        os.utime(module, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def name_of(pid: int) -> str:
    """Return what a process calls itself; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def named(system, name: str) -> list[int]:
    return [pid for pid in system.processes() if name_of(pid) == name]


def test_supervisors_come_from_the_nursery_and_without_it_from_the_command(warm_system):
    warm_system.create(101)
    warm_system.create(102)
    await_service(warm_system)
    (nursery,) = named(warm_system, "vz-nursery")
    warm_system.ok("vzctl", "start", 101)
    os.kill(nursery, signal.SIGKILL)
    warm_system.ok("vzctl", "start", 102)
    for ctid in (101, 102):
        assert warm_system.ok("vzctl", "exec", ctid, "echo", "yes") == "yes\n"
        warm_system.ok("vzctl", "stop", ctid, "--fast")


STANDBY = {"vzfs", "procview", "vz-act"}
"""The processes that wait with the supervisor of the next start."""


def await_standby(system) -> int:
    """Return the process that waits for the next start."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = named(system, "vz-standby")
        # It takes orders when its act, the last of its children, waits: a
        # child just forked still has the name of the one it came from.
        if len(found) == 1 and {name_of(pid) for pid in children_of(found[0])} >= STANDBY:
            return found[0]
        time.sleep(0.02)
    raise AssertionError("nothing waits for the next start")


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_next_start_is_made_ready_and_taken(warm_system):
    for ctid in (101, 102, 103):
        warm_system.create(ctid)
    await_service(warm_system)
    warm_system.ok("vzctl", "start", 101)
    ready = await_standby(warm_system)
    warm_system.ok("vzctl", "start", 102)
    assert state.load(warm_system.paths, 102).supervisor.pid == ready
    # One that only mounts needs nothing for /proc.
    ready = await_standby(warm_system)
    warm_system.ok("vzctl", "mount", 103)
    assert state.load(warm_system.paths, 103).supervisor.pid == ready
    for ctid in (101, 102):
        assert warm_system.ok("vzctl", "exec", ctid, "cat /proc/uptime /etc/hostname")
        warm_system.ok("vzctl", "stop", ctid, "--fast")
    warm_system.ok("vzctl", "umount", 103)


@pytest.mark.parametrize("victim", ["vz-standby", "vz-act", "vzfs", "procview"])
def test_a_start_that_waited_in_vain_is_not_missed(warm_system, victim):
    warm_system.create(101)
    warm_system.create(102)
    await_service(warm_system)
    warm_system.ok("vzctl", "start", 101)
    ready = await_standby(warm_system)
    waiting = children_of(ready)
    (pid,) = [pid for pid in (ready, *waiting) if name_of(pid) == victim]
    os.kill(pid, signal.SIGKILL)
    warm_system.ok("vzctl", "start", 102)
    assert warm_system.ok("vzctl", "exec", 102, "echo", "yes") == "yes\n"
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{old}").exists() for old in (ready, *waiting)):
        assert time.monotonic() < deadline, "what waited with it is still there"
        time.sleep(0.02)


def test_nothing_waits_for_a_service_that_is_gone(warm_system):
    warm_system.create(101)
    await_service(warm_system)
    warm_system.ok("vzctl", "start", 101)
    ready = await_standby(warm_system)
    waiting = (ready, *children_of(ready))
    warm_system.ok("vzctl", "stop", 101, "--fast")
    pid = service_pid(warm_system)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{old}").exists() for old in waiting):
        assert time.monotonic() < deadline, "it still waits"
        time.sleep(0.02)


def test_the_nursery_ends_with_the_service(warm_system):
    warm_system.create(101)
    await_service(warm_system)
    (nursery,) = named(warm_system, "vz-nursery")
    pid = service_pid(warm_system)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while nursery in warm_system.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert nursery not in warm_system.processes()


@pytest.mark.parametrize("name", ["net", "mnt"])
def test_a_command_in_another_namespace_is_not_the_services(warm_system, name):
    warm_system.create(101)
    await_service(warm_system)
    note = warm_system.root / "note"
    script = warm_system.paths.conf_dir / "101.premount"
    script.write_text(f"#!/bin/sh\nreadlink /proc/self/ns/{name} >{note}\n")
    script.chmod(0o755)
    flag = {"net": syscalls.CLONE_NEWNET, "mnt": syscalls.CLONE_NEWNS}[name]
    here = os.readlink(f"/proc/self/ns/{name}")
    warm_system.ok("vzctl", "mount", 101)
    assert note.read_text().strip() == here
    warm_system.ok("vzctl", "umount", 101)
    elsewhere = warm_system.popen(
        "vzctl", "mount", 101, preexec_fn=lambda: syscalls.unshare(flag), stdout=subprocess.DEVNULL
    )
    assert elsewhere.wait(30) == 0
    assert note.read_text().strip() != here
    warm_system.ok("vzctl", "umount", 101)
