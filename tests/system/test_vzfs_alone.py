"""`python -m vzfs`, the file system by itself: what it refuses, and what it leaves then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from posixcases import calls
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)

pytestmark = pytest.mark.root


class Alone:
    """Directories for a mount, and the command."""

    def __init__(self, top: Path) -> None:
        self.lower, self.upper, self.place = top / "lower", top / "upper", top / "mount"
        self.quota = top / "quota"
        for path in (self.lower, self.upper, self.place):
            path.mkdir()
        (self.lower / "f").write_text("template\n")

    def mount(self, *words: str | Path, code: int = 0) -> str:
        """Mount with further options; return what was said on stderr."""
        where = ["--lower", self.lower, "--upper", self.upper, "--mount", self.place]
        return self.run("mount", *where, *words, code=code)

    def run(self, *words: str | Path, code: int = 0) -> str:
        """Run the command, which must end with ``code``; return what it said on stderr."""
        command = [sys.executable, "-m", "vzfs", *map(str, words)]
        # Pipes: a server that kept them would keep us waiting.
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    made = Alone(tmp_path)
    yield made
    while os.path.ismount(made.place):
        calls.unmount(str(made.place))


@pytest.mark.parametrize("transport", ["kernel", "pyfuse3"])
def test_a_mount_shows_its_layers_and_keeps_to_its_quota(alone: Alone, transport: str) -> None:
    alone.mount("--transport", transport, "--quota", alone.quota, "--space", "100:200")
    assert (alone.place / "f").read_text() == "template\n"
    with pytest.raises(OSError, match="quota"):
        (alone.place / "g").write_bytes(bytes(1 << 20))
    found = os.statvfs(alone.place)
    assert found.f_blocks * found.f_frsize == 100 << 10
    alone.run("umount", alone.place)
    assert not os.path.ismount(alone.place)
    assert (alone.upper.with_name("upper.work") / "log").read_text() == ""


def test_limits_need_a_quota_file(alone: Alone) -> None:
    assert "--quota" in alone.mount("--space", "100", code=2)
    assert not os.path.ismount(alone.place)


def test_a_soft_limit_above_the_hard_one_is_refused(alone: Alone) -> None:
    said = alone.mount("--quota", alone.quota, "--space", "9:3", code=2)
    assert "not above the hard one" in said
    assert "_limits" not in said


def test_a_file_that_is_no_quota_file_stays_as_it_is(alone: Alone) -> None:
    alone.quota.write_text("something dear\n")
    assert alone.mount("--quota", alone.quota, "--space", "100", code=2)
    assert alone.quota.read_text() == "something dear\n"
    assert not os.path.ismount(alone.place)


def test_an_area_in_use_is_refused_and_nothing_stays_mounted(alone: Alone, tmp_path: Path) -> None:
    alone.mount()
    second = tmp_path / "second"
    second.mkdir()
    where = ["--lower", alone.lower, "--upper", alone.upper, "--mount", second]
    assert "mounted" in alone.run("mount", *where, code=1)
    assert not os.path.ismount(second)
    assert (alone.place / "f").read_text() == "template\n"
