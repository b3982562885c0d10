"""Features do what they say, or are refused with another way."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.root

MOUNT_PROC = "unshare -Urmpf sh -c 'mount -t proc proc /mnt && test -d /mnt/1 && echo mounted'"


def test_features_are_switches_or_refused(system):
    system.create(101)
    conf = system.paths.ct_conf(101)
    before = conf.read_text()
    for code, word in ((5, "nfs:on"), (5, "nfsd:on"), (21, "sysfs:off"), (21, "privileged:on")):
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
