"""Throughput, packet rate and set-up time of container networks, as ratios to the host's own.

.venv/bin/python tests/bench/bench_net.py [--quick] [--containers N]

Everything runs in namespaces of the benchmark's own, lxc's and podman's containers too, whose
networks their own tools make.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from _netpeers import peers
from netlab import HOST4, REMOTE4, Lab, Place, lab, ping, pour_tcp, rate_mbit, sink_tcp

from runtime.net import attach, networks, privnet
from runtime.net.server import Server, container_config

A4, B4 = "198.18.0.101", "198.18.0.102"


def tcp(sender: Place, receiver: Place, address: str, seconds: float) -> float:
    """Return Mbit/s of one TCP stream."""
    sink = receiver.spawn(sink_tcp, address, 5001)
    rate = rate_mbit(sender.call(pour_tcp, address, 5001, seconds, None, seconds / 4))
    sink.result()
    return rate


def round_trips(sender: Place, address: str, seconds: float) -> float:
    """Return echo requests answered a second, one at a time: the cost of a packet both ways."""

    def count() -> float:
        begin, done = time.monotonic(), 0
        while time.monotonic() < begin + seconds:
            if not ping(address, 1.0):
                return 0.0
            done += 1
        return done / (time.monotonic() - begin)

    return float(sender.call(count))


def measured(
    what: dict[str, Callable[[], float]], base: str, rounds: int, unit: str
) -> dict[str, object]:
    """Run each in turn ``rounds`` times; return the best of each and its ratio to ``base``."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, act in what.items():
            best[name] = max(best.get(name, 0.0), act())
    rows = {
        name: {unit: round(value, 1), "ratio": round(value / best[base], 3)}
        for name, value in best.items()
    }
    for name, row in rows.items():
        print(f"{name:<44} {row[unit]:>12} {unit}  × {row['ratio']}", file=sys.stderr)
    return {"base": base, "rows": rows}


def throughput(world: Lab, rounds: int, seconds: float) -> list[dict[str, object]]:
    """Measure streams and round trips between containers, host, remote machine, and peers."""
    networks.store(world.paths, networks.VirtualNetwork("lab"))
    one = world.start(101, IP_ADDRESS=A4)
    two = world.start(102, IP_ADDRESS=B4)
    three = world.start(103, NETIF="ifname=eth0,network=lab,ip=10.77.0.1/24")
    four = world.start(104, NETIF="ifname=eth0,network=lab,ip=10.77.0.2/24")
    ways: dict[str, tuple[Place, Place, str]] = {
        "host's loopback": (world.host, world.host, "127.0.0.1"),
        "host to remote machine": (world.host, world.remote, REMOTE4),
        "routed container to container": (one, two, B4),
        "routed container to host": (one, world.host, HOST4),
        "routed container to remote machine": (one, world.remote, REMOTE4),
        "bridged container to container": (three, four, "10.77.0.2"),
    }
    with peers(world) as others:
        for name, pair in others.items():
            ways[f"{name} container to container"] = (pair.one, pair.two, pair.address)
            # Out of its bridge, through the host, as a routed container goes.
            world.remote.run("ip", "route", "replace", _net(pair.address), "via", HOST4)
            ways[f"{name} container to remote machine"] = (pair.one, world.remote, REMOTE4)
        world.host.run("sysctl", "-q", "net.ipv4.ip_forward=1")
        streams = measured(
            {name: partial(tcp, *way, seconds) for name, way in ways.items()},
            "host's loopback",
            rounds,
            "mbit_s",
        )
        trips = measured(
            {
                name: partial(round_trips, sender, address, seconds / 2)
                for name, (sender, _receiver, address) in ways.items()
            },
            "host to remote machine",
            rounds,
            "round_trips_s",
        )
    return [{"what": "tcp stream", **streams}, {"what": "packets", **trips}]


def _net(address: str) -> str:
    return address.rpartition(".")[0] + ".0/24"


def set_up(world: Lab, containers: int, rounds: int) -> dict[str, object]:
    """Measure adding an address to the last of many containers with two addresses each."""
    world.server_config(SKIP_ARPDETECT="yes")
    begin = time.monotonic()
    for number in range(containers):
        ctid = 200 + number
        first = f"198.18.{10 + number // 200}.{number % 200 + 1}"
        second = f"198.18.{20 + number // 200}.{number % 200 + 1}"
        world.start(ctid, IP_ADDRESS=f"{first} {second}")
    each_ms = (time.monotonic() - begin) / containers * 1e3
    last = 200 + containers - 1
    config = container_config(world.paths, last)
    more = world.configure(last, IP_ADDRESS=f"{config['IP_ADDRESS']} 198.18.0.77")
    pid = world.containers[last].pid
    add, answered = [], []
    with world.on_host():
        for _ in range(rounds):
            begin = time.perf_counter()
            attach.apply_live(world.paths, last, config, more, pid)
            add.append((time.perf_counter() - begin) * 1e3)
            attach.apply_live(world.paths, last, more, config, pid)
        for _ in range(3):
            begin = time.perf_counter()
            attach.apply_live(world.paths, last, config, more, pid)
            while not world.remote.answers("198.18.0.77", timeout_s=0.2):
                pass
            answered.append((time.perf_counter() - begin) * 1e3)
            attach.apply_live(world.paths, last, more, config, pid)
        begin = time.perf_counter()
        with Server(world.paths) as server:
            server.reconcile()
        reconcile_ms = (time.perf_counter() - begin) * 1e3
    many = [privnet.parse(f"n{i}", [f"10.{i}.{j}.0/24" for j in range(10)]) for i in range(50)]
    with world.server() as server:
        begin = time.perf_counter()
        privnet.apply(server.nft, many)
        pairs_ms = (time.perf_counter() - begin) * 1e3
    row = {
        "containers": containers,
        "start_network_ms": round(each_ms, 1),
        "add_one_address_ms": {
            "median": round(statistics.median(add), 1),
            "min": round(min(add), 1),
        },
        "add_to_first_answer_ms": round(min(answered), 1),
        "reconcile_ms": round(reconcile_ms, 1),
        "5000_private_pairs_ms": round(pairs_ms, 1),
    }
    print(json.dumps(row), file=sys.stderr)
    return {"what": "set-up", "rows": row}


def main() -> None:
    """Run all and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--containers", type=int, default=200)
    args = parser.parse_args()
    rounds, seconds = (1, 1.0) if args.quick else (args.rounds, 2.0)
    containers = 20 if args.quick else args.containers
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="pyvz-bench-") as place, lab(Path(place)) as world:
        results += throughput(world, rounds, seconds)
    with tempfile.TemporaryDirectory(prefix="pyvz-bench-") as place, lab(Path(place)) as world:
        results.append(set_up(world, containers, 10))
    json.dump({"benchmarks": results, "kernel": os.uname().release}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
