"""Limits against real loads: what a container gets is measured, never what was written down."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

_WRITE = "dd if=/dev/zero of=/root/x bs=1M"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def pids(system, ctid):
    """Return the host's ids of a container's processes, read from the kernel's cgroups."""
    return [
        int(word)
        for group in system.cgroups()
        if str(ctid) in group.parts and "memory" not in group.parts
        for word in (group / "cgroup.procs").read_text().split()
    ]


def cpu_seconds(system, ctid):
    """Return the processor time of the processes of a container, as proc_pid_stat(5) counts."""
    total = 0
    for pid in set(pids(system, ctid)):
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        total += int(words[11]) + int(words[12])
    return total * _TICK_S


def seconds_inside(system, ctid, command):
    """Return how long a command runs in a container, in seconds, without what entering it takes."""
    uptime = "cat /proc/uptime >&2"
    done = system.run("vzctl", "exec", ctid, f"{uptime}; ({command}) 2>/dev/null; {uptime}")
    before, after = (float(line.split()[0]) for line in done.stderr.splitlines())
    return after - before


def load(system, ctid, count=1):
    """Start busy loops inside; they end with the container."""
    for _ in range(count):
        system.ok("vzctl", "exec", ctid, "while :; do :; done </dev/null >/dev/null 2>&1 &")


def rate(system, ctid, seconds=1.5):
    """Return how many processors' worth of time a container used in that time."""
    before, began = cpu_seconds(system, ctid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(system, ctid) - before) / (time.monotonic() - began)


def most_used(system, ctid, expected, tries=6):
    """Return the highest rate seen until ``expected`` was reached, within 5 %.

    Other work on the server can only take time away, for a while; a limit is never exceeded. The
    kernel refills a quota every tenth of a second: three seconds hold one of them more at most.
    """
    best = 0.0
    for _ in range(tries):
        best = max(best, rate(system, ctid, seconds=3.0))
        if best >= expected * 0.95:
            break
    return best


def shares(system, *ctids, together_s=3.0, at_most_s=120.0):
    """Return the CPU time of each container while all of them got ``together_s`` together.

    It ends by the time they used, read from their cgroups, not by the clock: on a busy server it
    takes longer, and each has had as many turns as on an idle one.
    """
    from runtime.figures import Figures

    def used():
        return [Figures(system.paths.tag, ctid).cpu().total_ns / 1e9 for ctid in ctids]

    before, deadline = used(), time.monotonic() + at_most_s
    while True:
        time.sleep(0.2)
        spent = [now - then for now, then in zip(used(), before, strict=True)]
        if sum(spent) >= together_s:
            return spent
        assert time.monotonic() < deadline, f"no processor time for containers: {spent}"


@pytest.fixture
def container(system):
    """A running container without limits."""
    system.create(101, "busybox", "--config", "basic")
    system.ok("vzctl", "start", 101)
    return 101


def test_half_a_core_is_half_a_core_and_live(system, container):
    load(system, container)
    # Weighty enough that other work on the server takes nothing away: the limit alone decides.
    system.ok("vzctl", "set", container, "--cpuunits", 500000, "--cpulimit", 50, "--save")
    assert most_used(system, container, 0.5) == pytest.approx(0.5, rel=0.05)
    system.ok("vzctl", "set", container, "--cpulimit", 25, "--save")
    assert most_used(system, container, 0.25) == pytest.approx(0.25, rel=0.05)


@pytest.mark.systemd
def test_limits_hold_though_systemd_turns_controllers_off(system):
    reload = ["systemctl", "daemon-reload"]
    subprocess.run(reload, check=True)
    system.create(101, "busybox", "--config", "basic")
    system.ok("vzctl", "set", 101, "--cpulimit", "50", "--save")
    system.ok("vzctl", "start", 101)
    subprocess.run(reload, check=True)
    load(system, 101)
    assert rate(system, 101) == pytest.approx(0.5, rel=0.2)
    system.ok("vzctl", "set", 101, "--cpumask", "0", "--iopslimit", "1000", "--cpulimit", "25")
    subprocess.run(reload, check=True)
    assert rate(system, 101) == pytest.approx(0.25, rel=0.2)


def test_a_limit_in_megahertz_is_a_part_of_the_processor(system, container):
    from runtime.resources import cpu_mhz

    load(system, container)
    megahertz = f"{round(cpu_mhz() * 0.3)}m"
    system.ok("vzctl", "set", container, "--cpuunits", 500000, "--cpulimit", megahertz, "--save")
    assert "CPULIMIT_MHZ=" in system.paths.ct_conf(container).read_text()
    assert most_used(system, container, 0.3) == pytest.approx(0.3, rel=0.05)


