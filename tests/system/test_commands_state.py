"""Pausing, and the refusal to suspend."""

from __future__ import annotations

import time

import pytest

pytestmark = pytest.mark.root


def test_a_paused_container_stands_still_until_it_is_resumed(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    system.ok("vzctl", "exec", 101, "(while :; do echo x >> /ticks; sleep 0.02; done) >&- 2>&- &")
    ticks = system.paths.ct_root(101) / "ticks"
    system.fails(17, "vzctl", "resume", 101)
    system.ok("pctl", "pause", 101)
    before = ticks.stat().st_size
    time.sleep(0.3)
    assert ticks.stat().st_size == before
    assert "paused" in system.fails(31, "pctl", "exec", 101, "true")
    assert "paused" in system.fails(31, "pctl", "set", 101, "--userpasswd", "root:secret")
    system.ok("pctl", "resume", 101)
    deadline = time.monotonic() + 5
    while ticks.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ticks.stat().st_size > before
    system.ok("pctl", "pause", 101)
    system.ok("vzctl", "stop", 101)


def test_suspending_is_refused_and_nothing_happens_to_the_container(system):
    system.create(101)
    system.fails(31, "vzctl", "suspend", 101)
    system.fails(31, "vzctl", "pause", 101)
    system.fails(17, "vzctl", "restore", 101)
    system.ok("vzctl", "start", 101)
    message = system.fails(16, "vzctl", "chkpnt", 101, "--dumpfile", "/tmp/x")
    assert "criu" in message and "pctl pause 101" in message
    assert system.status(101)["running"]


def test_the_servers_shutdown_stops_what_was_to_be_suspended(system):
    system.create(101)
    before = system.paths.ct_conf(101).read_text()
    system.fails(16, "vzctl", "set", 101, "--autostop", "suspend", "--save")
    assert system.paths.ct_conf(101).read_text() == before
    system.ok("vzctl", "set", 101, "--autostop", "stop", "--save")
    assert 'AUTOSTOP="stop"' in system.paths.ct_conf(101).read_text()
    system.create(102)
    system.paths.global_config.write_text('VE_STOP_MODE="suspend"\n')
    for ctid in (101, 102):
        system.ok("vzctl", "start", ctid)
    done = system.run("vz", "stop")
    assert (done.returncode, done.stderr.count("not suspended")) == (0, 1), done.stderr
    assert not system.status(101)["running"] and not system.status(102)["running"]
