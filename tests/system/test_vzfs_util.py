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

from tools import sharing
from tools.vzfsutil import open_area
from vzfs import layers

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


def test_a_link_leaves_no_other_name_and_keeps_owner_and_times(area: PrivateArea) -> None:
    root, work = area.private / "root", area.private / "cow/work"
    work.mkdir()
    (work / "#1").write_text("of a tool that was killed")
    os.chown(area.tree / "bin/other", 33, 33)
    (root / "bin").mkdir()
    subprocess.run(["cp", "-p", area.tree / "bin/other", root / "bin/other"], check=True)
    os.utime(root / "bin", (1, 2))
    assert area.util("--mkmagic", "bin/other").returncode == 0
    assert [path.name for path in (root / "bin").iterdir()] == ["other"]
    facts = os.lstat(root / "bin/other")
    assert (facts.st_uid, facts.st_gid) == (33, 33) and (root / "bin/other").is_symlink()
    assert os.stat(root / "bin").st_mtime == 2
    assert (area.private / "templates/links").exists()
    assert list(work.iterdir()) == []


def test_only_plain_names_of_the_container_become_links(area: PrivateArea) -> None:
    """A name that leads elsewhere would have a file of the server replaced."""
    outside = area.private.parent / "other"
    subprocess.run(["cp", "-p", area.tree / "bin/other", outside], check=True)
    (area.private / "root/bin").symlink_to(outside.parent)
    for name in ("bin/other", "../../other"):
        result = area.util("--mkmagic", name)
        assert result.returncode == 2 and "not a plain path" in result.stderr
        assert not outside.is_symlink()


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


def test_looking_on_disturbs_no_copy_in_progress(area: PrivateArea) -> None:
    """The file server of a mounted area may be copying data while its area is checked."""
    with area.bed.mounted():
        os.chmod(area.bed.merged / "bin/other", 0o600)
        # An indexed copy has all names looked up.
        (area.bed.merged / "bin/alias").write_text("own")
    copy = area.private / "root/bin/other"
    os.setxattr(copy, layers.COPYING, layers.copying_mark(0, None))
    copy.write_bytes(b"oth")
    area.util("--call", "--stat")
    assert copy.read_bytes() == b"oth"
    assert layers.COPYING in os.listxattr(copy)


def test_what_is_shared_is_what_the_file_system_shows(area: PrivateArea) -> None:
    root = area.private / "root"
    (area.template / "vc").mkdir()
    (area.template / "vc/data").write_bytes(b"x" * 40960)
    (root / "data").symlink_to("////vc/data")
    # Names the container leads elsewhere are not followed.
    (root / "away").symlink_to("/usr")
    (root / "broken").symlink_to("////vc/gone")
    with area.bed.mounted():
        os.chmod(area.bed.merged / "bin/other", 0o600)
        (area.bed.merged / "own").write_bytes(b"y" * 8192)
    opened = open_area(area.private, area.template, modify=False)
    try:
        found = sharing.on_disk("101", opened)
    finally:
        opened.close()
    # tool and alias are one file, "other" has attributes of its own.
    assert (found.shared_files, found.magic_links, found.private_files) == (2, 1, 3)
    assert found.broken_links == 1
    tool, other = (os.stat(area.tree / "bin" / name).st_blocks * 512 for name in ("tool", "other"))
    assert found.saved_bytes == tool + other + 40960
    own = sum(os.lstat(root / name).st_blocks * 512 for name in ("own", "bin/other", "away"))
    assert found.private_bytes == own
