"""The text by which users and groups are shown and limited from inside a container.

Read, one line each, fields separated by one space:

    vzfs-quota 1 on|off active|inactive UGID_LIMIT      version, first level, second level
    grace u BLOCK INODE                                 grace periods of users, of groups (seconds)
    grace g BLOCK INODE
    c 0 BLOCKS SOFT HARD END INODES SOFT HARD END       the container
    u UID BLOCKS SOFT HARD END INODES SOFT HARD END     a user; g GID …: a group

Blocks are KiB; END is when the grace ends (seconds since 1970), 0 where none runs. Written, any
number of lines, all or none of which take effect:

    u UID BLOCK_SOFT BLOCK_HARD INODE_SOFT INODE_HARD   set limits; g GID …
    t u BLOCK INODE                                     set grace periods; t g …

It is ordinary text so that a shell can do all of it: quotactl(2) does not reach FUSE.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from vzfs.ledger import Ledger
from vzfs.quotafile import kib
from vzfs.quotalayout import GROUP, USER, Limits, Record, Usage

_LETTERS = {USER: "u", GROUP: "g"}
_KINDS = {"u": USER, "g": GROUP}
_MOST = 1 << 50


def _line(
    letter: str, ident: int, usage: Usage, limits: tuple[int, int, int, int], active: bool
) -> str:
    soft, hard, inode_soft, inode_hard = limits
    ends = (usage.block_time, usage.inode_time) if active else (0, 0)
    return (
        f"{letter} {ident} {kib(usage.blocks)} {soft} {hard} {ends[0]}"
        f" {usage.inodes} {inode_soft} {inode_hard} {ends[1]}"
    )


def report(books: Ledger) -> str:
    """Return everything."""
    return "\n".join((*_head(books), *(_record(books, row) for row in books.file.records()), ""))


def report_one(books: Ledger, kind: int, ident: int) -> str:
    """Return what concerns one user or group."""
    rows = [row for row in books.file.records() if (row.kind, row.ident) == (kind, ident)]
    return "\n".join((*_head(books), *(_record(books, row) for row in rows), ""))


def _head(books: Ledger) -> Iterator[str]:
    limits = books.limits
    on = "on" if books.enforced else "off"
    active = "active" if books.ugid_active else "inactive"
    yield f"vzfs-quota 1 {on} {active} {limits.ugid_limit}"
    yield f"grace u {limits.user_block_expire} {limits.user_inode_expire}"
    yield f"grace g {limits.group_block_expire} {limits.group_inode_expire}"
    own = (limits.block_soft, limits.block_hard, limits.inode_soft, limits.inode_hard)
    yield _line("c", 0, books.file.usage(), own, books.enforced)


def _record(books: Ledger, row: Record) -> str:
    own = (row.block_soft, row.block_hard, row.inode_soft, row.inode_hard)
    return _line(_LETTERS[row.kind], row.ident, row.usage, own, books.enforced)


def obey(books: Ledger, text: str) -> None:
    """Do what was written; raises OSError (EINVAL, ESRCH when users are not accounted, EDQUOT)."""
    orders = [line.split() for line in text.splitlines() if line.strip()]
    if not orders:
        return
    if not books.ugid_active:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
    limits = books.file.limits()
    records = [_order(words, limits) for words in orders]
    for record in records:
        if record is not None:
            books.set_owner_limits(record)
    if None in records:
        with books.file.edit(1.0):
            books.file.write_limits(limits)


def _order(words: list[str], limits: Limits) -> Record | None:
    """Return the record one line sets, None when it set grace periods in ``limits``."""
    what, numbers = words[0], words[1:]
    if what == "t" and len(numbers) == 3 and numbers[0] in _KINDS:
        blocks, inodes = (_number(word) for word in numbers[1:])
        if _KINDS[numbers[0]] == USER:
            limits.user_block_expire, limits.user_inode_expire = blocks, inodes
        else:
            limits.group_block_expire, limits.group_inode_expire = blocks, inodes
        return None
    if what not in _KINDS or len(numbers) != 5:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    ident, *values = (_number(word) for word in numbers)
    soft, hard, inode_soft, inode_hard = values
    if ident >= 2**32 - 1 or (hard and soft > hard) or (inode_hard and inode_soft > inode_hard):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return Record(_KINDS[what], ident, Usage(), soft, hard, inode_soft, inode_hard)


def _number(word: str) -> int:
    if not word.isascii() or not word.isdecimal() or int(word) > _MOST:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return int(word)
