"""NETFILTER's levels: what rules inside do at each, and that nobody inside undoes a level."""

from __future__ import annotations

import glob
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import REMOTE4, Place, lab
from test_net_containers import World, world

from runtime.net import netfilter
from runtime.net.netfilter import Level

pytestmark = pytest.mark.root
__all__ = ["world"]

A4 = "198.18.0.101"
RULES = """
    add table inet t
    add chain inet t nat { type nat hook output priority -100; }
    add rule inet t nat ip daddr 10.66.0.1 dnat ip to 198.18.0.254
    add chain inet t in { type filter hook input priority 0; }
    add rule inet t in ct state established counter accept
    add rule inet t in ct state untracked counter accept
"""


@pytest.fixture
def inside(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A container of the level that the test is parametrized with, and the usual rules in it."""
    with lab(tmp_path) as made:
        ct = made.start(101, IP_ADDRESS=f"{A4} fd18::101")
        fd = netfilter.hold(ct.pid, request.param)
        ct.run("nft", RULES)
        yield ct
        if fd >= 0:
            os.close(fd)
            assert netfilter.TABLE not in ct.run("nft", "list", "tables")


def packets(ct: Place, state: str) -> int:
    shown = ct.run("nft", "list", "chain", "inet", "t", "in")
    line = next(line for line in shown.splitlines() if f"ct state {state}" in line)
    return int(line.split("packets ")[1].split()[0])


def works(ct: Place) -> None:
    """Traffic passes at every level, and so do rules that look at single packets."""
    assert ct.answers(REMOTE4)
    assert ct.answers("fd18::fe")
    ct.run("nft", "add rule inet t in ip saddr 198.18.0.254 drop")
    ct.run("nft", "insert rule inet t in ip saddr 198.18.0.254 drop")
    assert not ct.answers(REMOTE4, timeout_s=0.3)
    ct.run("nft", "flush chain inet t in")
    assert ct.answers(REMOTE4)


@pytest.mark.parametrize("inside", [Level.STATELESS], indirect=True)
def test_stateless_tracks_and_translates_nothing(inside: Place) -> None:
    assert inside.answers(REMOTE4)
    assert not inside.answers("10.66.0.1", timeout_s=0.4)
    assert (packets(inside, "established"), packets(inside, "untracked") > 0) == (0, True)
    works(inside)


@pytest.mark.parametrize("inside", [Level.STATEFUL], indirect=True)
def test_stateful_tracks_and_translates_nothing(inside: Place) -> None:
    assert inside.answers(REMOTE4)
    assert not inside.answers("10.66.0.1", timeout_s=0.4)
    assert (packets(inside, "established") > 0, packets(inside, "untracked")) == (True, 0)
    works(inside)


@pytest.mark.parametrize("inside", [Level.FULL], indirect=True)
def test_full_tracks_and_translates(inside: Place) -> None:
    assert inside.answers("10.66.0.1")
    assert packets(inside, "established") > 0
    works(inside)


@pytest.mark.parametrize("inside", [Level.STATELESS, Level.STATEFUL], indirect=True)
def test_nobody_inside_removes_a_level(inside: Place) -> None:
    inside.run("nft", "flush", "ruleset")
    shown = inside.run("nft", "list", "ruleset")
    assert netfilter.TABLE in shown
    for words in (
        f"delete table inet {netfilter.TABLE}",
        f"flush chain inet {netfilter.TABLE} output",
        f"add rule inet {netfilter.TABLE} output accept",
        f"delete chain inet {netfilter.TABLE} output",
    ):
        inside.run("nft", words, ok=False)
    assert inside.run("nft", "list", "ruleset") == shown


def host_program(name: str, *words: str) -> str:
    """Return the command that runs a program of the server, bound to /host, inside."""
    loader = next(iter(glob.glob("/lib64/ld-linux-*") + glob.glob("/lib/ld-linux-*")))
    libraries = subprocess.run(
        ["/sbin/ldconfig", "-p"], check=True, capture_output=True, text=True
    ).stdout
    places = {
        os.path.dirname(os.path.realpath(line.split(" => ")[1]))
        for line in libraries.splitlines()
        if " => " in line
    }
    inside = [place.replace("/usr", "/host", 1) for place in sorted(places) if "/usr" in place]
    path = os.path.realpath(loader).replace("/usr", "/host", 1)
    return " ".join([path, "--library-path", ":".join(inside), f"/host/sbin/{name}", *words])


def test_a_containers_level_is_what_its_configuration_says(world: World) -> None:
    nft = host_program("nft", "list", "ruleset")
    world.create(101, "--ipadd", A4)
    world.ok("pctl", "set", 101, "--bindmount_add", "/usr:/host,ro", "--save")
    world.ok("vzctl", "start", 101)  # the sample's: full
    assert world.ok("vzctl", "exec", 101, nft) == ""
    world.ok("pctl", "set", 101, "--netfilter", "stateless", "--setmode", "restart", "--save")
    shown = world.ok("vzctl", "exec", 101, nft)
    assert "NETFILTER=stateless of this container" in shown and "notrack" in shown
    world.ok("vzctl", "exec", 101, host_program("nft", "flush", "ruleset"))
    assert world.ok("vzctl", "exec", 101, nft) == shown
    world.ok("vzctl", "exec", 101, f"ping -c1 -W2 {REMOTE4}")
    # A level lasts as long as the container runs, and its reboot makes it anew.
    world.ok("vzctl", "restart", 101)
    assert world.ok("vzctl", "exec", 101, nft) == shown
    world.ok("pctl", "set", 101, "--netfilter", "disabled", "--setmode", "restart", "--save")
    assert "Operation not permitted" in world.fails(8, "vzctl", "exec", 101, nft)
    world.ok("vzctl", "exec", 101, f"ping -c1 -W2 {REMOTE4}")
    world.fails(106, "pctl", "set", 101, "--netfilter", "some", "--save")
    world.fails(106, "pctl", "set", 101, "--iptables", "ext4", "--save")
