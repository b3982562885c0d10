"""Attacks from inside a container: each is tried and fails, and honest traffic passes beside it."""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from netlab import REMOTE4, REMOTE6, Job, Lab, Place, lab, listening_udp, send_udp

from runtime.errors import VethFailed
from runtime.net import announce, guard, networks
from runtime.net.announce import arp, checksum, neighbour_message

pytestmark = pytest.mark.root

A4, A6, B4, B6 = "198.18.0.101", "fd18::101", "198.18.0.102", "fd18::102"
#: Three adapters on one bridge: attacker, victim, witness.
MAC = {101: "00:18:51:00:01:01", 102: "00:18:51:00:01:02", 103: "00:18:51:00:01:03"}
IN4 = {101: "10.77.0.1", 102: "10.77.0.2", 103: "10.77.0.3"}
IN6 = {101: "fd77::1", 102: "fd77::2", 103: "fd77::3"}


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as world:
        world.start(101, IP_ADDRESS=f"{A4} {A6}")
        world.start(102, IP_ADDRESS=f"{B4} {B6}")
        yield world


@pytest.fixture
def bridged(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as world:
        with world.server():
            networks.store(world.paths, networks.VirtualNetwork("lab"))
        for ctid in MAC:
            world.start(ctid, NETIF=netif_line(ctid))
        yield world


def netif_line(ctid: int, more: str = "") -> str:
    return f"ifname=eth0,mac={MAC[ctid]},network=lab,ip={IN4[ctid]}/24,ip={IN6[ctid]}/64{more}"


def raw_udp(ifname: str, source: str, target: str, port: int, count: int = 5) -> None:
    """Send datagrams with a source of our choice through AF_PACKET or a raw socket."""
    payload = b"forged"
    if ":" in source:
        source_raw, target_raw = (ipaddress.ip_address(a).packed for a in (source, target))
        body = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
        pseudo = source_raw + target_raw + struct.pack("!II", len(body), 17)
        body = body[:6] + struct.pack("!H", checksum(pseudo + body)) + body[8:]
        packet = struct.pack("!IHBB", 6 << 28, len(body), 17, 64) + source_raw + target_raw + body
        kind = 0x86DD
    else:
        body = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 7, 0, 64, 17, 0,
            socket.inet_aton(source), socket.inet_aton(target),
        )  # fmt: skip
        packet = head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body
        kind = 0x0800
    own = announce.mac_of(ifname)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((ifname, 0))
        # On venet0 both ends have the same address: the frame is accepted.
        frame = own + own + struct.pack("!H", kind) + packet
        for _ in range(count):
            sock.send(frame)


def send_frame(ifname: str, frame: bytes, count: int = 3) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((ifname, 0))
        for _ in range(count):
            sock.send(frame)


def heard(witness: Place, attack: Place, act: object, *arguments: object) -> int:
    """Return how many datagrams reach port 5000 of ``witness`` while ``attack`` acts."""
    address = "::" if ":" in str(arguments[-2]) else "0.0.0.0"
    job = listening_udp(witness, address, 5000, 0.8)
    attack.call(act, *arguments)  # type: ignore[arg-type]
    return int(job.result()[0])


def captured(place: Place, ifname: str, seconds: float = 0.6) -> Job:
    """Start recording the frames which arrive at an interface of ``place``."""

    def record() -> list[bytes]:
        frames = []
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
            sock.bind((ifname, 3))
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                try:
                    frame, address = sock.recvfrom(2048)
                except TimeoutError:
                    break
                if address[2] != 4:
                    frames.append(frame)
        return frames

    job = place.spawn(record)
    time.sleep(0.15)
    return job


@pytest.mark.parametrize(
    ("honest", "forged", "target"),
    [(A4, "198.18.0.55", REMOTE4), (A4, B4, REMOTE4), (A6, "fd18::55", REMOTE6), (A6, B6, REMOTE6)],
)
def test_a_forged_source_does_not_leave_a_routed_container(
    routed: Lab, honest: str, forged: str, target: str
) -> None:
    attacker = routed.containers[101]
    assert attacker.answers(target)
    assert heard(routed.remote, attacker, raw_udp, "venet0", honest, target, 5000) == 5
    assert heard(routed.remote, attacker, raw_udp, "venet0", forged, target, 5000) == 0


def test_an_added_foreign_address_inside_reaches_nobody(routed: Lab) -> None:
    attacker = routed.containers[101]
    attacker.run("ip", "addr", "add", f"{B4}/32", "dev", "venet0")
    attacker.run("ip", "addr", "add", "198.18.0.77/32", "dev", "venet0")
    for stolen in (B4, "198.18.0.77"):
        job = listening_udp(routed.remote, "0.0.0.0", 5000, 0.5)
        attacker.call(send_udp, REMOTE4, 5000, 5, 10, stolen)
        assert job.result()[0] == 0
    # The owner is not disturbed, and the thief still reaches the world as himself.
    assert routed.remote.answers(B4)
    assert attacker.answers(REMOTE4, source=A4)


