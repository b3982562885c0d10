"""NETDEV: interfaces of the server that a container has while it runs, and their way home."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from netlab import lab
from test_net_containers import World, world

from runtime.net import attach

pytestmark = pytest.mark.root
__all__ = ["world"]

INSIDE4, PEER4 = "10.88.0.1", "10.88.0.2"


def card(world: World, name: str = "card0", mac: str = "02:00:00:00:88:01") -> None:
    """Give the host an interface which leads to the remote machine by a cable of its own."""
    host, remote = world.lab.host, world.lab.remote
    remote.run("ip", "link", "add", f"far-{name}", "type", "veth",
               "peer", "name", name, "netns", host.pid)  # fmt: skip
    remote.run("ip", "addr", "add", f"{PEER4}/24", "dev", f"far-{name}")
    remote.run("ip", "link", "set", f"far-{name}", "up")
    host.run("ip", "link", "set", name, "address", mac)


def at_home(world: World, name: str = "card0") -> bool:
    return f" {name}@" in world.lab.host.run("ip", "-o", "link")


def use(world: World, ctid: int, name: str = "card0") -> str:
    return world.ok(
        "pctl", "exec", ctid,
        f"ip addr add {INSIDE4}/24 dev {name} && ip link set {name} up && ping -c1 -W2 {PEER4}",
    )  # fmt: skip


def pins(world: World) -> list[str]:
    return [m for m in world.system.mounts() if "/netns." in m]


def test_an_interface_is_the_containers_while_it_runs_and_then_the_servers(world: World) -> None:
    card(world)
    world.create(101)
    world.ok("pctl", "set", 101, "--netdev_add", "card0", "--save")
    assert 'NETDEV="card0"' in world.system.paths.ct_conf(101).read_text()
    world.ok("vzctl", "start", 101)
    assert not at_home(world)
    use(world, 101)
    world.ok("vzctl", "stop", 101)
    assert at_home(world)
    assert pins(world) == []


def test_an_interface_comes_and_goes_live(world: World) -> None:
    card(world)
    world.create(101)
    world.ok("vzctl", "start", 101)
    world.ok("pctl", "set", 101, "--netdev_add", "card0", "--save")
    use(world, 101)
    assert "card0 inside" in world.ok("pctl", "diagnose", 101, "net")
    # What follows concerns something else, and must leave it alone.
    world.ok("pctl", "set", 101, "--ipadd", "198.18.0.101", "--save")
    world.ok("pctl", "exec", 101, f"ping -c1 -W2 {PEER4}")
    world.ok("pctl", "set", 101, "--netdev_del", "card0", "--save")
    assert at_home(world)
    assert pins(world) == []
    assert "NETDEV" not in world.system.paths.ct_conf(101).read_text()
    world.fails(104, "pctl", "set", 101, "--netdev_del", "card0", "--save")


def test_it_comes_home_as_it_was_whatever_the_container_made_of_it(world: World) -> None:
    card(world)
    world.create(101)
    world.ok("pctl", "set", 101, "--netdev_add", "card0", "--save")
    world.ok("vzctl", "start", 101)
    run = f"nsenter -t {init_pid(world)} -U -n -S 0 -G 0"
    for words in (
        "ip link set card0 name mine address 02:00:00:00:99:99 mtu 1300",
        "ip link set mine group 5050 promisc on alias theirs",
        "ip link property add dev mine altname up0",  # a name the server has already
        "ip link add link mine name top type macvlan",
    ):
        subprocess.run([*run.split(), *words.split()], check=True)
    world.ok("pctl", "set", 101, "--netdev_del", "card0", "--save")
    shown = world.lab.host.run("ip", "-o", "-d", "link", "show", "card0")
    assert "02:00:00:00:88:01" in shown
    assert "mtu 1500" in shown
    assert "group default" in shown
    assert "PROMISC" not in shown
    assert "altname" not in shown and "theirs" not in shown
    assert "top" not in world.ok("pctl", "exec", 101, "ip link")


def init_pid(world: World) -> int:
    from runtime import state

    run = state.load(world.system.paths, 101)
    assert run is not None and run.init is not None
    return run.init.pid


def test_a_restart_keeps_the_interface(world: World) -> None:
    card(world)
    world.create(101)
    world.ok("pctl", "set", 101, "--netdev_add", "card0", "--save")
    world.ok("vzctl", "start", 101)
    before = init_pid(world)
    world.ok("vzctl", "restart", 101)
    assert init_pid(world) != before
    use(world, 101)


def test_killed_with_everything_it_is_brought_home_by_the_next_command(world: World) -> None:
    card(world)
    world.create(101)
    world.ok("pctl", "set", 101, "--netdev_add", "card0", "--save")
    world.ok("vzctl", "start", 101)
    world.system.kill_all()
    assert not at_home(world)
    world.fails(31, "vzctl", "stop", 101)
    assert at_home(world)
    assert pins(world) == []


REFUSED = {
    "nothere0": "there is no network device",
    "up0": "the server's own way out",
    "port0": "a port of br0",
    "below0": "what vlan0 is made of",
    "veth101.0": "part of an environment's network",
    "../etc": "invalid name",
    "lo": "invalid name",
    "name with blanks": "invalid name",
    "x" * 16: "invalid name",
}


def test_what_is_not_the_containers_to_have_is_refused(world: World) -> None:
    host = world.lab.host
    for made in ("port0", "below0"):
        host.run("ip", "link", "add", made, "type", "veth", "peer", "name", f"p{made}")
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "link", "set", "port0", "master", "br0")
    host.run("ip", "link", "add", "link", "below0", "name", "vlan0", "type", "macvlan")
    world.create(101, "--ipadd", "198.18.0.101")
    world.ok("vzctl", "start", 101)
    links = host.run("ip", "-o", "link").count("\n")
    for name, why in REFUSED.items():
        said = world.fails(104, "pctl", "set", 101, "--netdev_add", name, "--save")
        assert why in said
        assert len(said.strip().splitlines()) <= 2
        assert host.run("ip", "-o", "link").count("\n") == links
    assert "NETDEV" not in world.system.paths.ct_conf(101).read_text()
    assert pins(world) == []


def test_two_containers_do_not_have_the_same_interface(world: World) -> None:
    card(world)
    for ctid in (101, 102):
        world.create(ctid)
        world.ok("pctl", "set", ctid, "--netdev_add", "card0", "--save")
    world.ok("vzctl", "start", 101)
    said = world.fails(104, "vzctl", "start", 102)
    assert "container 101 has it" in said
    use(world, 101)
    world.ok("vzctl", "stop", 101)
    world.ok("vzctl", "start", 102)
    use(world, 102)


def test_a_start_that_fails_leaves_every_interface_at_home(world: World) -> None:
    card(world)
    world.create(101)
    world.ok("pctl", "set", 101, "--netdev_add", "card0", "--netdev_add", "missing0", "--save")
    world.fails(104, "vzctl", "start", 101)
    assert at_home(world)
    assert not re.search(r"netns\.", " ".join(os.listdir(world.system.paths.run / "net")))


def test_killed_at_any_moment_no_interface_is_lost(tmp_path: Path) -> None:
    with lab(tmp_path) as made:
        made.host.run("ip", "link", "add", "card0", "type", "veth", "peer", "name", "far0")
        config = made.configure(101, IP_ADDRESS="198.18.0.101", NETDEV="card0")
        ct = made.boot(101)

        def setup() -> None:
            attach.setup(made.paths, 101, config, ct.pid)

        def teardown() -> None:
            attach.teardown(made.paths, 101, config)

        for delay_ms in range(10, 130, 12):
            for act in (setup, teardown):
                job = made.host.spawn(act)
                time.sleep(delay_ms / 1e3)
                os.kill(job.pid, signal.SIGKILL)
                os.waitpid(job.pid, 0)
                os.close(job.pipe)
        made.host.call(setup)
        assert "card0" in ct.run("ip", "-br", "link")
        made.stop(101)
        assert "card0@far0" in made.host.run("ip", "-br", "link")
        assert made.leftovers() == []
        assert not list((made.paths.run / "net").glob("netns.*"))
