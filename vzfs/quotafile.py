"""The quota file: limits, usage and open charges of one private area, mapped and never lost.

One file per area (``/var/vzquota/quota.<CTID>``), little-endian 64-bit words, in chunks of 64 KiB
which are mapped shared by the file server and updated in place. A killed server loses nothing: the
words are in the kernel's page cache, and the next server maps the same ones. Only a crash of the
machine (another boot id than the one written at start) makes a scan of the area necessary, or a
server that died between the first and the last step of one operation (``BUSY``).

Who writes what:

- usage, grace ends, charges, new records: the server, holding the *server lock* for its lifetime;
  without a living server, whoever holds the *edit lock*;
- limits: whoever holds the edit lock. They are written into the bank that is not selected, then
  one word (``GENERATION`` for the container, ``SELECT`` of a record) selects it: no reader ever
  sees half a change. The server compares ``GENERATION`` at every reservation, so a change costs
  nothing until there is one, and cannot be lost by anybody's death.

Both locks are open-file-description locks (fcntl(2), F_OFD_SETLK): they die with their holder.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vzfs.quotalayout import (
    BANKS,
    CHARGE_WORDS,
    CHUNK,
    F_ATTACHED,
    F_DIRTY,
    F_ON,
    HEAD_WORDS,
    KIND_CHARGES,
    KIND_RECORDS,
    LIMIT_NAMES,
    MAGIC,
    PATH,
    PATH_BYTES,
    R_BANKS,
    R_BLOCKS,
    R_BTIME,
    R_CHANGED,
    R_INODES,
    R_ITIME,
    R_SELECT,
    R_VALID,
    RECORD_WORDS,
    VERSION,
    W_BLOCKS,
    W_BOOT,
    W_BTIME,
    W_BUSY,
    W_CHECKSUM,
    W_CHUNKS,
    W_DRIFT,
    W_FLAGS,
    W_GENERATION,
    W_INODES,
    W_ITIME,
    W_MAGIC,
    W_OBJECTS,
    W_VERSION,
    WORDS,
    Limits,
    Record,
    Usage,
)
from vzfs.quotalocks import Locked


class QuotaFileError(OSError):
    """The quota file cannot be used (not one of ours, damaged, unreadable)."""


def boot_words() -> tuple[int, int]:
    """Return this boot's identity as two words (random(4), boot_id)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        raw = bytes.fromhex(file.read().strip().replace("-", ""))
    low, high = struct.unpack("<qq", raw)
    return low, high


def kib(blocks: int) -> int:
    """Return blocks of 512 bytes as KiB, rounded up as every listing shows them."""
    return (blocks + 1) // 2


