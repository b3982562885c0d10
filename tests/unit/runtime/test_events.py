"""Events are read as they were written."""

import threading
import time

from runtime import events
from runtime.paths import Paths


def test_events_come_back_in_order(tmp_path):
    paths = Paths(tmp_path)
    paths.run.mkdir(parents=True)
    events.emit(paths, 101, "started", pid=7)
    events.emit(paths, "vm1", "stopped")
    first, second = events.read(paths)
    assert (first.ident, first.what, first.facts) == ("101", "started", {"pid": 7})
    assert second.line().endswith(" vm1 stopped")


def test_a_place_that_cannot_be_written_disturbs_nobody(tmp_path):
    events.emit(Paths(tmp_path / "nowhere"), 101, "started")


def test_a_damaged_line_is_passed_over(tmp_path):
    paths = Paths(tmp_path)
    paths.run.mkdir(parents=True)
    events.file(paths).write_text('{"time_s": 1\n')
    events.emit(paths, 101, "started")
    assert [event.what for event in events.read(paths)] == ["started"]


def test_following_sees_only_what_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "_POLL_S", 0.005)
    paths = Paths(tmp_path)
    paths.run.mkdir(parents=True)
    events.emit(paths, 101, "old")
    seen = []
    stream = events.read(paths, follow=True)
    reader = threading.Thread(target=lambda: seen.append(next(stream).what), daemon=True)
    reader.start()
    deadline = time.monotonic() + 5
    while reader.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
        events.emit(paths, 101, "new")
    assert seen == ["new"]
