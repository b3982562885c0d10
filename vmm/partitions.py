"""Partition tables, read and changed without help of the kernel (loop partitions may be missing).

MBR: the first sector, four entries at byte 446; extended partitions are chains of such sectors.
GPT: UEFI specification 2.10, chapter 5: a header in sector 1 and a copy in the last sector.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import IO

SECTOR = 512
_MBR_SIGNATURE = b"\x55\xaa"
_GPT_SIGNATURE = b"EFI PART"
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
#: type, first sector, number of sectors of an MBR entry
_MBR_ENTRY = struct.Struct("<4xB3xII")
#: signature revision size crc reserved own backup first last disk-guid entries count entry-size crc
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_MOST_LOGICAL = 60
#: ext2/3/4: superblock at byte 1024, magic at 56 in it.
_EXT_MAGIC_AT = 1024 + 56
_EXT_MAGIC = b"\x53\xef"


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition: its number (0: the whole disk), place and size in bytes, file system if known."""

    number: int
    start_bytes: int
    size_bytes: int
    file_system: str
    table: str

    @property
    def end_bytes(self) -> int:
        """The byte behind it."""
        return self.start_bytes + self.size_bytes


class BadTable(ValueError):
    """The partition table makes no sense."""


def read(disk: IO[bytes], size_bytes: int) -> list[Partition]:
    """Return the partitions of a disk; a file system without a table is partition 0.

    Raises BadTable, OSError.
    """
    disk.seek(0)
    first = disk.read(SECTOR)
    if first[510:512] == _MBR_SIGNATURE and not _file_system(disk, 0):
        kinds = [_MBR_ENTRY.unpack_from(first, 446 + 16 * n) for n in range(4)]
        if any(kind == _PROTECTIVE for kind, _, _ in kinds):
            found = _gpt(disk)
        else:
            found = _mbr(disk, kinds)
        for partition in found:
            if partition.size_bytes == 0 or partition.start_bytes >= size_bytes:
                raise BadTable(f"partition {partition.number} lies behind the end of the disk")
        return found
    kind = _file_system(disk, 0)
    return [Partition(0, 0, size_bytes, kind, "none")] if kind else []


def _mbr(disk: IO[bytes], kinds: list[tuple[int, int, int]]) -> list[Partition]:
    found = []
    for index, (kind, start, count) in enumerate(kinds, start=1):
        if kind in _EXTENDED:
            found += _logical(disk, start)
        elif kind and count:
            found.append(_partition(disk, index, start * SECTOR, count * SECTOR, "mbr"))
    return sorted(found, key=lambda partition: partition.number)


def _logical(disk: IO[bytes], extended: int) -> list[Partition]:
    found: list[Partition] = []
    place = extended
    while place:
        if len(found) >= _MOST_LOGICAL:
            raise BadTable("the chain of logical partitions does not end")
        disk.seek(place * SECTOR)
        sector = disk.read(SECTOR)
        if sector[510:512] != _MBR_SIGNATURE:
            raise BadTable("a logical partition has no signature")
        kind, start, count = _MBR_ENTRY.unpack_from(sector, 446)
        if kind and count:
            number = 5 + len(found)
            found.append(
                _partition(disk, number, (place + start) * SECTOR, count * SECTOR, "mbr-logical")
            )
        kind, start, _ = _MBR_ENTRY.unpack_from(sector, 462)
        place = extended + start if kind in _EXTENDED and start else 0
    return found


