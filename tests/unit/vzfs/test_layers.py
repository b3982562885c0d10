"""Layers without a mount: merging, redirects, deep trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vzfs.layers import Descriptors, Place, find_lower, lower_path, resolve, resolve_file


def _root(path: Path, layer: int = 1, limit: int = 1024) -> Place:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    return Place(Descriptors(limit), layer, None, b"", fd)


def test_the_topmost_layer_wins_and_directories_merge(tmp_path: Path) -> None:
    for layer, name in (("top", "a"), ("bottom", "b")):
        (tmp_path / layer / "dir").mkdir(parents=True)
        (tmp_path / layer / "dir" / name).write_text(layer)
        (tmp_path / layer / "dir" / "both").write_text(layer)
    roots = (_root(tmp_path / "top", 1), _root(tmp_path / "bottom", 2))
    merged = find_lower(roots, b"dir")
    assert merged is not None
    assert [place.layer for place in merged.directories] == [1, 2]
    for name, layer in ((b"a", 1), (b"b", 2), (b"both", 1)):
        found = find_lower(merged.directories, name)
        assert found is not None
        assert found.place.layer == layer
    assert find_lower(merged.directories, b"nothing") is None


def test_a_file_hides_a_directory_below(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "x").write_text("file")
    (tmp_path / "bottom" / "x").mkdir(parents=True)
    roots = (_root(tmp_path / "top", 1), _root(tmp_path / "bottom", 2))
    found = find_lower(roots, b"x")
    assert found is not None
    assert not found.directories


def test_a_redirect_names_a_file_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("here")
    roots = (_root(tmp_path),)
    found = resolve_file(roots, b"/a/b/c")
    assert found is not None
    assert lower_path(found.place, found.name) == b"/a/b/c"
    assert resolve(roots, b"/a/nothing") == ()
    assert resolve_file(roots, b"/a/nothing/c") is None


def test_closed_directories_open_again(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("here")
    descriptors = Descriptors(limit=0)
    root = Place(descriptors, 1, None, b"", os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    place = root.child(b"a").child(b"b")
    place.open()
    assert descriptors.crowded
    descriptors.trim()
    assert place.fd == -1
    assert root.fd >= 0
    assert os.stat(b"c", dir_fd=place.open()).st_size == 4


def test_a_removed_directory_is_held_as_long_as_somebody_knows_it(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    descriptors = Descriptors(limit=0)
    root = Place(descriptors, 1, None, b"", os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    place = root.child(b"gone")
    descriptors.pin(place)
    fd = place.fd
    (tmp_path / "gone").rmdir()
    descriptors.trim()
    assert os.fstat(place.fd).st_nlink == 0
    assert not descriptors.crowded, "it must not be looked at again and again"
    del place
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_depth_is_not_bounded_by_recursion(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    place = Place(Descriptors(5000), 1, None, b"", fd)
    here = os.dup(fd)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_PATH | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
        place = place.child(b"d")
    os.close(here)
    try:
        assert place.open() >= 0
    finally:
        # pytest's own removal recurses: take the tree apart from above.
        top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(1500):
            os.rename("d", "x", src_dir_fd=top, dst_dir_fd=top)
            inner = os.open("x", os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
            if "d" in os.listdir(inner):
                os.rename("d", "d", src_dir_fd=inner, dst_dir_fd=top)
            os.close(inner)
            os.rmdir("x", dir_fd=top)
        os.close(top)
