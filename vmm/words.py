"""Values on the command line of machines: numbers within bounds, words of a list, sets of numbers."""

from __future__ import annotations

from runtime.errors import CpuMaskFailed, InvalidValue, NodeMaskFailed


def whole(text: str, least: int, most: int, what: str) -> int:
    """Return a whole number within bounds; raises InvalidValue."""
    word = text.strip()
    if not word.isdecimal() or not word.isascii() or not least <= int(word) <= most:
        raise InvalidValue(f"{what} is {least} to {most}: {text!r}")
    return int(word)


def choice(text: str, words: tuple[str, ...], what: str) -> str:
    """Return ``text`` if it is one of ``words``; raises InvalidValue."""
    if text not in words:
        raise InvalidValue(f"unknown value for {what}: {text!r}", hint=", ".join(words))
    return text


def number_set(
    text: str, count: int, error: type[CpuMaskFailed] | type[NodeMaskFailed]
) -> set[int]:
    """Return the numbers that ``0,2-3`` or ``all`` means, all below ``count``; raises ``error``."""
    if text.strip().lower() == "all":
        return set(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise error(f"not a list of numbers: {text!r}", hint="write 0,2-3 or all")
        chosen |= set(range(int(first), int(last or first) + 1))
    if not chosen or max(chosen) >= count:
        raise error(f"this server has 0 to {count - 1}: {text!r}")
    return chosen
