"""The text through which users and groups are limited from inside."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from vzfs import quotacontrol
from vzfs.ledger import Ledger
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import GROUP, USER, Limits


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Ledger]:
    """Return the books of an empty area which accounts up to ten owners."""
    area = tmp_path / "area"
    area.mkdir()
    path = tmp_path / "quota.1"
    QuotaFile.create(path, str(area), Limits(100, 200, sub_quotas=1, ugid_limit=10)).close()
    made = Ledger.attach(path)
    yield made
    made.file.close()


def _line(books: Ledger, start: str) -> str:
    (found,) = (line for line in quotacontrol.report(books).splitlines() if line.startswith(start))
    return found


def test_the_report_begins_with_version_and_state(books: Ledger) -> None:
    lines = quotacontrol.report(books).splitlines()
    assert lines[0] == "vzfs-quota 1 on active 10"
    assert lines[3].startswith("c 0 4 100 200 0 1 0 0 0")


def test_limits_that_are_written_are_read_again_and_bind(books: Ledger) -> None:
    quotacontrol.obey(books, "u 1000 1 2 3 4\ng 7 0 0 1 1\n")
    assert _line(books, "u 1000 ") == "u 1000 0 1 2 0 0 3 4 0"
    assert _line(books, "g 7 ") == "g 7 0 0 0 0 0 1 1 0"
    with pytest.raises(OSError) as caught:
        books.reserve(1000, 0, 8, 0)
    assert caught.value.errno == errno.EDQUOT


def test_grace_periods_are_set_for_one_kind(books: Ledger) -> None:
    quotacontrol.obey(books, "t g 11 12")
    assert _line(books, "grace g") == "grace g 11 12"
    assert _line(books, "grace u") == "grace u 604800 604800"


@pytest.mark.parametrize(
    "text",
    [
        "u 1000 1 2 3",
        "u 1000 2 1 3 4",
        "u 1000 1 2 4 3",
        "u -1 1 2 3 4",
        "u 4294967295 1 2 3 4",
        "u x 1 2 3 4",
        "u 1000 1 2 3 99999999999999999999",
        "t x 1 2",
        "t u 1",
        "p 1 1 2 3 4",
        "u 1001 1 2 3 4\nnonsense",
        "u ١ 1 2 3 4",
    ],
)
def test_what_is_not_understood_is_refused_whole(books: Ledger, text: str) -> None:
    before = quotacontrol.report(books)
    with pytest.raises(OSError) as caught:
        quotacontrol.obey(books, text)
    assert caught.value.errno == errno.EINVAL
    assert quotacontrol.report(books) == before


def test_nothing_can_be_set_while_owners_are_not_accounted(tmp_path: Path) -> None:
    area = tmp_path / "area"
    area.mkdir()
    QuotaFile.create(tmp_path / "q", str(area), Limits()).close()
    books = Ledger.attach(tmp_path / "q")
    with pytest.raises(OSError) as caught:
        quotacontrol.obey(books, "u 1 1 2 3 4")
    assert caught.value.errno == errno.ESRCH
    books.file.close()


def test_one_user_is_told_of_nobody_else(books: Ledger) -> None:
    quotacontrol.obey(books, "u 1000 1 2 3 4\nu 1001 1 2 3 4\ng 1000 1 2 3 4\n")
    mine = quotacontrol.report_one(books, USER, 1000)
    assert "u 1000 " in mine and "1001" not in mine and "g 1000" not in mine
    assert "g 1000 " in quotacontrol.report_one(books, GROUP, 1000)
