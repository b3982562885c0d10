"""Reading directories: merged, in an order that never changes.

Entries are sorted by a keyed hash of their names and the hash is the cookie. A position therefore
means the same whatever was added or removed since, and in a server which replaced a killed one:
no open directory needs a handle. Entries with equal hashes (never seen; the key is secret) are
returned together.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from hashlib import blake2b

from vzfs.inodes import Directory, Node
from vzfs.renaming import Renaming

#: Cookies of "." and "..": hashes are above.
DOT = 1
DOTDOT = 2
_FIRST = 16
#: Names remembered in listings altogether; the oldest listings go first.
_REMEMBERED = 200_000


class Listing:
    """The names of one directory, in the order they are returned."""

    __slots__ = ("cookies", "names", "stale")

    def __init__(self, names: list[bytes], key: bytes) -> None:
        pairs = sorted((cookie(name, key), name) for name in names)
        self.cookies = [pair[0] for pair in pairs]
        self.names = [pair[1] for pair in pairs]
        #: A name was added since; read again from the beginning, go on in the middle.
        self.stale = False


def cookie(name: bytes, key: bytes) -> int:
    """Return the position of a name: 62 bits, never below 16."""
    digest = blake2b(name, digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "little") >> 2) | _FIRST


class Reading(Renaming):
    """The operations which read directories."""

    _listings: OrderedDict[int, Listing] | None = None
    _remembered = 0
    _key = b""

    def listing(self, directory: Directory, *, restart: bool) -> Listing:
        """Return the names of a directory, read now or remembered."""
        known = directory.listing
        if known is not None and not (restart and known.stale):
            return known
        if not self._key:
            self._key = self.listing_key()
        listing = Listing(self.names(directory), self._key)
        if self._listings is None:
            self._listings = OrderedDict()
        self._listings.pop(directory.nid, None)
        self._listings[directory.nid] = listing
        directory.listing = listing
        if len(self._listings) > 64 or len(listing.names) > 1000:
            self._bound(directory.nid)
        return listing

    def listing_key(self) -> bytes:
        """Return the key of the hash, the same for every server of this mount."""
        name = b"cookie-key"
        work = self.stack.work
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=work)
        except FileNotFoundError:
            key = os.urandom(16)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=work)
            with open(fd, "wb") as file:
                file.write(key)
            return key
        with open(fd, "rb") as file:
            return file.read(16) or b"\0"

    def _bound(self, keep: int) -> None:
        assert self._listings is not None
        total = sum(len(listing.names) for listing in self._listings.values())
        while (total > _REMEMBERED or len(self._listings) > 64) and len(self._listings) > 1:
            nid, old = next(iter(self._listings.items()))
            if nid == keep:
                break
            del self._listings[nid]
            total -= len(old.names)
            node = self.table.nodes.get(nid)
            if isinstance(node, Directory):
                node.listing = None

    def retire(self, node: Node) -> None:
        """Release what a forgotten node held."""
        if self._listings is not None and isinstance(node, Directory):
            self._listings.pop(node.nid, None)
        super().retire(node)

    def names(self, directory: Directory) -> list[bytes]:
        """Return every visible name."""
        if directory.parent is None and directory is not self.root:
            return []
        if not directory.lows:
            assert directory.up is not None
            return self._plain_names(directory.up.open())
        seen: dict[bytes, bool] = {}
        places = directory.lows if directory.up is None else (directory.up, *directory.lows)
        if len(places) == 1:
            return [name for name, white in self.scan(places[0].open()) if not white]
        for place in places:
            for name, white in self.scan(place.open()):
                seen.setdefault(name, white)
        return [name for name, white in seen.items() if not white]

    def _plain_names(self, dir_fd: int) -> list[bytes]:
        return [name for name, white in self.scan(dir_fd) if not white]

    def position(self, directory: Directory, offset: int) -> tuple[Listing, int]:
        """Return the listing of a directory and the index of the first name after ``offset``.

        ``.`` and ``..`` are not in it. Names which are gone by now fail to be looked up.
        """
        listing = self.listing(directory, restart=offset == 0)
        return listing, bisect_right(listing.cookies, offset) if offset >= _FIRST else 0