def test_weights_of_one_to_three_share_a_processor_one_to_three(system):
    last = os.cpu_count() - 1
    for ctid, units in ((101, 1000), (102, 3000)):
        system.create(ctid, "busybox", "--config", "basic")
        system.ok("vzctl", "set", ctid, "--cpuunits", units, "--cpumask", last, "--save")
        system.ok("vzctl", "start", ctid)
        load(system, ctid)
    light, heavy = shares(system, 101, 102)
    assert heavy / light == pytest.approx(3, rel=0.1)


def test_all_containers_together_weigh_what_each_of_them_does(system):
    """Three loops of ours on one processor against one of the server's: three quarters are ours."""
    last = os.cpu_count() - 1
    for ctid in (101, 102, 103):
        system.create(ctid, "busybox", "--config", "basic")
        system.ok("vzctl", "set", ctid, "--cpumask", last, "--save")
        system.ok("vzctl", "start", ctid)
        load(system, ctid)
    rival = os.fork()
    if rival == 0:
        os.sched_setaffinity(0, {last})
        while True:
            pass
    try:
        ticks = Path(f"/proc/{rival}/stat").read_text
        before = sum(cpu_seconds(system, ctid) for ctid in (101, 102, 103))
        began = sum(map(int, ticks().rpartition(")")[2].split()[11:13])) * _TICK_S
        time.sleep(4)
        ours = sum(cpu_seconds(system, ctid) for ctid in (101, 102, 103)) - before
        theirs = sum(map(int, ticks().rpartition(")")[2].split()[11:13])) * _TICK_S - began
    finally:
        os.kill(rival, 9)
        os.waitpid(rival, 0)
    assert ours / theirs == pytest.approx(3, rel=0.15)


def test_cpus_is_the_number_seen_inside_and_the_most_used(system, container):
    system.ok("vzctl", "set", container, "--cpus", 1, "--save")
    assert system.ok("vzctl", "exec", container, "nproc") == "1\n"
    assert system.ok("vzctl", "exec", container, "grep -c ^processor /proc/cpuinfo") == "1\n"
    load(system, container, 2)
    assert max(rate(system, container) for _ in range(2)) < 1.05
    if os.cpu_count() > 1:
        system.ok("vzctl", "set", container, "--cpus", 0, "--save")
        assert system.ok("vzctl", "exec", container, "nproc") == f"{os.cpu_count()}\n"


def test_out_of_memory_kills_inside_only_and_is_counted(system, container):
    system.create(102, "busybox", "--config", "basic")
    system.ok("vzctl", "start", 102)
    system.ok("vzctl", "set", container, "--ram", "48M", "--swap", "0", "--save")
    done = system.run("vzctl", "exec2", container, "tail /dev/zero")
    assert done.returncode == 137
    assert system.status(container)["running"]
    assert system.ok("vzctl", "exec", container, "echo alive") == "alive\n"
    assert system.ok("vzctl", "exec", 102, "echo alive") == "alive\n"
    from runtime.figures import Figures

    assert Figures(system.paths.tag, container).memory().oom_kills >= 1
    assert Figures(system.paths.tag, 102).memory().oom_kills == 0


def test_ram_below_what_is_used_is_refused_and_nothing_changes(system, container):
    system.ok(
        "vzctl", "exec", container,
        "(dd if=/dev/zero bs=60M count=1 2>/dev/null | sleep 60) </dev/null >/dev/null 2>&1 &",
    )  # fmt: skip
    system.ok("vzctl", "exec", container, "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>&1")
    before = system.paths.ct_conf(container).read_text()
    message = system.fails(1, "vzctl", "set", container, "--ram", "32M", "--swap", "0", "--save")
    assert "uses" in message
    assert system.paths.ct_conf(container).read_text() == before
    assert "536870912" not in message
    assert "MemTotal:         524288 kB" in system.ok(
        "vzctl", "exec", container, "cat /proc/meminfo"
    )


def test_more_ram_than_the_server_has_is_warned_of(system, container):
    done = system.run("vzctl", "set", container, "--ram", "4T", "--save")
    assert done.returncode == 0
    assert "more than the" in done.stderr
    assert "MemTotal:" in system.ok("vzctl", "exec", container, "head -1 /proc/meminfo")


def test_a_cpu_limit_above_the_server_is_warned_of(system, container):
    limit = (os.cpu_count() + 1) * 100
    done = system.run("vzctl", "set", container, "--cpulimit", limit, "--save")
    assert done.returncode == 0
    assert f"{limit}% is more than the {os.cpu_count() * 100}% of this server" in done.stderr