def test_the_guard_counts_what_it_drops(routed: Lab) -> None:
    routed.containers[101].call(raw_udp, "venet0", "198.18.0.55", REMOTE4, 5000, 7)
    with routed.server() as server:
        assert guard.drops(server.nft, "veth101.0") == {"source address": 7}
        assert guard.drops(server.nft, "veth102.0") == {}


def test_a_routed_container_cannot_answer_arp_for_others(routed: Lab) -> None:
    attacker = routed.containers[101]
    before = routed.host.run("ip", "neigh", "show", "dev", "veth101.0")
    attacker.run("ip", "link", "set", "venet0", "arp", "on")
    forged = arp(bytes.fromhex("021851000065"), 2, socket.inet_aton(REMOTE4), socket.inet_aton(A4))
    attacker.call(send_frame, "venet0", forged)
    assert routed.host.run("ip", "neigh", "show", "dev", "veth101.0") == before
    assert routed.host.answers(REMOTE4)


def test_honest_traffic_passes_between_bridged_adapters(bridged: Lab) -> None:
    one = bridged.containers[101]
    for address in (IN4[102], IN6[102], IN4[103]):
        assert one.answers(address, timeout_s=2)


def test_arp_poisoning_on_a_bridge_fails(bridged: Lab) -> None:
    attacker, witness = bridged.containers[101], bridged.containers[103]
    assert witness.answers(IN4[102])
    own = bytes.fromhex(MAC[101].replace(":", ""))
    victim = socket.inet_aton(IN4[102])
    attacker.call(send_frame, "eth0", arp(own, 2, victim, victim, to=own))
    attacker.call(send_frame, "eth0", arp(own, 1, victim, victim))
    assert MAC[102] in witness.run("ip", "neigh", "show", IN4[102])
    assert witness.answers(IN4[102])


def test_neighbour_advertisement_poisoning_on_a_bridge_fails(bridged: Lab) -> None:
    attacker, witness = bridged.containers[101], bridged.containers[103]
    assert witness.answers(IN6[102], timeout_s=2)
    own = bytes.fromhex(MAC[101].replace(":", ""))
    everybody = ipaddress.ip_address("ff02::1").packed
    victim = ipaddress.ip_address(IN6[102]).packed
    mine = ipaddress.ip_address(IN6[101]).packed
    for source in (victim, mine):
        frame = neighbour_message(136, own, source, everybody, victim, flags=0x20000000)
        attacker.call(send_frame, "eth0", frame)
    assert MAC[102] in witness.run("ip", "neigh", "show", IN6[102])
    # An advertisement of its own address is heard.
    job = captured(witness, "eth0")
    attacker.call(
        send_frame, "eth0", neighbour_message(136, own, mine, everybody, mine, flags=0x20000000)
    )
    assert any(frame[62:78] == mine for frame in job.result())


def test_a_forged_mac_does_not_move_the_bridges_table(bridged: Lab) -> None:
    attacker, witness = bridged.containers[101], bridged.containers[103]
    assert witness.answers(IN4[102])
    victim = bytes.fromhex(MAC[102].replace(":", ""))
    job = captured(witness, "eth0")
    frame = b"\xff" * 6 + victim + b"\x08\x06" + bytes(46)
    attacker.call(send_frame, "eth0", frame)
    table = bridged.host.run("bridge", "fdb", "show", "br", "vbr-lab")
    assert f"{MAC[102]} dev veth102.1" in table
    assert f"{MAC[102]} dev veth101.1" not in table
    assert not any(got[6:12] == victim and got[12:14] == b"\x08\x06" for got in job.result())


def test_router_advertisements_of_a_container_are_not_heard(bridged: Lab) -> None:
    attacker, witness = bridged.containers[101], bridged.containers[103]
    own = bytes.fromhex(MAC[101].replace(":", ""))
    source = ipaddress.ip_address("fe80::218:51ff:fe00:101").packed
    everybody = ipaddress.ip_address("ff02::1").packed
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    pseudo = source + everybody + struct.pack("!II", len(body), 58)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + source + everybody
    frame = b"\x33\x33\0\0\0\1" + own + b"\x86\xdd" + head + body
    job = captured(witness, "eth0")
    attacker.call(send_frame, "eth0", frame)
    assert not any(got[54:55] == b"\x86" for got in job.result())
    assert "default" not in witness.run("ip", "-6", "route")


def test_a_dhcp_server_in_a_container_is_not_heard(bridged: Lab) -> None:
    attacker, witness = bridged.containers[101], bridged.containers[103]

    def offer() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((IN4[101], 67))
            for _ in range(3):
                sock.sendto(b"offer", (IN4[103], 68))

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((IN4[101], 68))
            for _ in range(3):
                sock.sendto(b"ask", (IN4[103], 67))

    heard_frames = captured(witness, "eth0")
    attacker.call(ask)
    attacker.call(offer)
    payloads = [frame[42:47] for frame in heard_frames.result() if frame[12:14] == b"\x08\0"]
    assert any(p.startswith(b"ask") for p in payloads)
    assert not any(p.startswith(b"offer") for p in payloads)


