"""Shaping by class: rates, guarantees, ceilings, latency under load; nothing attached when off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import REMOTE4, Lab, Place, flood_udp, lab, ping, pour_tcp, rate_mbit, sink_tcp

from runtime.net import live, networks, shaping
from runtime.net.server import container_config

pytestmark = pytest.mark.root

A, B, C = "198.18.0.101", "198.18.0.102", "198.18.0.103"
#: What of the wire is payload: full frames of 1514 bytes carry 1448 (timestamps are on).
PAYLOAD = 1448 / 1514


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as made:
        made.paths.networks_classes.write_text("1 0.0.0.0/0\n1 ::/0\n2 198.18.0.2/32\n")
        yield made


def shape(world: Lab, **keys: str) -> None:
    world.server_config(TRAFFIC_SHAPING="yes", BANDWIDTH="up0:1000000", **keys)


def rates(
    world: Lab, *senders: Place, seconds: float = 4.0, to: str = REMOTE4, warm_s: float = 1.0
) -> list[float]:
    """Return what each sender gets on the wire, in Mbit/s, all at once."""
    target = world.remote if to == REMOTE4 else world.other
    sink = target.spawn(sink_tcp, to, 5001, len(senders))
    jobs = [place.spawn(pour_tcp, to, 5001, seconds, None, warm_s) for place in senders]
    found = [rate_mbit(job.result()) / PAYLOAD for job in jobs]
    sink.result()
    return found


@pytest.mark.parametrize("mbit", [10, 100])
def test_a_bound_container_gets_its_rate_within_5_percent(world: Lab, mbit: int) -> None:
    shape(world, TOTALRATE="*:1:500000", RATE=f"*:1:{mbit * 1000}", RATEBOUND="yes")
    one = world.start(101, IP_ADDRESS=A)
    assert rates(world, one)[0] == pytest.approx(mbit, rel=0.05)


def count(world: Lab) -> None:
    """Let the remote machine count what arrives for ports 6000… on the wire."""
    rules = "".join(
        f"add counter inet t c{n}\nadd rule inet t pre udp dport {6000 + n} counter name c{n} drop\n"
        for n in range(3)
    )
    script = (
        "add table inet t\ndelete table inet t\nadd table inet t\n"
        "add chain inet t pre { type filter hook prerouting priority 0; }\n" + rules
    )
    world.remote.run("nft", script)


def received(world: Lab, number: int) -> int:
    """Return the bytes on the wire that came for a port: Ethernet's 14 are not in the counter."""
    shown = world.remote.run("nft", "list", "counter", "inet", "t", f"c{number}")
    words = shown.split()
    return int(words[words.index("bytes") + 1]) + 14 * int(words[words.index("packets") + 1])


def shares(world: Lab, *senders: Place, seconds: float = 5.0) -> list[float]:
    """Return what each sender gets on the wire, in Mbit/s, when all send more datagrams than fit.

    Unlike TCP, which shares only on the average of many losses, this shows the queues themselves.
    """
    count(world)
    jobs = [
        place.spawn(flood_udp, REMOTE4, 6000 + number, seconds + 1.5, 8.0)
        for number, place in enumerate(senders)
    ]
    time.sleep(1)
    before = [received(world, number) for number in range(len(senders))]
    time.sleep(seconds)
    after = [received(world, number) for number in range(len(senders))]
    for job in jobs:
        job.result()
    return [(two - one) * 8 / seconds / 1e6 for one, two in zip(before, after, strict=True)]


def test_the_guides_worked_example(world: Lab) -> None:
    # Pool 4096, RATE 8 each, one of them bound: it gets 8, the others share the rest.
    shape(world, TOTALRATE="*:1:4096", RATE="*:1:8")
    one = world.start(101, IP_ADDRESS=A)
    two = world.start(102, IP_ADDRESS=B)
    bound = world.start(103, IP_ADDRESS=C, RATEBOUND="yes")
    assert shares(world, one)[0] == pytest.approx(4.096, rel=0.05)
    assert shares(world, one, two) == pytest.approx([2.048, 2.048], rel=0.05)
    free, limited = shares(world, one, bound, seconds=8)
    assert free == pytest.approx(4.088, rel=0.05)
    assert limited < 0.02
    three = shares(world, one, two, bound, seconds=8)
    assert three[:2] == pytest.approx([2.044, 2.044], rel=0.05)
    assert three[2] < 0.02


