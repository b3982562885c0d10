"""What a container sees of itself, and what the server sees of its containers."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


@pytest.fixture
def container(system):
    """A running container with 128 MiB of RAM and one processor."""
    system.create(101, "busybox", "--config", "basic", "--name", "web1")
    system.ok("vzctl", "set", 101, "--ram", "128M", "--swap", "0", "--cpus", "1", "--save")
    system.ok("vzctl", "start", 101)
    return 101


def inside(system, ctid, command):
    return system.ok("vzctl", "exec", ctid, command)


def meminfo(system, ctid):
    return {
        line.partition(":")[0]: int(line.split()[1])
        for line in inside(system, ctid, "cat /proc/meminfo").splitlines()
    }


def servers(system):
    """Return the processes that serve views."""
    found = []
    for pid in system.processes():
        with suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/comm").read_text().startswith("procview"):
                found.append(pid)
    return found


def test_memory_shown_is_the_limit_and_what_is_used(system, container):
    before = meminfo(system, container)
    assert before["MemTotal"] == 128 * 1024
    inside(system, container, "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null")
    after = meminfo(system, container)
    assert before["MemFree"] - after["MemFree"] == pytest.approx(40 * 1024, rel=0.1)
    assert after["Shmem"] == pytest.approx(40 * 1024, rel=0.02)
    system.ok("vzctl", "set", container, "--ram", "256M", "--save")
    assert meminfo(system, container)["MemTotal"] == 256 * 1024


def test_every_way_to_read_gives_the_whole_file(system, container):
    for name in ("meminfo", "cpuinfo", "stat"):
        sizes = inside(
            system,
            container,
            f"cat /proc/{name} | wc -l; dd if=/proc/{name} bs=7 2>/dev/null | wc -l; "
            f"cp /proc/{name} /tmp/x; wc -l < /tmp/x; while read l; do echo; done < /proc/{name} | wc -l",
        ).split()
        assert len(set(sizes)) == 1 and int(sizes[0]) > 5, (name, sizes)


def test_processor_time_and_uptime_are_its_own(system, container):
    up, idle = map(float, inside(system, container, "cat /proc/uptime").split())
    assert 0 <= up < 30 and idle <= up + 0.1
    inside(system, container, "while :; do :; done </dev/null >/dev/null 2>&1 &")
    command = "cat /proc/uptime; head -1 /proc/stat"
    before = inside(system, container, command).split()
    time.sleep(2)
    after = inside(system, container, command).split()
    elapsed = 100 * (float(after[0]) - float(before[0]))
    busy = sum(int(after[n]) - int(before[n]) for n in (3, 4, 5))
    idle_ticks = int(after[6]) - int(before[6])
    # Elsewhere on the server time may be taken away; what passed is all that passed.
    assert busy + idle_ticks == pytest.approx(elapsed, rel=0.1)
    assert busy > 0.2 * elapsed
    load = float(inside(system, container, "cat /proc/loadavg").split()[0])
    assert 0 < load < 3


def test_the_view_survives_the_death_of_its_server(system, container):
    assert len(servers(system)) == 1
    reader = system.popen(
        "vzctl", "exec", container,
        "for i in 1 2 3 4 5 6 7 8 9 10; do cat /proc/uptime || exit 1; sleep 0.1; done",
        stdout=-1,
    )  # fmt: skip
    for _ in range(3):
        time.sleep(0.2)
        for pid in servers(system):
            os.kill(pid, signal.SIGKILL)
    out, _ = reader.communicate(timeout=30)
    assert reader.returncode == 0
    assert len(out.split()) == 20
    assert meminfo(system, container)["MemTotal"] == 128 * 1024


def test_nothing_inside_can_write_to_or_hide_behind_the_view(system, container):
    assert system.run("vzctl", "exec2", container, "echo 1 > /proc/meminfo").returncode != 0
    assert system.run("vzctl", "exec2", container, "rm /proc/meminfo").returncode != 0
    # Whoever takes it away sees the server's numbers and nothing more of the server.
    system.run("vzctl", "exec2", container, "umount /proc/meminfo")
    assert inside(system, container, "echo alive") == "alive\n"


def test_monitors_show_the_container_and_its_processes(system, container):
    inside(system, container, "while :; do :; done </dev/null >/dev/null 2>&1 &")
    found = json.loads(system.ok("pstat", "-j"))
    row = found["guests"][0]
    assert (found["containers"], row["ctid"], row["ram_limit_bytes"]) == (1, 101, 128 << 20)
    assert row["cpu_percent"] > 20
    plain = system.ok("pstat", "-l", "-p", "web1").splitlines()
    assert plain[8].split()[0] == "CTID" and plain[9].split()[:2] == ["101", "OK"]
    assert system.ok("pstat", "-l", "-t").splitlines()[1].startswith("101 ")
    assert "IOPRIO" in system.ok("pstat", "-l", "-a")
    system.fails(1, "pstat", "-l", "-p", "nobody")
    listed = system.ok("vzps", "-E", "web1").splitlines()
    assert listed[0].split() == ["CTID", "PID", "TTY", "TIME", "CMD"]
    assert {line.split()[0] for line in listed[1:]} == {"101"}
    host_pids = {int(line.split()[1]) for line in listed[1:]}
    everything = [line.split() for line in system.ok("vzps", "-e").splitlines()[1:]]
    assert host_pids == {int(words[1]) for words in everything if words[0] == "101"}
    top = system.ok("vztop", "-b", "-n", "1", "-E", "101").splitlines()
    assert top[1].startswith("Tasks: ") and top[6].split()[:2] == ["CTID", "PID"]
    assert top[7].split()[0] == "101"


def test_counted_resources_and_checks_are_those_of_the_running_container(system, container):
    inside(system, container, "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null")
    rows = json.loads(system.ok("vzubc", "-j", container))[0]["resources"]
    held = {row["resource"]: row for row in rows}
    assert held["shmpages"]["held"] == pytest.approx(20 * 256, rel=0.02)
    assert held["physpages"]["limit"] == 32768
    assert held["physpages"]["maxheld"] >= held["physpages"]["held"] > 20 * 256
    assert held["numproc"]["held"] >= 1
    out = system.ok("vzmemcheck", "-A", "-v").splitlines()
    values = out[3].split()
    assert values[0] == "101"
    assert float(values[3]) == pytest.approx(20, abs=6)  # RAM in use, MiB
    assert float(values[5]) == 128  # promised
    assert system.ok("vzcalc", "-v", "web1").splitlines()[7].split()[1] != "n/a"
    assert "Current CPU utilization: 2000" in system.ok("vzcpucheck")


def test_metrics_are_served_when_asked_for(system, container):
    server = system.popen("vzmetrics", "--listen", "127.0.0.1:39410", stdout=-1)
    try:
        url = server.stdout.readline().decode().strip()
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        assert 'pyvz_memory_limit_bytes{type="ct",ctid="101",name="web1"} 134217728' in text
    finally:
        server.terminate()
        server.wait()


def test_a_device_is_given_and_taken_live(system, container):
    system.ok("vzctl", "set", container, "--devnodes", "kmsg:r", "--save")
    assert inside(system, container, "test -c /dev/kmsg && echo there") == "there\n"
    system.ok("vzctl", "set", container, "--devnodes", "kmsg:none", "--save")
    assert system.run("vzctl", "exec2", container, "test -e /dev/kmsg").returncode == 1
    system.fails(86, "vzctl", "set", container, "--devnodes", "no-such-node:r", "--save")
    assert "no-such-node" not in system.paths.ct_conf(container).read_text()


def test_a_node_is_the_containers_roots_whoever_may_open_the_servers(system, container):
    facts = os.stat("/dev/fuse")
    system.ok("vzctl", "set", container, "--devnodes", "fuse:rw")
    mode = f"{stat.S_IMODE(facts.st_mode) & 0o666:o}"
    assert inside(system, container, "stat -c '%a %u' /dev/fuse").split() == [mode, "0"]
    assert inside(system, container, "exec 3<>/dev/fuse && echo open") == "open\n"
    system.ok("vzctl", "set", container, "--devnodes", "fuse:none")
    assert system.run("vzctl", "exec2", container, "test -e /dev/fuse").returncode == 1
    number = f"c:{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
    system.ok("vzctl", "set", container, "--devices", f"{number}:r")
    assert inside(system, container, "exec 3</dev/fuse && echo open") == "open\n"
    assert system.run("vzctl", "exec2", container, "exec 3<>/dev/fuse").returncode != 0
    system.ok("vzctl", "set", container, "--devices", f"{number}:none")


def test_what_is_in_force_and_what_is_stored_go_on_apart(system, container):
    conf = system.paths.ct_conf(container)
    before = conf.read_text()
    system.ok("vzctl", "set", container, "--devnodes", "fuse:rw")
    assert conf.read_text() == before
    system.ok("vzctl", "set", container, "--devnodes", "kmsg:r", "--save")
    assert 'DEVNODES="kmsg:r"' in conf.read_text()
    assert inside(system, container, "ls -d /dev/fuse /dev/kmsg").split() == [
        "/dev/fuse",
        "/dev/kmsg",
    ]
    system.ok("vzctl", "set", container, "--devnodes", "kmsg:none")
    assert system.run("vzctl", "exec2", container, "test -e /dev/kmsg").returncode == 1
    assert 'DEVNODES="kmsg:r"' in conf.read_text()
    system.ok("vzctl", "restart", container)
    assert system.run("vzctl", "exec2", container, "test -e /dev/fuse").returncode == 1
    assert inside(system, container, "ls -d /dev/kmsg") == "/dev/kmsg\n"
    system.ok("vzctl", "set", container, "--devnodes", "kmsg:none", "--save")
    assert "DEVNODES" not in conf.read_text()
    assert system.run("vzctl", "exec2", container, "test -e /dev/kmsg").returncode == 1


def test_statistics_count_what_a_container_does(system, container):
    def read(*words):
        return json.loads(system.ok("pctl", "statistics", *words, "-j"))

    before = read(container)["web1"]
    assert before["guest.ram.total"] == 128 * 1024
    assert before["guest.cpu.usage"] <= 10
    inside(system, container, "dd if=/dev/zero of=/file bs=1M count=20 2>/dev/null")
    load = system.popen("vzctl", "exec", container, "while :; do :; done")
    try:
        time.sleep(0.5)
        after = read("-a")["web1"]
    finally:
        inside(system, container, "pkill -f 'while :' || true")
        load.kill()
        load.wait()
    assert after["guest.cpu.time"] > before["guest.cpu.time"] + 200_000_000
    assert 40 <= after["guest.cpu.usage"] <= 110, "one processor is all it has"
    used_kib = before["guest.fs0.free"] - after["guest.fs0.free"]
    assert 20 * 1024 <= used_kib <= 20 * 1024 + 64
    only = system.ok("pctl", "statistics", "web1", "--filter", "guest.ram.*").split()
    assert only and all(word.startswith("guest.ram.") for word in only[::2])
    system.fails(14, "pctl", "statistics", "nobody")
    system.fails(20, "pctl", "statistics")
    system.ok("vzctl", "stop", container, "--fast")
    system.fails(31, "pctl", "statistics", container)
