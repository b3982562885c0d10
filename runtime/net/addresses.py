"""IP addresses as the configuration and the command line write them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.errors import BadAddress, BadHostname, BadNameserver, BadSearchDomain
from runtime.settings_base import hostname

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Ip:
    """One address with the length of its prefix; ``masked`` tells whether a mask was written."""

    interface: Interface
    masked: bool = False

    @property
    def address(self) -> Address:
        return self.interface.ip

    @property
    def version(self) -> int:
        return self.interface.version

    @property
    def prefix(self) -> int:
        return self.interface.network.prefixlen

    def __str__(self) -> str:
        return str(self.interface) if self.masked else str(self.interface.ip)


def parse(text: str) -> Ip:
    """Return ``ADDRESS[/LENGTH|/MASK]`` taken apart; raises BadAddress.

    An address that no host can have (unspecified, multicast, loopback, link-local broadcast, the
    network's own or broadcast address) is refused.
    """
    word, slash, _ = text.partition("/")
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise BadAddress(
            f"invalid IP address: {text[:60]!r}", hint="write 10.0.0.5, 10.0.0.5/24 or 2001:db8::5"
        ) from None
    address = interface.ip
    if "%" in word:
        raise BadAddress(f"an address of a container has no zone: {text[:60]!r}")
    if (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or (address.version == 4 and int(address) >> 28 == 15)
        or (address.version == 4 and int(address) >> 24 == 0)
    ):
        raise BadAddress(f"no container can have this address: {address}")
    network = interface.network
    short = network.version == 4 and 1 <= network.prefixlen < 31
    if slash and short and address in (network.network_address, network.broadcast_address):
        raise BadAddress(f"{address} is the network or broadcast address of {network}")
    if slash and network.prefixlen == 0:
        raise BadAddress(f"a prefix of length 0 is no network: {text[:60]!r}")
    return Ip(interface, masked=bool(slash))


def parse_list(text: str | None) -> tuple[Ip, ...]:
    """Return the addresses of an ``IP_ADDRESS`` value, each once; raises BadAddress."""
    found: dict[Address, Ip] = {}
    for word in (text or "").replace(",", " ").split():
        if word == "0.0.0.0":  # "no address" of old configurations
            continue
        ip = parse(word)
        found[ip.address] = ip
    return tuple(found.values())


def add(stored: str | None, given: Sequence[str]) -> str | None:
    """Add addresses to a stored list; one that is there again takes the new mask."""
    found = {ip.address: ip for ip in parse_list(stored)}
    for word in given:
        ip = parse(word)
        found[ip.address] = ip
    return " ".join(map(str, found.values())) or None


def remove(stored: str | None, given: Sequence[str]) -> str | None:
    """Take addresses out of a stored list, ``all`` empties it; raises BadAddress."""
    found = {ip.address: ip for ip in parse_list(stored)}
    for word in given:
        if word == "all":
            found.clear()
            continue
        ip = parse(word)
        if found.pop(ip.address, None) is None:
            raise BadAddress(f"the container does not have the address {ip.address}")
    return " ".join(map(str, found.values())) or None


def check(text: str) -> str:
    """Check one address for ``--ipadd``; raises BadAddress."""
    return str(parse(text))


def check_removal(text: str) -> str:
    """Check one argument of ``--ipdel``; raises BadAddress."""
    return "all" if text == "all" else str(parse(text))


def nameserver(text: str) -> str:
    """Check one DNS server (or ``inherit``); raises BadNameserver."""
    words = []
    for word in text.replace(",", " ").split():
        if word == "inherit":
            words.append(word)
            continue
        try:
            address = ipaddress.ip_address(word)
        except ValueError:
            raise BadNameserver(f"invalid address of a DNS server: {word[:60]!r}") from None
        if address.is_unspecified or address.is_multicast:
            raise BadNameserver(f"no DNS server can have this address: {address}")
        words.append(str(address))
    return " ".join(words)


def searchdomain(text: str) -> str:
    """Check one or more search domains (or ``inherit``); raises BadSearchDomain."""
    words = text.replace(",", " ").split()
    for word in words:
        if word == "inherit":
            continue
        try:
            # A domain may be longer than the 64 characters of a host name.
            for label in word.rstrip(".").split("."):
                hostname(label)
        except BadHostname as error:
            raise BadSearchDomain(f"invalid search domain: {word[:60]!r}") from error
        if len(word) > 253:
            raise BadSearchDomain("a domain has at most 253 characters")
    return " ".join(words)


def replace_all(stored: str | None, given: Sequence[str]) -> str | None:
    """Put everything given in the place of what was stored."""
    return " ".join(word for word in given if word) or None


def overlapping(networks: Iterable[Network], new: Network) -> Network | None:
    """Return the first of ``networks`` that shares addresses with ``new``."""
    for network in networks:
        if network.version == new.version and network.overlaps(new):
            return network
    return None