def test_vlan_tags_and_other_protocols_do_not_pass_the_guard(bridged: Lab) -> None:
    attacker, witness = bridged.containers[101], bridged.containers[103]
    own = bytes.fromhex(MAC[101].replace(":", ""))
    job = captured(witness, "eth0")
    for kind in (b"\x81\x00\x00\x05\x08\x00", b"\x88\xa8\x00\x05\x08\x00", b"\x88\xb5"):
        attacker.call(send_frame, "eth0", b"\xff" * 6 + own + kind + bytes(60))
    frames = job.result()
    assert not any(f[12:14] in (b"\x81\x00", b"\x88\xa8", b"\x88\xb5") for f in frames)


@pytest.mark.parametrize("source", ["10.77.0.99", IN4[102], "fd77::99", IN6[102]])
def test_a_forged_source_does_not_leave_a_bridged_adapter(bridged: Lab, source: str) -> None:
    attacker, witness = bridged.containers[101], bridged.containers[103]
    ip6 = ":" in source
    mine = IN6[101] if ip6 else IN4[101]
    job = captured(witness, "eth0")
    witness_mac = bytes.fromhex(MAC[103].replace(":", ""))

    def send() -> None:
        own = bytes.fromhex(MAC[101].replace(":", ""))
        for address in (mine, source):
            packed = ipaddress.ip_address(address).packed
            target = ipaddress.ip_address(IN6[103] if ip6 else IN4[103]).packed
            if ip6:
                packet = struct.pack("!IHBB", 6 << 28, 8, 17, 64) + packed + target
            else:
                packet = struct.pack("!BBHHHBBH", 0x45, 0, 28, 7, 0, 64, 17, 0) + packed + target
                # br_netfilter, where it is loaded, drops headers with a wrong sum by itself.
                packet = packet[:10] + struct.pack("!H", checksum(packet)) + packet[12:]
            kind = b"\x86\xdd" if ip6 else b"\x08\0"
            send_frame("eth0", witness_mac + own + kind + packet + bytes(8))

    attacker.call(send)
    place = slice(22, 38) if ip6 else slice(26, 30)
    sources = {frame[place] for frame in job.result()}
    assert ipaddress.ip_address(mine).packed in sources
    assert ipaddress.ip_address(source).packed not in sources


def test_without_mac_filter_an_adapter_may_do_all_that(bridged: Lab) -> None:
    bridged.change(101, NETIF=netif_line(101, ",mac_filter=off"))
    attacker, witness = bridged.containers[101], bridged.containers[103]
    job = captured(witness, "eth0")
    attacker.call(send_frame, "eth0", b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x88\xb5" + bytes(60))
    assert any(frame[12:14] == b"\x88\xb5" for frame in job.result())


def test_a_sealed_adapter_hears_only_what_is_for_it(bridged: Lab) -> None:
    port = guard.Port("veth103.1", MAC[103])
    assert port.ifname in bridged.host.run("ip", "-o", "link")
    own = bytes.fromhex(MAC[101].replace(":", ""))
    sender = socket.inet_aton(IN4[101])
    to_all = arp(own, 1, sender, b"to a")
    # Nobody has this address: a bridge sends such frames to all.
    stray = b"\x02\0\0\0\0\x77" + arp(own, 1, sender, b"lost")[6:]

    def hears() -> set[bytes]:
        job = captured(bridged.containers[103], "eth0")
        for frame in (stray, to_all):
            bridged.containers[101].call(send_frame, "eth0", frame)
        return {frame[38:42] for frame in job.result()} & {b"lost", b"to a"}

    assert hears() == {b"lost", b"to a"}
    for _ in range(2):
        with bridged.server() as server:
            server.nft.run(guard.port_script(replace(port, sealed=True)))
        assert hears() == {b"to a"}
        assert bridged.containers[103].answers(IN4[102])
    with bridged.server() as server:
        server.nft.run(guard.port_script(port))
    assert hears() == {b"lost", b"to a"}


def test_a_foreign_flush_of_the_rules_is_noticed_and_repaired(bridged: Lab) -> None:
    attacker, witness = bridged.containers[101], bridged.containers[103]
    bridged.host.run("nft", "flush", "ruleset")
    with bridged.server() as server:
        server.ensure()
    assert witness.answers(IN4[102])
    job = captured(witness, "eth0")
    attacker.call(send_frame, "eth0", b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x88\xb5" + bytes(60))
    assert not any(frame[12:14] == b"\x88\xb5" for frame in job.result())


def test_a_mac_address_of_another_container_is_refused(bridged: Lab) -> None:
    with pytest.raises(VethFailed, match="belongs to eth0 of container 102") as raised:
        bridged.start(104, NETIF=f"ifname=eth0,mac={MAC[102]},network=lab")
    assert raised.value.code == 136
