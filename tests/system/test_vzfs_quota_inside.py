"""Quotas of users and groups as those inside a container see and set them."""

from __future__ import annotations

import errno
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.quotabed import QuotaBed, fill
from tools import quotatools
from vzfs.quotalayout import USER

pytestmark = pytest.mark.root


@pytest.fixture(params=["kernel", "pyfuse3"])
def bed(request: pytest.FixtureRequest) -> Iterator[QuotaBed]:
    """Return a mounted area which accounts users, with two users and the commands in it."""
    made = QuotaBed(Path(tempfile.mkdtemp(prefix="vzfs-quota-")), request.param)
    made.top.chmod(0o755)
    top = made.mount(sub_quotas=1, ugid_limit=20)
    (top / "etc").mkdir()
    users = "root:x:0:0::/:/bin/sh\njack:x:1000:1000::/:/bin/sh\njill:x:1001:1001::/:/bin/sh\n"
    (top / "etc/passwd").write_text(users)
    (top / "etc/group").write_text("root:x:0:\nstaff:x:1000:\n")
    (top / "home").mkdir()
    (top / "home").chmod(0o777)
    quotatools.install(top)
    yield made
    made.close()


def _shell(bed: QuotaBed, line: str, *, uid: int = 0) -> subprocess.CompletedProcess[str]:
    top = bed.mount_point
    environment = {
        "PATH": f"{top}/usr/local/sbin:{top}/usr/local/bin:/usr/bin:/bin",
        "VZFS_QUOTA": f"{top}/.vzfs-quota",
        "VZFS_PASSWD": f"{top}/etc/passwd",
        "VZFS_GROUP": f"{top}/etc/group",
    }
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=top,
        env=environment,
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_setquota_limits_a_user_who_then_hits_the_limit(bed: QuotaBed) -> None:
    done = _shell(bed, "setquota -u jack 100 200 10 20 / && setquota -t 3600 86400 -a")
    assert done.returncode == 0, done.stderr
    assert fill(bed.mount_point / "home/f", 4096, 100, uid=1000)[0] == errno.EDQUOT
    assert bed.settled() == (0, 0)
    (row,) = (r for r in bed.state().records if (r.kind, r.ident) == (USER, 1000))
    assert 190 <= row.usage.blocks // 2 <= 200
    out = _shell(bed, "repquota -a").stdout
    assert "Block grace time: 01:00; Inode grace time: 1days" in out
    (line,) = (found for found in out.splitlines() if found.startswith("jack "))
    assert line.split()[1] == "+-" and line.split()[3:5] == ["100", "200"]


def test_a_user_sees_only_what_is_his_and_sets_nothing(bed: QuotaBed) -> None:
    _shell(bed, "setquota -u jack 100 200 10 20 /; setquota -u jill 1 2 3 4 /")
    done = _shell(bed, "quota", uid=1000)
    assert "Disk quotas for user jack (uid 1000):" in done.stdout
    for line in ("quota jill", "repquota -a", "setquota -u jack 0 0 0 0 /", "cat .vzfs-quota"):
        done = _shell(bed, line, uid=1000)
        assert done.returncode != 0, line
        assert "Permission denied" in done.stderr
    assert "limit" in _shell(bed, "quota jack").stdout


def test_a_group_sees_what_concerns_it(bed: QuotaBed) -> None:
    _shell(bed, "setquota -g staff 10 20 0 0 /")
    assert "Disk quotas for group staff (gid 1000):" in _shell(bed, "quota -g", uid=1000).stdout
    assert "Permission denied" in _shell(bed, "cat .vzfs-quota.g1000", uid=1001).stderr


def test_edquota_changes_what_the_editor_changed(bed: QuotaBed) -> None:
    _shell(bed, "setquota -u jack 100 200 10 20 /")
    done = _shell(bed, "EDITOR='sed -i s/^100/150/' edquota jack && edquota -p jack jill")
    assert done.returncode == 0, done.stderr
    limits = {row.ident: row.block_soft for row in bed.state().records if row.kind == USER}
    assert (limits[1000], limits[1001]) == (150, 150)


def test_the_control_file_is_not_listed_and_cannot_be_taken_away(bed: QuotaBed) -> None:
    assert ".vzfs" not in _shell(bed, "ls -a").stdout
    for line in ("rm -f .vzfs-quota", "mv .vzfs-quota x", "ln .vzfs-quota x", "mkdir .vzfs-quota"):
        assert _shell(bed, line).returncode != 0, line
    assert _shell(bed, "chmod 777 .vzfs-quota; stat -c %a .vzfs-quota").stdout == "600\n"
    assert bed.settled() == (0, 0)


def test_nonsense_in_the_control_file_changes_nothing(bed: QuotaBed) -> None:
    before = _shell(bed, "cat .vzfs-quota").stdout
    for text in ("u jack 1 2 3 4", "u 1000 2 1 0 0", "x", "u 1000 1 2 3 4 5"):
        assert _shell(bed, f"echo {text} > .vzfs-quota").returncode != 0, text
    assert _shell(bed, "cat .vzfs-quota").stdout == before
