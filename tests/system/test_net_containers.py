"""The network of real containers, set with the commands as a user does."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import System
from netlab import OTHER4, REMOTE4, Lab, Place, lab, ping

from runtime import state
from runtime.net import guestcfg

pytestmark = pytest.mark.root

A4, B4 = "198.18.0.101", "198.18.0.102"


class World:
    """A lab, and a system whose commands run on its host."""

    def __init__(self, made: Lab, system: System) -> None:
        self.lab = made
        self.system = system

    def ok(self, *words: str | int) -> str:
        with self.lab.on_host():
            return self.system.ok(*words)

    def fails(self, code: int, *words: str | int) -> str:
        with self.lab.on_host():
            return self.system.fails(code, *words)

    def create(self, ctid: int, *options: str) -> None:
        with self.lab.on_host():
            self.system.create(ctid, "busybox", *options)


@pytest.fixture
def world(system: System, tmp_path: Path) -> Iterator[World]:
    with lab(tmp_path) as made:
        made.paths = system.paths
        current = World(made, system)
        yield current
        with made.on_host():
            for conf in system.paths.conf_dir.glob("[0-9]*.conf"):
                system.run("vzctl", "stop", conf.name.split(".")[0], "--fast")
            assert made.leftovers() == []


def test_a_started_container_is_reached_from_outside(world: World) -> None:
    world.create(101, "--ipadd", A4)
    world.ok("vzctl", "start", 101)
    assert world.lab.remote.answers(A4)
    assert A4 in world.ok("pctl", "exec", 101, "ip addr show venet0")
    world.ok("pctl", "exec", 101, f"ping -c1 -W2 {REMOTE4}")


def test_addresses_set_live_are_saved_and_work(world: World) -> None:
    world.create(101)
    world.ok("vzctl", "start", 101)
    world.ok("vzctl", "set", 101, "--ipadd", A4, "--ipadd", "fd18::101", "--save")
    assert world.lab.remote.answers(A4)
    assert world.lab.remote.answers("fd18::101")
    assert f'IP_ADDRESS="{A4} fd18::101"' in world.system.paths.ct_conf(101).read_text()
    world.ok("vzctl", "set", 101, "--ipdel", "all", "--save")
    assert not world.lab.remote.answers(A4, timeout_s=0.3)
    assert "IP_ADDRESS" not in world.system.paths.ct_conf(101).read_text()


def test_bad_and_taken_addresses_have_the_documented_codes(world: World) -> None:
    world.create(101, "--ipadd", A4)
    world.create(102)
    world.ok("vzctl", "start", 101)
    world.ok("vzctl", "start", 102)
    world.fails(71, "vzctl", "set", 102, "--ipadd", "10.0.0.300", "--save")
    world.fails(78, "vzctl", "set", 102, "--ipadd", A4, "--save")
    world.fails(78, "vzctl", "set", 102, "--ipadd", OTHER4, "--save")
    world.fails(72, "vzctl", "set", 102, "--nameserver", "example", "--save")
    world.fails(73, "vzctl", "set", 102, "--searchdomain", "not a/domain", "--save")
    assert "IP_ADDRESS" not in world.system.paths.ct_conf(102).read_text()


def test_name_servers_are_written_inside(world: World) -> None:
    world.create(101)
    world.ok("vzctl", "start", 101)
    world.ok("vzctl", "set", 101, "--nameserver", "10.0.0.53", "--nameserver", "fd00::53",
             "--searchdomain", "example.org", "--save")  # fmt: skip
    text = world.ok("pctl", "exec", 101, "cat /etc/resolv.conf")
    assert text.splitlines()[:3] == [
        "search example.org",
        "nameserver 10.0.0.53",
        "nameserver fd00::53",
    ]
    world.ok("vzctl", "set", 101, "--nameserver", "10.0.0.54", "--save")
    assert "10.0.0.53" not in world.ok("pctl", "exec", 101, "cat /etc/resolv.conf")


def test_an_adapter_is_added_connected_and_removed_live(world: World) -> None:
    world.create(101)
    world.create(102)
    for ctid in (101, 102):
        world.ok("vzctl", "start", ctid)
        world.ok("pctl", "set", ctid, "--netif_add", "eth0", "--save")
        world.ok("pctl", "set", ctid, "--ifname", "eth0", "--network", "Bridged",
                 "--ipadd", f"10.9.0.{ctid}/24", "--save")  # fmt: skip
    world.ok("pctl", "exec", 101, "ping -c1 -W2 10.9.0.102")
    conf = world.system.paths.ct_conf(101).read_text()
    assert "host_ifname=veth$VEID.1" in conf
    assert "network=Bridged,ip=10.9.0.101/24" in conf
    world.ok("pctl", "set", 101, "--netif_del", "eth0", "--save")
    assert "NETIF" not in world.system.paths.ct_conf(101).read_text()
    assert "eth0" not in world.ok("pctl", "exec", 101, "ip link")


def test_a_client_inside_takes_what_dhcp_gives_at_boot_and_live(world: World) -> None:
    world.create(101)
    world.ok("pctl", "set", 101, "--netif_add", "eth0", "--save")
    world.ok("pctl", "set", 101, "--ifname", "eth0", "--network", "Host-Only",
             "--dhcp", "yes", "--save")  # fmt: skip
    world.ok("vzctl", "start", 101)
    assert leased(world, "eth0")
    world.ok("pctl", "exec", 101, "ping -c1 -W2 10.37.130.1")
    world.ok("pctl", "set", 101, "--netif_add", "eth1", "--save")
    world.ok("pctl", "set", 101, "--ifname", "eth1", "--network", "Host-Only",
             "--dhcp", "yes", "--save")  # fmt: skip
    assert leased(world, "eth1")
    # Set from outside instead: the client takes its address away before, not after.
    world.ok("pctl", "set", 101, "--ifname", "eth1", "--dhcp", "no",
             "--ipadd", "10.37.130.7/24", "--gw", "10.37.130.1", "--save")  # fmt: skip
    shown = world.ok("pctl", "exec", 101, "ip -4 -o addr show dev eth1; ip route; ps")
    assert "10.37.130.7/24" in shown and "default via 10.37.130.1 dev eth1" in shown
    assert "-i eth1" not in shown


def leased(world: World, name: str) -> str:
    """Wait for an IPv4 address on an adapter of 101; return it, or nothing after a while."""
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        shown = world.ok("pctl", "exec", 101, f"ip -4 -o addr show dev {name}")
        if found := re.search(r"inet (10\.37\.130\.\d+)/24", shown):
            return found[1]
        time.sleep(0.2)
    return ""


def test_adapter_options_without_an_adapter_are_refused(world: World) -> None:
    world.create(101)
    assert "--ifname" in world.fails(20, "pctl", "set", 101, "--gw", "10.0.0.1", "--save")
    world.fails(136, "pctl", "set", 101, "--ifname", "eth9", "--gw", "10.0.0.1", "--save")
    world.fails(136, "pctl", "set", 101, "--netif_add", "eth0,00:18:zz", "--save")


def test_a_reboot_from_inside_keeps_the_network(world: World) -> None:
    world.create(101, "--ipadd", A4)
    world.ok("vzctl", "start", 101)
    before = world.ok("vzlist", "-H", "-o", "ctid,uptime", "101")
    world.ok("vzctl", "restart", 101)
    assert before
    deadline = time.monotonic() + 10
    while not world.lab.remote.answers(A4, timeout_s=0.3):
        assert time.monotonic() < deadline


def test_a_supervisor_killed_leaves_a_network_that_the_next_start_repairs(world: World) -> None:
    world.create(101, "--ipadd", A4)
    world.ok("vzctl", "start", 101)
    run = state.load(world.system.paths, 101)
    assert run is not None and run.supervisor is not None
    os.kill(run.supervisor.pid, 9)
    world.ok("vzctl", "start", 101)
    assert world.lab.remote.answers(A4)


def test_counters_outlive_the_stop_but_not_the_container(world: World) -> None:
    world.create(101, "--ipadd", A4)
    world.ok("vzctl", "start", 101)
    assert world.lab.remote.answers(A4)
    world.ok("vzctl", "stop", 101)
    assert world.ok("vznetstat").count("\n101 ") == 1
    world.ok("vzctl", "destroy", 101)
    assert world.ok("vznetstat").count("\n101 ") == 0


def test_rules_connection_tracking_and_nat_work_inside(tmp_path: Path) -> None:
    rules = """
        add table ip t
        add chain ip t out { type nat hook output priority 0; }
        add rule ip t out ip daddr 10.66.0.1 dnat to 198.18.0.254
        add chain ip t in { type filter hook input priority 0; }
        add rule ip t in ct state established counter accept
    """
    with lab(tmp_path) as made:
        ct = made.start(101, IP_ADDRESS=A4)
        ct.run("nft", rules)
        assert ct.answers("10.66.0.1")
        assert "packets 0" not in ct.run("nft", "list", "chain", "ip", "t", "in")
        assert "table ip t" not in made.host.run("nft", "list", "ruleset")


def test_a_container_routes_for_its_own_namespaces(tmp_path: Path) -> None:
    with lab(tmp_path) as made:
        ct = made.start(101, IP_ADDRESS=A4)
        ct.run("ip", "route", "add", "10.44.0.0/16", "dev", "venet0")
        ct.run("ip", "link", "add", "br9", "type", "bridge")
        assert "br9" in ct.run("ip", "link")
        assert "br9" not in made.host.run("ip", "link")


def test_a_tunnel_carries_packets_where_it_is_allowed(world: World) -> None:
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("there is no /dev/net/tun: modprobe tun")
    world.create(101)
    world.ok("vzctl", "start", 101)
    world.fails(8, "vzctl", "exec", 101, "test -e /dev/net/tun || { echo none >&2; exit 1; }")
    world.ok("vzctl", "set", 101, "--features", "tun:on", "--setmode", "restart", "--save")
    assert world.ok("vzctl", "exec", 101, "ls -ln /dev/net/tun").split()[2:6] == [
        "0", "0", "10,", "200",
    ]  # fmt: skip
    world.ok("vzctl", "exec", 101,
             "tunctl -t tap7 && ip addr add 10.3.0.1/24 dev tap7 && ip link set tap7 up")  # fmt: skip
    run = state.load(world.system.paths, 101)
    assert run is not None and run.init is not None
    inside = Place("inside", run.init, user=True)  # type: ignore[arg-type]  # only its pid is used
    heard = inside.spawn(arp_request_on, f"/proc/{run.init.pid}/root/dev/net/tun", "tap7")
    world.fails(8, "vzctl", "exec", 101, "ping -c2 -W1 10.3.0.2 || { echo lost >&2; exit 1; }")
    assert heard.result() == "10.3.0.2"


def arp_request_on(device: str, ifname: str) -> str:
    """Be the other end of a tap and return the address that is asked for there."""
    fd = os.open(device, os.O_RDWR)
    # TUNSETIFF with IFF_TAP | IFF_NO_PI (linux/if_tun.h)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", ifname.encode(), 0x1002))
    while True:
        frame = os.read(fd, 2048)
        if frame[12:14] == b"\x08\x06":
            return socket.inet_ntoa(frame[38:42])


def test_diagnose_net_names_what_is_wrong(world: World) -> None:
    world.create(101, "--ipadd", A4)
    world.ok("vzctl", "start", 101)
    assert "ok" in world.ok("pctl", "diagnose", "101", "net")
    world.ok("pctl", "exec", 101, f"ip addr del {A4}/32 dev venet0")
    with world.lab.on_host():
        done = world.system.run("pctl", "diagnose", "101", "net")
    assert done.returncode == 1
    assert f"{A4} was removed from venet0 inside" in done.stdout


def test_name_servers_are_inherited_but_not_a_stub_on_loopback(world: World) -> None:
    world.create(101)
    world.ok("vzctl", "start", 101)
    world.ok("vzctl", "set", 101, "--nameserver", "inherit", "--save")
    shown = world.ok("pctl", "exec", 101, "cat /etc/resolv.conf")
    own = guestcfg.name_servers({"NAMESERVER": "inherit"})["NAMESERVER"].split()
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("nameserver")] == own
    assert "127." not in shown


def wire(made: Lab) -> list[str]:
    """Return what the host's network consists of, counters left out."""
    shown = [
        made.host.run("ip", "-o", "link"),
        made.host.run("ip", "route"),
        made.host.run("ip", "-6", "route"),
        made.host.run("ip", "neigh", "show", "proxy"),
        made.host.run("nft", "list", "tables"),
        made.host.run("nft", "list", "table", "inet", "pyvz_guard"),
        made.host.run("nft", "list", "table", "bridge", "pyvz_guard"),
    ]
    # A new bridge's carrier, and the state of what is on it, settle by themselves.
    return [re.sub(r"<\S+>|state [A-Z]+|packets \d+ bytes \d+", "", text) for text in shown]


