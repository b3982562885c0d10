"""Private networks: who reaches whom, routed and bridged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import REMOTE4, Lab, lab

from runtime.net import networks, privnet

pytestmark = pytest.mark.root

IPS = {
    101: "198.18.0.101",
    102: "198.18.0.102",
    103: "198.18.0.113",
    104: "198.18.0.114",
    105: "198.18.0.150",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as made:
        for ctid, address in IPS.items():
            made.start(ctid, IP_ADDRESS=f"{address} fd18::{address.rsplit('.', 1)[1]}")
        yield made


def define(world: Lab, *defined: privnet.PrivateNetwork) -> None:
    for network in defined:
        privnet.store(world.paths, network)
    with world.server() as server:
        privnet.apply(server.nft, privnet.load_all(world.paths))


def reaches(world: Lab, one: int, address: str) -> bool:
    return world.containers[one].answers(address, timeout_s=0.3)


def test_members_reach_each_other_and_nobody_else(world: Lab) -> None:
    define(
        world,
        privnet.parse("one", ["198.18.0.101/32", "198.18.0.102/32"]),
        privnet.parse("two", ["198.18.0.112/29"]),
    )
    assert reaches(world, 101, IPS[102])
    assert reaches(world, 103, IPS[104])
    assert not reaches(world, 101, IPS[103])
    assert not reaches(world, 104, IPS[102])
    assert not reaches(world, 101, IPS[105])
    assert not reaches(world, 105, IPS[101])
    assert not reaches(world, 101, REMOTE4)
    assert not world.remote.answers(IPS[101], timeout_s=0.3)
    assert reaches(world, 105, REMOTE4)


def test_members_of_a_weak_network_reach_the_world_but_no_other_private_network(world: Lab) -> None:
    define(
        world,
        privnet.parse("weak", ["198.18.0.101/32", "198.18.0.102/32", "*"]),
        privnet.parse("two", ["198.18.0.112/29", "*"]),
    )
    assert reaches(world, 101, IPS[102])
    assert reaches(world, 101, REMOTE4)
    assert reaches(world, 101, IPS[105])
    assert not reaches(world, 101, IPS[103])
    assert not reaches(world, 103, IPS[101])


def test_a_global_network_is_reached_by_the_others(world: Lab) -> None:
    define(
        world,
        privnet.parse("one", ["198.18.0.101/32"]),
        privnet.parse("shared", ["198.18.0.150/32"], is_global=True),
    )
    assert reaches(world, 101, IPS[105])
    assert reaches(world, 105, IPS[101])
    assert not reaches(world, 101, IPS[102])


def test_ipv6_subnets_are_separated_alike(world: Lab) -> None:
    define(world, privnet.parse("six", ["fd18::101/128", "fd18::102/128"]))
    assert reaches(world, 101, "fd18::102")
    assert not reaches(world, 101, "fd18::150")
    assert reaches(world, 101, IPS[105])


def test_a_deleted_private_network_separates_nobody(world: Lab) -> None:
    define(world, privnet.parse("one", ["198.18.0.101/32"]))
    assert not reaches(world, 101, IPS[102])
    privnet.delete(world.paths, "one")
    define(world)
    assert reaches(world, 101, IPS[102])


def test_bridged_members_are_separated_within_one_bridge(tmp_path: Path) -> None:
    with lab(tmp_path) as world:
        networks.store(world.paths, networks.VirtualNetwork("lab"))
        for ctid in (101, 102, 103):
            world.start(ctid, NETIF=f"ifname=eth0,network=lab,ip=10.77.0.{ctid}/24")
        assert reaches(world, 101, "10.77.0.103")
        define(world, privnet.parse("one", ["10.77.0.101/32", "10.77.0.102/32"]))
        assert reaches(world, 101, "10.77.0.102")
        assert not reaches(world, 101, "10.77.0.103")


def test_five_thousand_pairs_are_looked_up_and_not_gone_through(world: Lab) -> None:
    def networks_of(count: int) -> list[privnet.PrivateNetwork]:
        return [
            privnet.parse(f"n{i}", [f"10.{i}.{j}.0/24" for j in range(10)]) for i in range(count)
        ]

    seen = []
    with world.server() as server:
        for count in (1, 50):
            privnet.apply(server.nft, networks_of(count))
            rows = server.nft.query("list table inet pyvz_private")
            (pairs,) = [
                row["set"]["elem"] for row in rows if row.get("set", {}).get("name") == "same4"
            ]
            seen.append((sum("rule" in row for row in rows), len(pairs)))
    (rules, few), (rules_of_many, many) = seen
    assert (few, many) == (100, 5000)
    # A packet passes as many rules.
    assert rules_of_many == rules
