"""A small ISO 9660 image: a few files in one directory, enough for a CD of scripts.

Source: ECMA-119 (ISO 9660), 4th edition; the section of each structure is named. Names are level 1
(8.3, capital letters) and come with their real spelling by Rock Ridge's NM entry (IEEE P1282).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping

SECTOR_BYTES = 2048
_PATH_TABLE_SECTOR = 18
_ROOT_SECTOR = 20


def image(label: str, files: Mapping[str, bytes], *, made_s: float | None = None) -> bytes:
    """Return an image with ``files`` (8.3 names in any case); raises ValueError for other names."""
    when = time.gmtime(made_s)
    start = _ROOT_SECTOR + 1
    records = []
    places = []
    for name, content in sorted(files.items()):
        records.append(_record(_level1(name), start, len(content), when, name.encode("ascii")))
        places.append((start, content))
        start += max(-(-len(content) // SECTOR_BYTES), 1)
    head = [_record(b"\0", _ROOT_SECTOR, SECTOR_BYTES, when, directory=True, first=True),
            _record(b"\1", _ROOT_SECTOR, SECTOR_BYTES, when, directory=True)]  # fmt: skip
    root = b"".join([*head, *records])
    if len(root) > SECTOR_BYTES:
        raise ValueError("too many files for one directory sector")
    out = bytearray(start * SECTOR_BYTES)
    _put(out, 16, _primary(label, start, when))
    # 8.3: the terminator of the set of volume descriptors
    _put(out, 17, b"\xffCD001\x01")
    # 6.9, 9.4: the path table, once little-endian and once big-endian; the root is its only entry
    _put(out, _PATH_TABLE_SECTOR, struct.pack("<BBIH", 1, 0, _ROOT_SECTOR, 1) + b"\0\0")
    _put(out, _PATH_TABLE_SECTOR + 1, struct.pack(">BBIH", 1, 0, _ROOT_SECTOR, 1) + b"\0\0")
    _put(out, _ROOT_SECTOR, root)
    for sector, content in places:
        _put(out, sector, content)
    return bytes(out)


def _put(out: bytearray, sector: int, data: bytes) -> None:
    out[sector * SECTOR_BYTES : sector * SECTOR_BYTES + len(data)] = data


def _level1(name: str) -> bytes:
    """Return the identifier of a file: 8.3 capital letters and a version (7.5)."""
    stem, _, suffix = name.upper().partition(".")
    if not (1 <= len(stem) <= 8 and len(suffix) <= 3 and (stem + suffix).isalnum()):
        raise ValueError(f"not an 8.3 name: {name!r}")
    return f"{stem}.{suffix};1".encode("ascii")


def _both16(value: int) -> bytes:
    return struct.pack("<H", value) + struct.pack(">H", value)


def _both32(value: int) -> bytes:
    return struct.pack("<I", value) + struct.pack(">I", value)


def _record(
    name: bytes,
    sector: int,
    size: int,
    when: time.struct_time,
    real: bytes = b"",
    *,
    directory: bool = False,
    first: bool = False,
) -> bytes:
    """Return a directory record (9.1) with its system use entries."""
    body = _both32(sector) + _both32(size)
    body += bytes((when.tm_year - 1900, when.tm_mon, when.tm_mday, when.tm_hour, when.tm_min,
                   when.tm_sec, 0))  # fmt: skip
    body += bytes((2 if directory else 0, 0, 0)) + _both16(1)
    body += bytes((len(name),)) + name
    if len(name) % 2 == 0:
        body += b"\0"
    if first:
        # SUSP 1.12, 5.3: the entry by which readers know that others follow
        body += b"SP\x07\x01\xbe\xef\0"
    # RRIP 4.1.1: mode, links, owner, group; 4.1.4: the name
    mode = 0o040555 if directory else 0o100555
    body += b"PX\x24\x01" + _both32(mode) + _both32(1) + _both32(0) + _both32(0)
    if real:
        body += b"NM" + bytes((5 + len(real), 1, 0)) + real
    length = 2 + len(body)
    padding = b"\0" if length % 2 else b""
    return bytes((length + len(padding), 0)) + body + padding


def _date(when: time.struct_time) -> bytes:
    """Return a date of a volume descriptor (8.4.26.1)."""
    return time.strftime("%Y%m%d%H%M%S", when).encode("ascii") + b"00\0"


def _primary(label: str, sectors: int, when: time.struct_time) -> bytes:
    """Return the primary volume descriptor (8.4)."""
    none = b"0" * 16 + b"\0"
    parts = [
        b"\x01CD001\x01\0",
        b"LINUX".ljust(32),
        label.upper().encode("ascii").ljust(32),
        bytes(8),
        _both32(sectors),
        bytes(32),
        _both16(1),
        _both16(1),
        _both16(SECTOR_BYTES),
        _both32(10),
        struct.pack("<II", _PATH_TABLE_SECTOR, 0),
        struct.pack(">II", _PATH_TABLE_SECTOR + 1, 0),
        _record(b"\0", _ROOT_SECTOR, SECTOR_BYTES, when, directory=True)[:34],
        b"".ljust(128) + b"".ljust(128) + b"".ljust(128) + b"PYVZ".ljust(128),
        b"".ljust(37) + b"".ljust(37) + b"".ljust(37),
        _date(when) + _date(when) + none + none,
        b"\x01\0",
    ]
    data = bytearray(b"".join(parts).ljust(SECTOR_BYTES, b"\0"))
    # The root's record inside the descriptor has no system use field: its length is 34 (8.4.18).
    data[156] = 34
    return bytes(data)
