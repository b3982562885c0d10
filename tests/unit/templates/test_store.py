"""The store: one inode for equal files, whatever else happens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from templates.store import Store, key_of, regular_files


@pytest.fixture
def area(tmp_path: Path) -> Path:
    (tmp_path / "area").mkdir()
    return tmp_path / "area"


def grow(area: Path, name: str, **files: str) -> Path:
    tree = area / name
    tree.mkdir()
    for file, text in files.items():
        (tree / file).write_text(text)
    return tree


def inode(path: Path) -> int:
    return os.lstat(path).st_ino


def key(path: Path) -> str:
    return key_of(str(path), os.lstat(path))


def test_equal_files_of_two_trees_become_one_inode(area: Path) -> None:
    one, two = grow(area, "one", a="text"), grow(area, "two", b="text")
    store = Store(area)
    assert store.adopt(one).shared_files == 0
    report = store.adopt(two)
    assert (report.files, report.shared_files, report.shared_bytes) == (1, 1, 4)
    assert inode(one / "a") == inode(two / "b")


@pytest.mark.parametrize("change", ["mode", "xattr", "content"])
def test_files_that_differ_in_anything_stay_apart(area: Path, change: str) -> None:
    one, two = grow(area, "one", a="text"), grow(area, "two", a="text")
    if change == "mode":
        os.chmod(two / "a", 0o600)
    elif change == "xattr":
        try:
            os.setxattr(two / "a", "user.colour", b"red")
        except OSError:
            pytest.skip("this file system has no extended attributes: use ext4, xfs or btrfs")
    else:
        (two / "a").write_text("texT")
    store = Store(area)
    store.adopt(one)
    assert store.adopt(two).shared_files == 0
    assert inode(one / "a") != inode(two / "a")


def test_equal_files_within_a_tree_stay_apart_and_each_is_shared(area: Path) -> None:
    one, two = grow(area, "one", a="", b=""), grow(area, "two", a="", b="")
    store = Store(area)
    assert store.adopt(one).groups == []
    assert store.adopt(two).shared_files == 2
    assert inode(one / "a") != inode(one / "b")
    assert {inode(one / "a"), inode(one / "b")} == {inode(two / "a"), inode(two / "b")}


def test_hard_links_of_a_tree_stay_hard_links_and_are_listed(area: Path) -> None:
    one = grow(area, "one", a="text")
    two = grow(area, "two", a="text")
    os.link(two / "a", two / "b")
    store = Store(area)
    store.adopt(one)
    assert store.adopt(two).groups == [["a", "b"]]
    assert inode(two / "a") == inode(two / "b") == inode(one / "a")


def test_the_time_of_change_counts_for_python_sources_only(area: Path) -> None:
    tree = grow(area, "one", **{"a.py": "x = 1", "b.py": "x = 1", "a": "x = 1", "b": "x = 1"})
    for name in ("a.py", "a"):
        os.utime(tree / name, (1, 1))
    assert key(tree / "a") == key(tree / "b")
    assert key(tree / "a.py") != key(tree / "b.py")


def test_directories_keep_their_times(area: Path) -> None:
    store = Store(area)
    store.adopt(grow(area, "one", a="text"))
    two = grow(area, "two", a="text")
    os.utime(two, (1000, 1000))
    store.adopt(two)
    assert os.stat(two).st_mtime == 1000


def test_a_damaged_entry_is_found_and_not_given_out(area: Path) -> None:
    store = Store(area)
    one = grow(area, "one", a="text")
    store.adopt(one)
    os.truncate(one / "a", 1)
    assert [path.name for path in store.damaged()] == [p.name for p in store.path.glob("??/*")]
    two = grow(area, "two", a="text")
    store.adopt(two)
    assert (two / "a").read_text() == "text"
    assert list(store.damaged()) == []


def test_what_nothing_refers_to_is_swept_and_the_rest_is_not(area: Path) -> None:
    store = Store(area)
    one = grow(area, "one", a="text", b="more")
    store.adopt(one)
    (one / "a").unlink()
    assert store.sweep(test=True) == (1, 4)
    assert store.sweep() == (1, 4)
    assert store.sweep() == (0, 0)
    assert (one / "b").read_text() == "more"


def test_what_a_magic_link_leads_to_is_not_swept(area: Path) -> None:
    store = Store(area)
    one = grow(area, "one", a="text")
    store.adopt(one)
    entry = store.find(str(one / "a"), os.lstat(one / "a"))
    assert entry is not None
    (one / "a").unlink()
    keep = frozenset([str(entry.relative_to(area))])
    assert store.sweep(lambda: keep) == (0, 0)


def test_files_come_in_an_order_that_does_not_depend_on_the_directory(area: Path) -> None:
    tree = grow(area, "one", c="", a="", b="")
    assert [os.path.basename(path) for path, _status in regular_files(str(tree))] == ["a", "b", "c"]
