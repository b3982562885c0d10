"""Writes newc archives (the kernel's initramfs format, Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_TRAILER = "TRAILER!!!"


class Archive:
    """An initramfs in the making: device nodes need no privilege, as nothing is ever on disk."""

    def __init__(self) -> None:
        """Start an empty archive."""
        self._entries: dict[str, tuple[int, bytes, int, int]] = {}

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._add(name, stat.S_IFDIR | mode)

    def data(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file with ``content``."""
        self._add(name, stat.S_IFREG | mode, content)

    def file(self, name: str, source: Path, mode: int | None = None) -> None:
        """Add a copy of ``source``; raises OSError."""
        content = source.read_bytes()
        self.data(name, content, stat.S_IMODE(os.stat(source).st_mode) if mode is None else mode)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(name, stat.S_IFCHR | mode, b"", major, minor)

    def _add(self, name: str, mode: int, data: bytes = b"", major: int = 0, minor: int = 0) -> None:
        name = name.strip("/")
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            self._entries.setdefault("/".join(parts[:count]), (stat.S_IFDIR | 0o755, b"", 0, 0))
        self._entries[name] = (mode, data, major, minor)

    def pack(self) -> bytes:
        """Return the archive, the same bytes for the same content."""
        out = bytearray()
        for number, name in enumerate(sorted(self._entries), start=1):
            mode, data, major, minor = self._entries[name]
            links = 2 if stat.S_ISDIR(mode) else 1
            _member(out, name, data, number=number, mode=mode, device=(major, minor), links=links)
        _member(out, _TRAILER, b"", number=0, mode=0, device=(0, 0), links=1)
        out += b"\0" * (-len(out) % 512)
        return bytes(out)


def _member(
    out: bytearray,
    name: str,
    data: bytes,
    *,
    number: int,
    mode: int,
    device: tuple[int, int],
    links: int,
) -> None:
    encoded = name.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields)
    out += encoded
    out += b"\0" * (-len(out) % 4)
    out += data
    out += b"\0" * (-len(data) % 4)
