"""A server that rests is not noticed: not by who has files open, not by who locks, watches, counts."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import pytest
from posixcases import beds, calls
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)

from vzfs import accounting, layers, quota, quotastate, resting, server
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import USER
from vzfs.quotascan import scan

pytestmark = pytest.mark.root

TEXT = "as the template has it\n"


class Counted(beds.VzfsResting):
    """The same with a quota."""

    settings = MappingProxyType({**beds.VzfsResting.settings, "ledger": Path()})

    @property
    def file(self) -> Path:
        return self.home / "quota"

    def attach(self) -> None:
        self.settings = MappingProxyType({**self.settings, "ledger": self.file})
        if not self.file.exists():
            index = self.work / "index"
            changes = quota.Changes(block_soft=8192, block_hard=8192, sub_quotas=1, ugid_limit=50)
            quota.prepare(self.file, self.upper, changes, index=index)
        super().attach()


class Plain(beds.VzfsResting):
    """As on a kernel without passthrough, which does not keep what a dead server had taken."""

    settings = MappingProxyType({**beds.VzfsResting.settings, "passthrough": False})
    new_hand = beds.VzfsPlain.new_hand


@pytest.fixture(autouse=True)
def files_settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a server not wait for a minute until what was written has all its blocks."""
    monkeypatch.setattr(accounting, "_SETTLED_S", 0.0)


@pytest.fixture(
    params=[beds.VzfsResting, Counted, Plain], ids=["passthrough", "quota", "without passthrough"]
)
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[beds.VzfsResting]:
    made: beds.VzfsResting = request.param(tmp_path)
    (made.lower / "text").write_text(TEXT)
    (made.lower / "pair").write_text(TEXT)
    os.link(made.lower / "pair", made.lower / "twin")
    (made.lower / "folder/deep").mkdir(parents=True)
    (made.lower / "folder/deep/file").write_text(TEXT)
    made.mount()
    try:
        yield made
        os.chdir("/")
        made.unmount()
    finally:
        os.chdir("/")
        made.abandon()


def rest(bed: beds.VzfsResting) -> None:
    """Have the server rest, again if it does."""
    before = bed.rests
    with suppress(FileNotFoundError):
        os.stat(bed.merged / f"nothing{before}")
    deadline = time.monotonic() + 10
    while bed.rests == before:
        assert time.monotonic() < deadline, "it does not rest"
        time.sleep(0.001)


def goes_on(bed: beds.VzfsResting) -> bool:
    """Whether the server does not rest though nobody asks it for anything."""
    time.sleep(0.05)
    before = bed.rests
    time.sleep(0.2)
    return bed.rests == before


def test_what_was_open_and_where_one_stood_stays(bed: beds.VzfsResting) -> None:
    os.chdir(bed.merged / "folder/deep")
    with open("file", encoding="ascii") as early, open(bed.merged / "text", "rb") as text:
        inode = os.fstat(text.fileno()).st_ino
        for _round in range(3):
            rest(bed)
            assert early.seek(0) == 0
            assert early.read() == TEXT
            assert os.stat("../../text").st_ino == os.fstat(text.fileno()).st_ino == inode
            assert os.path.samefile(".", bed.merged / "folder/deep")
            os.mkdir(f"new{_round}")
    assert sorted(os.listdir()) == ["file", "new0", "new1", "new2"]


@pytest.mark.parametrize(
    "bed", [beds.VzfsResting, Counted], ids=["passthrough", "quota"], indirect=True
)
@pytest.mark.skipif(
    not server.offers_passthrough(), reason="only passthrough ties who reads to the template's file"
)
def test_a_template_file_read_before_and_written_after_is_two(bed: beds.VzfsResting) -> None:
    with open(bed.merged / "text", "rb") as early:
        rest(bed)
        (bed.merged / "text").write_text("changed\n")
        assert goes_on(bed)
        assert early.read() == TEXT.encode()
        assert (bed.merged / "text").read_text() == "changed\n"
    rest(bed)
    assert (bed.merged / "text").read_text() == "changed\n"


