"""Virtual networks: adapters on bridges, host-only networks with DHCP, machines' taps."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import HOST4, REMOTE4, Lab, Place, lab

from runtime.errors import VethFailed
from runtime.net import bridges, dhcp, networks, taps
from runtime.net.networks import VirtualNetwork

pytestmark = pytest.mark.root
TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as made:
        networks.store(made.paths, VirtualNetwork("lab"))
        yield made


def command(world: Lab, *words: str, code: int = 0) -> str:
    """Run one of our commands on the host; return what it printed."""
    done = subprocess.run(
        ["nsenter", "-t", str(world.host.pid), "-n", str(TOP / ".venv/bin/python"), "-m", *words],
        cwd=TOP,
        env={**os.environ, "VZ_ROOT": str(world.paths.root), "VZ_SERVICE": "no"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def lease(place: Place) -> str | None:
    """Run a DHCP client on eth0 inside; return the address it got."""
    script = "/bin/sh", "-c", "exec busybox udhcpc -f -n -q -t 3 -T 1 -i eth0 -s /bin/true 2>&1"
    found = re.search(r"lease of ([0-9.]+) obtained", place.run(*script, ok=False))
    return found[1] if found else None


def test_adapters_on_one_network_reach_each_other_and_no_other_network(world: Lab) -> None:
    networks.store(world.paths, VirtualNetwork("else"))
    one = world.start(101, NETIF="ifname=eth0,network=lab,ip=10.77.0.1/24")
    world.start(102, NETIF="ifname=eth0,network=lab,ip=10.77.0.2/24")
    world.start(103, NETIF="ifname=eth0,network=else,ip=10.77.0.3/24")
    assert one.answers("10.77.0.2")
    assert not one.answers("10.77.0.3", timeout_s=0.4)


def test_a_container_has_several_adapters_and_venet0_besides(world: Lab) -> None:
    networks.store(world.paths, VirtualNetwork("else"))
    netif = (
        "ifname=eth0,network=lab,ip=10.77.0.1/24;"
        "ifname=eth1,network=else,ip=10.78.0.1/24,ip=10.78.0.9/24"
    )
    ct = world.start(101, IP_ADDRESS="198.18.0.101", NETIF=netif)
    shown = ct.run("ip", "-o", "-4", "addr")
    for address in ("198.18.0.101/32", "10.77.0.1/24", "10.78.0.1/24", "10.78.0.9/24"):
        assert address in shown
    assert ct.answers(REMOTE4)


def test_the_gateway_is_used_by_the_adapter(world: Lab) -> None:
    networks.store(world.paths, VirtualNetwork("lab", ip="10.77.0.254/24"))
    ct = world.start(101, NETIF="ifname=eth0,network=lab,ip=10.77.0.1/24,gw=10.77.0.254")
    assert "default via 10.77.0.254 dev eth0" in ct.run("ip", "route")
    assert ct.answers(HOST4)


def test_an_adapter_without_a_network_is_connected_to_nothing(world: Lab) -> None:
    ct = world.start(101, NETIF="ifname=eth0,ip=10.77.0.1/24")
    assert "10.77.0.1/24" in ct.run("ip", "-o", "addr", "show", "dev", "eth0")
    assert "master" not in world.host.run("ip", "link", "show", "veth101.1")


def test_adapters_come_and_go_live(world: Lab) -> None:
    one = world.start(101, NETIF="ifname=eth0,network=lab,ip=10.77.0.1/24")
    two = world.start(102, NETIF="")
    world.change(102, NETIF="ifname=eth0,network=lab,ip=10.77.0.2/24")
    assert one.answers("10.77.0.2")
    world.change(102, NETIF="ifname=eth0,network=lab,ip=10.77.0.22/24")
    assert one.answers("10.77.0.22")
    assert not one.answers("10.77.0.2", timeout_s=0.3)
    world.change(102, NETIF="ifname=eth0,ip=10.77.0.22/24")
    assert not one.answers("10.77.0.22", timeout_s=0.3)
    world.change(102, NETIF="")
    assert "eth0" not in two.run("ip", "link")
    assert all("102" not in line for line in world.leftovers())


def test_a_new_mac_address_takes_effect_live(world: Lab) -> None:
    one = world.start(101, NETIF="ifname=eth0,mac=00:18:51:00:00:01,network=lab,ip=10.77.0.1/24")
    world.start(102, NETIF="ifname=eth0,mac=00:18:51:00:00:02,network=lab,ip=10.77.0.2/24")
    world.change(102, NETIF="ifname=eth0,mac=00:18:51:00:00:22,network=lab,ip=10.77.0.2/24")
    assert one.answers("10.77.0.2")
    assert "00:18:51:00:00:22" in one.run("ip", "neigh", "show", "10.77.0.2")


def test_an_unknown_network_is_refused_and_nothing_remains(world: Lab) -> None:
    with pytest.raises(VethFailed, match="nowhere"):
        world.start(101, NETIF="ifname=eth0,network=nowhere")
    assert world.leftovers() == []


def test_stopping_leaves_no_adapter_and_no_guard(world: Lab) -> None:
    world.start(101, NETIF="ifname=eth0,network=lab,ip=10.77.0.1/24")
    assert world.leftovers()
    world.stop(101)
    assert world.leftovers() == []


def test_a_bridged_network_reaches_the_lan_through_its_interface(world: Lab) -> None:
    with world.server() as server:
        networks.store(world.paths, VirtualNetwork("out", interface="up0"))
        server.ensure()
        server.network("out")
    # The host keeps its address and its way out: both moved to the bridge.
    assert world.host.answers(REMOTE4)
    assert HOST4 in world.host.run("ip", "-o", "addr", "show", "dev", "vbr-out")
    assert "default via" in world.host.run("ip", "route")
    ct = world.start(101, NETIF="ifname=eth0,network=out,ip=198.18.0.50/24")
    assert ct.answers(REMOTE4)
    assert world.remote.answers("198.18.0.50")
    world.stop(101)
    with world.server() as server:
        bridges.remove(world.paths, server.host, networks.find(world.paths, "out"))
    assert world.host.answers(REMOTE4)
    assert HOST4 in world.host.run("ip", "-o", "addr", "show", "dev", "up0")


def test_host_only_guests_get_addresses_by_dhcp_and_do_not_reach_out(world: Lab) -> None:
    one = world.start(101, NETIF="ifname=eth0,network=Host-Only,dhcp=yes")
    address = lease(one)
    assert address is not None and address.startswith("10.37.130.")
    one.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
    assert one.answers("10.37.130.1")
    assert world.host.answers(address)
    one.run("ip", "route", "add", "default", "via", "10.37.130.1")
    assert not one.answers(REMOTE4, timeout_s=0.4)
    world.remote.run("ip", "route", "add", "10.37.130.0/24", "via", HOST4)
    assert not world.remote.answers(address, timeout_s=0.4)


def test_host_only_guests_reach_each_other(world: Lab) -> None:
    one = world.start(101, NETIF="ifname=eth0,network=Host-Only,ip=10.37.130.50/24")
    world.start(102, NETIF="ifname=eth0,network=Host-Only,ip=10.37.130.51/24")
    assert one.answers("10.37.130.51")


def test_a_configured_address_is_reserved_for_its_adapter(world: Lab) -> None:
    netif = "ifname=eth0,mac=00:18:51:00:00:01,network=Host-Only,ip=10.37.130.77/24,dhcp=yes"
    one = world.start(101, NETIF=netif)
    assert lease(one) == "10.37.130.77"


def test_the_dhcp_server_ends_with_its_network(world: Lab) -> None:
    networks.store(
        world.paths,
        VirtualNetwork(
            "h", "host-only", ip="10.9.0.1/24", dhcp=True,
            scope_start="10.9.0.2", scope_end="10.9.0.9",
        ),
    )  # fmt: skip
    with world.server() as server:
        server.ensure()
        server.network("h")
        process = dhcp.running(world.paths, "vbr-h")
        assert process is not None
        bridges.remove(world.paths, server.host, networks.find(world.paths, "h"))
    assert not process.alive


def test_psrvctl_net_defines_lists_and_removes(world: Lab) -> None:
    call = ("tools.psrvctl", "net")
    command(world, *call, "add", "office", "-t", "host-only", "--ip", "10.5.0.1/24",
            "--ip-scope-start", "10.5.0.10", "--ip-scope-end", "10.5.0.20")  # fmt: skip
    assert "DHCP server: running, 10.5.0.10 – 10.5.0.20" in command(world, *call, "info", "office")
    assert re.search(r"office +host-only", command(world, *call, "list"))
    assert "10.5.0.0/24" in command(world, *call, "add", "b", "--ip", "10.5.0.9/24", code=21)
    command(world, *call, "set", "office", "--ip-scope-start", "10.5.0.30", code=21)
    world.start(101, NETIF="ifname=eth0,network=office,ip=10.5.0.40/24")
    assert "container 101" in command(world, *call, "del", "office", code=136)
    world.stop(101)
    world.configure(101)
    command(world, *call, "del", "office")
    assert "office" not in command(world, *call, "list")
    assert world.host.run("ip", "-br", "link").find("vbr-office") < 0


def test_pnetcfg_lists_interfaces_with_their_types(world: Lab) -> None:
    world.start(101, IP_ADDRESS="198.18.0.101", NETIF="ifname=eth0,network=lab")
    rows = {
        line.split()[0]: line.split()
        for line in command(world, "tools.pnetcfg", "if", "list").splitlines()
    }
    assert rows["Name"] == ["Name", "Type", "Network", "ID", "Addresses"]
    assert rows["vbr-lab"][1:3] == ["bridge", "lab"]
    assert rows["veth101.1"][1:3] == ["veth", "lab"]
    assert rows["veth101.0"][1] == "venet"


def test_pnetcfg_attaches_an_interface_and_gives_it_back(world: Lab) -> None:
    command(world, "tools.pnetcfg", "net", "addif", "up0", "lab")
    assert re.search(r"lab +active +up0", command(world, "tools.pnetcfg", "net", "list"))
    assert world.host.answers(REMOTE4)
    assert "nope" in command(world, "tools.pnetcfg", "net", "addif", "nope", "lab", code=3)
    said = command(world, "tools.pnetcfg", "net", "del", "lab", code=136)
    assert "has interfaces: up0" in said
    command(world, "tools.pnetcfg", "net", "delif", "up0")
    assert world.host.answers(REMOTE4)
    assert "vbr-lab" not in world.host.run("ip", "link", "show", "up0")


def test_a_network_is_renamed_with_its_adapters(world: Lab) -> None:
    world.configure(101, NETIF="ifname=eth0,network=lab,ip=10.77.0.1/24;ifname=eth1,network=labor")
    command(world, "tools.pnetcfg", "net", "change", "lab", "office")
    text = world.paths.ct_conf(101).read_text()
    assert "network=office,ip=10.77.0.1/24;ifname=eth1,network=labor" in text


def test_a_vlan_is_made_or_the_kernel_named_that_lacks_it(world: Lab) -> None:
    words = ("tools.pnetcfg", "vlan", "add", "up0", "5")
    try:
        assert command(world, *words).strip() == "up0.5"
    except AssertionError:
        assert "this kernel has no 8021q" in command(world, *words, code=5)
    command(world, "tools.pnetcfg", "vlan", "add", "up0", "4095", code=21)


def test_a_machines_tap_gets_guard_and_network_like_an_adapter(world: Lab) -> None:
    tap = taps.Tap(
        "vme1.0", "{uuid}", "00:18:51:00:00:07", "lab", ("10.77.0.7/24",), ip_filter=True
    )
    with world.server() as server:
        taps.attach(server, tap)
        taps.attach(server, tap)
    shown = world.host.run("ip", "-d", "link", "show", "vme1.0")
    assert "master vbr-lab" in shown and "group 5051" in shown
    assert "10.77.0.7" in world.host.run("nft", "list", "chain", "bridge", "pyvz_guard", "vme1.0")
    with world.server() as server:
        taps.detach(server, "vme1.0")
        assert taps.load(world.paths) == []
    assert "vme1.0" not in world.host.run("ip", "link")
    # What it sent and heard meanwhile stays counted.
    for family in ("inet", "bridge"):
        assert "vme1.0" not in world.host.run("nft", "list", "table", family, "pyvz_guard")


def test_a_routed_tap_has_routes_and_proxy_entries(world: Lab) -> None:
    tap = taps.Tap("vme1.0", "{uuid}", "00:18:51:00:00:07", "", ("198.18.0.170", "fd18::170"))
    with world.server() as server:
        taps.attach(server, tap)
    assert "198.18.0.170 dev vme1.0" in world.host.run("ip", "route")
    assert "198.18.0.170 dev up0 proxy" in world.host.run("ip", "neigh", "show", "proxy")
    with world.server() as server:
        taps.detach(server, "vme1.0")
    assert world.leftovers() == []
