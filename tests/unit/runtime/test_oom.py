"""Kills are counted from where the kernel counts them, and named by its log."""

import os

from runtime import oom
from runtime.cgroups import Hierarchies

LOG = (
    "6,1,2,-;tail invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0\n",
    (
        "6,2,3,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/pyvz/101,"
        "task_memcg=/pyvz/101/inner/a,task=ta\x1bil,pid=77,uid=1\n"
    ),
    (
        "6,3,4,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/pyvz/1011,"
        "task_memcg=/pyvz/1011,task=other,pid=78,uid=1\n"
    ),
)


def watch(tmp_path, monkeypatch):
    group = tmp_path / "pyvz/101"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n")
    found = Hierarchies({}, str(tmp_path), frozenset(["memory"]))
    monkeypatch.setattr(oom, "hierarchies", lambda: found)
    return oom.Watch("", 101), group / "memory.events"


def test_only_kills_since_the_last_look_are_told(tmp_path, monkeypatch):
    found, events = watch(tmp_path, monkeypatch)
    assert found.kills().count == 0
    events.write_text("max 90\noom 3\noom_kill 3\noom_group_kill 0\n")
    assert found.kills().count == 2
    assert found.kills().count == 0
    found.close()
    assert found.kills().count == 0
    assert found.descriptors() == []


def test_victims_are_those_of_the_container_and_their_names_are_harmless(tmp_path, monkeypatch):
    found, events = watch(tmp_path, monkeypatch)
    records, ready = os.pipe()
    os.set_blocking(records, False)
    found._log = records
    reads = iter([*(line.encode() for line in LOG)])

    def read(fd, count):
        assert fd == records
        try:
            return next(reads)
        except StopIteration:
            raise BlockingIOError from None

    monkeypatch.setattr(oom.os, "read", read)
    events.write_text("oom_kill 2\n")
    assert found.kills().victims == ("ta\\x1bil (77)",)
    found.close()
    os.close(ready)


def test_a_group_that_is_gone_is_watched_no_more(tmp_path, monkeypatch):
    found, _events = watch(tmp_path, monkeypatch)
    os.close(found._counter)
    found._counter = os.open(tmp_path, os.O_RDONLY)  # reading it fails
    assert found.kills().count == 0
    assert found._counter == -1
