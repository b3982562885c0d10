"""Pausing, and the refusal to suspend."""

from __future__ import annotations

import json
import select
import subprocess
import time

import pytest

from runtime import state

pytestmark = pytest.mark.root


def test_a_paused_container_stands_still_until_it_is_resumed(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    system.ok("vzctl", "exec", 101, "(while :; do echo x >> /ticks; sleep 0.02; done) >&- 2>&- &")
    ticks = system.paths.ct_root(101) / "ticks"
    system.fails(17, "vzctl", "resume", 101)
    system.ok("pctl", "pause", 101)
    assert system.ok("vzctl", "status", 101) == "VEID 101 exist mounted running paused\n"
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


def test_processes_killed_for_want_of_memory_are_told_with_the_containers_name(system):
    system.create(101, "busybox", "--name", "web1")
    system.ok("vzctl", "set", 101, "--ram", "48M", "--swap", "0", "--save")
    system.ok("vzctl", "start", 101)
    follower = system.popen("pctl", "events", 101, "--follow", "--json", stdout=subprocess.PIPE)
    try:
        assert follower.stdout is not None
        deadline = time.monotonic() + 20
        seen = {}
        while seen.get("what") != "out-of-memory" and time.monotonic() < deadline:
            # Again: the follower may not have been listening yet.
            assert system.run("vzctl", "exec2", 101, "tail /dev/zero").returncode != 0
            while select.select([follower.stdout], [], [], 1.0)[0]:
                seen = json.loads(follower.stdout.readline())
    finally:
        follower.kill()
        follower.wait()
    assert (seen["what"], seen["ident"]) == ("out-of-memory", "101")
    assert (seen["facts"]["name"], seen["facts"]["killed"]) == ("web1", 1)
    if "processes" in seen["facts"]:  # where the kernel's log may be read
        assert seen["facts"]["processes"][0].startswith("tail (")
    assert "container web1 is out of memory" in system.paths.log.read_text()
    assert system.status(101)["running"]


def test_clocks_are_the_containers_own_unless_it_has_the_servers(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    with open("/proc/uptime") as file:
        host_up_s = float(file.read().split()[0])
    assert float(system.ok("vzctl", "exec", 101, "cat /proc/uptime").split()[0]) < 60
    system.ok("vzctl", "set", 101, "--features", "time:off", "--setmode", "restart", "--save")
    assert float(system.ok("vzctl", "exec", 101, "cat /proc/uptime").split()[0]) >= host_up_s
    boot = int(system.ok("vzctl", "exec", 101, "grep ^btime /proc/stat").split()[1])
    with open("/proc/stat") as file:
        own = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    assert abs(boot - own) <= 2


def test_force_stores_what_cannot_be_applied(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    before = system.paths.ct_conf(101).read_text()
    quota = system.paths.quota_file(101)
    held = quota.rename(quota.with_name("held"))
    quota.write_bytes(b"junk" * 1000)
    try:
        system.fails(62, "vzctl", "set", 101, "--diskspace", "1G", "--cpuunits", "500", "--save")
        assert system.paths.ct_conf(101).read_text() == before
        told = system.run(
            "vzctl", "set", 101, "--diskspace", "1G", "--cpuunits", "500", "--save", "--force"
        )
        assert told.returncode == 0, told.stderr
        assert "--diskspace is stored, but not applied: " in told.stderr
    finally:
        held.rename(quota)
    conf = system.paths.ct_conf(101).read_text()
    assert 'DISKSPACE="1048576:1048576"' in conf and 'CPUUNITS="500"' in conf


def test_what_needs_a_restart_is_nothing_without_save(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    init = state.load(system.paths, 101).init
    told = system.run(
        "vzctl", "set", 101, "--capability", "net_raw:off", "--setmode", "restart"
    ).stderr
    assert "--capability would take effect" in told and "nothing was changed" in told
    assert "will be lost" not in told
    assert state.load(system.paths, 101).init == init, "a restart would have brought nothing"
    told = system.run("vzctl", "set", 101, "--userpasswd", "root:$6$salt$" + "x" * 86, "--crypted")
    assert (told.returncode, told.stderr) == (0, "")


def test_a_start_drops_the_dump_of_another_product(system):
    system.create(101)
    dump = system.paths.private(101) / "dump/Dump"
    dump.write_bytes(b"CPT")
    assert system.ok("vzctl", "status", 101) == "VEID 101 exist unmounted down suspended\n"
    assert "starts the container anew" in system.fails(17, "vzctl", "resume", 101)
    done = system.run("vzctl", "start", 101)
    assert (done.returncode, "its dump is dropped" in done.stderr) == (0, True), done.stderr
    assert not dump.exists()


@pytest.mark.parametrize("noatime", ["yes", "no"])
def test_reading_leaves_access_times_alone_where_that_is_wanted(system, noatime):
    system.create(101)
    system.ok("vzctl", "set", 101, "--noatime", noatime, "--save")
    system.ok("vzctl", "start", 101)
    system.ok(
        "vzctl",
        "exec",
        101,
        "echo x > /file; touch -d 2001-01-01 /file; mv /file /moved; ln /moved /linked",
    )
    file = system.paths.private(101) / "root/moved"
    before = file.stat().st_atime_ns
    assert system.ok("vzctl", "exec", 101, "cat /linked") == "x\n"
    assert (file.stat().st_atime_ns == before) is (noatime == "yes")
