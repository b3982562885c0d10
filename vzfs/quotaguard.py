"""The guard: stops passthrough writes exactly at the limit, and costs nothing far from it.

With passthrough the kernel writes to the backing file without asking the server. But it asks
whoever watches the backing file with fanotify(7) *before* content changes (FAN_PRE_ACCESS, Linux
6.14), and takes EDQUOT for an answer. The private area is reached through a mount of its own, which
carries one mark for all files; while usage is far from every limit the mark is ignored (0.2 µs a
write). Near a limit it is not: every write waits for the guard's answer (60 µs).

    far ──headroom < NEAR──► near ──headroom > 2·NEAR, or nobody writes──► far

Far from the limit the guard looks at the files open for writing so often that nobody can write
from far to the limit in between (``_RATE``). It is a thread: the server itself changes watched
files, and its events must be answered while it waits. It changes nothing the server's thread
owns; what it grants is in ``Ledger.promised`` until it is seen in st_blocks.

A store into a mapping is not announced. It can pass the limit by the holes which shared writable
mappings cover, and is charged like any growth: the next write(2) is refused.
"""

from __future__ import annotations

import errno
import os
import platform
import select
import stat
import struct
import threading
import time
from contextlib import suppress
from typing import NamedTuple

from vzfs import quotafile, syscalls
from vzfs.accounting import Accounting
from vzfs.accounts import Account
from vzfs.charges import Charge
from vzfs.ledger import NEAR_BLOCKS, Ledger
from vzfs.quotalayout import ENDLESS, F_ON, R_BLOCKS, Limits

#: Faster than this nobody writes to the page cache, in blocks of 512 bytes a second (8 GiB/s).
_RATE = 16 << 20
_SHORTEST_S = 0.004
_LONGEST_S = 1.0
#: More room than this is no limit, in blocks: nothing is looked at until the limits change.
_UNLIMITED = ENDLESS // 2
#: How long the guard goes on looking when nobody writes, before it sleeps.
_PATIENCE_S = 2.0
#: A promise which was not used for so long never will be.
_PROMISE_S = 2.0
#: How often, and in what distance, others are given the time to finish before one is refused.
_TRIES = 20
_TRY_S = 0.0002
#: One block of a file system of 4 KiB: what the extent tree may need besides the data.
_TREE = 8

_EVENT = struct.Struct("<IBBHQii")
_RANGE = struct.Struct("<BBHIQQ")
_ANSWER = struct.Struct("<iI")
_EVENT_RANGE = 6  # FAN_EVENT_INFO_TYPE_RANGE
_DENIED = syscalls.FAN_DENY | errno.EDQUOT << 24  # FAN_DENY_ERRNO()

# asm/unistd.h: (x86_64, generic)
_COLUMN = 0 if platform.machine() == "x86_64" else 1
_READS = frozenset(
    row[_COLUMN]
    for row in ((0, 63), (17, 67), (19, 65), (295, 69), (327, 286), (40, 71), (275, 76))
)
_WRITES = frozenset(row[_COLUMN] for row in ((1, 64), (18, 68), (20, 66), (296, 70), (328, 287)))


class _Promise(NamedTuple):
    """Room given to a write that may be going on."""

    blocks: int
    accounts: tuple[Account, ...]
    inode: int
    made_s: float


