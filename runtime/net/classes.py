"""The file networks_classes: which traffic class an address of the other side belongs to.

``CLASS NETWORK`` a line; the longest prefix decides. Class 0 is not accounted (own networks),
class 1 has to cover everything, 2–15 are exceptions (guide §4.4.2).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.errors import AccountingFailed
from runtime.net.addresses import Address, Network
from runtime.paths import Paths

COUNT = 16
DEFAULT_TEXT = """# Which class the traffic with a network belongs to: CLASS NETWORK, a line each.
# Class 0 is not accounted; class 1 must cover everything. `vztactl class_load` applies changes.
1 0.0.0.0/0
1 ::/0
"""


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses from ``first`` to ``last`` (both included) belong to class ``number``."""

    first: Address
    last: Address
    number: int

    def text(self) -> str:
        """Return it as an element of an interval set of nft(8)."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table of classes, as read."""

    entries: tuple[tuple[Network, int], ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The accounted classes, sorted."""
        return tuple(sorted({number for _network, number in self.entries if number}))

    def ranges(self, version: int) -> tuple[Range, ...]:
        """Return disjoint ranges that cover what the table covers; the longest prefix wins."""
        return flatten(entry for entry in self.entries if entry[0].version == version)

    def find(self, address: Address) -> int | None:
        """Return the class of an address, None when no line covers it."""
        best: tuple[int, int] | None = None
        for network, number in self.entries:
            if network.version != address.version or address not in network:
                continue
            if best is None or network.prefixlen >= best[0]:
                best = (network.prefixlen, number)
        return None if best is None else best[1]


def parse(text: str, *, source: str = "networks_classes") -> Table:
    """Return the table in ``text``; raises AccountingFailed naming the first bad line."""
    entries: list[tuple[Network, int]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        words = line.split()
        if len(words) != 2:
            raise AccountingFailed(f"{source}, line {number}: not CLASS NETWORK: {line[:60]!r}")
        if not words[0].isdecimal() or int(words[0]) >= COUNT:
            raise AccountingFailed(
                f"{source}, line {number}: the class is no number from 0 to 15: {words[0][:20]!r}"
            )
        try:
            network = ipaddress.ip_network(words[1], strict=False)
        except ValueError:
            raise AccountingFailed(
                f"{source}, line {number}: invalid network: {words[1][:60]!r}"
            ) from None
        entries.append((network, int(words[0])))
    if not any(network == ipaddress.ip_network("0.0.0.0/0") and c == 1 for network, c in entries):
        raise AccountingFailed(
            f"{source}: class 1 does not cover all addresses", hint="add the line: 1 0.0.0.0/0"
        )
    return Table(tuple(entries))


def read(paths: Paths) -> Table:
    """Return the server's table, the built-in one where there is no file.

    Raises AccountingFailed.
    """
    path = paths.networks_classes
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return parse(DEFAULT_TEXT)
    except OSError as error:
        raise AccountingFailed(f"cannot read {path}: {error.strerror}") from error
    return parse(text, source=str(path))


def flatten(entries: Iterable[tuple[Network, int]]) -> tuple[Range, ...]:
    """Return nested prefixes of one family as disjoint ranges: the longest wins, then the last."""
    unique = dict(entries)
    ordered = sorted(unique.items(), key=lambda e: (int(e[0].network_address), e[0].prefixlen))
    out: list[tuple[int, int, int]] = []
    stack: list[tuple[int, int]] = []  # (last address, class) of the prefixes we are inside of
    position = 0

    def emit(first: int, last: int, number: int) -> None:
        if first > last:
            return
        if out and out[-1][2] == number and out[-1][1] == first - 1:
            out[-1] = (out[-1][0], last, number)
        else:
            out.append((first, last, number))

    for network, number in ordered:
        first, last = int(network.network_address), int(network.broadcast_address)
        while stack and stack[-1][0] < first:
            end, outer = stack.pop()
            emit(position, end, outer)
            position = max(position, end + 1)
        if stack:
            emit(position, first - 1, stack[-1][1])
        position = first
        stack.append((last, number))
    while stack:
        end, outer = stack.pop()
        emit(position, end, outer)
        position = max(position, end + 1)
    if not ordered:
        return ()
    kind = ipaddress.IPv4Address if ordered[0][0].version == 4 else ipaddress.IPv6Address
    return tuple(Range(kind(a), kind(b), number) for a, b, number in out)
