"""Locks name their holder, states know dead processes, intentions survive a crash."""

import os
import signal
import time

import pytest

from runtime import journal, locks, state
from runtime.errors import Locked
from runtime.paths import Paths


@pytest.fixture
def paths(tmp_path):
    return Paths(tmp_path)


def hold_in_child(paths):
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locks.environment(paths, 101, "start"):
            os.write(tell, b".")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return pid


def test_a_second_command_is_told_who_holds_the_lock(paths):
    child = hold_in_child(paths)
    try:
        with pytest.raises(Locked, match=rf"process {child} \(start\)"):
            with locks.environment(paths, 101, "stop"):
                pass
        assert locks.holder(paths, 101) == f"process {child} (start)"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with locks.environment(paths, 101, "stop"):
        pass
    assert locks.holder(paths, 101) is None


def test_different_containers_are_locked_apart(paths):
    with locks.environment(paths, 101, "start"), locks.environment(paths, 102, "start"):
        pass


def test_a_state_comes_back_as_it_was_saved(paths):
    me = state.Process.of(os.getpid())
    saved = state.RunState(101, state.Phase.RUNNING, supervisor=me, init=me, extra={"a": 1})
    saved.save(paths)
    assert state.load(paths, 101) == saved
    assert state.present(paths) == [101]
    state.forget(paths, 101)
    assert state.load(paths, 101) is None


def test_a_state_of_an_earlier_boot_is_none(paths):
    state.RunState(101, state.Phase.RUNNING, boot="another").save(paths)
    assert state.load(paths, 101) is None


def test_a_half_written_state_is_none(paths):
    paths.ct_state(101).parent.mkdir(parents=True)
    paths.ct_state(101).write_text('{"ctid": 1')
    assert state.load(paths, 101) is None


def test_a_zombie_is_not_alive():
    child = os.fork()
    if child == 0:
        os._exit(0)
    deadline = time.monotonic() + 5
    while state.start_ticks(child) is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert state.start_ticks(child) is None
    os.waitpid(child, 0)


def test_an_intention_outlives_its_process(paths):
    child = os.fork()
    if child == 0:
        with journal.intention(paths, 101, "create", private="/p"):
            os._exit(0)
    os.waitpid(child, 0)
    (entry,) = journal.pending(paths, 101)
    assert (entry.act, entry.details) == ("create", {"private": "/p"})
    entry.clear()
    assert journal.pending(paths, 101) == []


def test_an_intention_is_cleared_by_success_and_by_an_exception(paths):
    with pytest.raises(RuntimeError), journal.intention(paths, 101, "create"):
        raise RuntimeError
    assert journal.pending(paths, 101) == []


def test_intentions_of_other_containers_are_not_mixed_in(paths):
    journal.record(paths, 1011, "create")
    assert journal.pending(paths, 101) == []
