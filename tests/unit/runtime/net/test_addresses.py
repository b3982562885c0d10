"""Tests of addresses as people write them."""

from __future__ import annotations

import pytest

from runtime.errors import BadAddress, BadNameserver, BadSearchDomain
from runtime.net import addresses


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("10.0.0.5/24", "10.0.0.5/24"),
        ("10.0.0.5/255.255.255.0", "10.0.0.5/24"),
        ("2001:DB8::5", "2001:db8::5"),
        ("2001:db8::5/64", "2001:db8::5/64"),
        ("10.0.0.0/31", "10.0.0.0/31"),
    ],
)
def test_an_address_is_kept_as_written_in_one_spelling(text: str, shown: str) -> None:
    assert addresses.check(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.300", "10.0.0", "", "host", "10.0.0.5/33", "10.0.0.5/0", "127.0.0.1", "224.0.0.1",
        "255.255.255.255", "0.1.2.3", "::", "::1", "ff02::1", "fe80::1%eth0", "10.0.0.0/24",
        "10.0.0.255/24", "10.0.0.5 10.0.0.6", "10.0.0.5;reboot",
    ],
)  # fmt: skip
def test_what_no_container_can_have_is_refused_with_71(text: str) -> None:
    with pytest.raises(BadAddress) as raised:
        addresses.check(text)
    assert raised.value.code == 71


def test_adding_keeps_order_and_takes_the_new_mask() -> None:
    assert addresses.add("10.0.0.1 10.0.0.2/24", ["10.0.0.3", "10.0.0.1/16"]) == (
        "10.0.0.1/16 10.0.0.2/24 10.0.0.3"
    )


def test_removing_ignores_the_mask_and_all_empties() -> None:
    assert addresses.remove("10.0.0.1/24 10.0.0.2", ["10.0.0.1"]) == "10.0.0.2"
    assert addresses.remove("10.0.0.1/24 10.0.0.2", ["all"]) is None


def test_removing_what_is_not_there_is_refused() -> None:
    with pytest.raises(BadAddress):
        addresses.remove("10.0.0.1", ["10.0.0.9"])


def test_name_servers_and_domains_are_checked() -> None:
    assert addresses.nameserver("10.0.0.1 2001:DB8::1") == "10.0.0.1 2001:db8::1"
    assert addresses.nameserver("inherit") == "inherit"
    with pytest.raises(BadNameserver):
        addresses.nameserver("ns.example.org")
    assert addresses.searchdomain("example.org a.b") == "example.org a.b"
    for bad in ("not/a", "-x.org", "a..b", "x" * 300):
        with pytest.raises(BadSearchDomain):
            addresses.searchdomain(bad)
