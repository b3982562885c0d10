"""One account of the ledger, a container, user or group: its limits as the hot path needs them."""

from __future__ import annotations

import errno
import os
import time

from vzfs.quotalayout import (
    ENDLESS,
)


class Account:
    """A container, user or group: where its counters are, and where they must stop.

    ``block_stop`` and ``inode_stop`` are the values up to which nothing has to be considered: the
    soft limit while usage is below it, and -1 above it, where grace ends by the clock.
    """

    __slots__ = (
        "alarm",
        "block_expire",
        "block_hard",
        "block_soft",
        "block_stop",
        "blocks",
        "btime",
        "ident",
        "inode_expire",
        "inode_hard",
        "inode_soft",
        "inode_stop",
        "inodes",
        "itime",
        "kind",
        "words",
    )

    def __init__(self, words: memoryview, blocks: int, inodes: int, btime: int, itime: int) -> None:
        """Describe counters at the given indices of ``words``, without limits."""
        self.words = words
        self.blocks, self.inodes, self.btime, self.itime = blocks, inodes, btime, itime
        self.kind, self.ident = -1, 0
        #: Blocks above which a guard wants to be asked first, see ``quotaguard``.
        self.alarm = ENDLESS
        self.block_soft = self.block_hard = self.block_stop = ENDLESS
        self.inode_soft = self.inode_hard = self.inode_stop = ENDLESS
        self.block_expire = self.inode_expire = 0

    def limit(self, soft: int, hard: int, inode_soft: int, inode_hard: int, changed: int) -> None:
        """Set limits (KiB and inodes, 0 for none); a grace that becomes due began at ``changed``."""
        self.block_soft, self.block_hard = _blocks(soft), _blocks(hard)
        self.inode_soft, self.inode_hard = inode_soft or ENDLESS, inode_hard or ENDLESS
        now = int(time.time())
        began = changed if 0 < changed <= now else now
        words = self.words
        if words[self.blocks] <= self.block_soft:
            words[self.btime] = 0
        elif not words[self.btime]:
            words[self.btime] = began + self.block_expire
        if words[self.inodes] <= self.inode_soft:
            words[self.itime] = 0
        elif not words[self.itime]:
            words[self.itime] = began + self.inode_expire
        self.recompute()

    def recompute(self) -> None:
        """Set the stops from the limits and from whether a grace period runs."""
        words = self.words
        stop = min(self.block_soft, self.block_hard, self.alarm)
        self.block_stop = -1 if words[self.btime] else stop
        self.inode_stop = -1 if words[self.itime] else min(self.inode_soft, self.inode_hard)

    def judge(self, blocks: int, inodes: int) -> tuple[int, int]:
        """Judge usage rising to ``blocks`` and ``inodes`` (-1: not rising).

        Returns the ends of grace to record once everybody agreed; raises OSError (EDQUOT).
        """
        words = self.words
        btime, itime = words[self.btime], words[self.itime]
        if blocks > self.block_soft or blocks > self.block_hard:
            btime = _grace(blocks, self.block_soft, self.block_hard, btime, self.block_expire)
        if inodes > self.inode_soft or inodes > self.inode_hard:
            itime = _grace(inodes, self.inode_soft, self.inode_hard, itime, self.inode_expire)
        return btime, itime

    def begin(self, btime: int, itime: int) -> None:
        """Record the ends of grace which ``judge`` returned."""
        words = self.words
        if words[self.btime] != btime or words[self.itime] != itime:
            words[self.btime], words[self.itime] = btime, itime
            self.recompute()

    def fallen(self) -> None:
        """Usage fell: a grace period ends when it is back below the soft limit."""
        words = self.words
        if words[self.btime] and words[self.blocks] <= self.block_soft:
            words[self.btime] = 0
            self.recompute()
        if words[self.itime] and words[self.inodes] <= self.inode_soft:
            words[self.itime] = 0
            self.recompute()

    def block_ceiling(self, now: float) -> int:
        """Return up to where blocks may rise at ``now``."""
        return self._ceiling(self.block_soft, self.block_hard, self.block_expire, now)

    def ceiling_under(self, soft_kib: int, hard_kib: int, expire_s: int, now: float) -> int:
        """Return the same under other limits (0 for none), which are not in force here yet."""
        return self._ceiling(_blocks(soft_kib), _blocks(hard_kib), expire_s, now)

    def _ceiling(self, soft: int, hard: int, expire_s: int, now: float) -> int:
        end = self.words[self.btime]
        return soft if soft < hard and (now >= end if end else not expire_s) else hard


def _blocks(size_kib: int) -> int:
    return min(size_kib * 2, ENDLESS) if size_kib else ENDLESS


def _grace(value: int, soft: int, hard: int, end: int, expire: int) -> int:
    """Return when the grace of ``value`` ends; raises OSError (EDQUOT) when it has none."""
    if value > hard:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    if value <= soft:
        return end
    now = time.time()
    if end:
        if now >= end:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return end
    if not expire:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    return int(now) + expire
