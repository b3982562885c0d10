"""Read the state of a quota, of a running one too, changing nothing."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vzfs import quotalayout
from vzfs.quotaerror import open_file
from vzfs.quotafile import QuotaFile, kib
from vzfs.quotalayout import (
    F_ATTACHED,
    F_ON,
    F_UGID,
    GROUP,
    USER,
    W_BUSY,
    W_EXCEEDED,
    W_GENERATION,
    W_OBJECTS,
    W_SCAN_US,
    W_SCANNED,
    W_SERVER,
    W_TRANSPORT,
    Limits,
    Record,
    Usage,
)

TRANSPORTS = ("unknown", "kernel", "pyfuse3")


@dataclass(slots=True)
class Snapshot:
    """The state of a quota file, exact at the moment it was taken."""

    limits: Limits
    usage: Usage
    records: list[Record] = field(default_factory=list)
    area: str = ""
    running: bool = False
    served: bool = False
    dirty: bool = False
    ugid_active: bool = False
    exceeded: bool = False
    objects: int = 0
    server: int = 0
    transport: str = "unknown"
    scanned: int = 0
    scan_us: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it with field names, blocks in KiB: what ``-j`` prints."""
        limits, usage = self.limits, self.usage
        return {
            "running": self.running,
            "served": self.served,
            "dirty": self.dirty,
            "path": self.area,
            "transport": self.transport,
            "last_scan": self.scanned,
            "last_scan_us": self.scan_us,
            "blocks": {
                "usage": kib(usage.blocks),
                "softlimit": limits.block_soft,
                "hardlimit": limits.block_hard,
                "grace_ends": usage.block_time,
                "exptime": limits.block_expire,
            },
            "inodes": {
                "usage": usage.inodes,
                "softlimit": limits.inode_soft,
                "hardlimit": limits.inode_hard,
                "grace_ends": usage.inode_time,
                "exptime": limits.inode_expire,
            },
            "ugid": {
                "on": bool(limits.sub_quotas),
                "active": self.ugid_active,
                "limit": limits.ugid_limit,
                "exceeded": self.exceeded,
                "objects": [
                    {
                        "type": "group" if record.kind == GROUP else "user",
                        "id": record.ident,
                        "blocks": kib(record.usage.blocks),
                        "block_softlimit": record.block_soft,
                        "block_hardlimit": record.block_hard,
                        "block_grace_ends": record.usage.block_time,
                        "inodes": record.usage.inodes,
                        "inode_softlimit": record.inode_soft,
                        "inode_hardlimit": record.inode_hard,
                        "inode_grace_ends": record.usage.inode_time,
                    }
                    for record in self.records
                ],
            },
        }


def snapshot(path: Path, *, exact: bool = True, sync: bool = False) -> Snapshot:
    """Return the state in the file; ``exact`` looks at what is open for writing just now.

    ``sync`` also writes the file back. Raises QuotaError (11, 4).
    """
    with open_file(path) as file:
        found = _snapshot(file, exact=exact)
        if sync and file.flags & (F_ON | F_ATTACHED):
            file.sync()
        return found


def _snapshot(file: QuotaFile, *, exact: bool) -> Snapshot:
    live = file.live
    usage, records = _at_rest(file, exact=exact and bool(file.flags & F_ATTACHED))
    limits = file.limits()
    _show_grace(usage, limits, limits.block_expire, limits.inode_expire, limits.changed)
    for record in records:
        expires = (
            (limits.user_block_expire, limits.user_inode_expire)
            if record.kind == USER
            else (limits.group_block_expire, limits.group_inode_expire)
        )
        _show_grace(record.usage, record, *expires, record.changed)
    transport = live[W_TRANSPORT]
    return Snapshot(
        limits=limits,
        usage=usage,
        records=records,
        area=file.area,
        running=file.running,
        served=file.served,
        dirty=file.dirty,
        ugid_active=file.running and bool(file.flags & F_UGID),
        exceeded=bool(limits.ugid_limit)
        and (bool(live[W_EXCEEDED]) or live[W_OBJECTS] > limits.ugid_limit),
        objects=live[W_OBJECTS],
        server=live[W_SERVER],
        transport=TRANSPORTS[transport] if 0 <= transport < len(TRANSPORTS) else "unknown",
        scanned=live[W_SCANNED],
        scan_us=live[W_SCAN_US],
    )


def _at_rest(file: QuotaFile, *, exact: bool) -> tuple[Usage, list[Record]]:
    """Return usage and records between two operations of a server.

    ``exact`` adds what has changed unseen. A server that is never at rest for 50 ms (a copy of a
    big file going on) is read as it is.
    """
    live = file.live
    deadline = time.monotonic() + 0.05
    while True:
        before = live[W_BUSY], file.usage()
        records = file.records() if file.flags & F_UGID or live[W_OBJECTS] else []
        usage = file.usage()
        if exact and file.same_boot:
            _add_outstanding(file, usage, records)
        if before == (0, file.usage()) and not live[W_BUSY]:
            return usage, records
        if time.monotonic() > deadline:
            return usage, records
        time.sleep(0.0005)


def _add_outstanding(file: QuotaFile, usage: Usage, records: list[Record]) -> None:
    from vzfs.accounting import outstanding

    by_owner = {(record.kind, record.ident): record.usage for record in records}
    for uid, gid, blocks, inodes in outstanding(file):
        usage.blocks += blocks
        usage.inodes += inodes
        for key in ((USER, uid), (GROUP, gid)):
            if key in by_owner:
                by_owner[key].blocks += blocks
                by_owner[key].inodes += inodes


def _show_grace(
    usage: Usage, limits: Limits | Record, block_expire: int, inode_expire: int, changed: int
) -> None:
    """Fill in ends of grace the server has had no occasion to record yet."""
    if not limits.block_soft or kib(usage.blocks) <= limits.block_soft:
        usage.block_time = 0
    elif not usage.block_time:
        usage.block_time = (changed or int(time.time())) + block_expire
    if not limits.inode_soft or usage.inodes <= limits.inode_soft:
        usage.inode_time = 0
    elif not usage.inode_time:
        usage.inode_time = (changed or int(time.time())) + inode_expire


def read_usage(path: Path) -> tuple[Usage, Limits] | None:
    """Return usage and limits as recorded, cheaply (lists of many containers); None if unusable.

    Writers that have a file open may be some seconds ahead of it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        head = os.pread(fd, 1024, 0)
    finally:
        os.close(fd)
    if len(head) < 1024:
        return None
    words = struct.unpack("<128q", head)
    if words[0] != quotalayout.MAGIC:
        return None
    bank = quotalayout.BANKS[words[W_GENERATION] & 1]
    count = len(fields(Limits))
    usage = Usage(*words[quotalayout.W_BLOCKS : quotalayout.W_ITIME + 1])
    return usage, Limits(*words[bank : bank + count])
