"""Throughput, packet rate and set-up time of container networks, as ratios to the host's own.

.venv/bin/python tests/bench/bench_net.py [--quick] [--containers N]

Everything runs in namespaces of the benchmark's own. The peers' networks are made as they make
them: a veth pair into a plain bridge (lxc, podman), with address and masquerading left out.
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from netlab import HOST4, REMOTE4, Lab, Place, lab, ping, pour_tcp, rate_mbit, sink_tcp

from runtime.net import attach, networks
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


def peers(world: Lab) -> tuple[Place, Place]:
    """Return two namespaces on a plain bridge of the host, as lxc and podman make them."""
    world.host.run("ip", "link", "add", "peer0", "type", "bridge")
    world.host.run("ip", "addr", "add", "10.99.0.254/24", "dev", "peer0")
    world.host.run("ip", "link", "set", "peer0", "up")
    found = []
    for number in (1, 2):
        place = world.place(f"peer{number}", user=True)
        world.host.run(
            "ip", "link", "add", f"p{number}", "type", "veth",
            "peer", "name", "eth0", "netns", place.pid,
        )  # fmt: skip
        world.host.run("ip", "link", "set", f"p{number}", "master", "peer0", "up")
        place.run("ip", "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
        place.run("ip", "link", "set", "eth0", "up")
        found.append(place)
    return found[0], found[1]


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
    five, six = peers(world)
    streams = measured(
        {
            "host's loopback": lambda: tcp(world.host, world.host, "127.0.0.1", seconds),
            "host's veth to the remote machine": lambda: tcp(
                world.host, world.remote, REMOTE4, seconds
            ),
            "routed container to container": lambda: tcp(one, two, B4, seconds),
            "routed container to host": lambda: tcp(one, world.host, HOST4, seconds),
            "routed container to remote machine": lambda: tcp(one, world.remote, REMOTE4, seconds),
            "bridged container to container, guarded": lambda: tcp(
                three, four, "10.77.0.2", seconds
            ),
            "veth and bridge as lxc, podman": lambda: tcp(five, six, "10.99.0.2", seconds),
        },
        "host's loopback",
        rounds,
        "mbit_s",
    )
    trips = measured(
        {
            "host to remote machine": lambda: round_trips(world.host, REMOTE4, seconds / 2),
            "routed container to container": lambda: round_trips(one, B4, seconds / 2),
            "routed container to remote machine": lambda: round_trips(one, REMOTE4, seconds / 2),
            "bridged container to container, guarded": lambda: round_trips(
                three, "10.77.0.2", seconds / 2
            ),
            "veth and bridge as lxc, podman": lambda: round_trips(five, "10.99.0.2", seconds / 2),
        },
        "veth and bridge as lxc, podman",
        rounds,
        "round_trips_s",
    )
    return [{"what": "tcp stream", **streams}, {"what": "packets", **trips}]


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
    row = {
        "containers": containers,
        "start_network_ms": round(each_ms, 1),
        "add_one_address_ms": {
            "median": round(statistics.median(add), 1),
            "min": round(min(add), 1),
        },
        "add_to_first_answer_ms": round(min(answered), 1),
        "reconcile_ms": round(reconcile_ms, 1),
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
