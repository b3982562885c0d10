"""The books of one served area: its limits as last read, and the accounts of users and groups."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vzfs import quotafile, quotalayout
from vzfs.accounts import Account
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import (
    ENDLESS,
    F_ON,
    F_UGID,
    R_BANKS,
    R_BLOCKS,
    R_BTIME,
    R_CHANGED,
    R_INODES,
    R_ITIME,
    R_SELECT,
    R_VALID,
    USER,
    W_BLOCKS,
    W_BTIME,
    W_EXCEEDED,
    W_FLAGS,
    W_GENERATION,
    W_INODES,
    W_ITIME,
    W_OBJECTS,
    Limits,
    Record,
)


class Books:
    """Accounts over a mapped quota file. One thread only."""

    __slots__ = (
        "_area",
        "_generation",
        "_groups",
        "_held",
        "_limits",
        "_live",
        "_pending",
        "_records",
        "_users",
        "ask",
        "enforced",
        "file",
        "limited",
        "promised",
        "whole",
    )

    def __init__(self, file: QuotaFile) -> None:
        """Keep the books in ``file``, whose server lock is held; see ``attach``."""
        self.file = file
        self._live = file.live
        #: The container.
        self.whole = Account(file.live, W_BLOCKS, W_INODES, W_BTIME, W_ITIME)
        self._users: dict[int, Account] | None = None
        self._groups: dict[int, Account] = {}
        self._held = 0
        self._generation = -1
        #: Blocks promised to writes which the kernel is doing just now.
        self.promised = 0
        #: Called before usage is judged: brings it up to what is really used, see ``quotaguard``.
        self.ask: Callable[[], None] | None = None
        self._limits = Limits()
        #: Whether there is any limit on blocks.
        self.limited = False
        #: Whether limits bind (``vzquota off`` on a served area leaves the accounting on).
        self.enforced = False
        self._area = file.area
        self._records: list[tuple[memoryview, int]] = []
        #: Accounts which have no record in the file yet.
        self._pending: list[memoryview] = []
        if file.flags & F_UGID:
            self._users = {}
        self._reload()

    @property
    def limits(self) -> Limits:
        """The limits of the container as last read."""
        if self._live[W_GENERATION] != self._generation:
            self._reload()
        return self._limits

    @property
    def ugid_active(self) -> bool:
        """Whether users and groups are accounted."""
        return self._users is not None

    def _reload(self) -> None:
        """Read the limits again: they changed, or this is the start."""
        file, live = self.file, self._live
        self._generation = live[W_GENERATION]
        self._limits = limits = file.limits()
        self.enforced = bool(live[W_FLAGS] & F_ON)
        whole = self.whole
        whole.block_expire, whole.inode_expire = limits.block_expire, limits.inode_expire
        if self.enforced:
            whole.limit(
                limits.block_soft,
                limits.block_hard,
                limits.inode_soft,
                limits.inode_hard,
                limits.changed,
            )
        else:
            whole.limit(0, 0, 0, 0, 0)
        self.limited = min(whole.block_soft, whole.block_hard) < ENDLESS
        if self._users is None:
            return
        if not limits.ugid_on:
            # Turned off while served. Turning it on again takes a scan: a restart.
            file.set_flags(off=F_UGID)
            self._users, self._groups, self._records, self._pending = None, {}, [], []
            return
        file.refresh()
        self._users, self._groups, self._records = {}, {}, []
        for words, at in file.record_places():
            if words[at] & R_VALID:
                self._adopt(words, at)
        for words in self._pending:
            self._adopt(words, 0)
        owners = (*self._users.values(), *self._groups.values())
        if any(min(owner.block_soft, owner.block_hard) < ENDLESS for owner in owners):
            self.limited = True

    def _adopt(self, words: memoryview, at: int) -> Account:
        key = words[at]
        kind, ident = key >> 32 & 1, key & 0xFFFFFFFF
        account = Account(words, at + R_BLOCKS, at + R_INODES, at + R_BTIME, at + R_ITIME)
        account.kind, account.ident = kind, ident
        limits = self._limits
        if kind == USER:
            account.block_expire = limits.user_block_expire
            account.inode_expire = limits.user_inode_expire
        else:
            account.block_expire = limits.group_block_expire
            account.inode_expire = limits.group_inode_expire
        if self.enforced:
            bank = at + R_BANKS[words[at + R_SELECT] & 1]
            soft, hard, inode_soft, inode_hard = words[bank : bank + 4]
            account.limit(soft, hard, inode_soft, inode_hard, words[at + R_CHANGED])
        else:
            account.limit(0, 0, 0, 0, 0)
        assert self._users is not None
        (self._users if kind == USER else self._groups)[ident] = account
        self._records.append((words, at))
        return account

    def _account(self, kind: int, ident: int, *, refuse: bool = True) -> Account:
        """Return the account of a user or group met for the first time.

        With ``refuse``, raises OSError (EDQUOT) when as many as are allowed exist already. If the
        record cannot be placed now (a command holds the lock, the disk is full) the account is kept
        in memory and placed later; dying before that makes the next server scan.
        """
        assert self._users is not None
        if len(self._users) + len(self._groups) >= self._limits.ugid_limit:
            self._reclaim()
        if refuse and len(self._users) + len(self._groups) >= self._limits.ugid_limit:
            self._live[W_EXCEEDED] = 1
            raise OSError(errno.EDQUOT, "too many users and groups own files here")
        if self.file.try_edit():
            try:
                words, at = self.file.place(kind, ident)
            except OSError:
                pass
            else:
                return self._adopt(words, at)
            finally:
                self.file.end_edit()
        words = memoryview(bytearray(quotalayout.RECORD_WORDS * 8)).cast("q")
        words[0] = quotafile.record_key(kind, ident)
        self._pending.append(words)
        self._held |= 2
        return self._adopt(words, 0)

    def place_pending(self) -> bool:
        """Give records to accounts that have none yet; True when none is left. Call now and then."""
        if not self._pending:
            return True
        if not self.file.try_edit():
            return False
        try:
            while self._pending:
                words = self._pending[-1]
                key = words[0]
                real, at = self.file.place(key >> 32 & 1, key & 0xFFFFFFFF)
                for offset in (R_BLOCKS, R_INODES, R_BTIME, R_ITIME):
                    real[at + offset] = words[offset]
                self._pending.pop()
        except OSError:
            return False
        finally:
            self.file.end_edit()
            # Whoever got a record is to be counted there from now on.
            self._generation = -1
        self._held &= ~2
        return True

    def _reclaim(self) -> None:
        """Free the records of owners who have neither files nor limits."""
        if not self.file.try_edit():
            return
        assert self._users is not None
        try:
            kept = []
            for words, at in self._records:
                bank = at + R_BANKS[words[at + R_SELECT] & 1]
                if words[at + R_BLOCKS] or words[at + R_INODES] or any(words[bank : bank + 4]):
                    kept.append((words, at))
                    continue
                key = words[at]
                owners = self._groups if key >> 32 & 1 else self._users
                owners.pop(key & 0xFFFFFFFF, None)
                words[at] = 0
                if len(words) > quotalayout.RECORD_WORDS:
                    self._live[W_OBJECTS] -= 1
                else:
                    self._pending = [other for other in self._pending if other is not words]
            self._records = kept
        finally:
            self.file.end_edit()

    def set_owner_limits(self, record: Record, timeout_s: float = 1.0) -> None:
        """Set the limits of a user or group from inside the container.

        Raises OSError: EDQUOT when there are too many, ETIMEDOUT when a command keeps the file.
        """
        if self._users is None:
            raise OSError(errno.ESRCH, "user and group quotas are off")
        owners = self._users if record.kind == USER else self._groups
        if record.ident not in owners:
            self._account(record.kind, record.ident)
        with self.file.edit(timeout_s):
            self.file.write_record_limits(record)
            self.file.announce()
        self._reload()
