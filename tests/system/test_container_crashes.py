"""Whoever of ours is killed, whenever: the next command tells the truth and repairs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from runtime import state
from runtime.state import Phase, Process, RunState
from tests.system.conftest import System

pytestmark = pytest.mark.root

CT = 101


@pytest.fixture
def made(system: System) -> System:
    """A system with one stopped container."""
    system.create(CT)
    return system


def run_state(system: System) -> RunState:
    run = state.load(system.paths, CT)
    assert run is not None
    return run


def kill(process: Process | None) -> None:
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


def until(condition: object, timeout_s: float = 10.0) -> None:
    """Wait until ``condition()`` holds."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def server_lives(system: System) -> bool:
    server = run_state(system).server
    return server is not None and server.alive


def works(system: System) -> bool:
    return system.run("vzctl", "exec", CT, "echo yes; touch /written").stdout == "yes\n"


def stopped_clean(system: System) -> None:
    """The container is down and nothing of it is left."""
    told = system.status(CT)
    assert told["exists"] and not told["running"] and not told["mounted"]
    until(
        lambda: system.strays() == [] or not [s for s in system.strays() if "supervisor" not in s]
    )


@pytest.mark.parametrize("who", ["supervisor", "init", "server"])
def test_after_a_kill_the_status_is_true_and_the_container_starts_again(
    made: System, who: str
) -> None:
    made.ok("vzctl", "start", CT)
    assert works(made)
    kill(getattr(run_state(made), who))
    if who == "server":
        # Replaced at once: nobody inside notices.
        until(lambda: server_lives(made))
        assert works(made)
        made.ok("vzctl", "stop", CT, "--fast")
    elif who == "init":
        until(lambda: not made.status(CT)["running"])
        until(lambda: state.load(made.paths, CT) is None)
    else:
        told = made.status(CT)
        assert told["running"], "its processes still run: that is the truth"
        made.run("vzctl", "stop", CT, "--fast")
    stopped_clean(made)
    made.ok("vzctl", "start", CT)
    assert works(made)
    made.ok("vzctl", "stop", CT, "--fast")
    stopped_clean(made)


@pytest.mark.parametrize("words", [("vzctl", "set", CT, "--cpuunits", "500"), ("vz", "stop")])
def test_without_supervisor_and_file_server_it_does_not_run(
    made: System, words: tuple[str, ...]
) -> None:
    """Its init is but a leftover, as nobody can serve its files any more; who ends it says so."""
    made.ok("vzctl", "start", CT)
    run = run_state(made)
    kill(run.supervisor)
    kill(run.server)
    assert run.init is not None and run.init.alive
    assert not made.status(CT)["running"]
    refused = made.run("vzctl", "exec", CT, "true")
    assert refused.returncode == 31 and "died" in refused.stderr
    ended = made.run(*words)
    assert ended.returncode == 0 and "its processes are ended" in ended.stderr
    until(lambda: not run.init.alive)
    assert made.strays() == []


def test_everything_killed_at_once_is_cleaned_up_by_the_next_start(made: System) -> None:
    made.ok("vzctl", "start", CT)
    run = run_state(made)
    for process in (run.supervisor, run.server, run.init):
        kill(process)
    made.ok("vzctl", "start", CT)
    assert works(made)
    made.ok("vzctl", "stop", CT, "--fast")
    stopped_clean(made)


def test_destroy_finishes_after_everything_was_killed(made: System) -> None:
    made.ok("vzctl", "start", CT)
    run = run_state(made)
    for process in (run.supervisor, run.server):
        kill(process)
    made.run("vzctl", "stop", CT, "--fast")
    made.ok("vzctl", "destroy", CT)
    assert not made.paths.private(CT).exists()
    assert made.strays() == []