def _gpt(disk: IO[bytes]) -> list[Partition]:
    header = _gpt_header(disk, SECTOR)
    disk.seek(header[10] * SECTOR)
    entries = disk.read(header[11] * header[12])
    found = []
    for number in range(1, len(entries) // header[12] + 1):
        kind, _, first, last, _, _ = _GPT_ENTRY.unpack_from(entries, (number - 1) * header[12])
        if kind != bytes(16):
            size = (last - first + 1) * SECTOR
            found.append(_partition(disk, number, first * SECTOR, size, "gpt"))
    return found


def _gpt_header(disk: IO[bytes], at: int) -> tuple[int, ...]:
    disk.seek(at)
    raw = disk.read(SECTOR)
    header = _GPT_HEADER.unpack_from(raw)
    if header[0] != _GPT_SIGNATURE or not 128 <= header[12] <= 4096 or header[11] > 4096:
        raise BadTable("the GPT header is damaged")
    size = header[2]
    if not _GPT_HEADER.size <= size <= SECTOR:
        raise BadTable("the GPT header has no sensible size")
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != header[3]:
        raise BadTable("the checksum of the GPT header is wrong")
    return header


def _partition(
    disk: IO[bytes], number: int, start_bytes: int, size_bytes: int, table: str
) -> Partition:
    return Partition(number, start_bytes, size_bytes, _file_system(disk, start_bytes), table)


def _file_system(disk: IO[bytes], at: int) -> str:
    """Return the file system that begins at a byte, as mount(8) calls it, or an empty string."""
    disk.seek(at)
    head = disk.read(0x11000)
    if head[_EXT_MAGIC_AT : _EXT_MAGIC_AT + 2] == _EXT_MAGIC:
        features = struct.unpack_from("<II", head, 1024 + 0x5C)
        # COMPAT_HAS_JOURNAL; INCOMPAT_EXTENTS, _64BIT, _FLEX_BG: only ext4 has these.
        return "ext4" if features[1] & 0x2C0 else "ext3" if features[0] & 4 else "ext2"
    if head[:4] == b"XFSB":
        return "xfs"
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return "btrfs"
    if head[3:11] == b"NTFS    ":
        return "ntfs"
    if head[82:87] == b"FAT32" or head[54:58] == b"FAT1":
        return "vfat"
    if head[0x8001:0x8006] == b"CD001":
        return "iso9660"
    if head[:6] == b"LUKS\xba\xbe":
        return "crypto_LUKS"
    if head[0x218:0x220] == b"LVM2 001":
        return "LVM2_member"
    if head[4086:4096] == b"SWAPSPACE2":
        return "swap"
    return ""


def set_end(disk: IO[bytes], partition: Partition, end_bytes: int, disk_bytes: int) -> None:
    """Let ``partition`` end at a byte of a disk which has ``disk_bytes`` now; raises BadTable.

    The backup of a GPT moves to the new end of the disk.
    """
    count = (end_bytes - partition.start_bytes) // SECTOR
    if partition.table == "mbr":
        if count > 0xFFFFFFFF:
            raise BadTable("an MBR partition cannot be larger than 2 TiB")
        disk.seek(446 + 16 * (partition.number - 1) + 12)
        disk.write(struct.pack("<I", count))
    elif partition.table == "gpt":
        _rewrite_gpt(disk, partition, end_bytes, disk_bytes)
    elif partition.table != "none":
        raise BadTable("logical partitions cannot be resized")


def _rewrite_gpt(disk: IO[bytes], partition: Partition, end_bytes: int, disk_bytes: int) -> None:
    header = list(_gpt_header(disk, SECTOR))
    disk.seek(header[10] * SECTOR)
    entries = bytearray(disk.read(header[11] * header[12]))
    # The backup: the entries, then the header in the last sector.
    table_sectors = -(-len(entries) // SECTOR)
    last = disk_bytes // SECTOR - 1
    header[6], header[8] = last, last - table_sectors - 1
    end = min(end_bytes // SECTOR - 1, header[8])
    struct.pack_into("<Q", entries, (partition.number - 1) * header[12] + 40, end)
    header[13] = zlib.crc32(entries)
    for own, backup, table in ((1, last, header[10]), (last, 1, last - table_sectors)):
        header[5], header[6], header[10] = own, backup, table
        header[3] = 0
        packed = bytearray(_GPT_HEADER.pack(*header))
        struct.pack_into("<I", packed, 16, zlib.crc32(packed))
        disk.seek(table * SECTOR)
        disk.write(entries)
        disk.seek(own * SECTOR)
        disk.write(bytes(packed).ljust(SECTOR, b"\0"))


def make_mbr(parts: list[tuple[int, int, int, bool]], *, identity: int) -> bytes:
    """Return a first sector with an MBR: (type, first byte, size in bytes, active) of each."""
    sector = bytearray(SECTOR)
    struct.pack_into("<I", sector, 440, identity)
    for index, (kind, start, size, active) in enumerate(parts):
        at = 446 + 16 * index
        sector[at] = 0x80 if active else 0
        sector[at + 4] = kind
        struct.pack_into("<II", sector, at + 8, start // SECTOR, size // SECTOR)
    sector[510:512] = _MBR_SIGNATURE
    return bytes(sector)


def make_gpt(parts: list[tuple[uuid.UUID, int, int]], disk_bytes: int) -> tuple[bytes, bytes]:
    """Return the first 34 and last 33 sectors of a disk with a GPT: (type, first byte, size)."""
    entries = bytearray(128 * 128)
    for index, (kind, start, size) in enumerate(parts):
        _GPT_ENTRY.pack_into(
            entries, index * 128, kind.bytes_le, uuid.uuid4().bytes_le,
            start // SECTOR, (start + size) // SECTOR - 1, 0, b"",
        )  # fmt: skip
    last = disk_bytes // SECTOR - 1
    identity = uuid.uuid4().bytes_le
    headers = []
    for own, backup, table in ((1, last, 2), (last, 1, last - 32)):
        fields = [_GPT_SIGNATURE, 0x10000, 92, 0, 0, own, backup, 34, last - 33, identity,
                  table, 128, 128, zlib.crc32(entries)]  # fmt: skip
        packed = bytearray(_GPT_HEADER.pack(*fields))
        struct.pack_into("<I", packed, 16, zlib.crc32(packed))
        headers.append(bytes(packed).ljust(SECTOR, b"\0"))
    count = min(last, 0xFFFFFFFF)
    guard = bytearray(make_mbr([(_PROTECTIVE, SECTOR, count * SECTOR, False)], identity=0))
    return bytes(guard) + headers[0] + bytes(entries), bytes(entries) + headers[1]
