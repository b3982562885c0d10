"""User beancounters: the counted resources of OpenVZ as rows, with their units and legal ranges.

Sources: vzctl(8) "Resource limits", ctid.conf(5), and the page "UBC parameter units" of the
OpenVZ manual. What the kernel of today does for each of them stands in ``resources``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from runtime.errors import InvalidValue
from runtime.units import PAGE, UNLIMITED, UNLIMITED_32, Pair, amount


class Unit(StrEnum):
    """What a number of a parameter counts."""

    ITEMS = "items"
    BYTES = "bytes"
    PAGES = "pages"

    @property
    def size_bytes(self) -> int:
        """Bytes in one unit, 0 for items (as ``units.amount`` wants it)."""
        return {Unit.ITEMS: 0, Unit.BYTES: 1, Unit.PAGES: PAGE}[self]


@dataclass(frozen=True, slots=True)
class Beancounter:
    """One counted resource: its key, what it counts, and how it is explained."""

    key: str
    unit: Unit
    help: str
    #: One of the four parameters every container has had to be given (guide §4.6.4).
    primary: bool = False
    #: The barrier means nothing: a single number N is stored as ``0:N``.
    limit_only: bool = False

    @property
    def name(self) -> str:
        """Its name in options, lists and /proc/user_beancounters."""
        return self.key.lower()


BEANCOUNTERS = (
    Beancounter("NUMPROC", Unit.ITEMS, "processes and threads", primary=True),
    Beancounter("AVNUMPROC", Unit.ITEMS, "average number of processes (for checks)", primary=True),
    Beancounter("NUMTCPSOCK", Unit.ITEMS, "TCP sockets", primary=True),
    Beancounter("NUMOTHERSOCK", Unit.ITEMS, "other sockets", primary=True),
    Beancounter("VMGUARPAGES", Unit.PAGES, "guaranteed memory", primary=True),
    Beancounter("KMEMSIZE", Unit.BYTES, "kernel memory"),
    Beancounter("TCPSNDBUF", Unit.BYTES, "send buffers of TCP sockets"),
    Beancounter("TCPRCVBUF", Unit.BYTES, "receive buffers of TCP sockets"),
    Beancounter("OTHERSOCKBUF", Unit.BYTES, "send buffers of other sockets"),
    Beancounter("DGRAMRCVBUF", Unit.BYTES, "receive buffers of datagram sockets"),
    Beancounter("OOMGUARPAGES", Unit.PAGES, "memory kept when the server runs out of it"),
    Beancounter("LOCKEDPAGES", Unit.PAGES, "locked memory"),
    Beancounter("PRIVVMPAGES", Unit.PAGES, "memory that may be allocated"),
    Beancounter("SHMPAGES", Unit.PAGES, "shared memory segments"),
    Beancounter("PHYSPAGES", Unit.PAGES, "RAM", limit_only=True),
    Beancounter("SWAPPAGES", Unit.PAGES, "swap space", limit_only=True),
    Beancounter("NUMFILE", Unit.ITEMS, "open files"),
    Beancounter("NUMFLOCK", Unit.ITEMS, "file locks"),
    Beancounter("NUMPTY", Unit.ITEMS, "pseudo-terminals"),
    Beancounter("NUMSIGINFO", Unit.ITEMS, "queued signals"),
    Beancounter("DCACHESIZE", Unit.BYTES, "cached directory entries"),
    Beancounter("NUMIPTENT", Unit.ITEMS, "packet filter rules"),
)

BY_KEY = {row.key: row for row in BEANCOUNTERS}


def unlimited(value: int) -> bool:
    """Whether ``value`` stands for "no limit": LONG_MAX of 64- or of 32-bit systems."""
    return value >= UNLIMITED or value == UNLIMITED_32


def parse(key: str, text: str) -> Pair:
    """Return the limits that ``text`` gives to the parameter ``key``, in its own unit.

    Both LONG_MAX values of old files become ``UNLIMITED``. Raises InvalidValue.
    """
    row = BY_KEY[key]
    first, colon, second = text.partition(":")
    limit = _number(row, second if colon else first)
    barrier = _number(row, first) if colon else limit
    if row.limit_only and not colon:
        barrier = 0
    if barrier > limit and not row.limit_only:
        raise InvalidValue(
            f"the barrier is greater than the limit: {text!r}",
            hint="write the smaller number first",
        )
    return Pair(barrier, limit)


def _number(row: Beancounter, text: str) -> int:
    value = amount(text, unit=row.unit.size_bytes)
    return UNLIMITED if unlimited(value) else value


def lenient(key: str, text: str | None) -> Pair | None:
    """Return the limits in ``text``; None when it is unset, empty or not understood."""
    if not text:
        return None
    try:
        return parse(key, text)
    except InvalidValue:
        return None


def limits(config: Mapping[str, str]) -> dict[str, Pair]:
    """Return every beancounter that ``config`` sets to something readable, by key."""
    found = {row.key: lenient(row.key, config.get(row.key)) for row in BEANCOUNTERS}
    return {key: pair for key, pair in found.items() if pair is not None}
