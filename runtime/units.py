"""Sizes, pages, durations and ``barrier:limit`` pairs as configuration files write them.

Inside the program sizes are bytes and times are seconds; this module alone knows KiB blocks,
4 KiB pages and vzctl's suffixes (vzctl(8), "Resource limits": ``G M K`` multiply by powers of
1024, ``P`` is pages, ``B`` is bytes, ``unlimited`` is LONG_MAX).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from runtime.errors import InvalidValue

PAGE = 4096
KIB = 1024
#: What "unlimited" is on 64-bit systems: LONG_MAX.
UNLIMITED = 2**63 - 1
#: LONG_MAX of 32-bit systems: old configuration files write it for "unlimited".
UNLIMITED_32 = 2**31 - 1

_SUFFIX = {"t": 1 << 40, "g": 1 << 30, "m": 1 << 20, "k": 1 << 10, "p": PAGE, "b": 1}
_AMOUNT = re.compile(r"([0-9]+)(?:\.([0-9]+))?([tTgGmMkKpPbB]?)")
_PERIOD = {
    "h": 3600,
    "d": 86400,
    "w": 7 * 86400,
    "m": 30 * 86400,
    "y": 365 * 86400,
}
_HUMAN = (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10))


class Pair(NamedTuple):
    """A barrier (soft limit) and a limit (hard limit), in the unit of the parameter."""

    barrier: int
    limit: int

    def __str__(self) -> str:
        return f"{_plain(self.barrier)}:{_plain(self.limit)}"


def _plain(value: int) -> str:
    return "unlimited" if value >= UNLIMITED else str(value)


def amount(text: str, *, unit: int = 1) -> int:
    """Return ``text`` as a number of ``unit`` bytes each, rounded down.

    A bare number already counts in ``unit``; a suffix says bytes (``B``), pages (``P``) or
    multiples of 1024 bytes. ``unit=0`` means plain items, for which no suffix is allowed.
    Raises InvalidValue.
    """
    word = text.strip()
    if word.lower() == "unlimited":
        return UNLIMITED
    match = _AMOUNT.fullmatch(word)
    if match is None:
        raise InvalidValue(
            f"not a number or size: {text!r}",
            hint="write a number, optionally with one of the suffixes T G M K P B, or 'unlimited'",
        )
    whole, fraction, suffix = match[1], match[2], match[3].lower()
    if suffix and not unit:
        raise InvalidValue(f"this parameter counts items and takes no suffix: {text!r}")
    if fraction and not suffix:
        raise InvalidValue(f"a fraction needs a suffix: {text!r}")
    if not suffix:
        return min(int(whole), UNLIMITED)
    scale = _SUFFIX[suffix]
    total = int(whole) * scale
    if fraction:
        total += int(fraction) * scale // 10 ** len(fraction)
    return min(total // unit, UNLIMITED)


def pair(text: str, *, unit: int = 1) -> Pair:
    """Return ``barrier:limit`` (one number gives both); raises InvalidValue."""
    first, colon, second = text.partition(":")
    barrier = amount(first, unit=unit)
    limit = amount(second, unit=unit) if colon else barrier
    if barrier > limit:
        raise InvalidValue(
            f"the barrier is greater than the limit: {text!r}",
            hint="write the smaller number first",
        )
    return Pair(barrier, limit)


def pages(size_bytes: int) -> int:
    """Return how many whole pages hold ``size_bytes``."""
    return UNLIMITED if size_bytes >= UNLIMITED else (size_bytes + PAGE - 1) // PAGE


def bytes_of_pages(count: int) -> int:
    """Return the bytes in ``count`` pages, "unlimited" staying unlimited."""
    return UNLIMITED if count >= UNLIMITED_32 else count * PAGE


def human(size_bytes: int) -> str:
    """Return a size for people: ``512K``, ``1.5G``; "unlimited" for no limit."""
    if size_bytes >= UNLIMITED:
        return "unlimited"
    for letter, scale in _HUMAN:
        if size_bytes >= scale:
            value = size_bytes / scale
            return f"{value:.0f}{letter}" if value == int(value) else f"{value:.1f}{letter}"
    return str(size_bytes)


def duration(text: str) -> int:
    """Return seconds from ``[[[dd:]hh:]mm:]ss`` or ``<n>[hdwmy]`` (``m`` is months: vzquota(8)).

    Raises InvalidValue.
    """
    word = text.strip()
    match = re.fullmatch(r"([0-9]+)([hdwmyHDWMY])", word)
    if match:
        return int(match[1]) * _PERIOD[match[2].lower()]
    if not re.fullmatch(r"[0-9]+(:[0-9]+){0,3}", word):
        raise InvalidValue(
            f"not a time: {text!r}",
            hint="write seconds, [[[dd:]hh:]mm:]ss, or a number and h d w m y",
        )
    total = 0
    for field, scale in zip(reversed(word.split(":")), (1, 60, 3600, 86400), strict=False):
        total += int(field) * scale
    return total


def yes_no(text: str) -> bool:
    """Return the truth of ``yes``/``no`` (``on``/``off`` too); raises InvalidValue."""
    word = text.strip().lower()
    if word in ("yes", "on", "true", "1"):
        return True
    if word in ("no", "off", "false", "0"):
        return False
    raise InvalidValue(f"neither yes nor no: {text!r}", hint="write yes or no")
