"""Disk quota is switched on and off while a container runs, and counts what was written meanwhile."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.root

FILL = "dd if=/dev/zero of=/{} bs=1M count={} 2>/dev/null"


def usage_kib(system, ctid: int) -> int:
    return json.loads(system.ok("vzlist", "-aj", "-o", "diskspace", ctid))[0]["diskspace"]


def test_limits_bind_only_while_quota_is_on(system):
    system.create(101)
    system.ok("vzctl", "set", 101, "--diskspace", "6M:6M", "--save")
    system.ok("vzctl", "start", 101)
    assert system.run("vzctl", "exec2", 101, FILL.format("a", 8)).returncode != 0
    system.ok("vzctl", "set", 101, "--diskquota", "no", "--save")
    system.ok("vzctl", "exec", 101, FILL.format("a", 8))
    done = system.run("vzctl", "set", 101, "--diskquota", "yes", "--save")
    assert (done.returncode, done.stderr) == (0, "")
    assert system.run("vzctl", "exec2", 101, FILL.format("b", 1)).returncode != 0
    assert usage_kib(system, 101) >= 8192


def test_what_was_written_without_quota_is_counted_when_there_is_one_again(system):
    system.create(101)
    system.ok("vzctl", "set", 101, "--diskspace", "100M:100M", "--save")
    system.ok("vzctl", "start", 101)
    system.ok("vzctl", "set", 101, "--diskquota", "no", "--save")
    system.ok("vzctl", "restart", 101)
    system.ok("vzctl", "exec", 101, FILL.format("a", 8))
    done = system.run("vzctl", "set", 101, "--diskquota", "yes", "--save")
    assert (done.returncode, "after the container is restarted" in done.stderr) == (0, True)
    system.ok("vzctl", "restart", 101)
    assert usage_kib(system, 101) >= 8192
    system.ok("vzctl", "stop", 101)
    assert usage_kib(system, 101) >= 8192


def test_a_quota_file_nobody_can_read_is_named(system):
    system.create(101)
    file = system.paths.quota_file(101)
    file.mkdir(parents=True)
    system.fails(61, "vzctl", "start", 101)
    file.rmdir()
    system.ok("vzctl", "start", 101)
    # Its server goes on with the file it has.
    held = file.with_name("held")
    file.rename(held)
    file.write_bytes(b"junk" * 1000)
    system.fails(66, "vzctl", "set", 101, "--diskquota", "no", "--save")
    system.fails(62, "vzctl", "set", 101, "--diskspace", "1G", "--save")
    system.fails(65, "vzctl", "set", 101, "--quotaugidlimit", "10", "--save")
    held.rename(file)
