"""Tests of rates and of the numbers of shaping classes."""

from __future__ import annotations

import pytest

from runtime.errors import BandwidthUnset, InvalidValue, RateUnset, ShapingFailed, TotalRateUnset
from runtime.net import rates, shaping, slots
from runtime.paths import Paths

CONFIG = {"BANDWIDTH": "eth0:100000", "TOTALRATE": "*:1:4096 eth0:2:8000", "RATE": "*:1:8"}


def test_rates_are_read_and_merged() -> None:
    assert rates.parse("eth0:1:16 *:2:8") == {("eth0", 1): 16, ("*", 2): 8}
    assert rates.merge("eth0:1:16 *:2:8", ["eth0:1:32"]) == "eth0:1:32 *:2:8"


@pytest.mark.parametrize(
    "text", ["eth0:1", "eth0:0:8", "eth0:16:8", "eth0:1:7", "eth0:1:0", "x y:1:8"]
)
def test_a_bad_rate_is_refused_with_21(text: str) -> None:
    with pytest.raises(InvalidValue):
        rates.check(text)


def test_the_word_for_a_device_outranks_the_star() -> None:
    assert rates.on_device({("*", 1): 8, ("eth0", 1): 16}, "eth0") == {1: 16}
    assert rates.on_device({("*", 1): 8, ("eth0", 1): 16}, "eth1") == {1: 8}


def test_a_plan_has_every_class_of_its_device() -> None:
    (plan,) = rates.plans(CONFIG, ("eth9",))
    assert (plan.device, plan.bandwidth, plan.totals) == ("eth0", 100000, {1: 4096, 2: 8000})


def test_without_bandwidth_the_default_device_is_shaped() -> None:
    (plan,) = rates.plans({**CONFIG, "BANDWIDTH": ""}, ("eth9",))
    assert (plan.device, plan.totals) == ("eth9", {1: 4096})


def test_shares_have_the_pool_or_when_bound_the_rate_as_ceiling() -> None:
    (plan,) = rates.plans(CONFIG, ())
    assert rates.shares(CONFIG, plan)[1] == rates.Share(8, 4096)
    assert rates.shares({**CONFIG, "RATEBOUND": "yes"}, plan)[1] == rates.Share(8, 8)


def test_what_is_unset_has_its_own_code() -> None:
    (plan,) = rates.plans(CONFIG, ())
    for config, error, code in (
        ({"BANDWIDTH": "a:b:c"}, BandwidthUnset, 30),
        ({"TOTALRATE": ""}, TotalRateUnset, 26),
        ({"TOTALRATE": "x"}, ShapingFailed, 80),
    ):
        with pytest.raises(error) as raised:
            rates.plans(config, ("eth0",))
        assert raised.value.code == code
    with pytest.raises(RateUnset) as unset:
        rates.shares({"RATE": ""}, plan)
    assert unset.value.code == 25


def test_class_numbers_never_collide() -> None:
    seen = {1} | {slots.total_minor(number) for number in range(1, 16)}
    for slot in (1, 2, 0x10, slots.LARGEST):
        for number in range(16):
            minor = slots.minor(slot, number)
            assert minor not in seen
            assert 0 < minor < 0x10000
            seen.add(minor)
    with pytest.raises(ValueError):
        slots.minor(slots.LARGEST + 1, 1)


def test_slots_are_kept_and_given_again_after_release(tmp_path: object) -> None:
    paths = Paths(tmp_path)  # type: ignore[arg-type]  # a Path
    assert [slots.get(paths, who) for who in ("101", "102", "101")] == [1, 2, 1]
    slots.release(paths, "101")
    slots.release(paths, "101")
    assert slots.get(paths, "103") == 1


def test_a_queue_empties_in_100_ms_but_holds_a_few_frames() -> None:
    assert shaping.queue_bytes(2000) == 25000
    assert shaping.queue_bytes(8) >= 4 * 1514
    assert shaping.burst_bytes(8) >= 2 * 1514
