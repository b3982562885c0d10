"""Containers on other hosts than this: the portable transport, and kernels that shift no ids."""

from __future__ import annotations

import json

import pytest

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
