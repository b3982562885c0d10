"""Guests bring their network up themselves, by their own tools, from what they were told.

The server sets a container's network at every start: whether the files it wrote are any good shows
only when all of that is taken away inside, and the guest's own tool is started.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import REMOTE4, REMOTE6, lab
from test_net_containers import World

from tests.system import _templates
from tests.system.conftest import System

pytestmark = pytest.mark.root

CT = 101
A4, A6 = "198.18.0.101", "fd18::101"
B4, B6, GW6 = "10.9.0.7", "fd09::7", "fd09::1"
CLEAR = "for i in venet0 eth0; do ip addr flush dev $i; ip -4 route flush dev $i; ip link set $i down; done; "
NETWORKD = "systemctl disable --now networking; systemctl enable --now systemd-networkd"


@pytest.fixture(scope="module")
def guest(shared_system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A Debian container with an address of each kind in each of the two modes."""
    with lab(tmp_path_factory.mktemp("guests")) as made:
        made.paths = shared_system.paths
        world = World(made, shared_system)
        world.ok("vzctl", "create", CT, "--ostemplate", _templates.debian(shared_system), "--force",
                 "--ipadd", A4, "--ipadd", A6)  # fmt: skip
        world.ok("pctl", "set", CT, "--netif_add", "eth0", "--save")
        static(world)
        world.ok("vzctl", "start", CT, "--wait")
        yield world
        with made.on_host():
            shared_system.run("vzctl", "stop", CT, "--fast")
            assert made.leftovers() == []


def static(world: World) -> None:
    world.ok("pctl", "set", CT, "--ifname", "eth0", "--network", "Bridged", "--dhcp", "no",
             "--ipadd", f"{B4}/24", "--ipadd", f"{B6}/64", "--save")  # fmt: skip


def both(world: World, start: str) -> None:
    """Have the guest's tool bring up a gateway on its adapter, then addresses of both kinds.

    A gateway of IPv6 is tried while venet0 has no such address: there is one way out at a time.
    """
    world.ok("pctl", "set", CT, "--ipdel", A6, "--save")
    world.ok("pctl", "set", CT, "--ifname", "eth0", "--gw6", GW6, "--save")
    comes_up(world, start, {f"{A4}/32", f"{B4}/24", f"{B6}/64", GW6})
    world.ok("pctl", "set", CT, "--ifname", "eth0", "--gw6", "", "--save")
    world.ok("pctl", "set", CT, "--ipadd", A6, "--save")
    comes_up(world, start, {f"{A4}/32", f"{A6}/128", f"{B4}/24", f"{B6}/64"})
    assert world.lab.remote.answers(A6)
    world.ok("vzctl", "exec", CT, f"ping -c1 -W2 {REMOTE6}")


def comes_up(world: World, start: str, wanted: set[str]) -> None:
    """Take the network away inside, run the guest's own tool, and see all of it again."""
    world.ok("vzctl", "exec", CT, CLEAR + start)
    deadline = time.monotonic() + 15
    while True:
        shown = world.ok("vzctl", "exec", CT, "ip -br addr; ip route; ip -6 route")
        if wanted <= set(shown.split()) and "default dev venet0" in shown:
            break
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    assert world.lab.remote.answers(A4)
    world.ok("vzctl", "exec", CT, f"ping -c1 -W2 {REMOTE4}")


def asked(address: str, seconds: float) -> bytes:
    """Be a name server: return the first question."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 53))
        sock.settimeout(seconds)
        return sock.recv(512)


def uses_name_server(world: World) -> None:
    question = world.lab.remote.spawn(asked, REMOTE4, 10.0)
    deadline = time.monotonic() + 5
    while ":0035 " not in Path(f"/proc/{world.lab.remote.pid}/net/udp").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    world.ok("pctl", "set", CT, "--nameserver", REMOTE4, "--searchdomain", "lab.example", "--save")
    world.ok("vzctl", "exec", CT, "timeout 3 getent hosts web1 || true")
    assert b"\x04web1\x03lab\x07example\0" in question.result()


def gets_lease(world: World) -> None:
    """An adapter becomes DHCP's, and the server's again."""
    world.ok("pctl", "set", CT, "--ifname", "eth0", "--ipdel", "all", "--dhcp", "yes",
             "--network", "Host-Only", "--save")  # fmt: skip
    deadline = time.monotonic() + 15
    while "10.37.130." not in (shown := world.ok("vzctl", "exec", CT, "ip -br addr show eth0")):
        assert time.monotonic() < deadline, shown
        time.sleep(0.3)
    static(world)
    time.sleep(1)  # what still meant to take the address away would have by then
    shown = world.ok("vzctl", "exec", CT, "ip -br addr show eth0; ps ax")
    assert f"{B4}/24" in shown and "10.37.130." not in shown
    assert "dhclient" not in shown and "dhcpcd" not in shown


def test_ifupdown(guest: World) -> None:
    both(guest, "systemctl restart networking")
    uses_name_server(guest)
    gets_lease(guest)


def test_systemd_networkd(guest: World) -> None:
    # A file of the administrator's, or netplan's, for the same interface does not win.
    guest.ok("vzctl", "exec", CT, NETWORKD + "; printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=yes\\n' "
             ">/etc/systemd/network/10-eth0.network")  # fmt: skip
    both(guest, "systemctl restart systemd-networkd")
    gets_lease(guest)
    guest.ok("vzctl", "restart", CT, "--wait")
    guest.ok("vzctl", "exec", CT, "systemctl is-active systemd-networkd")
    everything_is_there(guest)


def everything_is_there(world: World) -> None:
    shown = world.ok("vzctl", "exec", CT, "ip -br addr")
    assert {f"{A4}/32", f"{A6}/128", f"{B4}/24", f"{B6}/64"} <= set(shown.split())
    assert world.lab.remote.answers(A4) and world.lab.remote.answers(A6)


@pytest.mark.slow
def test_netplan_and_networkmanager(guest: World) -> None:
    # Packages come from the distribution's own server, which the lab does not reach.
    done = guest.system.run("vzpkg", "install", "-p", CT, "netplan.io", "network-manager",
                            timeout_s=240)  # fmt: skip
    if done.returncode:
        pytest.skip(f"netplan.io and network-manager cannot be installed: {done.stderr[-200:]}")
    guest.ok("vzctl", "exec", CT, "systemctl stop NetworkManager; rm -f /etc/systemd/network/*; "
             "systemctl disable --now networking; systemctl enable --now systemd-networkd; "
             "printf 'network:\\n  version: 2\\n  ethernets:\\n    eth0:\\n      dhcp4: true\\n' "
             ">/etc/netplan/50-cloud-init.yaml")  # fmt: skip
    both(guest, "netplan generate && systemctl restart systemd-networkd")
    guest.ok("vzctl", "exec", CT, "test ! -e /etc/systemd/network/05-vz-eth0.network")
    gets_lease(guest)
    guest.ok("vzctl", "exec", CT, "rm /etc/netplan/*; systemctl disable --now systemd-networkd "
             "systemd-networkd.socket; systemctl restart NetworkManager")  # fmt: skip
    gets_lease(guest)
    # It is told to keep its hands off what the server sets.
    shown = guest.ok("vzctl", "exec", CT, "systemctl restart NetworkManager; sleep 1; "
                     "nmcli -t -f DEVICE,STATE device")  # fmt: skip
    assert "venet0:unmanaged" in shown and "eth0:unmanaged" in shown
    everything_is_there(guest)