class Guard:
    """Watches the writers of one area; runs in a thread of its own once somebody writes."""

    def __init__(self, accounting: Accounting, books: Ledger, mount: bytes) -> None:
        """Guard the files reached through ``mount``, a path on the mount to be marked.

        It is marked when the first file is opened for writing: closing a group that has marks waits
        for a grace period of the kernel (16 ms), which a container that never writes is spared.
        Raises OSError where the kernel has no such events.
        """
        self._accounting = accounting
        self._books = books
        self.mount = mount
        self._group = syscalls.fanotify_init(
            syscalls.FAN_CLASS_PRE_CONTENT
            | syscalls.FAN_CLOEXEC
            | syscalls.FAN_NONBLOCK
            | syscalls.FAN_REPORT_TID,
            os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE | os.O_NOATIME,
        )
        self._marked = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._main = threading.get_native_id()
        self._lock = threading.Lock()
        self._promises: dict[int, _Promise] = {}
        self._grown: dict[int, int] = {}
        self._thread: threading.Thread | None = None
        self._asleep = True
        self._idle_since_s = 0.0
        self.near = False
        self.denied = 0
        books.ask = self.ask

    # called by the server's thread

    def opening(self, uid: int, gid: int) -> None:
        """A file of this owner is being opened for writing: be awake, and near if need be.

        Raises OSError where the kernel (before 6.14) or the file system does not ask.
        """
        if not self._marked:
            self._watch()
        books = self._books
        if not books.limited:
            if self._thread is None:
                self.awake()
            return
        if not self.near and books.may_be_near(uid, gid) and books.headroom(uid, gid) < NEAR_BLOCKS:
            self._approach()
        if self._asleep:
            self.awake()

    def follow(self, fd: int) -> None:
        """Watch a file which was opened through the mount of a former server; raises OSError."""
        if not self._marked:
            self._watch()
        path = b"/proc/self/fd/%d" % fd
        syscalls.fanotify_mark(self._group, syscalls.FAN_MARK_ADD, syscalls.FAN_PRE_ACCESS, path)
        self.awake()

    def awake(self) -> None:
        """Have the thread look at the writers."""
        if self._asleep:
            self._asleep = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vzfs-quota", daemon=True)
                self._thread.start()
            else:
                os.eventfd_write(self._wake, 1)

    def ask(self) -> None:
        """The server's thread wants to judge: tell the ledger what the writers used."""
        accounting = self._accounting
        with self._lock:
            for charge in list(accounting.charges.values()):
                if charge.writers:
                    accounting.look(charge)
            self._expire(time.monotonic())

    def close(self) -> None:
        """Stop; nobody writes any more."""
        self._books.ask = None
        group, self._group = self._group, -1
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        os.close(group)
        os.close(self._wake)

    # far and near

    def _watch(self) -> None:
        """Have the kernel ask, far from any limit, about files that are opened from now on."""
        self._mark(syscalls.FAN_MARK_ADD, ignore=False)
        self._mark(syscalls.FAN_MARK_ADD, ignore=True)
        # Changed limits are looked at at once: see ``QuotaFile.write_limits``.
        path = os.fsencode(self._books.file.path)
        syscalls.fanotify_mark(self._group, syscalls.FAN_MARK_ADD, syscalls.FAN_MODIFY, path)
        self._marked = True

    def _mark(self, what: int, *, ignore: bool) -> None:
        flags = what | syscalls.FAN_MARK_MOUNT
        if ignore:
            flags |= syscalls.FAN_MARK_IGNORE | syscalls.FAN_MARK_IGNORED_SURV_MODIFY
        syscalls.fanotify_mark(self._group, flags, syscalls.FAN_PRE_ACCESS, self.mount)

    def _approach(self) -> None:
        with self._lock:
            if not self.near:
                self._mark(syscalls.FAN_MARK_REMOVE, ignore=True)
                self.near = True

    def _retreat(self) -> None:
        with self._lock:
            if self.near:
                self._mark(syscalls.FAN_MARK_ADD, ignore=True)
                self.near = False

    # the thread

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        wait_s: float | None = 0.0
        while self._group >= 0:
            ready = poll.poll(None if wait_s is None else wait_s * 1000)
            if self._group < 0:
                return
            for fd, _ in ready:
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._answer_all()
            wait_s = self._look()

    def _writers(self) -> list[Charge]:
        return [charge for charge in list(self._accounting.charges.values()) if charge.writers]

    def _look(self) -> float | None:
        """Look at all writers; return in how many seconds to look again, None for not at all."""
        self._asleep = False
        with self._lock:
            writers = self._writers()
            now = time.monotonic()
            self._expire(now)
            for charge in writers:
                self._measure(charge)
            room = self._room(writers)
        if not writers:
            if not self._idle_since_s:
                self._idle_since_s = now
            if now - self._idle_since_s > _PATIENCE_S:
                self._idle_since_s = 0.0
                self._retreat()
                self._asleep = True
                # Whoever opened a file just before that saw us awake.
                if not self._writers():
                    return None
            return _PATIENCE_S / 4
        self._idle_since_s = 0.0
        if room > _UNLIMITED:
            self._retreat()
            self._asleep = True
            with self._lock:
                if self._room(self._writers()) > _UNLIMITED:
                    return None
            return _SHORTEST_S
        if room < NEAR_BLOCKS:
            self._approach()
        elif room > 2 * NEAR_BLOCKS:
            self._retreat()
        if self.near:
            return 0.05
        return min(_LONGEST_S, max(_SHORTEST_S, (room - NEAR_BLOCKS // 2) / _RATE))

    def _measure(self, charge: Charge) -> None:
        """Note by how much an inode has grown since it was charged."""
        st = self._accounting.status(charge)
        if st is None:
            self._grown.pop(charge.inode, None)
        else:
            self._grown[charge.inode] = st.st_blocks - charge.blocks

    def _room(self, writers: list[Charge]) -> int:
        """Return the least room any account of the writers has, and set the alarms."""
        grown: dict[int, int] = {}
        seen: dict[int, Account] = {}
        for charge in writers:
            more = self._grown.get(charge.inode, 0)
            for account in self._books.accounts(charge.uid, charge.gid):
                seen[id(account)] = account
                grown[id(account)] = grown.get(id(account), 0) + more
        least = ENDLESS
        now = time.time()
        limits = self._books.file.limits()
        for key, account in seen.items():
            used = account.words[account.blocks] + grown[key]
            ceiling = self._ceiling(account, limits, now)
            least = min(least, ceiling - used)
            # The server asks before it takes more than half of what is left.
            account.alarm = ENDLESS if ceiling >= ENDLESS else (used + ceiling) // 2
            account.recompute()
        return least

    def _ceiling(self, account: Account, limits: Limits, now: float) -> int:
        """Return up to where an account's blocks may rise, by the limits as they are in the file.

        The server reads them at its next reservation, but a write(2) may be all that happens.
        """
        books = self._books
        if not books.file.flags & F_ON:
            return ENDLESS
        if account is books.whole:
            soft, hard, expire = limits.block_soft, limits.block_hard, limits.block_expire
        else:
            soft, hard = quotafile.block_limits(account.words, account.blocks - R_BLOCKS)
            expire = account.block_expire
        return account.ceiling_under(soft, hard, expire, now)

    def _expire(self, now: float) -> None:
        for tid, promise in list(self._promises.items()):
            if now - promise.made_s > _PROMISE_S or not _is_writing(tid):
                self._drop(tid)

    def _drop(self, tid: int) -> None:
        promise = self._promises.pop(tid, None)
        if promise is not None:
            self._books.promised -= promise.blocks

    # events

    def _answer_all(self) -> None:
        try:
            data = os.read(self._group, 8192)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            length, _, _, head, mask, fd, tid = _EVENT.unpack_from(data, at)
            if mask == syscalls.FAN_MODIFY:
                at += length
                os.close(fd)
                continue
            offset, count = 0, 0
            if length > head and data[at + head] == _EVENT_RANGE:
                *_, offset, count = _RANGE.unpack_from(data, at + head)
            at += length
            try:
                allowed = self._judge(fd, tid, offset, count)
            except OSError:
                allowed = True
            answer = syscalls.FAN_ALLOW if allowed else _DENIED
            with suppress(OSError):
                os.write(self._group, _ANSWER.pack(fd, answer))
            os.close(fd)

    def _judge(self, fd: int, tid: int, offset: int, count: int) -> bool:
        """Whether a thread may read or write ``count`` bytes at ``offset``."""
        if tid == self._main or os.path.exists(f"/proc/self/task/{tid}"):
            return True  # the server's own: it has reserved what it takes
        st = os.fstat(fd)
        charge = self._accounting.charges.get(st.st_ino)
        if charge is None or not stat.S_ISREG(st.st_mode):
            return True  # nobody has it open for writing
        with self._lock:
            previous = self._promises.get(tid)
            self._drop(tid)
            if previous is not None and previous.inode != charge.inode:
                other = self._accounting.charges.get(previous.inode)
                if other is not None:
                    self._measure(other)
            self._grown[charge.inode] = st.st_blocks - charge.blocks
            accounts = tuple(self._books.accounts(charge.uid, charge.gid))
            most = _rounded(0, count, st.st_blksize) + 2 * _TREE
            if self._fits(accounts, most):
                self._promise(tid, most, accounts, charge.inode)
                return True
            needed = _needed(fd, st, tid, offset, count)
            if needed <= 0:
                return True
            # Before refusing: what others were granted may be done, and took less.
            for _ in range(_TRIES):
                self._expire(time.monotonic())
                for writer in self._writers():
                    self._measure(writer)
                if self._fits(accounts, needed):
                    self._promise(tid, needed, accounts, charge.inode)
                    return True
                if not self._promises:
                    break
                time.sleep(_TRY_S)
            self.denied += 1
            return False

    def _promise(self, tid: int, blocks: int, accounts: tuple[Account, ...], inode: int) -> None:
        self._promises[tid] = _Promise(blocks, accounts, inode, time.monotonic())
        self._books.promised += blocks

    def _fits(self, accounts: tuple[Account, ...], blocks: int) -> bool:
        now = time.time()
        limits = self._books.file.limits()
        promised = {id(account): 0 for account in accounts}
        grown = dict.fromkeys(promised, 0)
        for promise in self._promises.values():
            for account in promise.accounts:
                if id(account) in promised:
                    promised[id(account)] += promise.blocks
        charges = self._accounting.charges
        for inode, more in list(self._grown.items()):
            charge = charges.get(inode)
            if charge is None or not charge.writers:
                del self._grown[inode]
                continue
            for account in self._books.accounts(charge.uid, charge.gid):
                if id(account) in grown:
                    grown[id(account)] += more
        for account in accounts:
            key = id(account)
            used = account.words[account.blocks] + promised[key] + grown[key]
            if used + blocks > self._ceiling(account, limits, now):
                return False
        return True


def _rounded(offset: int, count: int, unit: int) -> int:
    """Return the blocks of 512 bytes which a range of bytes touches."""
    first, last = offset // unit, (offset + count + unit - 1) // unit
    return (last - first) * unit // 512


def _call(tid: int) -> list[int]:
    """Return number and arguments of the system call a thread is in, [] when it is in none."""
    try:
        with open(f"/proc/{tid}/syscall", encoding="ascii") as file:
            words = file.read().split()
        return [int(words[0]), *(int(word, 16) for word in words[1:7])]
    except (OSError, ValueError, IndexError):
        return []


def _is_writing(tid: int) -> bool:
    """Whether a thread may still be in the write it was granted."""
    try:
        with open(f"/proc/{tid}/syscall", encoding="ascii") as file:
            word = file.read().split()[0]
    except (OSError, IndexError):
        return False  # it is gone
    if not word.isdecimal():
        return word != "-1"  # "running": perhaps in the very write
    return int(word) in _WRITES


def _needed(fd: int, st: os.stat_result, tid: int, offset: int, count: int) -> int:
    """Return the blocks of 512 bytes the call a thread waits in really needs at the most."""
    call = _call(tid)
    if call:
        number = call[0]
        if number in _READS:
            return 0
        if number in _WRITES and _appends(tid, call[1]):
            offset = st.st_size
    missing = _holes(fd, st, offset, count)
    return missing + _TREE if missing else 0


def _appends(tid: int, number: int) -> bool:
    try:
        with open(f"/proc/{tid}/fdinfo/{number}", encoding="ascii") as file:
            for line in file:
                if line.startswith("flags:"):
                    return bool(int(line.split()[1], 8) & os.O_APPEND)
    except (OSError, ValueError):
        pass
    return True


def _holes(fd: int, st: os.stat_result, offset: int, count: int) -> int:
    """Return the blocks of 512 bytes missing in a range: holes, and what is beyond the end."""
    unit = st.st_blksize
    start, end = offset // unit * unit, (offset + count + unit - 1) // unit * unit
    missing = 0
    at = start
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end  # no more data
        data = min(data, end)
        missing += data - at
        if data >= end:
            break
        at = min(end, os.lseek(fd, data, os.SEEK_HOLE))
        at = (at + unit - 1) // unit * unit
    # Blocks allocated beyond the end of the file count as there already.
    beyond = max(0, st.st_blocks * 512 - (st.st_size + unit - 1) // unit * unit)
    if end > st.st_size:
        missing -= min(beyond, missing)
    return missing // 512