@pytest.mark.parametrize("victim", ["command", "group"])
def test_a_start_killed_at_any_moment_leaves_nothing_that_hinders(
    made: System, victim: str
) -> None:
    """``command``: only the command dies; ``group``: its supervisor and servers with it."""
    chance = random.Random(victim)
    for _round in range(8):
        process = made.popen(
            "vzctl", "start", CT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.05, 0.35))
        process.kill()
        while victim == "group" and (there := made.processes()):
            for pid in there:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()
        told = made.status(CT)
        if told["running"]:
            assert works(made)
        again = made.run("vzctl", "start", CT)
        assert again.returncode in (0, 32), again.stderr
        assert works(made)
        made.ok("vzctl", "stop", CT, "--fast")
        stopped_clean(made)


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_an_act_that_is_killed_is_cleared_by_its_supervisor(made: System, verb: str) -> None:
    """The supervisor's fork that starts or ends the container dies in the middle of it."""
    hit = 0
    for _round in range(8):
        if verb == "stop":
            made.ok("vzctl", "start", CT)
        process = made.popen(
            "vzctl", verb, CT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            run = state.load(made.paths, CT)
            if run is not None and run.worker is not None:
                with suppress(ProcessLookupError):
                    os.kill(run.worker.pid, signal.SIGKILL)
                    hit += 1
                break
            time.sleep(0.001)
        process.wait(60)
        if verb == "start" and process.returncode == 0:
            made.ok("vzctl", "stop", CT, "--fast")  # the kill came too late
        until(lambda: state.load(made.paths, CT) is None)
        stopped_clean(made)
    assert hit > 2
    made.ok("vzctl", "start", CT)
    assert works(made)
    made.ok("vzctl", "stop", CT, "--fast")


def test_a_stop_killed_at_any_moment_can_be_finished(made: System) -> None:
    chance = random.Random(7)
    for _round in range(6):
        made.ok("vzctl", "start", CT)
        process = made.popen(
            "vzctl", "stop", CT, "--fast", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.05, 0.25))
        process.kill()
        process.wait()
        made.status(CT)
        assert made.run("vzctl", "stop", CT, "--fast").returncode in (0, 31)
        stopped_clean(made)


def test_the_file_server_killed_under_load_loses_nothing(made: System) -> None:
    made.ok("vzctl", "start", CT)
    writer = made.popen(
        "vzctl", "exec", CT, "i=0; while [ $i -lt 300 ]; do echo $i > /f$i && i=$((i+1)); done",
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    for _round in range(3):
        time.sleep(0.15)
        server = run_state(made).server
        if server is not None and server.alive:
            os.kill(server.pid, signal.SIGKILL)
        until(lambda: server_lives(made))
    assert writer.wait(60) == 0, writer.stderr.read() if writer.stderr else ""
    count = made.ok("vzctl", "exec", CT, "cat /f* | wc -l").strip()
    assert count == "300"
    made.ok("vzctl", "stop", CT, "--fast")


def test_a_mounted_container_whose_keeper_died_is_unmounted_by_the_next_command(
    made: System,
) -> None:
    made.ok("vzctl", "mount", CT)
    kill(run_state(made).supervisor)
    kill(run_state(made).server)
    assert not made.status(CT)["mounted"]
    made.ok("vzctl", "mount", CT)
    assert run_state(made).phase is Phase.MOUNTED
    assert (made.paths.ct_root(CT) / "bin").exists()
    made.ok("vzctl", "umount", CT)
    stopped_clean(made)


def test_a_file_server_that_dies_during_a_start_is_replaced(system):
    system.create(101, "busybox")
    script = system.paths.conf_dir / "101.mount"
    # Who waits for the new server is the start itself: nobody else may be waiting for that.
    script.write_text(
        "#!/bin/sh\n"
        'keeper=$(ps -o ppid= -p "$PPID" | tr -d " ")\n'
        'pkill -9 -P "$keeper" -x vzfs-101 || exit 3\n'
        f"exec timeout 90 ls {system.paths.ct_root(101)}/bin/busybox\n"
    )
    script.chmod(0o755)
    system.ok("vzctl", "start", 101)
    assert system.ok("vzctl", "exec", 101, "echo served") == "served\n"
