"""Containers on other hosts than this: the portable transport, and kernels that shift no ids."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from runtime import devices, mounts, syscalls
from runtime.paths import Paths
from tests.system.conftest import BIN, System

pytestmark = pytest.mark.root


@pytest.mark.parametrize("transport", ["kernel", "pyfuse3"])
@pytest.mark.parametrize("ids", ["mount", "server"])
def test_ids_are_the_containers_own_whatever_shifts_them(system, transport, ids):
    system.create(101)
    with system.paths.ct_conf(101).open("a") as conf:
        conf.write(f'VZFS_TRANSPORT="{transport}"\nVZFS_IDS="{ids}"\n')
    system.ok("vzctl", "start", 101)
    script = (
        "stat -c %u:%g / /etc/passwd; echo x > /new; chown 33:34 /new; stat -c %u:%g /new;"
        " mkdir /pub; chmod 1777 /pub; ls -ldn /pub; id -u"
    )
    out = system.ok("vzctl", "exec", 101, script).splitlines()
    assert out[:3] == ["0:0", "0:0", "33:34"]
    assert out[3].startswith("drwxrwxrwt") and out[4] == "0"
    on_disk = (system.paths.private(101) / "root/new").stat()
    assert (on_disk.st_uid, on_disk.st_gid) == (33, 34)
    pid = json.loads(system.paths.ct_state(101).read_text())["init"]["pid"]
    with open(f"/proc/{pid}/status") as status:
        uid = next(line.split()[1] for line in status if line.startswith("Uid:"))
    assert int(uid) >= 524288
    page = system.ok("pctl", "list", "-i", 101)
    assert f"Transport: {transport}" in page
    system.ok("vzctl", "restart", 101)
    assert system.ok("vzctl", "exec", 101, "stat -c %u:%g /new; cat /new").split() == ["33:34", "x"]


def test_a_container_starts_where_all_mounts_are_shared_and_none_comes_out(system: System) -> None:
    """As systemd leaves them: a copy of a shared mount is its peer unless told otherwise."""
    system.create(101)
    script = (
        "mount --make-rshared / && vzctl start 101 && vzctl exec 101 'mount -t tmpfs none /mnt'"
        " && cut -d' ' -f5 /proc/self/mountinfo; vzctl stop 101 --fast"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        env={"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "VZ_ROOT": str(system.root)}
        | {"VZ_SERVICE": "no"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    tree = str(system.paths.ct_root(101))
    points = done.stdout.splitlines()
    assert tree in points
    assert [point for point in points if point.startswith(f"{tree}/")] == []


def test_a_device_node_is_made_where_only_attached_mounts_can_be_cloned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Linux 6.15: cloning what is attached nowhere is EINVAL."""
    clone = mounts.clone

    def refuse_detached(path: str, **options: int) -> int:
        if options.get("dir_fd", syscalls.AT_FDCWD) != syscalls.AT_FDCWD:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return clone(path, **options)

    monkeypatch.setattr(mounts, "clone", refuse_detached)
    paths = Paths(tmp_path)
    node = devices.Node("null", 1, 3, "c", 0o640)
    with mounts.closing(devices.made(paths, 101, node, 5000)) as fd:
        found = os.fstat(fd)
        assert (found.st_uid, os.major(found.st_rdev), os.minor(found.st_rdev)) == (5000, 1, 3)
        with open(f"/proc/self/fd/{fd}", "wb") as device:
            device.write(b"nowhere")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert list((paths.run / "ct").iterdir()) == []
