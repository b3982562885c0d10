"""Sizes, pairs and durations as vzctl's configuration files write them."""

import pytest

from runtime import units
from runtime.errors import InvalidValue


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("1000", 1, 1000),
        ("1G", 1, 1 << 30),
        ("1.5G", 1, 3 << 29),
        ("512M", units.PAGE, 131072),
        ("65536", units.PAGE, 65536),
        ("2P", units.KIB, 8),
        ("100b", 1, 100),
        ("1T", units.KIB, 1 << 30),
        ("unlimited", 1, units.UNLIMITED),
        ("480", 0, 480),
    ],
)
def test_an_amount_counts_in_the_unit_of_its_parameter(text, unit, expected):
    assert units.amount(text, unit=unit) == expected


@pytest.mark.parametrize("text", ["", "-1", "1X", "1 G", "1.5", "١٢", "0x10", "1GG", "1e3"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(InvalidValue):
        units.amount(text)


def test_items_take_no_suffix():
    with pytest.raises(InvalidValue, match="items"):
        units.amount("1K", unit=0)


def test_one_number_is_both_barrier_and_limit():
    assert units.pair("7") == (7, 7)
    assert str(units.pair("7:unlimited")) == "7:unlimited"


def test_a_barrier_above_the_limit_is_refused():
    with pytest.raises(InvalidValue, match="greater"):
        units.pair("2:1")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("01:30", 90),
        ("1:00:00", 3600),
        ("1:00:00:00", 86400),
        ("2w", 1209600),
        ("1M", 2592000),
    ],
)
def test_durations_of_vzquota(text, seconds):
    assert units.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1:2:3:4:5", "5x", "w", ":"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidValue):
        units.duration(text)


def test_human_sizes_keep_one_decimal_where_needed():
    assert [units.human(n) for n in (5, 1 << 20, 3 << 29, units.UNLIMITED)] == [
        "5", "1M", "1.5G", "unlimited",
    ]  # fmt: skip
