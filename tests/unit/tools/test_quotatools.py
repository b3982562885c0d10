"""Placing the quota commands in a tree nobody trusts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tools import quotatools


def test_the_commands_are_placed_and_taken_away_again(tmp_path: Path) -> None:
    quotatools.install(tmp_path)
    quotatools.install(tmp_path)
    script = tmp_path / "usr/local/bin/quota"
    assert script.resolve() == tmp_path / "usr/local/lib/vzfs-quota"
    assert os.access(tmp_path / "usr/local/sbin/setquota", os.X_OK)
    quotatools.remove(tmp_path)
    quotatools.remove(tmp_path)
    assert not list((tmp_path / "usr/local/sbin").iterdir())
    assert not list((tmp_path / "usr/local/lib").iterdir())


def test_what_the_administrator_put_there_stays(tmp_path: Path) -> None:
    own = tmp_path / "usr/local/sbin/setquota"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    quotatools.install(tmp_path)
    quotatools.remove(tmp_path)
    assert own.read_text() == "mine"


def test_a_link_out_of_the_tree_is_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / "usr").mkdir(parents=True)
    os.symlink(outside, root / "usr/local")
    with pytest.raises(OSError):
        quotatools.install(root)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_script_is_valid_for_the_shell(shell: str) -> None:
    subprocess.run([shell, "-n", quotatools.SCRIPT], check=True)


def _run(tmp_path: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = tmp_path / name
    if not command.exists():
        command.symlink_to(quotatools.SCRIPT)
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\njack:x:1000:1000::/:/bin/sh\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "VZFS_QUOTA": str(tmp_path / "quota"),
        "VZFS_PASSWD": str(tmp_path / "passwd"),
    }
    return subprocess.run(
        ["/bin/sh", command, *words], env=environment, capture_output=True, text=True, check=False
    )


_TEXT = (
    "vzfs-quota 1 on active 10\ngrace u 604800 3600\ngrace g 1 1\nc 0 9 100 200 0 3 0 0 0\n"
    "u 0 8 0 0 0 2 0 0 0\nu 1000 150 100 200 1 1 0 0 0\n"
)


def test_repquota_prints_the_usual_columns(tmp_path: Path) -> None:
    (tmp_path / "quota").write_text(_TEXT)
    out = _run(tmp_path, "repquota", "-a").stdout
    assert "Block grace time: 7days; Inode grace time: 01:00\n" in out
    assert "jack      +-     150     100     200   none       1     0     0       \n" in out


def test_setquota_writes_one_order(tmp_path: Path) -> None:
    (tmp_path / "quota").write_text(_TEXT)
    done = _run(tmp_path, "setquota", "-u", "jack", "1M", "2G", "5", "6", "/")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "quota").read_text() == "u 1000 1024 2097152 5 6\n"


@pytest.mark.parametrize(
    "words",
    [
        ("-u", "nobody-here", "1", "2", "3", "4", "/"),
        ("-u", "jack", "1", "2", "3"),
        ("-u", "jack", "1", "2", "3", "4"),
        ("-u", "jack", "1", "two", "3", "4", "/"),
        ("-z",),
    ],
)
def test_setquota_refuses_what_it_cannot_mean(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "quota").write_text(_TEXT)
    done = _run(tmp_path, "setquota", *words)
    assert done.returncode == 1 and done.stderr
    assert (tmp_path / "quota").read_text() == _TEXT


def test_without_quotas_the_commands_say_so(tmp_path: Path) -> None:
    assert "quotas are not kept here" in _run(tmp_path, "repquota", "-a").stderr
    (tmp_path / "quota").write_text("vzfs-quota 1 on inactive 0\n")
    assert "QUOTAUGIDLIMIT" in _run(tmp_path, "repquota", "-a").stderr