def test_a_restart_of_the_service_changes_nothing_on_the_wire(
    warm_system: System, tmp_path: Path
) -> None:
    with lab(tmp_path) as made:
        made.paths = warm_system.paths
        world = World(made, warm_system)
        world.create(101, "--ipadd", A4)
        world.ok("vzctl", "start", 101)
        world.ok("pctl", "set", 101, "--netif_add", "eth0", "--save")
        world.ok("pctl", "set", 101, "--ifname", "eth0", "--network", "Bridged", "--save")
        before = wire(made)
        pings = made.remote.spawn(unanswered, A4, 3.0)
        service = [
            pid
            for pid in warm_system.processes()
            if b"tools.service" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert service
        for pid in service:
            os.kill(pid, 9)
        # The next changing command starts another.
        world.ok("vzctl", "set", 101, "--description", "x", "--save")
        assert pings.result() == 0
        assert wire(made) == before
        world.ok("vzctl", "stop", 101, "--fast")
        assert made.leftovers() == []


def unanswered(address: str, seconds: float) -> int:
    """Ping for some seconds; return how many got no answer."""
    lost, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        lost += not ping(address, 2.0)
        time.sleep(0.02)
    return lost


def test_two_systems_side_by_side_know_nothing_of_each_other(tmp_path: Path) -> None:
    with lab(tmp_path / "a") as one, lab(tmp_path / "b") as two:
        for made in (one, two):
            made.start(101, IP_ADDRESS=A4)
            assert made.remote.answers(A4)
        one.stop(101)
        assert one.leftovers() == []
        assert not one.remote.answers(A4, timeout_s=0.3)
        assert two.remote.answers(A4)
