"""Telling the neighbours who has an address, and asking them (RFC 826, 5227, 4861, 4862).

Frames are written by hand: the addresses are proxied, not the host's own, so the kernel would not
send them, and no arping(8) is needed.
"""

from __future__ import annotations

import fcntl
import functools
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from runtime.net.addresses import Address

_SIOCGIFHWADDR = 0x8927  # linux/sockios.h
_SIOCGIFADDR = 0x8915
_ETH_P_ARP = 0x0806
_ETH_P_IPV6 = 0x86DD
_PACKET_OUTGOING = 4
_BROADCAST = b"\xff" * 6
_ARP_REQUEST, _ARP_REPLY = 1, 2
_ND_SOLICITATION, _ND_ADVERTISEMENT = 135, 136
_NEXT_ICMPV6 = 58
#: When the wire is asked, in seconds from the start, and until when answers are waited for.
_ASKED_AT_S = (0.0, 0.12, 0.24)
_WAIT_S = 0.36


@dataclass(frozen=True, slots=True)
class Conflict:
    """An address somebody else answers for."""

    address: Address
    mac: str
    device: str


def _query(device: str, request: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        return fcntl.ioctl(sock, request, struct.pack("256s", device.encode()))


def mac_of(device: str) -> bytes:
    """Return the Ethernet address of an interface, netdevice(7); raises OSError."""
    return _query(device, _SIOCGIFHWADDR)[18:24]


def _own_ipv4(device: str) -> bytes:
    """Return an IPv4 address of the interface, zeros when it has none."""
    try:
        return _query(device, _SIOCGIFADDR)[20:24]
    except OSError:
        return bytes(4)


def checksum(data: bytes) -> int:
    """Return the Internet checksum of ``data`` (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return int(~total & 0xFFFF)


def arp(mac: bytes, operation: int, sender: bytes, target: bytes, *, to: bytes = bytes(6)) -> bytes:
    """Return a broadcast ARP frame, padded to Ethernet's least length."""
    head = _BROADCAST + mac + struct.pack("!HHHBBH", _ETH_P_ARP, 1, 0x800, 6, 4, operation)
    return (head + mac + sender + to + target).ljust(60, b"\0")


def neighbour_message(
    kind: int, mac: bytes, source: bytes, destination: bytes, target: bytes, *, flags: int = 0
) -> bytes:
    """Return a multicast neighbour discovery frame about ``target`` (RFC 4861, 4.3 and 4.4)."""
    body = struct.pack("!BBHI", kind, 0, 0, flags) + target
    if kind == _ND_ADVERTISEMENT:
        body += b"\2\1" + mac  # option: target link-layer address
    pseudo = source + destination + struct.pack("!II", len(body), _NEXT_ICMPV6)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    head = b"\x33\x33" + destination[12:] + mac + struct.pack("!H", _ETH_P_IPV6)
    # The hop limit of 255 proves that no router passed it on.
    return (
        head
        + struct.pack("!IHBB", 6 << 28, len(body), _NEXT_ICMPV6, 255)
        + source
        + destination
        + body
    )


def announce(device: str, addresses: Iterable[Address]) -> None:
    """Tell the neighbours on ``device`` that these addresses are here now; raises OSError.

    Gratuitous ARP in both forms (some stacks heed only one), unsolicited advertisements with the
    override flag. Not repeated: a caller who must be sure calls again.
    """
    mac = mac_of(device)
    everybody = ipaddress.IPv6Address("ff02::1").packed
    sock = _sender(os.stat("/proc/thread-self/ns/net").st_ino)
    for address in addresses:
        own = address.packed
        if address.version == 4:
            sock.sendto(arp(mac, _ARP_REQUEST, own, own), (device, _ETH_P_ARP))
            sock.sendto(arp(mac, _ARP_REPLY, own, own, to=mac), (device, _ETH_P_ARP))
        else:
            advertisement = neighbour_message(
                _ND_ADVERTISEMENT, mac, own, everybody, own, flags=0x20000000
            )
            sock.sendto(advertisement, (device, _ETH_P_IPV6))


@functools.lru_cache(maxsize=1)
def _sender(_namespace: int) -> socket.socket:
    """Return a socket of this network namespace that sends frames and receives none.

    It is open until the process ends: to close a packet socket waits 8 to 16 ms for all processors.
    """
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)


def _solicitation(mac: bytes, address: Address, own: bytes) -> bytes:
    if address.version == 4:
        # With the host's own address: a probe from 0.0.0.0 gets no answer from a proxy.
        return arp(mac, _ARP_REQUEST, own, address.packed)
    group = ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13] + address.packed[13:]
    return neighbour_message(_ND_SOLICITATION, mac, bytes(16), group, address.packed)


def _answer(frame: bytes) -> tuple[Address, bytes] | None:
    """Return (address, MAC) that a frame claims, None when it claims nothing."""
    if len(frame) >= 42 and frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
        return ipaddress.IPv4Address(frame[28:32]), frame[22:28]
    if (
        len(frame) >= 78
        and frame[12:14] == b"\x86\xdd"
        and frame[20] == _NEXT_ICMPV6
        and frame[54] == _ND_ADVERTISEMENT
    ):
        return ipaddress.IPv6Address(frame[62:78]), frame[6:12]
    return None


def conflicts(devices: Sequence[str], addresses: Sequence[Address]) -> list[Conflict]:
    """Ask on every device at once who has these addresses; return those who answered.

    Takes 0.36 s when nobody does, and no longer than the first answers when all are taken.
    Raises OSError.
    """
    if not devices or not addresses:
        return []
    found: dict[Address, Conflict] = {}
    # Not more sockets than are needed: see _sender.
    protocols = {_ETH_P_ARP if a.version == 4 else _ETH_P_IPV6 for a in addresses}
    with ExitStack() as stack:
        sockets: dict[socket.socket, tuple[str, bytes, bytes]] = {}
        for device in devices:
            mac, own = mac_of(device), _own_ipv4(device)
            for protocol in protocols:
                sock = stack.enter_context(
                    socket.socket(
                        socket.AF_PACKET,
                        socket.SOCK_RAW | socket.SOCK_CLOEXEC,
                        socket.htons(protocol),
                    )
                )
                sock.bind((device, protocol))
                sockets[sock] = (device, mac, own)
        begin = time.monotonic()
        rounds = list(_ASKED_AT_S)
        while len(found) < len(set(addresses)):
            now = time.monotonic() - begin
            if rounds and now >= rounds[0]:
                rounds.pop(0)
                _ask(sockets, [a for a in addresses if a not in found])
            if now >= _WAIT_S:
                break
            limit = rounds[0] if rounds else _WAIT_S
            ready, _, _ = select.select(list(sockets), [], [], max(0.0, limit - now))
            for sock in ready:
                frame, (_device, _protocol, kind, *_rest) = sock.recvfrom(2048)
                claim = _answer(frame) if kind != _PACKET_OUTGOING else None
                device, mac, _own = sockets[sock]
                if claim is not None and claim[0] in addresses and claim[1] != mac:
                    found[claim[0]] = Conflict(claim[0], claim[1].hex(":"), device)
    return list(found.values())


def _ask(
    sockets: dict[socket.socket, tuple[str, bytes, bytes]], addresses: Sequence[Address]
) -> None:
    for sock, (device, mac, own) in sockets.items():
        version = 4 if sock.getsockname()[1] == _ETH_P_ARP else 6
        for address in addresses:
            if address.version == version:
                sock.sendto(_solicitation(mac, address, own), (device, 0))
