"""Make the usage in a quota file right again: believe it, or count the area."""

from __future__ import annotations

import time

from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import (
    C_BLOCKS,
    C_FLAGS,
    C_ORPHAN,
    C_OWNER,
    F_ATTACHED,
    F_DIRTY,
    F_UGID,
    GROUP,
    R_BLOCKS,
    R_INODES,
    USER,
    W_BUSY,
    W_DRIFT,
    W_EXCEEDED,
    W_OBJECTS,
    W_SCAN_US,
    W_SCANNED,
)
from vzfs.quotascan import Scan, scan


def recover(file: QuotaFile, *, resume: bool) -> None:
    """Make usage right before serving: believe it, settle open charges, or scan. Edit lock."""
    live = file.live
    limits = file.limits()
    opened = any(words[at] for words, at in file.charge_places())
    must_scan = file.dirty or (limits.ugid_on and not file.flags & F_UGID)
    if opened and not (resume and file.same_boot and file.flags & F_ATTACHED):
        # Nothing of what was open is open any more, and it may have grown since it was charged.
        file.drop_charges()
        must_scan = True
    if limits.ugid_on:
        file.set_flags(on=F_UGID)
    elif file.flags & F_UGID:
        file.set_flags(off=F_UGID)
        file.drop_records(keep_limited=True)
    if must_scan:
        rescan(file)
    live[W_BUSY] = 0


def rescan(file: QuotaFile) -> Scan:
    """Count the area afresh into ``file``. Edit lock; nobody but us may change the area.

    Open charges are brought to what is counted; those of inodes without a name are kept and added.
    Raises OSError: the file is then still dirty.
    """
    live = file.live
    began = time.monotonic()
    charges = [(words, at) for words, at in file.charge_places() if words[at]]
    counted = scan(file.area, {words[at] for words, at in charges}, file.index)
    for words, at in charges:
        inode, flags, owner = (
            words[at],
            words[at + C_FLAGS],
            words[at + C_OWNER],
        )
        if flags & C_ORPHAN:
            blocks = words[at + C_BLOCKS]
            counted.blocks += blocks
            counted.inodes += 1
            for owners, ident in (
                (counted.users, owner >> 32 & 0xFFFFFFFF),
                (counted.groups, owner & 0xFFFFFFFF),
            ):
                entry = owners.setdefault(ident, [0, 0])
                entry[0] += blocks
                entry[1] += 1
        elif inode in counted.found:
            words[at + C_BLOCKS] = counted.found[inode]
        else:
            words[at] = 0
    usage = file.usage()
    usage.blocks, usage.inodes = counted.blocks, counted.inodes
    file.write_usage(usage)
    if file.flags & F_UGID:
        write_owners(file, counted)
    live[W_SCANNED] = int(time.time())
    live[W_SCAN_US] = int((time.monotonic() - began) * 1e6)
    live[W_DRIFT] = 0
    live[W_BUSY] = 0
    file.set_flags(off=F_DIRTY)
    return counted


def write_owners(file: QuotaFile, counted: Scan) -> None:
    """Write the usage of every user and group. Edit lock.

    All are recorded, even when they are more than ``ugid_limit``: that only refuses new ones.
    """
    file.drop_records(keep_limited=True)
    for kind, owners in ((USER, counted.users), (GROUP, counted.groups)):
        for ident in sorted(owners):
            words, at = file.place(kind, ident)
            words[at + R_BLOCKS], words[at + R_INODES] = owners[ident]
    file.live[W_EXCEEDED] = int(file.live[W_OBJECTS] > file.limits().ugid_limit)
