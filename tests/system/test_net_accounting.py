"""Traffic by class: what is counted is what was sent, and it outlives whatever happens."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import HOST4, REMOTE4, REMOTE6, Lab, lab, listening_udp, pour_tcp, send_udp, sink_tcp

from runtime.errors import AccountingFailed
from runtime.net import accounting, attach, classes, networks, server
from runtime.net.accounting import Traffic

pytestmark = pytest.mark.root

A4, A6 = "198.18.0.101", "fd18::101"
#: IPv4 and UDP headers; IPv6 and UDP headers.
HEAD4, HEAD6 = 28, 48
TABLE = """1 0.0.0.0/0
1 ::/0
2 198.18.0.254/32
3 198.18.0.2/32
0 198.18.0.1/32
4 fd18::fe/128
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as made:
        made.paths.networks_classes.write_text(TABLE)
        made.start(101, IP_ADDRESS=f"{A4} {A6}")
        yield made


def counted(world: Lab, version: int = 4) -> dict[str, dict[int, Traffic]]:
    """Return the counters of one IP version: IPv6 always has some traffic of its own (MLD, ND)."""
    with world.server() as act:
        return accounting.by_environment(accounting.read(act.nft), {}, (version,))


def exchange(world: Lab, address: str, count: int, size: int, source: str | None = None) -> None:
    """Send datagrams from the container, and count those which arrive."""
    place = world.remote if address in (REMOTE4, REMOTE6) else world.other
    job = listening_udp(place, address, 5000, 5.0, count)
    assert world.containers[101].call(send_udp, address, 5000, count, size, source, 0.0002) == count
    assert job.result()[0] == count


def test_udp_is_counted_exactly_in_its_class(world: Lab) -> None:
    exchange(world, REMOTE4, 1000, 1000)
    exchange(world, "198.18.0.2", 100, 500)
    found = counted(world)["101"]
    assert (found[2].packets_out, found[2].bytes_out) == (1000, 1000 * (1000 + HEAD4))
    assert (found[3].packets_out, found[3].bytes_out) == (100, 100 * (500 + HEAD4))
    assert 1 not in found


def test_udp_towards_the_container_is_counted_exactly(world: Lab) -> None:
    world.remote.answers(A4)
    before = counted(world)["101"][2]
    job = listening_udp(world.containers[101], A4, 5000, 5.0, 300)
    world.remote.call(send_udp, A4, 5000, 300, 700, None, 0.0002)
    assert job.result()[0] == 300
    after = counted(world)["101"][2]
    assert after.packets_in - before.packets_in == 300
    assert after.bytes_in - before.bytes_in == 300 * (700 + HEAD4)


def test_ipv6_has_classes_of_its_own(world: Lab) -> None:
    exchange(world, REMOTE6, 200, 400)
    found = counted(world, 6)["101"]
    assert (found[4].packets_out, found[4].bytes_out) == (200, 200 * (400 + HEAD6))


def test_class_0_is_not_counted(world: Lab) -> None:
    assert world.containers[101].answers(HOST4)
    assert "101" not in counted(world)


def test_tcp_is_counted_within_two_percent_of_its_payload(world: Lab) -> None:
    job = world.remote.spawn(sink_tcp, REMOTE4, 5001)
    world.containers[101].call(pour_tcp, REMOTE4, 5001, 1.0)
    payload = job.result()[0][1]
    sent = counted(world)["101"][2].bytes_out
    assert payload <= sent <= payload * 1.06


def test_the_hosts_own_traffic_is_environment_0(world: Lab) -> None:
    assert world.host.answers("198.18.0.2")
    found = counted(world)["0"][3]
    assert found.packets_out >= 1
    assert found.packets_in >= 1


def test_counters_survive_a_stop_and_go_on_at_the_next_start(world: Lab) -> None:
    exchange(world, REMOTE4, 100, 100)
    world.stop(101)
    assert counted(world)["101"][2].packets_out == 100
    world.start(101, IP_ADDRESS=A4)
    exchange(world, REMOTE4, 50, 100)
    assert counted(world)["101"][2].packets_out == 150


