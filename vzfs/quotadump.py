"""The text of vzdqdump and vzdqload: limits and grace of a quota as lines of labelled numbers.

    ugid_quota_status: 1
    grace_time: TYPE BLOCK INODE            (-G) seconds; type 0 users, 1 groups
    ugid_number: N                          (-U, -T)
    ugid: ID TYPE BSOFT BHARD ISOFT IHARD   (-U) KiB and inodes
    ugid: ID TYPE … BTIME ITIME             (-T) ends of grace, seconds since 1970
    first_level: BSOFT BHARD ISOFT IHARD BEXPIRE IEXPIRE   (-F)

Fields are separated by tabs; lines starting with # are comments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vzfs.quotaerror import EXIT_USAGE, QuotaError
from vzfs.quotalayout import GROUP, USER, Record, Usage
from vzfs.quotastate import Snapshot

_FIRST = ("block_soft", "block_hard", "inode_soft", "inode_hard", "block_expire", "inode_expire")
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts to dump or load."""

    grace: bool = False
    limits: bool = False
    times: bool = False
    first: bool = False

    def __bool__(self) -> bool:
        return self.grace or self.limits or self.times or self.first


@dataclass(slots=True)
class Dump:
    """What was read from a dump."""

    ugid_on: bool = False
    #: (block, inode) grace by type.
    grace: dict[int, tuple[int, int]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    first: tuple[int, ...] = ()


def dump(state: Snapshot, parts: Parts) -> Iterator[str]:
    """Yield the lines of a dump of ``state``."""
    limits = state.limits
    yield f"ugid_quota_status:\t{int(limits.ugid_on)}"
    if parts.first:
        yield "#first_level:\tbsoft\tbhard\tisoft\tihard\tbexpire\tiexpire"
        yield "first_level:\t" + "\t".join(str(getattr(limits, name)) for name in _FIRST)
    if not limits.ugid_on:
        return
    if parts.grace:
        yield "#grace_time:\ttype\tblock\tinode"
        yield f"grace_time:\t{USER}\t{limits.user_block_expire}\t{limits.user_inode_expire}"
        yield f"grace_time:\t{GROUP}\t{limits.group_block_expire}\t{limits.group_inode_expire}"
    if not (parts.limits or parts.times):
        return
    yield f"ugid_number:\t{len(state.records)}"
    if not state.records:
        return
    header = "#ugid:\tID\ttype"
    if parts.limits:
        header += "\tbsoft\tbhard\tisoft\tihard"
    if parts.times:
        header += "\tbtime\titime"
    yield header
    for record in state.records:
        values = [record.ident, record.kind]
        if parts.limits:
            values += [record.block_soft, record.block_hard, record.inode_soft, record.inode_hard]
        if parts.times:
            values += [record.usage.block_time, record.usage.inode_time]
        yield "ugid:\t" + "\t".join(map(str, values))


def parse(lines: Iterable[str], parts: Parts) -> Dump:
    """Read a dump made with the same ``parts``; raises QuotaError (2), naming the line."""
    rows = _rows(lines)
    found = Dump()
    found.ugid_on = bool(_values(rows, "ugid_quota_status:", 1, most=1)[0])
    if parts.first:
        found.first = tuple(_values(rows, "first_level:", 6))
    if not found.ugid_on:
        return found
    if parts.grace:
        for kind in (USER, GROUP):
            given, blocks, inodes = _values(rows, "grace_time:", 3)
            if given != kind:
                raise QuotaError(EXIT_USAGE, f"grace times are out of order: type {given}")
            found.grace[kind] = (blocks, inodes)
    if not (parts.limits or parts.times):
        return found
    (count,) = _values(rows, "ugid_number:", 1, most=2**32)
    width = 2 + 4 * parts.limits + 2 * parts.times
    for _ in range(count):
        values = _values(rows, "ugid:", width)
        ident, kind = values[:2]
        if kind not in (USER, GROUP) or ident >= 2**32:
            raise QuotaError(EXIT_USAGE, f"not a user or group: id {ident}, type {kind}")
        record = Record(kind, ident)
        rest = values[2:]
        if parts.limits:
            record.block_soft, record.block_hard, record.inode_soft, record.inode_hard = rest[:4]
            rest = rest[4:]
        if parts.times:
            record.usage = Usage(0, 0, *rest)
        found.records.append(record)
    return found


def _rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield number, words


def _values(
    rows: Iterator[tuple[int, list[str]]], label: str, count: int, most: int = _MOST
) -> list[int]:
    try:
        number, words = next(rows)
    except StopIteration:
        raise QuotaError(EXIT_USAGE, f"the dump ends where {label!r} should follow") from None
    if words[0] != label or len(words) != count + 1:
        raise QuotaError(
            EXIT_USAGE,
            f"line {number}: expected {label!r} and {count} numbers",
            "same options as vzdqdump?",
        )
    values = []
    for word in words[1:]:
        if not word.isascii() or not word.isdecimal() or int(word) > most:
            raise QuotaError(EXIT_USAGE, f"line {number}: not a number in range: {word[:40]!r}")
        values.append(int(word))
    return values
