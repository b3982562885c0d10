"""The file server of a container nobody uses rests; whoever does something with it does not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import state
from runtime.state import Process, RunState
from tests.system.conftest import System

pytestmark = pytest.mark.root

CT = 101


def configure(system: System, seconds: str) -> None:
    with system.paths.ct_conf(CT).open("a", encoding="utf-8") as conf:
        conf.write(f'VZFS_REST="{seconds}"\n')


@pytest.fixture
def resting(system: System) -> System:
    """A system with a container whose file server rests soon."""
    system.create(CT)
    configure(system, "0.1")
    return system


def run_state(system: System) -> RunState:
    run = state.load(system.paths, CT)
    assert run is not None
    return run


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def at_rest(system: System) -> None:
    """Wait until nobody serves the container's files."""
    # One that was just woken is noted a moment later.
    until(lambda: file_servers(system) == [] and run_state(system).server is None)


def file_servers(system: System) -> list[int]:
    """Return the file servers of the container."""
    keeper = run_state(system).supervisor
    assert keeper is not None
    listed = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text()
    children = [int(word) for word in listed.split()]
    return [p for p in children if Path(f"/proc/{p}/comm").read_text().strip() == f"vzfs-{CT}"]


def test_it_is_served_when_somebody_asks_and_rests_again(resting: System) -> None:
    resting.ok("vzctl", "start", CT)
    for round_ in range(5):
        at_rest(resting)
        assert resting.status(CT)["running"]
        assert resting.ok("vzctl", "exec", CT, f"echo {round_} >>/log; cat /log | wc -l") == (
            f"{round_ + 1}\n"
        )
    at_rest(resting)
    assert not any(
        "died" in line for line in resting.paths.log.read_text(encoding="utf-8").splitlines()
    )
    resting.ok("vzctl", "stop", CT, "--fast")
    assert resting.strays() == []


@pytest.mark.parametrize("fast", [True, False])
def test_it_is_stopped_at_rest_and_its_quota_needs_no_count(resting: System, fast: bool) -> None:
    resting.ok("vzctl", "start", CT)
    resting.ok("vzctl", "exec", CT, "dd if=/dev/zero of=/data bs=1k count=9 2>/dev/null; sync")
    before = resting.ok("vzquota", "show", CT)
    at_rest(resting)
    assert resting.ok("vzquota", "stat", CT) == before
    resting.ok("vzctl", "stop", CT, *(["--fast"] if fast else []))
    assert resting.strays() == []
    assert resting.ok("vzquota", "show", CT).split()[6:8] == before.split()[6:8]
    # Code 6: it is not on.
    resting.fails(6, "vzquota", "off", CT)
    resting.ok("vzctl", "start", CT)


def test_limits_change_at_rest(resting: System) -> None:
    resting.ok("vzctl", "start", CT)
    at_rest(resting)
    resting.ok("vzctl", "set", CT, "--diskspace", "2M:2M", "--save")
    at_rest(resting)
    told = resting.run("vzctl", "exec", CT, "dd if=/dev/zero of=/data bs=64k count=100")
    assert told.returncode != 0
    assert "quota" in told.stderr.lower()


def test_a_supervisor_killed_at_rest_takes_the_container_with_it(resting: System) -> None:
    resting.ok("vzctl", "start", CT)
    at_rest(resting)
    keeper, init = run_state(resting).supervisor, run_state(resting).init
    assert isinstance(keeper, Process) and isinstance(init, Process)
    os.kill(keeper.pid, signal.SIGKILL)
    until(lambda: not keeper.alive)
    assert not resting.status(CT)["running"]
    refused = resting.run("vzctl", "exec", CT, "true")
    assert refused.returncode == 31 and "died" in refused.stderr
    resting.ok("vzctl", "start", CT)
    assert resting.ok("vzctl", "exec", CT, "echo yes") == "yes\n"
    resting.ok("vzctl", "stop", CT, "--fast")
    assert not init.alive
    assert resting.strays() == []


def test_a_server_killed_after_a_rest_is_replaced(resting: System) -> None:
    for round_ in range(4):
        resting.ok("vzctl", "start", CT)
        at_rest(resting)
        writer = resting.popen(
            "vzctl", "exec", CT, f"for n in 1 2 3 4 5 6 7 8 9; do echo {round_}$n >>/log; done"
        )
        until(lambda: bool(file_servers(resting)))
        time.sleep(0.003 * round_)
        for pid in file_servers(resting):
            os.kill(pid, signal.SIGKILL)
        assert writer.wait(timeout=20) == 0
        lines = resting.ok("vzctl", "exec", CT, "cat /log").split()
        assert lines == [f"{before}{n}" for before in range(round_ + 1) for n in range(1, 10)]
        resting.ok("vzctl", "stop", CT, "--fast")


def test_many_ask_at_once(resting: System) -> None:
    resting.ok("vzctl", "start", CT)
    root = resting.paths.ct_root(CT)
    for _round in range(5):
        at_rest(resting)
        readers = [
            subprocess.Popen(["cat", f"{root}/etc/inittab"], stdout=subprocess.PIPE)
            for _reader in range(20)
        ]
        assert len({reader.communicate(timeout=20)[0] for reader in readers}) == 1


def test_one_that_is_only_mounted_rests_and_may_be_unmounted_by_hand(resting: System) -> None:
    resting.ok("vzctl", "mount", CT)
    root = resting.paths.ct_root(CT)
    at_rest(resting)
    assert resting.status(CT)["mounted"]
    assert (root / "bin/busybox").exists()
    at_rest(resting)
    subprocess.run(["umount", root], check=True)
    until(lambda: state.load(resting.paths, CT) is None)
    assert not resting.status(CT)["mounted"]
    resting.fails(6, "vzquota", "off", CT)
    resting.ok("vzctl", "start", CT)


def test_it_never_rests_where_that_is_not_wanted(system: System) -> None:
    system.create(CT)
    configure(system, "0")
    system.ok("vzctl", "start", CT)
    server = run_state(system).server
    time.sleep(1.0)
    assert server is not None and server.alive
    assert run_state(system).server == server


@pytest.mark.parametrize("word", ["soon", "-1", "inf", "nan"])
def test_a_wrong_word_is_refused(system: System, word: str) -> None:
    system.create(CT)
    configure(system, word)
    assert f"VZFS_REST is {word!r}" in system.fails(21, "vzctl", "start", CT)
    assert not system.status(CT)["mounted"]