def test_locks_hold(bed: beds.VzfsResting) -> None:
    with open(bed.merged / "text", "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        rest(bed)
        with open(bed.merged / "text", "rb") as other:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(holder, fcntl.LOCK_UN)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_watches_see_what_is_done_later(bed: beds.VzfsResting) -> None:
    (bed.merged / "own").write_text("1")
    with calls.watch(str(bed.merged / "own")) as watch:
        rest(bed)
        with open(bed.merged / "own", "a", encoding="ascii") as file:
            file.write("2")
        assert os.read(watch, 4096)


def test_a_directory_is_read_to_its_end(bed: beds.VzfsResting) -> None:
    names = {f"name-{number:05d}-{'x' * 100}" for number in range(3000)}
    (bed.merged / "many").mkdir()
    for name in names:
        (bed.merged / "many" / name).symlink_to("x")
    seen = []
    with os.scandir(bed.merged / "many") as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number in (10, 1500):
                rest(bed)
    assert len(seen) == len(names)
    assert set(seen) == names


def test_names_of_one_file_stay_together(bed: beds.VzfsResting) -> None:
    rest(bed)
    (bed.merged / "pair").write_text("both\n")
    rest(bed)
    assert (bed.merged / "twin").read_text() == "both\n"
    os.link(bed.merged / "twin", bed.merged / "third")
    rest(bed)
    assert os.stat(bed.merged / "pair").st_nlink == 3
    assert os.path.samefile(bed.merged / "third", bed.merged / "pair")


def test_it_goes_on_while_somebody_writes(bed: beds.VzfsResting) -> None:
    with open(bed.merged / "own", "wb") as file:
        file.write(b"x" * 5000)
        file.flush()
        assert goes_on(bed)
        file.write(b"y")
    assert (bed.merged / "own").stat().st_size == 5001
    rest(bed)


def test_it_goes_on_while_something_without_a_name_is_in_use(bed: beds.VzfsResting) -> None:
    (bed.merged / "own").write_text("still here")
    with open(bed.merged / "own", encoding="ascii") as file:
        os.unlink(bed.merged / "own")
        assert goes_on(bed)
        assert file.read() == "still here"
    rest(bed)
    (bed.merged / "gone").mkdir()
    os.chdir(bed.merged / "gone")
    os.rmdir(bed.merged / "gone")
    assert goes_on(bed)
    with pytest.raises(FileNotFoundError):
        os.stat("x")
    os.chdir("/")
    rest(bed)


def test_it_goes_on_when_it_knows_very_much(bed: beds.VzfsResting) -> None:
    many = resting._MOST + 10
    bed.unmount()
    for number in range(many):
        (bed.lower / f"folder/{number}").touch()
    bed.mount()
    with os.scandir(bed.merged / "folder") as entries:
        assert sum(entry.stat().st_size == 0 for entry in entries if entry.is_file()) == many
    assert goes_on(bed)


def test_a_template_that_is_replaced_meanwhile_shows_as_it_was(bed: beds.VzfsResting) -> None:
    assert (bed.merged / "text").read_text() == TEXT
    rest(bed)
    old = bed.lower.with_name("old")
    bed.lower.rename(old)
    bed.lower.mkdir()
    (bed.lower / "text").write_text("another template")
    try:
        assert (bed.merged / "folder/deep/file").read_text() == TEXT
        assert sorted(os.listdir(bed.merged)) == ["folder", "pair", "text", "twin"]
        (bed.merged / "text").chmod(0o600)
        assert (bed.merged / "text").read_text() == TEXT
    finally:
        (bed.lower / "text").unlink()
        bed.lower.rmdir()
        old.rename(bed.lower)


def test_the_private_area_stays_locked(bed: beds.VzfsResting) -> None:
    rest(bed)
    stack = layers.Stack(bed.lowers, bed.upper, bed.work)
    try:
        with pytest.raises(layers.Busy):
            stack.lock()
    finally:
        stack.close()
    if isinstance(bed, Counted):
        with QuotaFile.open(bed.file) as file:
            assert file.served
            assert file.running


def test_it_is_unmounted_at_rest(bed: beds.VzfsResting) -> None:
    (bed.merged / "own").write_text("1")
    rest(bed)
    bed.unmount()
    if isinstance(bed, Counted):
        with QuotaFile.open(bed.file) as file:
            assert not file.served
            assert not file.running
            assert not file.dirty
    bed.mount()
    assert (bed.merged / "own").read_text() == "1"


def test_figures_and_limits_of_a_quota_hold(tmp_path: Path) -> None:
    bed = Counted(tmp_path)
    (bed.lower / "big").write_bytes(b"b" * 100_000)
    with bed.mounted():
        for number in range(30):
            path = bed.merged / f"file{number}"
            path.write_bytes(b"d" * (number * 1500))
            os.chown(path, number % 3, 0)
            if number % 4 == 0:
                rest(bed)
            if number % 3 == 0:
                path.unlink()
        with open(bed.merged / "big", "ab") as file:
            file.write(b"more")
        rest(bed)
        shown = quotastate.snapshot(bed.file, sync=False)
        assert shown.served
        assert shown.server == 0
        os.sync()
        counted = scan(str(bed.upper), set(), str(bed.work / "index"))
        assert (shown.usage.blocks, shown.usage.inodes) == (counted.blocks, counted.inodes)
        users = {r.ident: [r.usage.blocks, r.usage.inodes] for r in shown.records if r.kind == USER}
        assert users == counted.users
        rest(bed)
        written = 0
        with (
            pytest.raises(OSError, match="quota") as refused,
            open(bed.merged / "flood", "wb", buffering=0) as file,
        ):
            while True:
                written += file.write(b"x" * 65536)
        assert refused.value.errno == errno.EDQUOT
        assert 7 << 20 < written <= 8 << 20
        os.unlink(bed.merged / "flood")
        rest(bed)
