"""The ledger of one area while it is served: every block and inode, checked before it is taken.

The first level is the container, the second its users and groups. Counters live in the mapped
quota file (``quotafile``), so that neither killing the server nor killing a command loses a
thing; here are the limits in the form the hot path needs: one comparison per counter.

Blocks are those of st_blocks, 512 bytes. The server calls, for one operation,

    reserve / record / transfer …, or begin for one that is charged afterwards
    the operation itself
    release / record
    commit()                         (the end; dying in between makes the next server scan)

An operation that failed gives back what it reserved before ``commit``.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from vzfs import quotafile, quotalayout
from vzfs.accounts import Account
from vzfs.books import Books
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import (
    ENDLESS,
    F_ATTACHED,
    F_DIRTY,
    F_ON,
    GROUP,
    USER,
    W_BLOCKS,
    W_BUSY,
    W_DRIFT,
    W_GENERATION,
    W_INODES,
    W_SERVER,
    W_TRANSPORT,
)
from vzfs.quotarecovery import recover

#: Below this much free (blocks of 512 bytes: 64 MiB), writes go through the server.
NEAR_BLOCKS = 131072
#: How long a new server waits for one that is just dying to let go of the file.
_TAKE_OVER_S = 5.0


class Ledger(Books):
    """The accounts of one served area. One thread only."""

    __slots__ = ()

    @classmethod
    def attach(
        cls,
        path: Path,
        *,
        area: Path | None = None,
        index: Path | None = None,
        resume: bool = False,
        transport: int = 0,
        fd: int = -1,
    ) -> Ledger:
        """Become the server of the quota file ``path``, scanning the area if it must be.

        ``resume`` takes over from a server that died while the area stayed mounted: open charges
        are kept (``charges()``), and quota that was turned off stays off. Otherwise quota is turned
        on. ``fd`` is the file of a server that rests, with its lock. Raises FileNotFoundError,
        QuotaFileError, OSError (EBUSY: another server lives).
        """
        file = QuotaFile.open(path, fd)
        try:
            deadline = time.monotonic() + _TAKE_OVER_S
            while not file.take_server_lock():
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "another server keeps these accounts", str(path))
                time.sleep(0.005)
            with file.edit():
                here = (str(area), str(index or ""))
                known = file.running and not file.dirty
                if area is not None and (file.area, file.index) != here:
                    file.set_area(*here)
                    file.set_flags(on=F_DIRTY)
                recover(file, resume=resume)
                if not resume or not file.same_boot:
                    file.turn_on()
                file.live[W_SERVER] = os.getpid()
                file.live[W_TRANSPORT] = transport
                file.set_flags(on=F_ATTACHED)
                if not (resume and known):
                    # Durable before anything is counted: a crash from here on is noticed.
                    file.sync()
                return cls(file)
        except BaseException:
            file.close()
            raise

    def rest(self) -> bool:
        """Let the server end and another go on with the open file; False: not now."""
        self.commit()
        self.file.live[W_SERVER] = 0
        return not self.file.live[W_BUSY]

    def detach(self) -> None:
        """Stop: everything is written back, the quota is off and not dirty. Nothing may be open."""
        file = self.file
        with file.edit():
            file.live[W_BUSY] = 0
            file.set_flags(off=F_ON | F_ATTACHED)
            file.seal()
        self._live = self.whole.words = memoryview(bytearray(quotalayout.CHUNK)).cast("q")
        self._users = None
        self._groups = {}
        self._records = []
        file.close()

    # the hot path

    def reserve(self, uid: int, gid: int, blocks: int, inodes: int) -> None:
        """Take ``blocks`` and ``inodes`` (neither negative) for an owner.

        Raises OSError (EDQUOT) when a hard limit, or a soft one after its grace, would be passed,
        or when the owner is one more than are accounted; then nothing is taken.
        """
        live = self._live
        if live[W_GENERATION] != self._generation:
            self._reload()
        live[W_BUSY] = 1
        whole = self.whole
        used = live[W_BLOCKS] + blocks
        count = live[W_INODES] + inodes
        users = self._users
        if users is None:
            if used > whole.block_stop or count > whole.inode_stop:
                self._judge_all((whole,), blocks, inodes)
                used = live[W_BLOCKS] + blocks
            live[W_BLOCKS] = used
            live[W_INODES] = count
            return
        user = users.get(uid) or self._account(USER, uid)
        group = self._groups.get(gid) or self._account(GROUP, gid)
        words = user.words
        user_used = words[user.blocks] + blocks
        user_count = words[user.inodes] + inodes
        words = group.words
        group_used = words[group.blocks] + blocks
        group_count = words[group.inodes] + inodes
        if (
            used > whole.block_stop
            or count > whole.inode_stop
            or user_used > user.block_stop
            or user_count > user.inode_stop
            or group_used > group.block_stop
            or group_count > group.inode_stop
        ):
            self._judge_all((whole, user, group), blocks, inodes)
            used = live[W_BLOCKS] + blocks
            user_used = user.words[user.blocks] + blocks
            group_used = words[group.blocks] + blocks
        live[W_BLOCKS] = used
        live[W_INODES] = count
        words[group.blocks] = group_used
        words[group.inodes] = group_count
        words = user.words
        words[user.blocks] = user_used
        words[user.inodes] = user_count

    def release(self, uid: int, gid: int, blocks: int, inodes: int) -> None:
        """Give back ``blocks`` and ``inodes`` (neither negative) of an owner; never fails."""
        live = self._live
        if live[W_GENERATION] != self._generation:
            self._reload()
        live[W_BUSY] = 1
        self._give_back(self.whole, blocks, inodes)
        users = self._users
        if users is not None:
            user = users.get(uid) or self._account(USER, uid, refuse=False)
            self._give_back(user, blocks, inodes)
            group = self._groups.get(gid) or self._account(GROUP, gid, refuse=False)
            self._give_back(group, blocks, inodes)

    def record(self, uid: int, gid: int, blocks: int, inodes: int) -> None:
        """Record what was taken already (or negative: given back); no limit stops it."""
        if blocks < 0 or inodes < 0:
            self.release(uid, gid, max(-blocks, 0), max(-inodes, 0))
            if blocks <= 0 and inodes <= 0:
                return
            blocks, inodes = max(blocks, 0), max(inodes, 0)
        live = self._live
        if live[W_GENERATION] != self._generation:
            self._reload()
        live[W_BUSY] = 1
        self._take(self.whole, blocks, inodes)
        users = self._users
        if users is not None:
            user = users.get(uid) or self._account(USER, uid, refuse=False)
            self._take(user, blocks, inodes)
            group = self._groups.get(gid) or self._account(GROUP, gid, refuse=False)
            self._take(group, blocks, inodes)

    def transfer(
        self, old_uid: int, old_gid: int, new_uid: int, new_gid: int, blocks: int, inodes: int
    ) -> None:
        """Move what an inode uses to new owners; raises OSError (EDQUOT), then nothing moved."""
        users = self._users
        live = self._live
        if live[W_GENERATION] != self._generation:
            self._reload()
        live[W_BUSY] = 1
        if users is None:
            return
        moves: list[tuple[Account, Account]] = []
        if new_uid != old_uid:
            old = users.get(old_uid) or self._account(USER, old_uid, refuse=False)
            moves.append((old, users.get(new_uid) or self._account(USER, new_uid)))
        if new_gid != old_gid:
            old = self._groups.get(old_gid) or self._account(GROUP, old_gid, refuse=False)
            moves.append((old, self._groups.get(new_gid) or self._account(GROUP, new_gid)))
        graces = []
        for _, new in moves:
            used, count = new.words[new.blocks] + blocks, new.words[new.inodes] + inodes
            graces.append(new.judge(used if blocks else -1, count if inodes else -1))
        for (old, new), ends in zip(moves, graces, strict=True):
            new.begin(*ends)
            new.words[new.blocks] += blocks
            new.words[new.inodes] += inodes
            self._give_back(old, blocks, inodes)

    def admit_name(self) -> None:
        """Raise OSError (EDQUOT) when more is used than the hard limit allows.

        A directory grows by a block when its last one is full of names, which is known too late:
        so the limit is passed by that block at the most.
        """
        if self._live[W_GENERATION] != self._generation:
            self._reload()
        if self._live[W_BLOCKS] > self.whole.block_hard:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def nearly_full(self) -> bool:
        """Whether the container may be near its own limit on blocks."""
        return self._live[W_BLOCKS] + NEAR_BLOCKS > self.whole.block_stop

    def begin(self) -> None:
        """An operation is about to change something it will be charged for afterwards."""
        self._live[W_BUSY] = 1

    def commit(self) -> None:
        """The operation that was charged has ended, well or given back."""
        self._live[W_BUSY] = self._held

    def hold(self) -> None:
        """An operation goes on beyond this request (a copy in a thread): until ``unhold``."""
        self._held |= 1
        self._live[W_BUSY] = self._held

    def unhold(self) -> None:
        """The last operation that was held has ended."""
        self._held &= ~1

    # judging

    def headroom(self, uid: int, gid: int) -> int:
        """Return how many blocks of 512 bytes this owner may still take."""
        if self._live[W_GENERATION] != self._generation:
            self._reload()
        now = time.time()
        return min(
            (account.block_ceiling(now) - account.words[account.blocks])
            for account in self.accounts(uid, gid)
        )

    def accounts(self, uid: int, gid: int) -> list[Account]:
        """Return the accounts which an owner's files count in."""
        users = self._users
        if users is None:
            return [self.whole]
        found = (users.get(uid), self._groups.get(gid))
        return [self.whole, *(account for account in found if account is not None)]

    def near_limit(self, uid: int, gid: int) -> bool:
        """Whether writes of this owner must pass through the server to be stopped in time."""
        # With a guard every write near a limit is judged where it is done.
        return self.ask is None and self.headroom(uid, gid) < NEAR_BLOCKS

    def may_be_near(self, uid: int, gid: int) -> bool:
        """Whether it takes ``headroom`` to tell that this owner is far from every limit."""
        live = self._live
        if live[W_GENERATION] != self._generation:
            self._reload()
        if live[W_BLOCKS] + NEAR_BLOCKS > self.whole.block_stop:
            return True
        if self._users is None:
            return False
        user, group = self._users.get(uid), self._groups.get(gid)
        return (
            user is None
            or group is None
            or user.words[user.blocks] + NEAR_BLOCKS > user.block_stop
            or group.words[group.blocks] + NEAR_BLOCKS > group.block_stop
        )

    def statfs(self, real: os.statvfs_result) -> os.statvfs_result:
        """Return what ``df`` shows inside: the soft limit as the size, the usage as what is used.

        What is available is also bounded by what the disk really has.
        """
        if self._live[W_GENERATION] != self._generation:
            self._reload()
        live, whole = self._live, self.whole
        size = whole.block_soft if whole.block_soft < ENDLESS else whole.block_hard
        if size >= ENDLESS:
            bsize, frsize = real.f_bsize, real.f_frsize
            blocks, bfree, bavail = real.f_blocks, real.f_bfree, real.f_bavail
        else:
            # In KiB, so that the limit shows to the digit whatever the disk's block size is.
            bsize = frsize = 1024
            blocks = size // 2
            bfree = max(0, blocks - quotafile.kib(live[W_BLOCKS]))
            bavail = min(bfree, real.f_bavail * real.f_frsize // 1024)
        files, ffree, favail = real.f_files, real.f_ffree, real.f_favail
        most = whole.inode_soft if whole.inode_soft < ENDLESS else whole.inode_hard
        if most < ENDLESS:
            files = most
            ffree = max(0, most - live[W_INODES])
            # A file system without a fixed number of inodes (btrfs) says 0.
            favail = min(ffree, real.f_favail) if real.f_files else ffree
        shown = (bsize, frsize, blocks, bfree, bavail, files, ffree, favail)
        return os.statvfs_result((*shown, real.f_flag, real.f_namemax))

    # inside

    def _judge_all(self, accounts: tuple[Account, ...], blocks: int, inodes: int) -> None:
        """Let every account judge a reservation; raises OSError (EDQUOT)."""
        if self.ask is not None and blocks:
            self.ask()
        if inodes:
            self.admit_name()
        ends = []
        for account in accounts:
            words = account.words
            ends.append(
                account.judge(
                    words[account.blocks] + blocks + self.promised if blocks else -1,
                    words[account.inodes] + inodes if inodes else -1,
                )
            )
        for account, (btime, itime) in zip(accounts, ends, strict=True):
            account.begin(btime, itime)

    def _take(self, account: Account, blocks: int, inodes: int) -> None:
        words = account.words
        words[account.blocks] = used = words[account.blocks] + blocks
        words[account.inodes] = count = words[account.inodes] + inodes
        if used <= account.block_stop and count <= account.inode_stop:
            return
        now = int(time.time())
        btime, itime = words[account.btime], words[account.itime]
        if used > account.block_soft and not btime:
            btime = now + account.block_expire
        if count > account.inode_soft and not itime:
            itime = now + account.inode_expire
        account.begin(btime, itime)

    def _give_back(self, account: Account, blocks: int, inodes: int) -> None:
        words = account.words
        used = words[account.blocks] - blocks
        count = words[account.inodes] - inodes
        if used < 0 or count < 0:
            # More than was ever charged: say so, and let the next start count afresh.
            self._live[W_DRIFT] += 1
            used, count = max(used, 0), max(count, 0)
        words[account.blocks] = used
        words[account.inodes] = count
        if account.block_stop < 0 or account.inode_stop < 0:
            account.fallen()
