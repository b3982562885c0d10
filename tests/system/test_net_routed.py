"""Host-routed mode: addresses are reachable, unique, and gone when the container is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from netlab import HOST4, OTHER4, REMOTE4, REMOTE6, Lab, lab

from runtime.errors import AddressInUse
from runtime.net import attach, routed

pytestmark = pytest.mark.root

A4, A6, B4 = "198.18.0.101", "fd18::101", "198.18.0.102"


@pytest.fixture
def world(tmp_path: os.PathLike[str]) -> Iterator[Lab]:
    with lab(tmp_path) as made:  # type: ignore[arg-type]
        yield made


def test_a_container_is_reached_from_outside_and_reaches_out(world: Lab) -> None:
    ct = world.start(101, IP_ADDRESS=f"{A4} {A6}")
    for address in (A4, A6):
        assert world.remote.answers(address)
        assert world.host.answers(address)
    assert ct.answers(REMOTE4)
    assert ct.answers(REMOTE6)
    assert ct.answers(HOST4)


def test_inside_venet0_has_the_addresses_and_no_neighbours(world: Lab) -> None:
    ct = world.start(101, IP_ADDRESS=f"{A4} {A6}")
    shown = ct.run("ip", "-o", "addr", "show", "dev", "venet0")
    assert f"{A4}/32" in shown and f"{A6}/128" in shown
    assert "NOARP" in ct.run("ip", "link", "show", "venet0")
    assert ct.run("ip", "neigh", "show", "dev", "venet0") == ""
    assert ct.answers(REMOTE4)


def test_masks_are_kept_where_the_server_wants_them(world: Lab) -> None:
    world.server_config(USE_VENET_MASK="yes")
    ct = world.start(101, IP_ADDRESS=f"{A4}/24")
    assert f"{A4}/24" in ct.run("ip", "-o", "addr", "show", "dev", "venet0")
    assert world.remote.answers(A4)


def test_two_containers_reach_each_other(world: Lab) -> None:
    world.start(101, IP_ADDRESS=f"{A4} {A6}")
    other = world.start(102, IP_ADDRESS=f"{B4} fd18::102")
    assert other.answers(A4)
    assert other.answers(A6)


def test_a_host_without_uplink_still_serves_its_containers(tmp_path: object) -> None:
    with lab(tmp_path, uplink=False) as world:  # type: ignore[arg-type]
        # Some address of its own it needs: packets from 127.0.0.1 leave no host.
        world.host.run("ip", "addr", "add", "198.19.0.1/32", "dev", "lo")
        one = world.start(101, IP_ADDRESS=A4)
        world.start(102, IP_ADDRESS=B4)
        assert one.answers(B4)
        assert world.host.answers(A4)


def test_addresses_are_added_and_removed_live(world: Lab) -> None:
    world.start(101, IP_ADDRESS=A4)
    world.change(101, IP_ADDRESS=f"{A4} 198.18.0.111 fd18::111")
    assert world.remote.answers("198.18.0.111")
    assert world.remote.answers("fd18::111")
    world.change(101, IP_ADDRESS="198.18.0.111")
    assert not world.remote.answers(A4, timeout_s=0.3)
    assert world.remote.answers("198.18.0.111")
    world.change(101, IP_ADDRESS="")
    assert not world.remote.answers("198.18.0.111", timeout_s=0.3)


def test_an_address_of_another_container_is_refused(world: Lab) -> None:
    world.start(101, IP_ADDRESS=A4)
    with pytest.raises(AddressInUse, match="container 101"):
        world.start(102, IP_ADDRESS=f"{B4} {A4}")
    assert world.remote.answers(A4)
    assert all("102" not in line for line in world.leftovers())


def test_an_address_on_the_wire_is_refused(world: Lab) -> None:
    for taken in (OTHER4, "fd18::2"):
        with pytest.raises(AddressInUse, match="up0"):
            world.start(101, IP_ADDRESS=taken)
    assert world.leftovers() == []


def test_an_address_of_the_host_itself_is_refused(world: Lab) -> None:
    with pytest.raises(AddressInUse, match="this server"):
        world.start(101, IP_ADDRESS=HOST4)


def test_a_failed_change_leaves_the_old_addresses_working(world: Lab) -> None:
    world.start(101, IP_ADDRESS=A4)
    with pytest.raises(AddressInUse):
        world.change(101, IP_ADDRESS=f"{A4} {OTHER4}")
    assert world.remote.answers(A4)


def test_stop_leaves_nothing_behind(world: Lab) -> None:
    world.start(101, IP_ADDRESS=f"{A4} {A6}")
    assert world.leftovers()
    world.stop(101)
    assert world.leftovers() == []


def test_setup_may_be_repeated(world: Lab) -> None:
    ct = world.start(101, IP_ADDRESS=f"{A4} {A6}")
    before = world.leftovers()
    config = world.configure(101, IP_ADDRESS=f"{A4} {A6}")
    with world.on_host():
        attach.setup(world.paths, 101, config, ct.pid)
    assert sorted(world.leftovers()) == sorted(before)
    assert world.remote.answers(A4)


def test_a_container_starts_again_at_once_after_its_namespace_died(world: Lab) -> None:
    for _ in range(5):
        world.start(101, IP_ADDRESS=A4)
        world.containers[101].kill()  # nobody tears down
    world.start(101, IP_ADDRESS=A4)
    assert world.remote.answers(A4)


def test_neighbours_follow_a_container_that_moved_here(world: Lab) -> None:
    # Another server has the address first; the remote machine has learnt its hardware address.
    world.other.run("ip", "addr", "add", f"{A4}/24", "dev", "eth0")
    assert world.remote.answers(A4)
    old = world.remote.run("ip", "neigh", "show", A4)
    world.other.run("ip", "addr", "del", f"{A4}/24", "dev", "eth0")
    world.start(101, IP_ADDRESS=A4)
    deadline = time.monotonic() + 1
    while world.remote.run("ip", "neigh", "show", A4).split()[4:5] == old.split()[4:5]:
        assert time.monotonic() < deadline, "the announcement was not heard"
        time.sleep(0.02)
    assert world.remote.answers(A4)


def test_addresses_answer_on_a_new_uplink_after_it_changed(world: Lab) -> None:
    world.start(101, IP_ADDRESS=f"{A4} {A6}")
    world.host.run("ip", "link", "del", "up0")
    world.connect(world.host, "up1", f"{HOST4}/24", "fd18::1/64")
    world.host.run("ip", "route", "add", "default", "via", REMOTE4)
    world.host.run("ip", "-6", "route", "add", "default", "via", REMOTE6)
    world.remote.run("ip", "neigh", "flush", "all")
    with world.server() as server:
        server.reconcile()
    assert world.remote.answers(A4)
    assert world.remote.answers(A6)
    assert all("up0" not in line for line in world.leftovers())


def test_reconcile_collects_what_belongs_to_nobody(world: Lab) -> None:
    world.start(101, IP_ADDRESS=A4)
    world.start(102, IP_ADDRESS=B4)
    world.containers.pop(102).kill()
    world.paths.ct_state(102).unlink()
    with world.server() as server:
        server.reconcile()
    left = world.leftovers()
    assert left and all("102" not in line for line in left)
    assert world.remote.answers(A4)


def test_killed_at_any_moment_a_second_run_converges(world: Lab) -> None:
    config = world.configure(101, IP_ADDRESS=f"{A4} {A6}")
    ct = world.boot(101)

    def once() -> None:
        attach.setup(world.paths, 101, config, ct.pid)

    for delay_ms in range(0, 120, 8):
        job = world.host.spawn(once)
        time.sleep(delay_ms / 1e3)
        os.kill(job.pid, signal.SIGKILL)
        os.waitpid(job.pid, 0)
        os.close(job.pipe)
    with world.on_host():
        once()
    assert world.remote.answers(A4)
    assert world.remote.answers(A6)
    world.stop(101)
    assert world.leftovers() == []


def test_router_advertisements_are_still_heard_on_the_uplink(world: Lab) -> None:
    world.host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/up0/accept_ra")
    world.start(101, IP_ADDRESS=A6)
    assert world.host.run("cat", "/proc/sys/net/ipv6/conf/up0/accept_ra").strip() == "2"


def test_a_second_default_route_is_an_uplink_too(world: Lab) -> None:
    world.connect(world.host, "up1", "198.18.1.1/24")
    world.host.run("ip", "route", "add", "default", "via", "198.18.1.254", "metric", "50")
    with world.server() as server:
        assert {up.name for up in routed.uplinks(server.host, server.config)} == {"up0", "up1"}
