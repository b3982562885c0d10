"""Tests of the nftables scripts as text, and of what settings and guests are told."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from runtime.errors import InvalidOption, InvalidValue, VethFailed
from runtime.net import announce, dhcp, guard, guestcfg, netif, networks, privnet, settings
from runtime.net.addresses import parse_list
from runtime.net.model import ContainerNet
from runtime.net.networks import VirtualNetwork
from runtime.paths import Paths
from tools import pnetstat


def test_a_guarded_port_names_its_mac_and_addresses() -> None:
    port = guard.Port("veth101.1", "00:18:51:00:00:01", (ipaddress.ip_address("10.0.0.1"),))
    script = guard.port_script(port)
    assert "ether saddr != 00:18:51:00:00:01" in script
    assert "ip saddr != { 10.0.0.1 }" in script
    assert "fe80::218:51ff:fe00:1" in script


def test_an_unguarded_port_drops_nothing() -> None:
    script = guard.port_script(guard.Port("veth101.1", "00:18:51:00:00:01", guarded=False))
    assert "drop" not in script


def test_only_a_sealed_port_has_a_hook_for_what_it_hears() -> None:
    port = guard.Port("vme1.0", "00:18:51:00:00:01")
    assert "hook" not in guard.port_script(port)
    assert "hook postrouting" in guard.port_script(replace(port, sealed=True))


def test_a_port_with_ipv6_only_may_send_no_ipv4() -> None:
    port = guard.Port("veth101.1", "00:18:51:00:00:01", (ipaddress.ip_address("fd00::1"),))
    assert 'ether type ip counter drop comment "ip address"' in guard.port_script(port)


def test_private_networks_pair_their_own_subnets_only() -> None:
    script = privnet.script(
        [
            privnet.parse("a", ["10.0.0.0/24", "10.1.0.0/24"]),
            privnet.parse("b", ["10.2.0.0/24", "*"]),
        ]
    )
    assert "10.0.0.0/24 . 10.1.0.0/24" in script
    assert "10.0.0.0/24 . 10.2.0.0/24" not in script
    assert "strong4 { 10.0.0.0/24, 10.1.0.0/24 }" in script


def test_overlapping_private_networks_are_refused(tmp_path: object) -> None:
    paths = Paths(tmp_path)  # type: ignore[arg-type]  # a Path
    privnet.store(paths, privnet.parse("a", ["10.0.0.0/16"]))
    with pytest.raises(InvalidValue, match="overlaps"):
        privnet.store(paths, privnet.parse("b", ["10.0.5.0/24"]))
    assert [network.name for network in privnet.load_all(paths)] == ["a"]


def test_a_network_is_stored_and_read_back(tmp_path: object) -> None:
    paths = Paths(tmp_path)  # type: ignore[arg-type]  # a Path
    network = networks.check(
        paths, VirtualNetwork("office", "host-only", ip="10.5.0.1/24", dhcp=True, description="x y")
    )
    assert (network.scope_start, network.scope_end) == ("10.5.0.2", "10.5.0.254")
    networks.store(paths, network)
    assert networks.find(paths, "office") == network
    networks.delete(paths, "Bridged")
    assert "Bridged" not in networks.load_all(paths)


@pytest.mark.parametrize(
    "network",
    [
        VirtualNetwork(
            "a",
            "host-only",
            ip="10.5.0.1/24",
            dhcp=True,
            scope_start="10.5.0.9",
            scope_end="10.5.0.3",
        ),
        VirtualNetwork("a", "host-only", ip="10.5.0.1/24", dhcp=True, scope_start="10.6.0.9"),
        VirtualNetwork("a", "host-only", dhcp=True),
        VirtualNetwork("a", "host-only", ip="10.37.130.9/24"),
        VirtualNetwork("a", "host-only", interface="eth0"),
        VirtualNetwork("a", "bridged", ip="10.5.0.1/24", dhcp=True),
        VirtualNetwork("a", "bridged", ip="10.5.0.1"),
        VirtualNetwork("a", "other"),
    ],
)
def test_impossible_networks_are_refused(network: VirtualNetwork, tmp_path: object) -> None:
    with pytest.raises(InvalidValue):
        networks.check(Paths(tmp_path), network)  # type: ignore[arg-type]  # a Path


def test_the_dhcp_servers_file_offers_no_way_out(tmp_path: object) -> None:
    network = networks.DEFAULTS["Host-Only"]
    text = dhcp.configuration(
        network, [dhcp.Reservation("00:18:51:00:00:01", "10.37.130.9")], tmp_path
    )  # type: ignore[arg-type]
    assert "interface=vbr-Host-Only\n" in text
    assert "dhcp-range=10.37.130.2,10.37.130.254,255.255.255.0,12h\n" in text
    assert "dhcp-option=3\n" in text
    assert "dhcp-host=00:18:51:00:00:01,10.37.130.9\n" in text


def test_options_with_ifname_become_one_setting() -> None:
    folded = settings.fold(
        {"ifname": ["eth0"], "ipadd": ["10.0.0.1/24"], "gw": [""], "name": ["x"]}
    )
    assert set(folded) == {"netif_set", "name"}
    row = next(row for row in settings.ROWS if row.option == "netif_set")
    stored = row.value(
        "ifname=eth0,mac=00:18:51:00:00:01,host_ifname=veth101.1,gw=10.0.0.9", folded["netif_set"]
    )
    assert stored == "ifname=eth0,mac=00:18:51:00:00:01,host_ifname=veth$VEID.1,ip=10.0.0.1/24"


def test_without_ifname_addresses_stay_those_of_venet0() -> None:
    assert settings.fold({"ipadd": ["10.0.0.1"]}) == {"ipadd": ["10.0.0.1"]}
    with pytest.raises(InvalidOption, match="--gw needs --ifname"):
        settings.fold({"gw": ["10.0.0.1"]})


def test_adapters_of_one_command_line_build_on_each_other() -> None:
    rows = {row.option: row for row in settings.ROWS}
    stored = rows["netif_add"].value(None, ["eth0,00:18:51:00:00:01", "eth1,00:18:51:00:00:02"])
    assert stored is not None
    assert "host_ifname=veth$VEID.1" in stored and "host_ifname=veth$VEID.2" in stored
    changed = rows["netif_set"].value(stored, ["eth1,network=lab"])
    assert changed is not None
    assert changed.endswith("host_ifname=veth$VEID.2,network=lab")
    read = netif.parse(changed.replace("$VEID", "101"), 101)
    assert [adapter.host_ifname for adapter in read] == ["veth101.1", "veth101.2"]
    with pytest.raises(VethFailed):
        rows["netif_del"].value(stored, ["eth7"])


def net(ips: str, line: str = "") -> ContainerNet:
    return ContainerNet(101, parse_list(ips), netif.parse(line, 101))


def test_a_guest_is_told_what_changed_and_the_whole() -> None:
    found = guestcfg.steps(net("10.0.0.1 10.0.0.2"), net("10.0.0.2 10.0.0.3"), running=True)
    assert [(str(a), e["IP_ADDR"], e["IPDELALL"]) for a, e in found] == [
        ("DEL_IP", "10.0.0.1", "no"),
        ("ADD_IP", "10.0.0.3", "no"),
    ]
    assert all(e["ALL_IP_ADDR"] == "10.0.0.2/32 10.0.0.3/32" for _a, e in found)


def test_a_guest_is_told_of_adapters_that_came_and_went() -> None:
    old, new = net("", "ifname=eth0;ifname=eth1"), net("", "ifname=eth1;ifname=eth2,dhcp=yes")
    found = [(str(a), e["DEV"]) for a, e in guestcfg.steps(old, new, running=True)]
    assert found[0] == ("NETIF_DEL", "eth0")
    assert ("NETIF_ADD", "eth2") in found


def test_frames_have_correct_checksums() -> None:
    target = ipaddress.ip_address("fd00::5").packed
    everybody = ipaddress.ip_address("ff02::1").packed
    frame = announce.neighbour_message(136, bytes(6), target, everybody, target, flags=0x20000000)
    body = frame[54:]
    pseudo = frame[22:54] + len(body).to_bytes(4, "big") + (58).to_bytes(4, "big")
    assert announce.checksum(pseudo + body) == 0
    assert len(announce.arp(bytes(6), 1, bytes(4), bytes(4))) == 60


def test_traffic_rows_have_the_documented_widths() -> None:
    from runtime.net.accounting import Traffic

    row = pnetstat.row("101", 1, Traffic(1234, 5, 6789, 10))
    assert row == "%-36s %-2u %20d%1s %10u %20d%1s %10u" % ("101", 1, 1234, "", 5, 6789, "", 10)  # noqa: UP031  # the documented format
    assert pnetstat.scaled(5 << 20) == (5, "M")
    assert pnetstat.scaled(1023) == (1023, "")
