"""Private networks (guide §6.5): sets of subnets whose members reach one another and nobody else.

A weak one (``*`` among its addresses) also reaches everything that is in no private network. The
members of a global one are reached by the members of every private network. Enforced where the
host forwards: routed and bridged, containers and machines alike.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime.config import ConfigFile
from runtime.errors import ConfigMissing, InvalidValue
from runtime.net.addresses import Network
from runtime.net.names import TABLE_PRIVATE
from runtime.net.nft import Nft
from runtime.paths import Paths

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FAMILIES = ("inet", "bridge")
_KINDS = ((4, "ipv4_addr", "ip"), (6, "ipv6_addr", "ip6"))
_WEAK = "*"


@dataclass(frozen=True, slots=True)
class PrivateNetwork:
    """A private network as the administrator defined it."""

    name: str
    networks: tuple[Network, ...] = ()
    weak: bool = False
    is_global: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Its addresses as written, ``*`` last."""
        return (*map(str, self.networks), *([_WEAK] if self.weak else []))


def check_name(text: str) -> str:
    """Return the name of a private network; raises InvalidValue."""
    if not _NAME.fullmatch(text):
        raise InvalidValue(f"invalid name of a private network: {text[:60]!r}")
    return text


def parse(name: str, words: Iterable[str], *, is_global: bool = False) -> PrivateNetwork:
    """Return a private network of these addresses; raises InvalidValue."""
    networks: dict[Network, None] = {}
    weak = False
    for word in words:
        if word == _WEAK:
            weak = True
            continue
        try:
            networks[ipaddress.ip_network(word, strict=False)] = None
        except ValueError:
            raise InvalidValue(
                f"invalid subnet: {word[:60]!r}", hint="write 192.168.1.0/24, or '*' for a weak one"
            ) from None
    return PrivateNetwork(check_name(name), tuple(networks), weak, is_global)


def _directory(paths: Paths) -> Path:
    return paths.etc / "privnets"


def load_all(paths: Paths) -> list[PrivateNetwork]:
    """Return every private network by name; raises InvalidValue for a damaged file."""
    found = []
    for path in sorted(_directory(paths).glob("*.conf")):
        file = ConfigFile.read(path)
        words = (file.get("ADDRESSES") or "").split()
        found.append(parse(path.stem, words, is_global=file.get("GLOBAL") == "yes"))
    return found


def find(paths: Paths, name: str) -> PrivateNetwork:
    """Return one private network; raises ConfigMissing, InvalidValue."""
    for network in load_all(paths):
        if network.name == name:
            return network
    raise ConfigMissing(
        f"there is no private network {name[:60]!r}", hint="psrvctl privnet list shows them"
    )


def store(paths: Paths, network: PrivateNetwork) -> None:
    """Write the definition durably; raises InvalidValue when it overlaps another one's subnets."""
    for other in load_all(paths):
        if other.name == network.name:
            continue
        for mine in network.networks:
            for theirs in other.networks:
                if mine.version == theirs.version and mine.overlaps(theirs):
                    raise InvalidValue(f"{mine} overlaps {theirs} of private network {other.name}")
    path = _directory(paths) / f"{network.name}.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = ConfigFile(path.read_text() if path.exists() else "", path=path)
    file.set("ADDRESSES", " ".join(network.words))
    file.set("GLOBAL", "yes" if network.is_global else "no")
    file.save()


def delete(paths: Paths, name: str) -> None:
    """Forget a private network; raises ConfigMissing."""
    find(paths, name)
    files.remove(_directory(paths) / f"{name}.conf")


def script(networks: Sequence[PrivateNetwork]) -> str:
    """Return the script that replaces all rules at once."""
    lines: list[str] = []
    for family in _FAMILIES:
        table = f"{family} {TABLE_PRIVATE}"
        lines += [f"add table {table}", f"delete table {table}"]
        if not networks:
            continue
        lines.append(f"add table {table}")
        for version, kind, _word in _KINDS:
            nets = {n.name: [str(x) for x in n.networks if x.version == version] for n in networks}
            sets = {
                "any": [text for of_one in nets.values() for text in of_one],
                "strong": [text for n in networks if not n.weak for text in nets[n.name]],
                "global": [text for n in networks if n.is_global for text in nets[n.name]],
            }
            same = [f"{a} . {b}" for of_one in nets.values() for a in of_one for b in of_one]
            lines.append(
                f"add set {table} same{version} {{ type {kind} . {kind}; flags interval; }}"
            )
            if same:
                lines.append(f"add element {table} same{version} {{ {', '.join(same)} }}")
            for name, elements in sets.items():
                lines.append(
                    f"add set {table} {name}{version} "
                    f"{{ type {kind}; flags interval; auto-merge; }}"
                )
                if elements:
                    lines.append(f"add element {table} {name}{version} {{ {', '.join(elements)} }}")
        lines.append(
            f"add chain {table} forward {{ type filter hook forward priority -10; policy accept; }}"
        )
        for version, _kind, word in _KINDS:
            source, target = f"{word} saddr", f"{word} daddr"
            lines += [
                f"add rule {table} forward {rule}"
                for rule in (
                    f"{source} . {target} @same{version} accept",
                    f"{source} @any{version} {target} @global{version} accept",
                    f"{source} @global{version} {target} @any{version} accept",
                    f"{source} @any{version} {target} @any{version} counter drop",
                    f"{source} @strong{version} counter drop",
                    f"{target} @strong{version} counter drop",
                )
            ]
    return "\n".join(lines) + "\n"


def apply(nft: Nft, networks: Sequence[PrivateNetwork]) -> None:
    """Enforce exactly these private networks; raises NftFailed."""
    nft.run(script(networks))


def of_address(
    networks: Sequence[PrivateNetwork], address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> PrivateNetwork | None:
    """Return the private network an address is a member of, or None."""
    for network in networks:
        if any(n.version == address.version and address in n for n in network.networks):
            return network
    return None
