"""The quota file: damage is noticed, changes are whole, scans count like du."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from vzfs import quota, quotastate
from vzfs.quotafile import QuotaFile, QuotaFileError
from vzfs.quotalayout import (
    CHUNK,
    F_DIRTY,
    GROUP,
    USER,
    W_BLOCKS,
    W_MAGIC,
    W_VERSION,
    Limits,
    Record,
)
from vzfs.quotascan import scan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a quota file that is off and clean."""
    made = tmp_path / "quota.1"
    area = tmp_path / "area"
    area.mkdir()
    quota.init(made, area, quota.Changes(100, 200, 10, 20, 60, 60))
    return made


def test_a_new_file_is_clean_and_not_sparse(path: Path) -> None:
    with QuotaFile.open(path) as file:
        assert not file.dirty
    assert os.stat(path).st_blocks * 512 >= CHUNK


@pytest.mark.parametrize("word", [W_MAGIC, W_VERSION])
def test_what_is_no_quota_file_is_refused(path: Path, word: int) -> None:
    with open(path, "r+b") as file:
        file.seek(word * 8)
        file.write(b"\xff" * 8)
    with pytest.raises(QuotaFileError):
        QuotaFile.open(path)


@pytest.mark.parametrize("size", [0, 100, CHUNK - 1, CHUNK + 1])
def test_a_truncated_file_is_refused(path: Path, size: int) -> None:
    os.truncate(path, size)
    with pytest.raises(QuotaFileError):
        QuotaFile.open(path)


def test_damage_of_a_clean_file_makes_it_dirty(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(W_BLOCKS * 8)
        file.write(b"\x11")
    with QuotaFile.open(path) as opened:
        assert opened.dirty


def test_setting_a_limit_does_not_hide_damage(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(W_BLOCKS * 8)
        file.write(b"\x11")
    quota.apply_space(path, 1, 2)
    with QuotaFile.open(path) as opened:
        assert opened.dirty and opened.flags & F_DIRTY


def test_limits_survive_in_the_file(path: Path) -> None:
    quota.apply_space(path, 1234, 5678)
    quota.apply_time(path, 99)
    limits = quotastate.snapshot(path).limits
    assert (limits.block_soft, limits.block_hard, limits.block_expire) == (1234, 5678, 99)
    assert (limits.inode_soft, limits.inode_hard, limits.inode_expire) == (10, 20, 99)


def test_a_command_killed_at_any_write_leaves_old_or_new_limits(path: Path) -> None:
    """The words of a change are written one by one; die after each of them in turn."""
    old, new = Limits(1, 2, 3, 4), Limits(11, 12, 13, 14)
    for writes in range(40):
        with QuotaFile.open(path) as file:
            file.write_limits(old)
        pid = os.fork()
        if pid == 0:
            _write_and_die(path, new, writes)
        _, status = os.waitpid(pid, 0)
        with QuotaFile.open(path) as file:
            found = file.limits()
        if os.WIFSIGNALED(status):
            assert found == old
        else:
            assert found == new
            break
    else:
        pytest.fail("the child never lived to the end")


class _Mortal:
    """Words that kill the process before the write after the last one allowed."""

    def __init__(self, words: memoryview, writes: int) -> None:
        self.words = words
        self.left = writes

    def __getitem__(self, at: int) -> int:
        return self.words[at]

    def __setitem__(self, at: int, value: int) -> None:
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        self.words[at] = value


def _write_and_die(path: Path, limits: Limits, writes: int) -> None:
    file = QuotaFile.open(path)
    file.live = _Mortal(file.live, writes)  # type: ignore[assignment]
    QuotaFile.write_limits(file, limits)
    os._exit(0)


def test_the_edit_lock_dies_with_its_holder(path: Path) -> None:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        file = QuotaFile.open(path)
        file.try_edit()
        os.write(tell, b"x")
        signal.pause()
    os.read(ready, 1)
    with QuotaFile.open(path) as file:
        with pytest.raises(TimeoutError), file.edit(0.01):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with file.edit(0.01):
            pass
    os.close(ready)
    os.close(tell)


def test_records_go_over_several_chunks(path: Path) -> None:
    with QuotaFile.open(path) as file:
        for ident in range(1100):
            file.write_record_limits(Record(ident & 1, ident, block_hard=ident))
        assert len(file.chunks) == 4
        file.seal()
    with QuotaFile.open(path) as file:
        assert not file.dirty
        found = {(row.kind, row.ident): row.block_hard for row in file.records()}
    assert found == {(ident & 1, ident): ident for ident in range(1100)}


def test_dropping_records_keeps_limits_if_asked(path: Path) -> None:
    with QuotaFile.open(path) as file:
        file.write_record(Record(USER, 1))
        file.write_record(Record(GROUP, 2, inode_hard=5))
        file.drop_records(keep_limited=True)
        assert [(row.kind, row.ident) for row in file.records()] == [(GROUP, 2)]
        file.drop_records()
        assert file.records() == []


# scans


def _du(area: Path) -> tuple[int, int]:
    blocks = subprocess.run(
        ["du", "-s", "--block-size=512", area], capture_output=True, check=True, text=True
    )
    inodes = subprocess.run(
        ["du", "-s", "--inodes", area], capture_output=True, check=True, text=True
    )
    return int(blocks.stdout.split()[0]), int(inodes.stdout.split()[0])


def test_a_scan_counts_what_du_counts(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    deep = top / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"x" * 100_000)
    os.link(deep / "f", top / "hard")
    os.symlink("x" * 200, top / "long")
    os.mkfifo(top / "fifo")
    with open(top / "sparse", "wb") as file:
        file.truncate(1 << 30)
    for number in range(300):
        (top / "a" / f"file{number}").touch()
    found = scan(top)
    assert (found.blocks, found.inodes) == _du(top)


def test_a_scan_follows_no_symlink_out(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").touch()
    top = tmp_path / "tree"
    top.mkdir()
    os.symlink(tmp_path / "secret", top / "link")
    assert scan(top).inodes == 2


def test_a_scan_of_a_tree_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    try:
        for _ in range(60):
            os.mkdir("d" * 200, dir_fd=fd)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        assert scan(top).inodes == 61
    finally:
        os.close(fd)
        subprocess.run(["rm", "-rf", top], check=True)


def test_a_scan_reports_owners_and_wanted_inodes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 5000)
    st = os.stat(tmp_path / "f")
    found = scan(tmp_path, {st.st_ino})
    assert found.found == {st.st_ino: st.st_blocks}
    assert found.users[st.st_uid] == [found.blocks, found.inodes]


def test_a_file_only_in_the_index_counts_and_a_linked_one_once(tmp_path: Path) -> None:
    top, index = tmp_path / "root", tmp_path / "index"
    top.mkdir()
    index.mkdir()
    (top / "both").write_bytes(b"x" * 5000)
    os.link(top / "both", index / "1-1")
    assert scan(top, index=index).inodes == 2
    (index / "1-2").touch()
    assert scan(top, index=index).inodes == 3


def test_cheap_usage_is_what_the_file_says(path: Path, tmp_path: Path) -> None:
    found = quotastate.read_usage(path)
    assert found is not None
    state = quotastate.snapshot(path)
    assert found == (state.usage, state.limits)
    assert quotastate.read_usage(tmp_path / "none") is None
