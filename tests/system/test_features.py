"""Features do what they say, or are refused with another way."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.root

MOUNT_PROC = "unshare -Urmpf sh -c 'mount -t proc proc /mnt && test -d /mnt/1 && echo mounted'"


def test_features_are_switches_or_refused(system):
    system.create(101)
    conf = system.paths.ct_conf(101)
    before = conf.read_text()
    for code, word in ((5, "nfs:on"), (5, "nfsd:on"), (21, "sysfs:off"), (21, "teleport:on")):
        system.fails(code, "vzctl", "set", 101, "--features", word, "--save")
    assert conf.read_text() == before
    conf.write_text(before + 'FEATURES="nfs:on bridge:on"\n')
    done = system.run("vzctl", "start", 101)
    assert (done.returncode, "warning: feature nfs: " in done.stderr) == (0, True), done.stderr
    assert system.run("vzctl", "exec2", 101, MOUNT_PROC).returncode != 0
    assert system.run("vzctl", "exec2", 101, "test -e /dev/vz").returncode == 1
    system.ok(
        "vzctl", "set", 101, "--features", "nesting:on,host-id:on,nfs:off",
        "--setmode", "restart", "--save",
    )  # fmt: skip
    assert system.ok("vzctl", "exec", 101, MOUNT_PROC) == "mounted\n"
    shown = system.ok("vzctl", "exec", 101, "cat /dev/vz/server-id")
    assert shown == (system.paths.etc / "server-id").read_text()
    assert system.run("vzctl", "exec2", 101, "echo x > /dev/vz/server-id").returncode == 1


def test_a_privileged_container_has_the_servers_ids_and_little_else_of_it(system):
    system.create(101)
    system.ok("vzctl", "set", 101, "--features", "privileged:on", "--save")
    started = system.run("vzctl", "start", 101)
    assert started.returncode == 0, started.stderr
    assert "warning: feature privileged: no user namespace" in started.stderr

    def inside(command: str) -> str:
        return system.ok("vzctl", "exec", 101, command)

    assert inside("cat /proc/self/uid_map /proc/1/uid_map").split() == ["0", "0", "4294967295"] * 2
    inside("touch /root/made && chown 1234 /root/made")
    made = system.root / "vz/private/101/root/root/made"
    assert made.stat().st_uid == 1234
    # The server's own switches and devices stay out of its reach; its processes it does not see.
    for forbidden in (
        # Nothing that would harm the server if it were let through.
        'cd /proc/sys/kernel && read -r now <core_pattern && echo "$now" >core_pattern',
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo h > /proc/sysrq-trigger",
        "mknod /root/disk b 7 0 && head -c1 /root/disk",
        "adjtimex",
    ):
        assert system.run("vzctl", "exec2", 101, forbidden).returncode != 0, forbidden
    bounding = int(inside("grep CapBnd /proc/self/status").split()[1], 16)
    for capability in (2, 19, 25):  # dac_read_search, sys_ptrace, sys_time
        assert not bounding >> capability & 1
    assert inside("readlink /proc/1/exe; ls /proc/1/fd >/dev/null || echo closed").strip()
    system.ok("vzctl", "restart", 101)
    assert inside("id -u") == "0\n"
    system.ok("vzctl", "set", 101, "--features", "privileged:off", "--setmode", "restart", "--save")
    first = inside("cat /proc/self/uid_map").split()[1]
    assert int(first) >= 65536
    assert inside("stat -c %u /root/made") == "1234\n"
    system.ok("vzctl", "stop", 101)
    assert not system.strays()


def test_the_clock_takes_a_privileged_container_and_the_capability(system):
    system.create(101)
    system.ok(
        "vzctl", "set", 101, "--features", "privileged:on", "--capability", "sys_time:on", "--save"
    )
    system.ok("vzctl", "start", 101)
    # Read only: the clock is this server's.
    system.ok("vzctl", "exec2", 101, "adjtimex")
    held = int(system.ok("vzctl", "exec", 101, "grep CapEff /proc/self/status").split()[1], 16)
    assert held >> 25 & 1
    system.ok("vzctl", "set", 101, "--features", "privileged:off", "--setmode", "restart", "--save")
    assert system.run("vzctl", "exec2", 101, "adjtimex").returncode != 0
