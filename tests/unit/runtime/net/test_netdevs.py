"""Tests of the NETDEV line."""

from __future__ import annotations

import pytest

from runtime.errors import NetdevFailed
from runtime.net import netdevs


def test_interfaces_are_added_once_and_removed() -> None:
    assert netdevs.add(None, ["eth1"]) == "eth1"
    assert netdevs.add("eth1 eth2", ["eth1", "eth3"]) == "eth1 eth2 eth3"
    assert netdevs.remove("eth1 eth2", ["eth1"]) == "eth2"
    assert netdevs.remove("eth1", ["eth1"]) is None
    assert netdevs.remove("eth1 eth2", ["all"]) is None


def test_removing_what_is_not_there_names_what_is() -> None:
    with pytest.raises(NetdevFailed, match="does not have") as caught:
        netdevs.remove("eth1 eth2", ["eth3"])
    assert "eth1, eth2" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "name", ["", "lo", "venet0", "..", "a/b", "a b", "a" * 16, "$x", "-a", "é0", "a:b", "all\n"]
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(NetdevFailed):
        netdevs.check(name)


@pytest.mark.parametrize("name", ["eth1", "enp3s0f1", "eth0.5", "wlp2s0-x", "9p0"])
def test_names_the_kernel_gives_are_accepted(name: str) -> None:
    assert netdevs.check_removal(name) == name


def test_a_broken_record_is_no_record(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from runtime.paths import Paths

    paths = Paths(tmp_path)
    place = paths.run / "net"
    place.mkdir(parents=True)
    (place / "netdev.101").write_text("[{]")
    assert netdevs.lent(paths, 101) == []
    assert netdevs.borrowers(paths) == {101: []}