def test_guarantees_hold_under_contention(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:20000", RATE="*:1:8")
    one = world.start(101, IP_ADDRESS=A, RATE="*:1:12000")
    two = world.start(102, IP_ADDRESS=B, RATE="*:1:4000")
    found = rates(world, one, two, seconds=5)
    assert found[0] >= 12 * 0.95
    assert found[1] >= 4 * 0.95
    assert sum(found) == pytest.approx(20, rel=0.05)


def test_classes_have_pools_of_their_own(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:5000 *:2:10000", RATE="*:1:8 *:2:8")
    one = world.start(101, IP_ADDRESS=A)
    assert rates(world, one)[0] == pytest.approx(5, rel=0.05)
    assert rates(world, one, to="198.18.0.2")[0] == pytest.approx(10, rel=0.05)


def test_a_rate_changes_live(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:50000", RATE="*:1:5000", RATEBOUND="yes")
    one = world.start(101, IP_ADDRESS=A)
    assert rates(world, one, seconds=3)[0] == pytest.approx(5, rel=0.06)
    before = container_config(world.paths, 101)
    after = world.configure(101, IP_ADDRESS=A, RATE="*:1:20000")

    class Ct:
        paths = world.paths
        ctid = 101

    with world.on_host():
        live.apply_rate(Ct(), before, after)  # type: ignore[arg-type]  # what it needs of one
    assert rates(world, one, seconds=3)[0] == pytest.approx(20, rel=0.06)


def test_containers_on_one_host_are_not_shaped_between_each_other(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:1000", RATE="*:1:8")
    one = world.start(101, IP_ADDRESS=A)
    two = world.start(102, IP_ADDRESS=B)
    sink = two.spawn(sink_tcp, B, 5001)
    assert rate_mbit(one.call(pour_tcp, B, 5001, 1.0)) > 100
    sink.result()


def test_the_host_itself_is_not_shaped(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:1000", RATE="*:1:8")
    world.start(101, IP_ADDRESS=A)
    assert rates(world, world.host, seconds=1.5, warm_s=0.3)[0] > 100


def test_latency_under_load_is_bounded(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:2000", RATE="*:1:2000", RATEBOUND="yes")
    one = world.start(101, IP_ADDRESS=A)
    sink = world.remote.spawn(sink_tcp, REMOTE4, 5001)
    load = one.spawn(pour_tcp, REMOTE4, 5001, 4.0)
    times = [one.call(ping, REMOTE4, 1.0) for _ in range(15)]
    load.result()
    sink.result()
    answered = sorted(t for t in times if t)
    assert len(answered) >= 10
    assert answered[len(answered) // 2] < 0.2


def test_nothing_is_attached_while_shaping_is_off(world: Lab) -> None:
    world.start(101, IP_ADDRESS=A)
    assert "htb" not in world.host.run("tc", "qdisc")
    assert "pyvz_shape" not in world.host.run("nft", "list", "tables")


def test_turning_it_off_detaches_everything_and_on_again_shapes_those_that_run(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:5000", RATE="*:1:8", TRAFFIC_SHAPING_INCOMING="yes")
    one = world.start(101, IP_ADDRESS=A)
    for _ in range(2):
        with world.server() as server:
            server.shaping_off()
        assert "htb" not in world.host.run("tc", "qdisc")
        assert "ifb" not in world.host.run("ip", "link")
        assert "pyvz_shape" not in world.host.run("nft", "list", "tables")
    with world.server() as server:
        server.shape()
        assert shaping.is_on(server.nft)
    assert rates(world, one)[0] == pytest.approx(5, rel=0.06)


def test_a_stopped_containers_classes_are_gone(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:5000", RATE="*:1:8")
    world.start(101, IP_ADDRESS=A)
    assert "1:11 " in world.host.run("tc", "class", "show", "dev", "up0")
    world.stop(101)
    assert "1:11 " not in world.host.run("tc", "class", "show", "dev", "up0")
    assert "veth101.0" not in world.host.run("nft", "list", "table", "inet", "pyvz_shape")


def arriving(world: Lab, place: Place, address: str, seconds: float = 2.5) -> float:
    """Return what a container gets from the remote machine, in Mbit/s on the wire."""
    sink = place.spawn(sink_tcp, address, 5001)
    pour = world.remote.spawn(pour_tcp, address, 5001, seconds, None, 1.0)
    got = rate_mbit(pour.result()) / PAYLOAD
    sink.result()
    return got


@pytest.mark.parametrize(("address", "head"), [(A, 0), ("fd18::101", 20)])
def test_incoming_traffic_is_shaped_where_wanted(world: Lab, address: str, head: int) -> None:
    shape(world, TOTALRATE="*:1:8000", RATE="*:1:8", TRAFFIC_SHAPING_INCOMING="yes")
    one = world.start(101, IP_ADDRESS=f"{A} fd18::101")
    # IPv6's head is longer, and its payload that much less.
    assert arriving(world, one, address) * 1448 / (1448 - head) == pytest.approx(8, rel=0.1)


def test_incoming_traffic_of_virtual_networks_is_shaped_too(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:8000", RATE="*:1:8", TRAFFIC_SHAPING_INCOMING="yes")
    with world.server() as server:
        networks.store(world.paths, networks.VirtualNetwork("office", interface="up0"))
        server.network("office")
    one = world.start(101, NETIF="ifname=eth0,network=office,ip=198.18.0.111/24,ip=fd18::111/64")
    assert arriving(world, one, "198.18.0.111") == pytest.approx(8, rel=0.1)
    assert arriving(world, one, "fd18::111") * 1448 / 1428 == pytest.approx(8, rel=0.1)
    # And the other way, through the same card.
    assert rates(world, one, seconds=2.5)[0] == pytest.approx(8, rel=0.1)


def test_an_address_takes_the_class_of_whom_it_moves_to(world: Lab) -> None:
    shape(world, TOTALRATE="*:1:8000", RATE="*:1:8", TRAFFIC_SHAPING_INCOMING="yes")
    world.start(101, IP_ADDRESS=f"{A} fd18::101")
    world.start(102, IP_ADDRESS=C)
    world.change(101, IP_ADDRESS=B)
    world.change(102, IP_ADDRESS=f"{C} {A} fd18::101")
    table = " ".join(world.host.run("nft", "list", "table", "netdev", "pyvz_shape").split())
    for address, minor in ((A, 21), ("fd18::101", 21), (C, 21), (B, 11)):
        assert f"{address} : 1:{minor}" in table
    world.stop(101)
    table = world.host.run("nft", "list", "table", "netdev", "pyvz_shape")
    assert "1:11" not in table and "1:21" in table
