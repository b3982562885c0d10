"""Tests of the NETIF line."""

from __future__ import annotations

import pytest

from runtime.errors import BadAddress, VethFailed
from runtime.net import names, netif

LINE = (
    "ifname=eth0,mac=00:18:51:AB:CD:EF,host_ifname=veth101.1,network=lab,ip=10.0.0.1/24,"
    "ip=fd00::1/64,gw=10.0.0.254,mac_filter=off;ifname=eth1,mac=00:18:51:00:00:02,dhcp=yes"
)


def test_a_line_is_read_and_written_back() -> None:
    one, two = netif.parse(LINE, 101)
    assert (one.mac, one.network, one.gw, one.mac_filter) == (
        "00:18:51:ab:cd:ef", "lab", "10.0.0.254", False,
    )  # fmt: skip
    assert [str(ip) for ip in one.ips] == ["10.0.0.1/24", "fd00::1/64"]
    assert two.host_ifname == "veth101.2"
    assert two.dhcp
    assert netif.parse(netif.text_of((one, two)), 101) == (one, two)


def test_the_defaults_are_not_written() -> None:
    (adapter,) = netif.parse("ifname=eth0,mac=00:18:51:00:00:01,configure=all,dhcp=no", 5)
    assert adapter.text() == "ifname=eth0,mac=00:18:51:00:00:01,host_ifname=veth5.1"


@pytest.mark.parametrize(
    "line",
    [
        "ifname=eth0;ifname=eth0", "mac=00:18:51:00:00:01", "ifname=lo", "ifname=venet0",
        "ifname=eth0,mac=00:18:51:00:00", "ifname=eth0,mac=01:18:51:00:00:01", "ifname=eth 0",
        "ifname=eth0,colour=red", "ifname=eth0,gw=10.0.0", "ifname=eth0,gw=fd00::1",
        "ifname=eth0,dhcp=perhaps", "ifname=eth0,configure=some", "ifname=eth0,network=a/b",
        "ifname=waytoolongforaname", "ifname", 'ifname=eth0,network=x"; reboot',
    ],
)  # fmt: skip
def test_a_bad_line_is_refused_with_136(line: str) -> None:
    with pytest.raises(VethFailed) as raised:
        netif.parse(line, 101)
    assert raised.value.code == 136


def test_a_bad_address_in_a_line_is_refused() -> None:
    with pytest.raises(BadAddress):
        netif.parse("ifname=eth0,ip=10.0.0.999", 101)


def test_adding_takes_the_places_of_netif_add() -> None:
    text = netif.add(None, "eth0,00:18:51:00:00:09,veth101.7,00:18:51:00:00:10", 101)
    (adapter,) = netif.parse(text, 101)
    assert (adapter.mac, adapter.host_ifname, adapter.host_mac) == (
        "00:18:51:00:00:09", "veth101.7", "00:18:51:00:00:10",
    )  # fmt: skip


def test_a_new_adapter_has_a_random_mac_of_the_product_and_a_free_host_name() -> None:
    text = netif.add("ifname=eth0,mac=00:18:51:00:00:01", "eth1", 101)
    first, second = netif.parse(text, 101)
    assert second.mac.startswith("00:18:51:")
    assert second.mac != first.mac
    assert second.host_ifname == "veth101.2"


def test_a_missing_mac_is_the_same_each_time_it_is_read() -> None:
    assert netif.parse("ifname=eth0", 101) == netif.parse("ifname=eth0", 101)
    assert netif.parse("ifname=eth0", 101)[0].mac != netif.parse("ifname=eth0", 102)[0].mac


def test_one_adapter_is_changed_and_the_others_stay() -> None:
    text = netif.change(
        LINE, "eth1", {"ipadd": ["10.9.0.1/24"], "network": ["x"], "dhcp": ["no"]}, 101
    )
    one, two = netif.parse(text, 101)
    assert one == netif.parse(LINE, 101)[0]
    assert (two.network, two.dhcp, [str(ip) for ip in two.ips]) == ("x", False, ["10.9.0.1/24"])


def test_an_unknown_adapter_is_named_with_those_there_are() -> None:
    with pytest.raises(VethFailed) as raised:
        netif.change(LINE, "eth5", {"gw": ["10.0.0.1"]}, 101)
    assert "eth0, eth1" in raised.value.hint
    with pytest.raises(VethFailed):
        netif.remove(LINE, "eth5", 101)


def test_removing_leaves_the_others() -> None:
    assert [a.ifname for a in netif.parse(netif.remove(LINE, "eth0", 101), 101)] == ["eth1"]
    assert netif.remove(LINE, "all", 101) is None


def test_a_gateway_outside_every_network_is_noticed() -> None:
    (adapter,) = netif.parse("ifname=eth0,ip=10.0.0.1/24,gw=10.1.0.1", 101)
    assert netif.outside(adapter) == ["10.1.0.1"]
    (adapter,) = netif.parse("ifname=eth0,ip=10.0.0.1/24,gw=10.0.0.254", 101)
    assert netif.outside(adapter) == []


@pytest.mark.parametrize("ctid", [1, 101, 99999999, 2147483644])
def test_every_id_has_names_that_fit_and_lead_back(ctid: int) -> None:
    for number in (0, 1, 64):
        name = names.host_end(ctid, number)
        assert len(name) <= 15
        assert names.owner(name) == ctid


def test_foreign_interfaces_have_no_owner() -> None:
    for name in ("eth0", "veth1234abcd", "veth101", "vbr-x", "v.1", "vethx.0"):
        assert names.owner(name) is None


def test_bridge_names_fit_whatever_the_network_is_called() -> None:
    found = {names.bridge(n) for n in ("lab", "Host-Only", "a very long network name", "a b")}
    assert len(found) == 4
    assert all(len(name) <= 15 and " " not in name for name in found)