class QuotaFile(Locked):
    """An open, mapped quota file. Close it when done; words are reached through ``live``."""

    __slots__ = ("_maps", "chunks", "kinds", "live")

    def __init__(self, fd: int, path: Path) -> None:
        """Map the open file ``fd``; use ``create`` or ``open``."""
        super().__init__(fd, path)
        self._maps: list[mmap.mmap] = []
        #: Every chunk as words; chunk 0 is ``live``.
        self.chunks: list[memoryview] = []
        #: What each chunk holds; chunk 0 counts as charges.
        self.kinds: list[int] = []
        self._map(0, KIND_CHARGES)
        self.live = self.chunks[0]

    @classmethod
    def create(cls, path: Path, area: str, limits: Limits, index: str = "") -> QuotaFile:
        """Make a new quota file, replacing one that exists; raises OSError.

        It appears under its name complete, or not at all.
        """
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _paths(area, index)
        temporary = path.with_name(f".tmp-{path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # Allocated, not sparse: a full disk must not kill the server by SIGBUS later.
            os.posix_fallocate(fd, 0, CHUNK)
            made = cls(fd, path)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                os.unlink(temporary)
            raise
        live = made.live
        live[W_VERSION] = VERSION
        live[W_CHUNKS] = 1
        live[W_FLAGS] = F_DIRTY
        made.set_area(area, index)
        made.write_limits(limits)
        live[W_MAGIC] = MAGIC
        made.seal()
        os.rename(temporary, path)
        _sync_directory(path.parent)
        return made

    @classmethod
    def open(cls, path: Path, fd: int = -1) -> QuotaFile:
        """Open an existing quota file, or take it over, with its locks, as it is open.

        Raises FileNotFoundError, and QuotaFileError when it is not a quota file, is damaged, or
        is of a newer format. A file whose checksum is wrong although it is off is marked dirty:
        its limits are kept, its usage is scanned at the next start.
        """
        if fd < 0:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size < CHUNK or size % CHUNK:
                raise QuotaFileError(
                    errno.EINVAL, "not a quota file, or a truncated one", str(path)
                )
            head = struct.unpack("<2q", os.pread(fd, 16, 0))
            if head[0] != MAGIC:
                raise QuotaFileError(errno.EINVAL, "not a quota file", str(path))
            if head[1] != VERSION:
                raise QuotaFileError(
                    errno.EINVAL, f"a quota file of unknown version {head[1]}", str(path)
                )
            opened = cls(fd, path)
        except BaseException:
            os.close(fd)
            raise
        try:
            opened._map_rest(size // CHUNK)
        except BaseException:
            opened.close()
            raise
        return opened

    def _map(self, number: int, kind: int) -> memoryview:
        area = mmap.mmap(self.fd, CHUNK, mmap.MAP_SHARED, offset=number * CHUNK)
        words = memoryview(area).cast("q")
        self._maps.append(area)
        self.chunks.append(words)
        self.kinds.append(kind)
        return words

    def _map_rest(self, present: int) -> None:
        # The server may be adding a chunk: only those it has announced count.
        for number in range(len(self.chunks), min(self.live[W_CHUNKS], present)):
            words = self._map(number, 0)
            self.kinds[-1] = words[0]

    def add_chunk(self, kind: int) -> memoryview:
        """Add a chunk for charges or records; raises OSError (ENOSPC). Server or edit lock."""
        number = len(self.chunks)
        os.posix_fallocate(self.fd, number * CHUNK, CHUNK)
        words = self._map(number, kind)
        words[0] = kind
        self.live[W_CHUNKS] = number + 1
        return words

    def refresh(self) -> None:
        """Map the chunks which somebody else has added since."""
        self._map_rest(os.fstat(self.fd).st_size // CHUNK)

    def close(self) -> None:
        """Unmap and close; the locks held through it are gone."""
        if self.fd < 0:
            return
        for words in self.chunks:
            words.release()
        for area in self._maps:
            area.close()
        self.chunks.clear()
        self._maps.clear()
        os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> QuotaFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # head

    @property
    def flags(self) -> int:
        """Return the flag word."""
        return self.live[W_FLAGS]

    def set_flags(self, on: int = 0, off: int = 0) -> None:
        """Set and clear flags."""
        self.live[W_FLAGS] = (self.live[W_FLAGS] | on) & ~off

    @property
    def same_boot(self) -> bool:
        """Whether the quota was turned on under the running kernel."""
        low, high = boot_words()
        return self.live[W_BOOT] == low and self.live[W_BOOT + 1] == high

    @property
    def running(self) -> bool:
        """Whether accounting is on, now."""
        return bool(self.flags & F_ON) and self.same_boot

    @property
    def dirty(self) -> bool:
        """Whether the usage must be scanned before it can be believed (nobody serving it)."""
        flags = self.flags
        if flags & F_DIRTY or self.live[W_DRIFT]:
            return True
        if flags & (F_ON | F_ATTACHED):
            # Words outlive a killed server, not a crashed kernel; a server that died within an
            # operation leaves them one step off.
            return not self.same_boot or bool(self.live[W_BUSY])
        return self.live[W_CHECKSUM] != self.checksum()

    def turn_on(self) -> None:
        """Record that accounting is on under this boot, durably before anything is counted."""
        low, high = boot_words()
        self.live[W_BOOT] = low
        self.live[W_BOOT + 1] = high
        self.set_flags(on=F_ON)
        self.sync()

    @property
    def area(self) -> str:
        """Return the path of the area that is accounted."""
        return self._path_words()[0]

    @property
    def index(self) -> str:
        """Return the path of the directory of files counted besides, "" for none.

        A file system with an index of copies (see ``layers``) may have files there which have no
        name in the area; hard links between the two count once.
        """
        return self._path_words()[1]

    def _path_words(self) -> list[str]:
        raw = bytes(self._maps[0][PATH * 8 : PATH * 8 + PATH_BYTES])
        return [os.fsdecode(word) for word in raw.split(b"\0", 2)[:2]]

    def set_area(self, area: str, index: str = "") -> None:
        """Record the paths of area and index; raises OSError when they are too long."""
        self._maps[0][PATH * 8 : PATH * 8 + PATH_BYTES] = _paths(area, index)

    def limits(self) -> Limits:
        """Return the limits in force."""
        start = BANKS[self.live[W_GENERATION] & 1]
        return Limits(*self.live[start : start + len(LIMIT_NAMES)])

    def write_limits(self, limits: Limits) -> None:
        """Put ``limits`` in force in one step. Edit lock."""
        generation = self.live[W_GENERATION] + 1
        start = BANKS[generation & 1]
        for offset, word in enumerate(limits.words()):
            self.live[start + offset] = word
        self.live[W_GENERATION] = generation
        # Nobody hears of a store into a mapping; a guard waits for this (see ``quotaguard``).
        os.pwrite(self.fd, os.pread(self.fd, 1, 0), 0)

    def announce(self) -> None:
        """Make the server read the limits of users and groups again. Edit lock."""
        self.write_limits(self.limits())

    def usage(self) -> Usage:
        """Return what the container uses."""
        live = self.live
        return Usage(live[W_BLOCKS], live[W_INODES], live[W_BTIME], live[W_ITIME])

    def write_usage(self, usage: Usage) -> None:
        """Write what the container uses. Server or edit lock."""
        live = self.live
        live[W_BLOCKS], live[W_INODES] = usage.blocks, usage.inodes
        live[W_BTIME], live[W_ITIME] = usage.block_time, usage.inode_time

    def checksum(self) -> int:
        """Return the CRC-32 of the whole file with the checksum word taken as zero."""
        value = 0
        for number, area in enumerate(self._maps):
            if number == 0:
                at = W_CHECKSUM * 8
                value = zlib.crc32(area[:at])
                value = zlib.crc32(bytes(8), value)
                value = zlib.crc32(area[at + 8 :], value)
            else:
                value = zlib.crc32(area, value)
        return value

    def seal(self) -> None:
        """Write the checksum and make everything durable: the file is off and right."""
        self.live[W_CHECKSUM] = self.checksum()
        self.sync()

    def sync(self) -> None:
        """Make everything durable."""
        for area in self._maps:
            area.flush()
        os.fsync(self.fd)

    # records of users and groups

    def record_places(self) -> Iterator[tuple[memoryview, int]]:
        """Yield every place of a record, used or free, as (chunk, index of its first word)."""
        for kind, words in zip(self.kinds, self.chunks, strict=True):
            if kind == KIND_RECORDS:
                for at in range(RECORD_WORDS, WORDS, RECORD_WORDS):
                    yield words, at

    def records(self) -> list[Record]:
        """Return every user and group, sorted by type and id."""
        self.refresh()
        found = []
        for words, at in self.record_places():
            key = words[at]
            if key & R_VALID:
                found.append(_record(words, at))
        found.sort(key=lambda record: (record.kind, record.ident))
        return found

    def place(self, kind: int, ident: int) -> tuple[memoryview, int]:
        """Return the place of a user or group, making it if needed. Edit lock.

        Raises OSError (ENOSPC of the disk that holds the file).
        """
        self.refresh()
        key = record_key(kind, ident)
        free: tuple[memoryview, int] | None = None
        for words, at in self.record_places():
            if words[at] == key:
                return words, at
            if free is None and not words[at]:
                free = words, at
        if free is None:
            words = self.add_chunk(KIND_RECORDS)
            free = words, RECORD_WORDS
        words, at = free
        for offset in range(1, RECORD_WORDS):
            words[at + offset] = 0
        words[at] = key
        self.live[W_OBJECTS] += 1
        return free

    def write_record(self, record: Record) -> None:
        """Write limits *and* usage of a user or group. Edit lock, no server."""
        words, at = self.place(record.kind, record.ident)
        usage = record.usage
        words[at + R_BLOCKS], words[at + R_INODES] = usage.blocks, usage.inodes
        words[at + R_BTIME], words[at + R_ITIME] = usage.block_time, usage.inode_time
        self._select_limits(words, at, record)

    def write_record_limits(self, record: Record) -> None:
        """Write the limits of a user or group, leaving its usage to the server. Edit lock."""
        words, at = self.place(record.kind, record.ident)
        self._select_limits(words, at, record)

    @staticmethod
    def _select_limits(words: memoryview, at: int, record: Record) -> None:
        other = 1 - (words[at + R_SELECT] & 1)
        bank = at + R_BANKS[other]
        words[bank] = record.block_soft
        words[bank + 1] = record.block_hard
        words[bank + 2] = record.inode_soft
        words[bank + 3] = record.inode_hard
        words[at + R_CHANGED] = record.changed or int(time.time())
        words[at + R_SELECT] = other

    def drop_records(self, *, keep_limited: bool = False) -> None:
        """Forget users and groups, or only those without limits. Edit lock, no server."""
        self.refresh()
        for words, at in self.record_places():
            if not words[at]:
                continue
            if keep_limited and _record(words, at).limited:
                for offset in (R_BLOCKS, R_INODES, R_BTIME, R_ITIME):
                    words[at + offset] = 0
                continue
            words[at] = 0
            self.live[W_OBJECTS] -= 1

    # charges

    def charge_places(self) -> Iterator[tuple[memoryview, int]]:
        """Yield every place of a charge, used or free, as (chunk, index of its first word)."""
        for number, (kind, words) in enumerate(zip(self.kinds, self.chunks, strict=True)):
            if kind == KIND_CHARGES:
                start = HEAD_WORDS if number == 0 else CHARGE_WORDS
                for at in range(start, WORDS, CHARGE_WORDS):
                    yield words, at

    def drop_charges(self) -> None:
        """Forget all charges. Server or edit lock."""
        self.refresh()
        for words, at in self.charge_places():
            words[at] = 0


def record_key(kind: int, ident: int) -> int:
    """Return the key word of a user (kind 0) or group (1)."""
    return R_VALID | kind << 32 | ident


def block_limits(words: memoryview, at: int) -> tuple[int, int]:
    """Return the soft and hard limit on blocks of the record at ``at``, in KiB."""
    bank = at + R_BANKS[words[at + R_SELECT] & 1]
    return words[bank], words[bank + 1]


def _record(words: memoryview, at: int) -> Record:
    key = words[at]
    bank = at + R_BANKS[words[at + R_SELECT] & 1]
    return Record(
        key >> 32 & 1,
        key & 0xFFFFFFFF,
        Usage(words[at + R_BLOCKS], words[at + R_INODES], words[at + R_BTIME], words[at + R_ITIME]),
        words[bank],
        words[bank + 1],
        words[bank + 2],
        words[bank + 3],
        words[at + R_CHANGED],
    )


def _paths(area: str, index: str) -> bytes:
    raw = os.fsencode(area) + b"\0" + os.fsencode(index) + b"\0"
    if len(raw) > PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), area)
    return raw.ljust(PATH_BYTES, b"\0")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
