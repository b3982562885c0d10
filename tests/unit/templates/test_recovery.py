"""What ``recover`` takes for damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from templates.recovery import Policy, policy
from vzfs.restoring import Difference, Kind


def _status(**versions: str) -> str:
    return "\n".join(
        f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n"
        for name, version in versions.items()
    )


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """A Debian-like template with merged /usr and the private area above it."""
    tree, private = tmp_path / "tree", tmp_path / "private"
    info = tree / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (tree / "bin").symlink_to("usr/bin")
    (private / "root/var/lib/dpkg").mkdir(parents=True)
    (tree / "var/lib/dpkg/status").write_text(_status(tool="1", other="2"))
    (info / "tool.list").write_text("/.\n/bin\n/bin/tool\n/etc\n/etc/tool.conf\n/usr/share/doc\n")
    (info / "tool.conffiles").write_text("/etc/tool.conf\n")
    (info / "other:amd64.list").write_text("/.\n/usr/lib/other\n/usr/share/doc\n")
    return tree, private


def judged(found: Policy, path: str, kind: Kind = Kind.CHANGED) -> bool:
    return found.wanted(Difference(os.fsencode(path), kind, False))


def test_files_of_unchanged_packages_are_restored(trees: tuple[Path, Path]) -> None:
    found = policy((trees[0],), trees[1])
    assert judged(found, "/usr/bin/tool")
    assert judged(found, "/usr/lib/other", Kind.GONE)


def test_a_changed_configuration_file_stays_and_a_lost_one_returns(
    trees: tuple[Path, Path],
) -> None:
    found = policy((trees[0],), trees[1])
    assert not judged(found, "/etc/tool.conf")
    assert judged(found, "/etc/tool.conf", Kind.GONE)


def test_what_the_package_manager_changed_is_left_to_it(trees: tuple[Path, Path]) -> None:
    (trees[1] / "root/var/lib/dpkg/status").write_text(_status(tool="1.1"))
    found = policy((trees[0],), trees[1])
    assert not judged(found, "/usr/bin/tool")
    assert not judged(found, "/usr/lib/other", Kind.GONE)
    assert not judged(found, "/usr/share/doc", Kind.GONE)
    assert found.changed == {"tool", "other"}


def test_a_directory_of_several_packages_returns_for_the_unchanged_one(
    trees: tuple[Path, Path],
) -> None:
    (trees[1] / "root/var/lib/dpkg/status").write_text(_status(tool="1"))
    assert judged(policy((trees[0],), trees[1]), "/usr/share/doc", Kind.GONE)


def test_what_no_package_owns_stays_when_it_was_changed(trees: tuple[Path, Path]) -> None:
    found = policy((trees[0],), trees[1])
    assert not judged(found, "/etc/passwd")
    assert judged(found, "/etc/passwd", Kind.GONE)
    assert not judged(found, "/var/lib/dpkg/info/tool.list", Kind.GONE)


def test_a_hostile_package_status_is_not_followed(trees: tuple[Path, Path]) -> None:
    status = trees[1] / "root/var/lib/dpkg/status"
    status.symlink_to("/dev/zero")
    assert policy((trees[0],), trees[1]).foreign == frozenset()
    status.unlink()
    os.mkfifo(status)
    assert policy((trees[0],), trees[1]).foreign == frozenset()


def test_a_tree_without_packages_goes_by_place(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "tree").mkdir()
    found = policy((tmp_path / "tree",), tmp_path)
    assert judged(found, "/bin/busybox")
    assert not judged(found, "/etc/passwd")
    assert judged(found, "/etc", Kind.ATTRIBUTES)
    assert not judged(found, "/home/user/file", Kind.GONE)