def test_the_limit_of_shared_memory_follows_live(system, container):
    system.ok("vzctl", "set", container, "--shmpages", "20000", "--save")
    assert system.ok("vzctl", "exec", container, "cat /proc/sys/kernel/shmall") == "20000\n"
    system.ok("vzctl", "set", container, "--applyconfig", "vps.512MB", "--save")
    assert system.ok("vzctl", "exec", container, "cat /proc/sys/kernel/shmall") == "43008\n"


def test_a_list_shows_what_is_in_force_until_the_container_ends(system, container):
    def shown():
        return system.ok("vzlist", "-a", "-H", "-o", "cpuunits,physpages.l", container).split()

    stored = shown()
    system.ok("vzctl", "set", container, "--cpuunits", 2000, "--ram", "256M")
    assert shown() == ["2000", "65536"]
    system.ok("vzctl", "stop", container, "--fast")
    assert shown() == stored


def test_numproc_refuses_the_fork_beyond_it(system, container):
    system.ok("vzctl", "set", container, "--numproc", "12", "--save")
    out = system.run(
        "vzctl", "exec", container,
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 30 >/dev/null 2>&1 & done",
    )  # fmt: skip
    assert "fork" in out.stderr
    running = len(set(pids(system, container)))
    assert running <= 12
    assert system.ok("vzlist", "-H", "-o", "numproc.f", container).strip() != "0"


def test_an_io_limit_holds_for_direct_and_for_synced_writes(system, container):
    from runtime.resources import block_device
    from vzfs.server import offers_passthrough

    if block_device(system.paths.private(container)) is None:
        pytest.skip("the private area is on no block device; put TMPDIR on a disk")
    # An emulated processor cannot pass more than two megabytes a second through the file server.
    limit = 4 if offers_passthrough() else 1
    write = f"{_WRITE} count={4 * limit} conv=fsync"
    system.ok("vzctl", "set", container, "--iolimit", f"{limit}M", "--save")
    rates = [4 * limit / seconds_inside(system, container, write) for _ in range(3)]
    # Other work on the disk only takes away: the most that was seen is the limit.
    assert max(rates) == pytest.approx(limit, rel=0.1)
    system.ok("vzctl", "set", container, "--iolimit", "0", "--save")
    assert seconds_inside(system, container, write) < 3


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("cpuunits", "7", 21),
        ("cpulimit", "x", 21),
        ("cpumask", "4000", 146),
        ("nodemask", "63", 149),
        ("ram", "0", 21),
        ("numproc", "9:8", 21),
        ("ioprio", "8", 21),
        ("iolimit", "3G", 21),
        ("meminfo", "pages", 21),
        ("capability", "fly:on", 21),
        ("devices", "c:1", 21),
    ],
)
def test_an_invalid_limit_changes_nothing(shared_system, option, value, code):
    if not shared_system.paths.ct_conf(150).exists():
        shared_system.create(150, "busybox", "--config", "basic")
    before = shared_system.paths.ct_conf(150).read_bytes()
    shared_system.fails(code, "vzctl", "set", 150, f"--{option}", value, "--cpus", "1", "--save")
    assert shared_system.paths.ct_conf(150).read_bytes() == before


def test_limits_of_the_configuration_hold_from_the_first_process_on(system):
    system.create(101, "busybox", "--config", "basic")
    system.ok(
        "vzctl", "set", 101, "--ram", "64M", "--swap", "0", "--numproc", "20", "--cpulimit", "40",
        "--cpuunits", "500000",
        "--lockedpages", "16", "--numfile", "100", "--save",
    )  # fmt: skip
    system.ok("vzctl", "start", 101)
    limits = system.ok("vzctl", "exec", 101, "cat /proc/1/limits")
    assert limits.split("Max locked memory")[1].split()[:2] == ["65536", "65536"]
    assert limits.split("Max open files")[1].split()[:2] == ["100", "100"]
    assert system.ok("vzctl", "exec", 101, "ulimit -Hn; ulimit -n; ulimit -Hl").split() == [
        "100",
        "100",
        "64",
    ]
    assert "MemTotal:          65536 kB" in system.ok("vzctl", "exec", 101, "cat /proc/meminfo")
    load(system, 101)
    assert max(rate(system, 101) for _ in range(3)) == pytest.approx(0.4, rel=0.05)


def test_the_pctl_unit_of_an_io_limit_is_megabytes(system, container):
    system.ok("pctl", "set", container, "--iolimit", "10", "--save")
    assert 'IOLIMIT="10485760"' in system.paths.ct_conf(container).read_text()
    assert system.ok("vzlist", "-H", "-o", "iolimit", container).strip() == "10485760"
