"""Tests of networks_classes."""

from __future__ import annotations

import ipaddress
import itertools
import random

import pytest

from runtime.errors import AccountingFailed
from runtime.net import accounting, classes

TABLE = "# comment\n\n1 0.0.0.0/0\n1 ::/0\n2 10.0.0.0/8 # ours\n0 10.1.0.0/16\n3 10.1.2.0/24\n"


def find(text: str, address: str) -> int | None:
    return classes.parse(text).find(ipaddress.ip_address(address))


def test_the_longest_prefix_decides() -> None:
    for address, number in (
        ("8.8.8.8", 1), ("10.2.0.1", 2), ("10.1.0.1", 0), ("10.1.2.3", 3), ("fd00::1", 1),
    ):  # fmt: skip
        assert find(TABLE, address) == number


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1 0.0.0.0/0\n16 10.0.0.0/8", 2), ("1 0.0.0.0/0\n\nx 10.0.0.0/8", 3),
        ("1 0.0.0.0/0\n2 10.0.0.0/40", 2), ("1 0.0.0.0/0\n2", 2), ("1 0.0.0.0/0 extra", 1),
        ("-1 0.0.0.0/0", 1),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_by_its_number(text: str, line: int) -> None:
    with pytest.raises(AccountingFailed, match=f"line {line}:") as raised:
        classes.parse(text)
    assert raised.value.code == 81


def test_class_1_has_to_cover_everything() -> None:
    with pytest.raises(AccountingFailed, match="class 1"):
        classes.parse("2 0.0.0.0/0\n1 10.0.0.0/8")


def test_flattened_ranges_are_disjoint_ordered_and_agree_with_the_table() -> None:
    source = random.Random(5)
    for _ in range(40):
        entries = [(ipaddress.ip_network("0.0.0.0/0"), 1)]
        for _ in range(30):
            length = source.choice((8, 9, 12, 16, 24, 30, 32))
            address = source.getrandbits(32) & 0x0F0FFF0F
            network = ipaddress.ip_network((address, length), strict=False)
            entries.append((network, source.randrange(16)))
        table = classes.Table(tuple(dict(entries).items()))
        ranges = table.ranges(4)
        assert int(ranges[0].first) == 0
        assert int(ranges[-1].last) == 2**32 - 1
        for one, two in itertools.pairwise(ranges):
            assert int(one.last) + 1 == int(two.first)
        for found in ranges:
            for address in (found.first, found.last):
                assert table.find(address) == found.number


def test_counters_are_summed_by_environment_and_class() -> None:
    counters = {
        "inet": {("veth101.0", "in", 1, 4): (2, 200), ("veth101.0", "in", 1, 6): (1, 50),
                 ("eth0", "out", 1, 4): (5, 500), ("vme1.0", "out", 2, 4): (7, 700)},
        "bridge": {("veth101.1", "out", 1, 4): (3, 300)},
    }  # fmt: skip
    found = accounting.by_environment(counters, {"vme1.0": "uuid"})
    assert found["101"][1] == accounting.Traffic(250, 3, 300, 3)
    assert found["0"][1] == accounting.Traffic(0, 0, 500, 5)
    assert found["uuid"][2] == accounting.Traffic(0, 0, 700, 7)
    assert accounting.by_environment(counters, {}, (6,)) == {
        "101": {1: accounting.Traffic(50, 1, 0, 0)}
    }
