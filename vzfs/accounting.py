"""What the ledger has been told of each inode whose blocks may change behind the server's back.

An inode's blocks are charged to the ledger as ``st_blocks`` says, and as long as nobody can change
them unseen, ``st_blocks`` *is* what was charged: nothing has to be remembered. A ``Charge`` exists
for the others:

    writer     a file open for writing with passthrough: it grows without the server
    watched    a directory to which names are added, a copy being completed: looked at later
    closing    a file that was written: delayed allocation may still add blocks of its extent tree,
               or take them away
    orphan     open, but without a name: it is charged until its last close

An inode that lost its last name while nobody had it open is charged to nobody, although requests
for it may follow: of somebody who had looked its name up just before, or stands in the directory.
Its link count is 0 and it has no charge; opening it for writing makes it an orphan.

Charges are recorded in the quota file before they matter, with a file handle, so that the next
server (or a command that wants the exact figure now) finds the inode again and charges the
difference. Blocks are of 512 bytes.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress

from vzfs import quotalayout
from vzfs.charges import Charge, Handles
from vzfs.ledger import Ledger
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import (
    C_BLOCKS,
    C_FLAGS,
    C_HANDLE,
    C_OPEN,
    C_ORPHAN,
    C_OWNER,
    F_DIRTY,
    HANDLE_MAX,
    KIND_CHARGES,
)

#: A file of at most this many blocks (16 KiB) has its extents in its inode.
_SMALL_BLOCKS = 32
#: … and one of at most 16 KiB never needed more, rounded up to the next block.
_SETTLED_SIZE = 20 << 10
#: When the extent tree of a closed file has surely been written (vm.dirty_expire_centisecs is 30 s).
_SETTLED_S = 60.0
#: Closes between two looks at files which were closed long ago.
_TICK = 256
#: How many closed files and directories are remembered before the oldest are looked at.
_REMEMBERED = 1024


class Accounting:
    """The charges of one served area. One thread only (a guard may read)."""

    __slots__ = (
        "_closes",
        "_closing",
        "_free",
        "_handles",
        "_next_look_s",
        "_recovered",
        "charges",
        "ledger",
    )

    def __init__(self, ledger: Ledger, area: int | str) -> None:
        """Account in ``ledger`` for the area open as descriptor (or at path) ``area``.

        Charges which a killed server left in the file are taken over.
        """
        self.ledger = ledger
        self._handles = Handles(area)
        self.charges: dict[int, Charge] = {}
        self._closing: OrderedDict[int, Charge] = OrderedDict()
        #: Charges of a former server, whose writers nobody counts any more.
        self._recovered: dict[int, Charge] = {}
        self._next_look_s = 0.0
        self._closes = 0
        self._free: list[tuple[memoryview, int]] = []
        for words, at in ledger.file.charge_places():
            if words[at]:
                self._take_over(words, at)
            else:
                self._free.append((words, at))
        self._free.reverse()

    def _take_over(self, words: memoryview, at: int) -> None:
        owner = words[at + C_OWNER]
        charge = Charge(
            words[at], owner >> 32 & 0xFFFFFFFF, owner & 0xFFFFFFFF, words[at + C_BLOCKS]
        )
        charge.orphan = bool(words[at + C_FLAGS] & C_ORPHAN)
        charge.words, charge.at = words, at
        self.charges[charge.inode] = charge
        if words[at + C_FLAGS] & (C_ORPHAN | C_OPEN):
            self._recovered[charge.inode] = charge
            charge.writers = 1 if words[at + C_FLAGS] & C_OPEN else 0
        else:
            charge.closed_s = time.monotonic()
            self._closing[charge.inode] = charge

    # what the file system tells us

    def created(self, uid: int, gid: int, reserved: int, blocks: int) -> None:
        """A new inode, for which ``reserved`` blocks were reserved, turned out to have ``blocks``."""
        if blocks != reserved:
            self.ledger.record(uid, gid, blocks - reserved, 0)

    def born(self, inode: int) -> None:
        """A new inode has this number, so whatever a former server had open under it is gone."""
        charge = self._recovered.get(inode) if self._recovered else None
        if charge is not None:
            self.ledger.release(charge.uid, charge.gid, charge.blocks, 1)
            self.forget(charge)

    def opened(self, st: os.stat_result, fd: int = -1) -> Charge:
        """A file is opened for writing; ``st`` is its status now, ``fd`` any descriptor of it."""
        inode = st.st_ino
        charge = self.charges.get(inode)
        if charge is None:
            charge = self._new(st, fd, st, C_OPEN)
            charge.writers = 1
            if not st.st_nlink:
                self.ledger.record(st.st_uid, st.st_gid, st.st_blocks, 1)
                self._orphan(charge)
            return charge
        if charge.closed_s:
            del self._closing[inode]
            charge.closed_s = 0.0
        charge.writers += 1
        if charge.words is not None:
            charge.words[charge.at + C_FLAGS] |= C_OPEN
        return charge

    def closed(self, st: os.stat_result) -> None:
        """A writer of a file is gone; ``st`` is its status now. Inodes not known are none of ours."""
        inode, blocks = st.st_ino, st.st_blocks
        charge = self.charges.get(inode)
        if charge is None:
            return
        if blocks != charge.blocks:
            self.settle(charge, blocks)
        if charge.writers > 1:
            charge.writers -= 1
            return
        if inode in self._recovered:
            return  # how many have it open from before nobody knows
        charge.writers = 0
        if not charge.orphan and (_is_settled(st) or not self._handles.usable):
            self.forget(charge)
        else:
            if charge.words is not None:
                charge.words[charge.at + C_FLAGS] &= ~C_OPEN
            if charge.orphan:
                return
            charge.closed_s = time.monotonic()
            self._closing[inode] = charge
            if len(self._closing) > _REMEMBERED:
                self._drop(self._closing.popitem(last=False)[1])
        self._closes += 1
        if not self._closes % _TICK:
            self.tick()

    def watch(self, st: os.stat_result, fd: int = -1, owner: os.stat_result | None = None) -> None:
        """An inode is about to change (``st`` is its status, ``fd`` any descriptor of it).

        ``owner`` is whose uid and gid it was charged to, where it does not have them yet.

        It is looked at later: when the oldest make room, when exact figures are wanted, at the
        end. For directories to which a name is added, attributes, copies.
        """
        inode = st.st_ino
        if inode in self.charges or not st.st_nlink:
            return
        if not self._handles.usable:
            # It cannot be found again by its number: the next start counts afresh.
            self.ledger.file.set_flags(on=F_DIRTY)
            return
        charge = self._new(st, fd, owner or st)
        charge.closed_s = time.monotonic()
        self._closing[inode] = charge
        if len(self._closing) > _REMEMBERED:
            self._drop(self._closing.popitem(last=False)[1])

    def changed(self, st: os.stat_result, before: int, reserved: int = 0) -> None:
        """The server changed an inode which had ``before`` blocks; ``st`` is its status now.

        ``reserved`` blocks were reserved for the change.
        """
        charge = self.charges.get(st.st_ino)
        if charge is None:
            growth = st.st_blocks - before if st.st_nlink else 0
            self.ledger.record(st.st_uid, st.st_gid, growth - reserved, 0)
        else:
            growth = st.st_blocks - charge.blocks
            self.ledger.record(charge.uid, charge.gid, growth - reserved, 0)
            self._record(charge, st.st_blocks)

    def charged(self, st: os.stat_result) -> int:
        """Return the blocks charged for an inode whose status is ``st``."""
        charge = self.charges.get(st.st_ino)
        return st.st_blocks if charge is None else charge.blocks

    def chown(self, st: os.stat_result, uid: int, gid: int) -> None:
        """Move an inode (status before the change) to new owners; raises OSError (EDQUOT)."""
        charge = self.charges.get(st.st_ino)
        if charge is None and not st.st_nlink:
            return
        blocks = st.st_blocks if charge is None else charge.blocks
        self.ledger.transfer(st.st_uid, st.st_gid, uid, gid, blocks, 1)
        if charge is not None:
            self._give_to(charge, uid, gid)

    def chown_back(self, st: os.stat_result, uid: int, gid: int) -> None:
        """Undo ``chown`` to uid and gid of an inode which kept the owners in ``st``."""
        charge = self.charges.get(st.st_ino)
        if charge is None and not st.st_nlink:
            return
        blocks = st.st_blocks if charge is None else charge.blocks
        self.ledger.release(uid, gid, blocks, 1)
        self.ledger.record(st.st_uid, st.st_gid, blocks, 1)
        if charge is not None:
            self._give_to(charge, st.st_uid, st.st_gid)

    @staticmethod
    def _give_to(charge: Charge, uid: int, gid: int) -> None:
        charge.uid, charge.gid = uid, gid
        if charge.words is not None:
            charge.words[charge.at + C_OWNER] = _owner(uid, gid)

    def removed(self, st: os.stat_result) -> None:
        """The last name of an inode which nobody has open is gone; ``st`` is of before."""
        charge = self.charges.get(st.st_ino)
        if charge is None:
            self.ledger.release(st.st_uid, st.st_gid, st.st_blocks, 1)
            return
        if st.st_ino in self._recovered:
            # Opened under a former server, perhaps still open: looked at until it is really gone.
            self._orphan(charge)
            self.look(charge)
            return
        self.ledger.release(charge.uid, charge.gid, charge.blocks, 1)
        self.forget(charge)

    def orphaned(self, st: os.stat_result, fd: int = -1) -> None:
        """The last name of an inode is gone while it is open; it stays charged till ``evicted``."""
        charge = self.charges.get(st.st_ino)
        if charge is None:
            charge = self._new(st, fd, st)
        elif charge.closed_s:
            del self._closing[st.st_ino]
            charge.closed_s = 0.0
        self._orphan(charge)

    @staticmethod
    def _orphan(charge: Charge) -> None:
        charge.orphan = True
        if charge.words is not None:
            charge.words[charge.at + C_FLAGS] |= C_ORPHAN

    def adopted(self, inode: int) -> None:
        """An inode without a name got one again (linkat of an O_TMPFILE)."""
        charge = self.charges.get(inode)
        if charge is not None and charge.orphan:
            charge.orphan = False
            if charge.words is not None:
                charge.words[charge.at + C_FLAGS] &= ~C_ORPHAN
            if not charge.writers:
                self.forget(charge)

    def evicted(self, inode: int) -> None:
        """Nobody has the inode without a name open any more: its space is free."""
        charge = self.charges.get(inode)
        if charge is not None and charge.orphan:
            self.ledger.release(charge.uid, charge.gid, charge.blocks, 1)
            self.forget(charge)

    def open_recovered(self) -> Iterator[int]:
        """Yield an O_PATH descriptor, for the moment, of each file a former server let be written."""
        for charge in list(self._recovered.values()):
            if charge.words is None or not charge.writers:
                continue
            with suppress(OSError):
                fd = self._handles.open(charge.words, charge.at)
                try:
                    yield fd
                finally:
                    os.close(fd)

    def settle(self, charge: Charge, blocks: int) -> None:
        """Charge what the inode has grown (or shrunk) by since it was last looked at."""
        if blocks != charge.blocks:
            self.ledger.record(charge.uid, charge.gid, blocks - charge.blocks, 0)
            self._record(charge, blocks)

    def tick(self) -> None:
        """Look at files which were closed long enough ago. Cheap; call now and then."""
        if self._closing:
            limit = time.monotonic() - _SETTLED_S
            while self._closing:
                inode, charge = next(iter(self._closing.items()))
                if charge.closed_s > limit:
                    break
                del self._closing[inode]
                self._drop(charge)
        if self._recovered and time.monotonic() > self._next_look_s:
            self._next_look_s = time.monotonic() + _SETTLED_S
            for charge in list(self._recovered.values()):
                self.look(charge)
        self.ledger.place_pending()

    def flush(self) -> None:
        """Look at everything that may have changed unseen: the ledger is exact after this."""
        for charge in list(self.charges.values()):
            self.look(charge)
        self.ledger.place_pending()
        self.ledger.commit()

    def settle_all(self) -> bool:
        """Forget every charge that cannot change any more; tell whether that was all of them."""
        if self._recovered or not self.ledger.place_pending():
            return False
        limit = time.monotonic() - _SETTLED_S
        for charge in list(self._closing.values()):
            st = self.status(charge) if charge.closed_s > limit else None
            # The blocks of a directory are allocated with its names.
            if st is None or stat.S_ISDIR(st.st_mode):
                self._drop(charge)
        return not self.charges

    def finish(self) -> None:
        """The area is unmounted: nothing is open any more. Settle everything and forget it."""
        self._allocate()
        for charge in list(self.charges.values()):
            if charge.orphan:
                self.evicted(charge.inode)
            else:
                self._drop(charge)
        self.ledger.commit()
        self._handles.close()

    # inside

    def _allocate(self) -> None:
        """Have the files that were written last allocated now: nobody will look at them later."""
        for charge in self._closing.values():
            if charge.words is not None:
                with suppress(OSError):
                    self._handles.allocate(charge.words, charge.at)

    def _new(self, st: os.stat_result, fd: int, owner: os.stat_result, flags: int = 0) -> Charge:
        charge = Charge(st.st_ino, owner.st_uid, owner.st_gid, st.st_blocks)
        if not self._free:
            words = self.ledger.file.add_chunk(KIND_CHARGES)
            step = quotalayout.CHARGE_WORDS
            self._free = [(words, at) for at in range(quotalayout.CHUNK // 8 - step, 0, -step)]
        words, at = self._free.pop()
        handle = self._handles.describe(fd) if fd >= 0 else None
        if handle is not None:
            raw = handle.data.ljust(HANDLE_MAX, b"\0")
            for offset, word in enumerate(struct.unpack("<4q", raw)):
                words[at + C_HANDLE + offset] = word
            flags |= handle.kind << 32 | len(handle.data) << 8
        words[at + C_FLAGS] = flags
        words[at + C_OWNER] = _owner(owner.st_uid, owner.st_gid)
        words[at + C_BLOCKS] = st.st_blocks
        # Last: from here on the record counts.
        words[at] = st.st_ino
        charge.words, charge.at = words, at
        self.charges[st.st_ino] = charge
        return charge

    def _record(self, charge: Charge, blocks: int) -> None:
        charge.blocks = blocks
        if charge.words is not None:
            charge.words[charge.at + C_BLOCKS] = blocks

    def forget(self, charge: Charge) -> None:
        """Stop following an inode; what was charged stays charged."""
        inode = charge.inode
        self.charges.pop(inode, None)
        if charge.closed_s:
            self._closing.pop(inode, None)
        if self._recovered:
            self._recovered.pop(inode, None)
        if charge.words is not None:
            charge.words[charge.at] = 0
            self._free.append((charge.words, charge.at))
            charge.words = None

    def status(self, charge: Charge) -> os.stat_result | None:
        """Return the status of the inode now; None when it is gone or cannot be found."""
        words = charge.words
        if words is None:
            return None
        try:
            return self._handles.stat(words, charge.at)
        except OSError:
            return None

    def look(self, charge: Charge) -> None:
        """Settle a charge by looking its inode up; one that is gone is given back."""
        if charge.words is None:
            return
        try:
            st = self._handles.stat(charge.words, charge.at)
        except OSError:
            return
        if st is not None and not (charge.orphan and st.st_nlink):
            self.settle(charge, st.st_blocks)
        elif charge.orphan:
            # Gone, or its number is that of another file by now.
            self.evicted(charge.inode)
        else:
            self.ledger.release(charge.uid, charge.gid, charge.blocks, 1)
            self.forget(charge)

    def _drop(self, charge: Charge) -> None:
        self.look(charge)
        self.forget(charge)


def _is_settled(st: os.stat_result) -> bool:
    """Tell whether the blocks of a written file cannot change any more.

    More blocks than its size asks for may be an extent tree, or room ahead, which may go later.
    """
    blocks = st.st_blocks
    return blocks <= _SMALL_BLOCKS and blocks * 512 < st.st_size + st.st_blksize <= _SETTLED_SIZE


def _owner(uid: int, gid: int) -> int:
    value = uid << 32 | gid
    return value - (1 << 64) if value >> 63 else value


def outstanding(file: QuotaFile) -> Iterator[tuple[int, int, int, int]]:
    """Yield (uid, gid, blocks, inodes) to be added to the recorded usage to make it exact now.

    For commands: reads the charges of a served file and looks at the inodes, changing nothing.
    """
    handles: Handles | None = None
    file.refresh()
    try:
        for words, at in file.charge_places():
            if not words[at]:
                continue
            if handles is None:
                handles = Handles(file.area)
            owner = words[at + C_OWNER]
            with suppress(OSError):
                st = handles.stat(words, at)
                blocks = (0 if st is None else st.st_blocks) - words[at + C_BLOCKS]
                if blocks or st is None:
                    uid, gid = owner >> 32 & 0xFFFFFFFF, owner & 0xFFFFFFFF
                    yield uid, gid, blocks, -1 if st is None else 0
    finally:
        if handles is not None:
            handles.close()
