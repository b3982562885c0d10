"""The ledger: limits, grace, owners, and that a killed server's books stay right."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vzfs import ledger as ledger_module
from vzfs import quota, quotastate
from vzfs.ledger import Ledger
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import (
    F_ATTACHED,
    F_DIRTY,
    F_ON,
    GROUP,
    USER,
    W_BOOT,
    W_BUSY,
    W_DRIFT,
    Limits,
    Record,
)


@pytest.fixture
def area(tmp_path: Path) -> Path:
    """Return an area with one file of 8 KiB."""
    path = tmp_path / "area"
    path.mkdir()
    (path / "file").write_bytes(b"x" * 8192)
    return path


class Book:
    """Makes quota files and attaches to them, closing everything at the end."""

    def __init__(self, path: Path, area: Path) -> None:
        self.path = path
        self.area = area
        self.ledgers: list[Ledger] = []

    def open(self, **limits: int) -> Ledger:
        """Make the file with ``limits`` and serve it."""
        QuotaFile.create(self.path, str(self.area), Limits(**limits)).close()
        return self.attach()

    def attach(self, **options: bool) -> Ledger:
        """Serve the file."""
        self.ledgers.append(Ledger.attach(self.path, **options))
        return self.ledgers[-1]

    def kill(self, ledger: Ledger) -> None:
        """End a server as SIGKILL does: nothing is written back."""
        ledger.file.close()


@pytest.fixture
def book(tmp_path: Path, area: Path) -> Iterator[Book]:
    """Return a maker of served quota files."""
    made = Book(tmp_path / "quota.1", area)
    yield made
    for ledger in made.ledgers:
        ledger.file.close()


def refused(ledger: Ledger, *what: int) -> bool:
    """Try to reserve; return whether EDQUOT was the answer, with nothing recorded."""
    before = ledger.file.usage()
    try:
        ledger.reserve(*what)
    except OSError as error:
        number = error.errno
    else:
        return False
    after = ledger.file.usage()
    assert (after.blocks, after.inodes) == (before.blocks, before.inodes)
    return number == errno.EDQUOT


def test_usage_starts_at_what_the_area_holds(book: Book, area: Path) -> None:
    ledger = book.open()
    blocks = sum(os.lstat(path).st_blocks for path in (area, area / "file"))
    assert (ledger.file.usage().blocks, ledger.file.usage().inodes) == (blocks, 2)


def test_the_hard_block_limit_is_reached_and_not_passed(book: Book) -> None:
    ledger = book.open(block_soft=1000, block_hard=1000)
    free = ledger.headroom(0, 0)
    assert free == 2000 - ledger.file.usage().blocks
    ledger.reserve(0, 0, free, 0)
    assert refused(ledger, 0, 0, 1, 0)


def test_the_hard_inode_limit_is_reached_and_not_passed(book: Book) -> None:
    ledger = book.open(inode_soft=4, inode_hard=4)
    ledger.reserve(0, 0, 0, 2)
    assert refused(ledger, 0, 0, 0, 1)


def test_no_name_is_added_while_more_is_used_than_the_hard_limit(book: Book) -> None:
    ledger = book.open(block_soft=100, block_hard=100)
    ledger.record(0, 0, 200 - ledger.file.usage().blocks, 0)
    ledger.admit_name()
    assert ledger.nearly_full()
    assert not refused(ledger, 0, 0, 0, 1)
    ledger.record(0, 0, 8, 0)
    assert refused(ledger, 0, 0, 0, 1)
    with pytest.raises(OSError, match="quota"):
        ledger.admit_name()


def test_blocks_may_be_had_when_only_inodes_are_used_up(book: Book) -> None:
    ledger = book.open(inode_soft=2, inode_hard=2)
    ledger.reserve(0, 0, 100, 0)
    assert refused(ledger, 0, 0, 0, 1)


def test_no_limit_means_no_refusal(book: Book) -> None:
    ledger = book.open()
    ledger.reserve(0, 0, 1 << 50, 1 << 40)


def test_the_soft_limit_may_be_passed_for_the_grace_period_only(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = book.open(block_soft=100, block_hard=1000, block_expire=60)
    ledger.reserve(0, 0, 400, 0)
    ledger.reserve(0, 0, 8, 0)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert refused(ledger, 0, 0, 8, 0)


def test_grace_starts_anew_after_usage_fell_below_the_soft_limit(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = book.open(block_soft=100, block_hard=1000, block_expire=60)
    ledger.reserve(0, 0, 400, 0)
    ledger.release(0, 0, 400, 0)
    assert ledger.file.usage().block_time == 0
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    ledger.reserve(0, 0, 400, 0)
    assert ledger.file.usage().block_time == int(later) + 60


def test_without_grace_the_soft_limit_is_a_hard_one(book: Book) -> None:
    ledger = book.open(block_soft=100, block_hard=1000, block_expire=0)
    assert refused(ledger, 0, 0, 400, 0)


def test_a_limit_raised_from_outside_counts_at_the_next_operation(book: Book) -> None:
    ledger = book.open(block_soft=10, block_hard=10)
    assert refused(ledger, 0, 0, 400, 0)
    quota.apply_space(book.path, 1000, 1000)
    ledger.reserve(0, 0, 400, 0)


def test_a_limit_shrunk_below_usage_refuses_until_usage_falls(book: Book) -> None:
    ledger = book.open(block_soft=1000, block_hard=1000)
    ledger.reserve(0, 0, 1000, 0)
    quota.apply_space(book.path, 100, 100)
    assert refused(ledger, 0, 0, 8, 0)
    ledger.release(0, 0, 1000, 0)
    ledger.reserve(0, 0, 8, 0)


def test_a_limit_shrunk_below_usage_starts_the_grace_when_it_was_set(book: Book) -> None:
    ledger = book.open(block_soft=1000, block_hard=1000, block_expire=600)
    ledger.reserve(0, 0, 1000, 0)
    quota.apply_space(book.path, 100, 1000)
    began = quotastate.snapshot(book.path).limits.changed
    assert quotastate.snapshot(book.path).usage.block_time == began + 600
    ledger.reserve(0, 0, 8, 0)
    assert ledger.file.usage().block_time == began + 600


def test_turned_off_live_nothing_is_refused_and_counting_goes_on(book: Book) -> None:
    ledger = book.open(block_soft=10, block_hard=10)
    quota.turn_off(book.path)
    before = ledger.file.usage().blocks
    ledger.reserve(0, 0, 4000, 1)
    quota.turn_on(book.path)
    assert ledger.file.usage().blocks == before + 4000
    assert refused(ledger, 0, 0, 8, 0)


def test_release_of_more_than_was_charged_is_noticed_and_scanned_away(book: Book) -> None:
    ledger = book.open()
    right = ledger.file.usage()
    ledger.release(0, 0, 1 << 20, 0)
    assert ledger.file.live[W_DRIFT] == 1
    ledger.detach()
    assert book.attach().file.usage() == right


# statfs


def test_statfs_shows_the_soft_limit_as_size(book: Book, area: Path) -> None:
    ledger = book.open(block_soft=1000001, block_hard=1100000, inode_soft=9000, inode_hard=9100)
    shown = ledger.statfs(os.statvfs(area))
    assert shown.f_blocks * shown.f_frsize == 1000001 * 1024
    used = (shown.f_blocks - shown.f_bfree) * shown.f_frsize
    assert used == ledger.file.usage().blocks * 512
    assert (shown.f_files, shown.f_ffree) == (9000, 9000 - 2)


def test_statfs_without_limits_is_that_of_the_disk(book: Book, area: Path) -> None:
    real = os.statvfs(area)
    shown = book.open().statfs(real)
    assert shown[:9] == real[:9]


def test_statfs_over_the_soft_limit_shows_nothing_free(book: Book, area: Path) -> None:
    ledger = book.open(block_soft=4, block_hard=1000, block_expire=600)
    shown = ledger.statfs(os.statvfs(area))
    assert (shown.f_blocks, shown.f_bfree, shown.f_bavail) == (4, 0, 0)


def test_no_more_is_available_than_the_disk_has(book: Book, area: Path) -> None:
    real = os.statvfs(area)
    size = real.f_blocks * real.f_frsize // 1024 * 4
    shown = book.open(block_soft=size, block_hard=size).statfs(real)
    assert shown.f_bavail * shown.f_frsize == real.f_bavail * real.f_frsize


# users and groups


def with_owners(book: Book, **limits: int) -> Ledger:
    """Serve a file which accounts users and groups."""
    return book.open(**{"sub_quotas": 1, "ugid_limit": 10, **limits})


def record_of(ledger: Ledger, kind: int, ident: int) -> Record:
    """Return the record of a user or group."""
    (found,) = (row for row in ledger.file.records() if (row.kind, row.ident) == (kind, ident))
    return found


def test_users_and_groups_are_charged_with_the_container(book: Book) -> None:
    ledger = with_owners(book)
    before = ledger.file.usage().blocks
    ledger.reserve(1000, 100, 16, 1)
    assert record_of(ledger, USER, 1000).usage.blocks == 16
    assert record_of(ledger, GROUP, 100).usage.inodes == 1
    assert ledger.file.usage().blocks == before + 16


def test_a_users_hard_limit_binds_that_user_only(book: Book) -> None:
    ledger = with_owners(book)
    ledger.reserve(1000, 100, 8, 1)
    quota.set_owner_limits(book.path, Record(USER, 1000, block_soft=10, block_hard=10))
    assert refused(ledger, 1000, 100, 16, 0)
    ledger.reserve(1001, 100, 16, 1)


def test_a_refused_owner_leaves_no_trace_in_any_account(book: Book) -> None:
    ledger = with_owners(book, block_soft=1000, block_hard=1000)
    ledger.reserve(1000, 100, 8, 1)
    before = ledger.file.records()
    assert refused(ledger, 1000, 100, 100000, 1)
    assert ledger.file.records() == before


def test_a_group_limit_set_before_the_group_owns_anything_binds(book: Book) -> None:
    ledger = with_owners(book)
    quota.set_owner_limits(book.path, Record(GROUP, 7, inode_soft=1, inode_hard=1))
    ledger.reserve(1000, 7, 0, 1)
    assert refused(ledger, 1000, 7, 0, 1)


def test_users_get_the_grace_of_users(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = with_owners(book)
    ledger.reserve(1000, 100, 8, 1)
    quota.set_owner_grace(book.path, USER, 30, 40)
    quota.set_owner_limits(book.path, Record(USER, 1000, block_soft=10, block_hard=1000))
    ledger.reserve(1000, 100, 100, 0)
    later = time.time() + 31
    monkeypatch.setattr(time, "time", lambda: later)
    assert refused(ledger, 1000, 100, 8, 0)


def test_more_owners_than_allowed_are_refused(book: Book) -> None:
    ledger = with_owners(book, ugid_limit=4)  # root and its group are two
    ledger.reserve(1000, 100, 0, 1)
    assert refused(ledger, 1001, 100, 0, 1)
    assert quotastate.snapshot(book.path).exceeded


def test_growing_the_number_of_owners_is_live(book: Book) -> None:
    ledger = with_owners(book, ugid_limit=4)
    ledger.reserve(1000, 100, 0, 1)
    assert quota.apply_ugid_limit(book.path, 5) is False
    ledger.reserve(1001, 100, 0, 1)


def test_an_owner_without_files_and_limits_makes_room(book: Book) -> None:
    ledger = with_owners(book, ugid_limit=4)
    ledger.reserve(1000, 100, 0, 1)
    ledger.release(1000, 100, 0, 1)
    ledger.reserve(1001, 101, 0, 1)
    assert {row.ident for row in ledger.file.records()} == {0, 1001, 101}


def test_chown_moves_the_charge(book: Book) -> None:
    ledger = with_owners(book)
    ledger.reserve(1000, 100, 16, 1)
    ledger.transfer(1000, 100, 1001, 100, 16, 1)
    assert record_of(ledger, USER, 1000).usage.blocks == 0
    assert record_of(ledger, USER, 1001).usage.inodes == 1
    assert record_of(ledger, GROUP, 100).usage.blocks == 16


def test_chown_to_an_owner_over_its_limit_is_refused_and_moves_nothing(book: Book) -> None:
    ledger = with_owners(book)
    ledger.reserve(1000, 100, 16, 1)
    quota.set_owner_limits(book.path, Record(GROUP, 200, block_soft=4, block_hard=4))
    before = ledger.file.records()
    with pytest.raises(OSError) as caught:
        ledger.transfer(1000, 100, 1001, 200, 16, 1)
    assert caught.value.errno == errno.EDQUOT
    kept = [row for row in ledger.file.records() if row.ident != 1001]
    assert kept == before


def test_users_turned_on_while_served_count_after_a_restart(book: Book) -> None:
    ledger = book.open()
    assert quota.apply_ugid_limit(book.path, 10) is True
    ledger.reserve(1000, 100, 8, 1)
    ledger.detach()
    ledger = book.attach()
    assert record_of(ledger, USER, 0).usage.inodes == 2


def test_users_turned_off_while_served_stop_counting_at_once(book: Book) -> None:
    ledger = with_owners(book, ugid_limit=3)
    quota.apply_ugid_limit(book.path, 0)
    ledger.reserve(1000, 100, 8, 1)
    assert not ledger.ugid_active


def test_an_owner_met_while_a_command_holds_the_file_is_recorded_later(book: Book) -> None:
    ledger = with_owners(book)
    with QuotaFile.open(book.path) as other, other.edit():
        ledger.reserve(1000, 100, 8, 1)
        ledger.commit()
        assert ledger.file.live[W_BUSY]  # dying now makes the next server scan
        assert not ledger.place_pending()
    assert ledger.place_pending()
    ledger.reserve(1000, 100, 8, 1)
    ledger.commit()
    assert not ledger.file.live[W_BUSY]
    assert record_of(ledger, USER, 1000).usage.blocks == 16


def test_a_thousand_owners_find_room(book: Book) -> None:
    ledger = with_owners(book, ugid_limit=2000)
    for ident in range(1, 800):
        ledger.reserve(ident, 0, 8, 1)
    assert len(ledger.file.records()) == 801
    assert len(quotastate.snapshot(book.path).records) == 801


# death and crash


def test_a_killed_server_loses_nothing(book: Book) -> None:
    ledger = with_owners(book)
    ledger.reserve(1000, 100, 16, 1)
    ledger.commit()
    usage, records = ledger.file.usage(), ledger.file.records()
    book.kill(ledger)
    ledger = book.attach(resume=True)
    assert (ledger.file.usage(), ledger.file.records()) == (usage, records)


def test_a_server_killed_within_an_operation_is_followed_by_a_scan(book: Book) -> None:
    ledger = book.open()
    right = ledger.file.usage()
    ledger.reserve(0, 0, 800, 1)
    book.kill(ledger)
    assert quotastate.snapshot(book.path).dirty
    assert book.attach(resume=True).file.usage() == right


def test_a_crash_of_the_machine_is_followed_by_a_scan(book: Book) -> None:
    ledger = book.open()
    right = ledger.file.usage()
    ledger.reserve(0, 0, 800, 1)
    ledger.commit()
    ledger.file.live[W_BOOT] += 1
    book.kill(ledger)
    with QuotaFile.open(book.path) as file:
        assert file.dirty and not file.running
    assert book.attach().file.usage() == right


def test_a_clean_stop_is_not_followed_by_a_scan(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = book.open()
    ledger.reserve(0, 0, 800, 1)
    ledger.commit()
    usage = ledger.file.usage()
    ledger.detach()
    with QuotaFile.open(book.path) as file:
        assert not file.dirty and not file.flags & (F_ON | F_ATTACHED | F_DIRTY)
    assert book.attach().file.usage() == usage


def test_a_second_server_is_refused(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_TAKE_OVER_S", 0.01)
    book.open()
    with pytest.raises(OSError) as caught:
        Ledger.attach(book.path)
    assert caught.value.errno == errno.EBUSY


def test_resume_keeps_a_quota_that_was_turned_off_off(book: Book) -> None:
    ledger = book.open(block_soft=10, block_hard=10)
    quota.turn_off(book.path)
    book.kill(ledger)
    ledger = book.attach(resume=True)
    ledger.reserve(0, 0, 4000, 0)
    assert not ledger.enforced


def test_one_reservation_costs_about_a_microsecond(book: Book) -> None:
    ledger = with_owners(book, block_soft=10**9, block_hard=10**9)
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(1000):
            ledger.reserve(0, 0, 8, 1)
            ledger.commit()
        best = min(best, (time.perf_counter() - began) / 1000)
    assert best < 5e-6
