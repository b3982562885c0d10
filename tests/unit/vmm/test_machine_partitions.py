"""Partition tables: what is written is read, what is damaged is refused."""

from __future__ import annotations

import io
import uuid

import pytest

from vmm import partitions
from vmm.partitions import BadTable

LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
MIB = 1 << 20


def disk_with_mbr(size: int, parts: list[tuple[int, int, int, bool]]) -> io.BytesIO:
    """Return a disk with an MBR."""
    disk = io.BytesIO(bytes(size))
    disk.write(partitions.make_mbr(parts, identity=7))
    return disk


def disk_with_gpt(size: int, parts: list[tuple[uuid.UUID, int, int]]) -> io.BytesIO:
    """Return a disk with a GPT."""
    disk = io.BytesIO(bytes(size))
    head, tail = partitions.make_gpt(parts, size)
    disk.write(head)
    disk.seek(size - len(tail))
    disk.write(tail)
    return disk


def put_ext4(disk: io.BytesIO, at: int) -> None:
    """Write what tells an ext4 file system."""
    disk.seek(at + 1024 + 56)
    disk.write(b"\x53\xef")
    disk.seek(at + 1024 + 0x60)
    disk.write((0x40).to_bytes(4, "little"))


def test_an_mbr_is_read_as_written() -> None:
    disk = disk_with_mbr(16 * MIB, [(0x83, MIB, 4 * MIB, True), (0x82, 8 * MIB, MIB, False)])
    put_ext4(disk, MIB)
    found = partitions.read(disk, 16 * MIB)
    assert [(p.number, p.start_bytes, p.size_bytes, p.file_system) for p in found] == [
        (1, MIB, 4 * MIB, "ext4"),
        (2, 8 * MIB, MIB, ""),
    ]


def test_a_gpt_is_read_as_written() -> None:
    disk = disk_with_gpt(16 * MIB, [(LINUX, MIB, 4 * MIB), (LINUX, 6 * MIB, 2 * MIB)])
    put_ext4(disk, 6 * MIB)
    found = partitions.read(disk, 16 * MIB)
    assert [(p.number, p.start_bytes, p.size_bytes) for p in found] == [
        (1, MIB, 4 * MIB),
        (2, 6 * MIB, 2 * MIB),
    ]
    assert found[1].file_system == "ext4"


def test_a_grown_gpt_moves_its_backup_to_the_end() -> None:
    disk = disk_with_gpt(16 * MIB, [(LINUX, MIB, 4 * MIB)])
    part = partitions.read(disk, 16 * MIB)[0]
    disk.seek(32 * MIB - 1)
    disk.write(b"\0")
    partitions.set_end(disk, part, 31 * MIB, 32 * MIB)
    assert partitions.read(disk, 32 * MIB)[0].end_bytes == 31 * MIB
    backup = partitions._gpt_header(disk, 32 * MIB - 512)
    assert (backup[5], backup[6]) == (32 * MIB // 512 - 1, 1)


def test_a_moved_end_of_an_mbr_partition_is_read_back() -> None:
    disk = disk_with_mbr(16 * MIB, [(0x83, MIB, 4 * MIB, True)])
    part = partitions.read(disk, 16 * MIB)[0]
    partitions.set_end(disk, part, 12 * MIB, 16 * MIB)
    assert partitions.read(disk, 16 * MIB)[0].size_bytes == 11 * MIB


def test_logical_partitions_are_followed() -> None:
    disk = disk_with_mbr(32 * MIB, [(0x83, MIB, MIB, True), (0x05, 4 * MIB, 20 * MIB, False)])
    for place, following in ((4 * MIB, 8 * MIB), (8 * MIB, 0)):
        disk.seek(place)
        parts = [(0x83, 1 * MIB, 2 * MIB, False)]
        if following:
            parts.append((0x05, following - 4 * MIB, 4 * MIB, False))
        disk.write(partitions.make_mbr(parts, identity=0))
    found = partitions.read(disk, 32 * MIB)
    assert [(p.number, p.start_bytes) for p in found] == [(1, MIB), (5, 5 * MIB), (6, 9 * MIB)]


def test_an_endless_chain_of_logical_partitions_is_refused() -> None:
    disk = disk_with_mbr(8 * MIB, [(0x05, MIB, 6 * MIB, False)])
    disk.seek(MIB)
    parts = [(0x83, 512, 512, False), (0x05, 512, 512, False)]
    disk.write(partitions.make_mbr(parts, identity=0))
    disk.seek(MIB + 512)
    disk.write(partitions.make_mbr(parts, identity=0))
    with pytest.raises(BadTable, match="does not end"):
        partitions.read(disk, 8 * MIB)


def test_a_damaged_gpt_is_refused() -> None:
    disk = disk_with_gpt(16 * MIB, [(LINUX, MIB, 4 * MIB)])
    disk.seek(512 + 40)
    disk.write(b"\xff")
    with pytest.raises(BadTable, match="checksum"):
        partitions.read(disk, 16 * MIB)


def test_a_partition_behind_the_end_is_refused() -> None:
    disk = disk_with_mbr(4 * MIB, [(0x83, 8 * MIB, MIB, True)])
    with pytest.raises(BadTable, match="behind the end"):
        partitions.read(disk, 4 * MIB)


def test_a_file_system_without_a_table_is_partition_zero() -> None:
    disk = io.BytesIO(bytes(4 * MIB))
    put_ext4(disk, 0)
    found = partitions.read(disk, 4 * MIB)
    assert [(p.number, p.file_system, p.size_bytes) for p in found] == [(0, "ext4", 4 * MIB)]
    assert partitions.read(io.BytesIO(bytes(MIB)), MIB) == []
