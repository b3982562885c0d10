"""Files are replaced whole, and leftovers of dead writers are swept."""

import os

import pytest

from runtime import files


def test_replace_gives_content_and_mode(tmp_path):
    target = tmp_path / "f"
    files.replace(target, b"one", mode=0o640)
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"one", 0o640)


def test_a_failed_replace_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "f"
    target.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        files.replace(target, b"new")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("f", b"old")]


def test_new_directory_appears_only_when_complete(tmp_path):
    with pytest.raises(RuntimeError), files.new_directory(tmp_path / "d") as place:
        (place / "x").write_text("")
        assert not (tmp_path / "d").exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.new_directory(tmp_path / "d", mode=0o700) as place:
        (place / "x").write_text("")
    assert (tmp_path / "d" / "x").exists()
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700


def test_sweeping_spares_what_a_living_process_writes(tmp_path):
    (tmp_path / f".tmp-a.{os.getpid()}").write_text("")
    (tmp_path / ".tmp-b.4194399").mkdir()
    assert files.sweep_temporaries(tmp_path) == 1
    assert [f.name for f in tmp_path.iterdir()] == [f".tmp-a.{os.getpid()}"]


def test_remove_tree_of_what_is_absent_succeeds(tmp_path):
    files.remove_tree(tmp_path / "nothing")


def test_a_tree_of_any_depth_is_removed(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    # Names that a removal would use itself.
    (tree / f"{files._TEMPORARY}0").write_text("in the way")
    (tree / f"{files._TEMPORARY}1").mkdir()
    (tree / f"{files._TEMPORARY}1" / "full").touch()
    (tree / "link").symlink_to(tmp_path)
    here = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(3000):
        os.mkdir("d", dir_fd=here)
        if level % 50 == 0:
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (tmp_path / "stays").touch()
    files.remove_tree(tree)
    assert [entry.name for entry in tmp_path.iterdir()] == ["stays"]