def test_new_classes_keep_what_was_counted(world: Lab) -> None:
    exchange(world, REMOTE4, 100, 100)
    with world.server() as act:
        accounting.load(act.nft, world.paths, classes.parse(TABLE.replace("2 198", "5 198")))
    exchange(world, REMOTE4, 10, 100)
    found = counted(world)["101"]
    assert (found[2].packets_out, found[5].packets_out) == (100, 10)


def test_a_bad_table_is_named_by_its_line_and_the_old_one_kept(world: Lab) -> None:
    with pytest.raises(AccountingFailed, match="line 3"):
        classes.parse("1 0.0.0.0/0\n1 ::/0\n16 10.0.0.0/8\n")
    exchange(world, REMOTE4, 10, 100)
    assert counted(world)["101"][2].packets_out == 10


def test_counters_survive_a_foreign_flush_up_to_the_last_save(world: Lab) -> None:
    exchange(world, REMOTE4, 100, 100)
    with world.on_host():
        server.tick(world.paths)
    exchange(world, REMOTE4, 7, 100)
    world.host.run("nft", "flush", "ruleset")
    with world.on_host():
        server.tick(world.paths)
    assert counted(world)["101"][2].packets_out == 100
    exchange(world, REMOTE4, 5, 100)
    assert counted(world)["101"][2].packets_out == 105


def test_counters_survive_a_reboot_of_the_host(tmp_path: Path) -> None:
    with lab(tmp_path) as first:
        first.paths.networks_classes.write_text(TABLE)
        first.start(101, IP_ADDRESS=A4)
        exchange(first, REMOTE4, 100, 100)
        first.stop(101)
    with lab(tmp_path) as second:
        second.start(101, IP_ADDRESS=A4)
        exchange(second, REMOTE4, 1, 100)
        found = counted(second)["101"][2]
        assert (found.packets_out, found.bytes_out) == (101, 101 * (100 + HEAD4))


def test_a_destroyed_containers_counters_are_gone(world: Lab) -> None:
    exchange(world, REMOTE4, 10, 100)
    world.stop(101)
    with world.on_host():
        attach.forget(world.paths, 101)
    assert "101" not in counted(world)


def test_bridged_adapters_are_counted_too(world: Lab) -> None:
    networks.store(world.paths, networks.VirtualNetwork("lab"))
    one = world.start(102, NETIF="ifname=eth0,network=lab,ip=10.77.0.1/24")
    two = world.start(103, NETIF="ifname=eth0,network=lab,ip=10.77.0.2/24")
    assert one.answers("10.77.0.2")
    before = counted(world)["102"][1]
    job = listening_udp(two, "10.77.0.2", 5000, 5.0, 200)
    one.call(send_udp, "10.77.0.2", 5000, 200, 300, None, 0.0002)
    assert job.result()[0] == 200
    after = counted(world)["102"][1]
    assert after.packets_out - before.packets_out == 200
    assert after.bytes_out - before.bytes_out == 200 * (300 + HEAD4)


def test_pnetstat_prints_the_documented_columns(world: Lab) -> None:
    exchange(world, REMOTE4, 10, 100)
    top = Path(__file__).resolve().parents[2]
    enter = ["nsenter", "-t", str(world.host.pid), "-n"]
    command = [*enter, str(top / ".venv/bin/python"), "-m", "tools.vznetstat", "-4", "-v", "101"]
    done = subprocess.run(
        command,
        cwd=top,
        env={**os.environ, "VZ_ROOT": str(world.paths.root)},
        capture_output=True,
        text=True,
        check=True,
    )
    heading, row = done.stdout.splitlines()
    assert heading.split() == [
        "CTID", "Net.Class", "Input(bytes)", "Input(pkts)", "Output(bytes)", "Output(pkts)",
    ]  # fmt: skip
    assert row == f"{'101':<36s} 2  {0:20d}  {0:10d} {1280:20d}  {10:10d}"
