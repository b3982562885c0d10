"""vzfsutil finds what is wrong with a private area, repairs it, and thins it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from posixcases import beds

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).resolve().parents[2]


class PrivateArea:
    """A private area as a container has it, with a template of one tree."""

    def __init__(self, home: Path) -> None:
        self.template = home / "template"
        self.tree = self.template / "tree" / "1"
        self.private = home / "private" / "101"
        for path in (self.tree / "bin", self.private / "root", self.private / "cow"):
            path.mkdir(parents=True)
        (self.private / "templates").mkdir()
        (self.private / "templates" / "layers").write_text("tree/1\n")
        (self.tree / "bin" / "tool").write_text("tool\n" * 5000)
        os.link(self.tree / "bin" / "tool", self.tree / "bin" / "alias")
        (self.tree / "bin" / "other").write_text("other\n")
        self.bed = beds.Vzfs(home / "bed", 0)
        self.bed.lowers = (self.tree,)
        self.bed.upper = self.private / "root"
        self.bed.work = self.private / "cow"
        self.bed.settings = {"template_area": self.template}

    def util(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tools.vzfsutil", "-t", self.template, self.private, *words],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def area(tmp_path: Path) -> Iterator[PrivateArea]:
    area = PrivateArea(tmp_path)
    try:
        yield area
    finally:
        area.bed.abandon()


def test_an_area_in_use_for_long_is_consistent(area: PrivateArea) -> None:
    with area.bed.mounted():
        root = area.bed.merged
        (root / "bin" / "tool").chmod(0o700)
        (root / "bin" / "other").write_text("changed")
        os.rename(root / "bin", root / "sbin")
        os.unlink(root / "sbin" / "alias")
        (root / "mine").write_text("mine")
    result = area.util("--call")
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_a_mounted_area_is_not_changed(area: PrivateArea) -> None:
    with area.bed.mounted():
        os.listdir(area.bed.merged)
        result = area.util("--mcow")
        assert result.returncode == 1
        assert "mounted" in result.stderr
        assert area.util("--stat").returncode == 0


def test_broken_magic_links_are_found(area: PrivateArea) -> None:
    os.symlink("////tree/1/bin/other", area.private / "root" / "good")
    os.symlink("////tree/1/bin/gone", area.private / "root" / "bad")
    result = area.util("--clink")
    assert result.returncode == 2
    assert result.stdout == "/bad: broken magic link to ////tree/1/bin/gone\n"


def test_leftovers_and_wrong_counts_are_repaired(area: PrivateArea) -> None:
    with area.bed.mounted():
        (area.bed.merged / "bin" / "tool").write_text("changed")
    (area.private / "cow" / "work" / "#1").write_text("half a copy")
    index = next((area.private / "cow" / "index").iterdir())
    os.setxattr(index, "trusted.vzfs.nlink", b"7")
    assert area.util("--call").returncode == 2
    assert area.util("--call", "--repair").returncode == 0
    assert area.util("--call").returncode == 0
    assert os.getxattr(index, "trusted.vzfs.nlink") == b"2"


def test_folding_gives_copies_their_names(area: PrivateArea) -> None:
    with area.bed.mounted():
        (area.bed.merged / "bin" / "tool").write_text("changed")
        assert (area.bed.merged / "bin" / "alias").read_text() == "changed"
    assert area.util("--mcow").returncode == 0
    assert not list((area.private / "cow" / "index").iterdir())
    upper = area.private / "root" / "bin"
    assert (upper / "tool").stat().st_ino == (upper / "alias").stat().st_ino
    with area.bed.mounted():
        assert (area.bed.merged / "bin" / "alias").read_text() == "changed"
        assert (area.bed.merged / "bin" / "alias").stat().st_nlink == 2


def test_equal_files_become_links_and_whole_files_again(area: PrivateArea) -> None:
    copy = area.private / "root" / "bin"
    copy.mkdir()
    other = copy / "other"
    other.write_text("other\n")
    result = area.util("--mkmagic", "bin/other")
    assert result.returncode == 0, result.stderr
    assert os.readlink(other) == "////tree/1/bin/other"
    with area.bed.mounted():
        assert (area.bed.merged / "bin" / "other").read_text() == "other\n"
    figures = json.loads(area.util("--stat", "--json").stdout)
    assert (figures["magic_links"], figures["private_files"]) == (1, 0)
    assert area.util("--unlink").returncode == 0
    assert not other.is_symlink() and other.read_text() == "other\n"


def test_a_different_file_does_not_become_a_link(area: PrivateArea) -> None:
    copy = area.private / "root" / "bin"
    copy.mkdir()
    (copy / "other").write_text("OTHER\n")
    result = area.util("--mkmagic", "bin/other")
    assert result.returncode == 2
    assert "differs" in result.stderr
    assert (copy / "other").read_text() == "OTHER\n"


def test_bad_usage_is_one_line(area: PrivateArea) -> None:
    result = area.util()
    assert result.returncode == 1
    assert "no action" in result.stderr
