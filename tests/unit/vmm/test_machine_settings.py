"""Values of settings: what is accepted, what it means, what is refused."""

from __future__ import annotations

import os

import pytest

from runtime.errors import BadAddress, CpuMaskFailed, InvalidValue
from vmm import guestsettings, memory, processors, settings, words
from vmm.console import Keys

MIB = 1 << 20


def test_a_cpu_mask_is_a_list_of_numbers_and_ranges() -> None:
    assert words.number_set("0,2-3", 4, CpuMaskFailed) == {0, 2, 3}
    assert words.number_set("all", 3, CpuMaskFailed) == {0, 1, 2}


@pytest.mark.parametrize("text", ["", "a", "4", "1-9", "-1", "3-1", "0,,1"])
def test_a_cpu_mask_outside_the_server_is_refused(text: str) -> None:
    with pytest.raises(CpuMaskFailed):
        words.number_set(text, 4, CpuMaskFailed)


def test_a_cpu_limit_of_the_whole_server_is_none() -> None:
    assert processors.cpu_percent("50") == 50
    assert processors.cpu_percent("50%") == 50
    assert processors.cpu_percent("0") == 0
    assert processors.cpu_percent(str(100 * (os.cpu_count() or 1))) == 0


@pytest.mark.parametrize("text", ["", "-5", "half", "1e3", "٣"])
def test_a_cpu_limit_which_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        processors.cpu_percent(text)


@pytest.mark.parametrize(
    ("quota", "left"),
    [
        ("128:512", 512),
        ("128:2048", 1024),
        ("600:512:50", None),
        ("100:300", 300),
        ("100:300:50:50", 512),
        ("900:950:50:50", 950),
    ],
)
def test_a_memory_quota_leaves_what_it_says(quota: str, left: int | None) -> None:
    if left is None:
        with pytest.raises(InvalidValue):
            memory.balloon_target(quota, 1024 * MIB)
    else:
        assert memory.balloon_target(quota, 1024 * MIB) == left * MIB


@pytest.mark.parametrize("text", ["", "1", "a:b", "1:2:101", "1:2:3:101", "1:2:3:4:5", "-1:5"])
def test_a_malformed_memory_quota_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        memory.balloon_target(text, 1024 * MIB)


def test_addresses_get_a_prefix() -> None:
    assert guestsettings.check_address("192.0.2.5") == "192.0.2.5/32"
    assert guestsettings.check_address("2001:db8::1/64") == "2001:db8::1/64"
    for bad in ("", "192.0.2.256", "192.0.2.1/33", "0.0.0.0", "224.0.0.1", "; rm -rf /"):
        with pytest.raises(BadAddress):
            guestsettings.check_address(bad)


def test_host_names_follow_the_rules() -> None:
    assert guestsettings.is_hostname("web-1.example.com")
    for bad in ("", "-a", "a-", "a..b", "a_b", "x" * 64, "a b", "$(reboot)"):
        assert not guestsettings.is_hostname(bad)


def test_escape_and_dot_leave_the_console() -> None:
    keys = Keys()
    assert keys.take(b"ls\r") == (b"ls\r", False)
    assert keys.take(b"\x1b") == (b"", False)
    assert keys.take(b".") == (b"", True)


def test_an_escape_before_anything_else_goes_on() -> None:
    keys = Keys()
    keys.take(b"\x1b")
    assert keys.take(b"x") == (b"\x1bx", False)
    assert keys.take(b"\x1b[A") == (b"\x1b[A", False)


def test_every_row_has_its_option_and_help() -> None:
    rows = settings.rows()
    assert {"cpus", "memsize", "onboot", "vnc-mode", "userpasswd"} <= rows.keys()
    assert all(row.help and row.metavar for row in rows.values())


def test_sizes_of_disks_are_bounded() -> None:
    from vmm import images

    images.check_size(64 << 30)
    for bad in (0, 1000, (1 << 44) + 512, (1 << 20) + 1):
        with pytest.raises(InvalidValue):
            images.check_size(bad)


def test_escape_and_dot_in_one_piece_leave_the_console_too() -> None:
    keys = Keys()
    assert keys.take(b"exit\x1b.rest") == (b"exit", True)
    keys = Keys()
    assert keys.take(b"a\x1b") == (b"a", False)
    assert keys.take(b"\x1b") == (b"\x1b", False)
    assert keys.take(b".") == (b"", True)
