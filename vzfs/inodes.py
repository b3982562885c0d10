"""Inodes the kernel knows: which files of which layers they are, and how they are reached.

A node id is computed from what the node was born as: (device slot, inode number), the private
layer being slot 0. So a server which replaces a killed one finds directories and files again by
ids it never gave out (see `recovery`). A file that is copied up keeps the id of its origin (it is
recorded in the copy).

With passthrough, ids of files carry an epoch as well, one for each server of a mount: the kernel
ties an open file's node to a backing id, and a new server cannot know which. Files get fresh ids
after a restart, those opened before keep theirs.

States of a File:

    lower only ──copy of metadata──► metacopy ──copy of data──► private
         └───────────────copy of both────────────────────────────┘

With passthrough an inode can have one backing file at a time. When the data must become private
while readers still hold the lower file, the node *splits*: the old node stays with its readers
(its ``twin`` points to the new one, which answers for attributes), the name leads to the new one.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from vzfs import protocol

if TYPE_CHECKING:
    from vzfs.layers import Place
    from vzfs.listing import Listing

SLOT_SHIFT = 52
EPOCH_SHIFT = 56
INODE_MASK = (1 << SLOT_SHIFT) - 1
EPOCH_MASK = 0x7F
#: Slot of ids which could not be computed (an inode number beyond 52 bits, or a split).
UNCOMPUTED = 0xF


class Node:
    """What a node id stands for."""

    __slots__ = ("fd", "flags", "generation", "ino", "lookups", "name", "nid", "parent")

    def __init__(self, nid: int, ino: int, parent: Directory | None, name: bytes) -> None:
        self.nid = nid
        #: st_ino as users see it.
        self.ino = ino
        self.parent = parent
        self.name = name
        #: References the kernel holds.
        self.lookups = 0
        #: O_PATH descriptor of the object once it has no name we know; else -1.
        self.fd = -1
        #: Inode flags of the private object, None when not read yet.
        self.flags: int | None = None
        #: Tells the object from others that had its id, None when not asked for yet.
        self.generation: int | None = None

    def release(self) -> None:
        """Close what the node holds."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Directory(Node):
    """A directory: private, lower, or both merged."""

    __slots__ = ("default_acl", "impure", "listing", "lows", "up")

    def __init__(
        self,
        nid: int,
        ino: int,
        parent: Directory | None,
        name: bytes,
        up: Place | None,
        lows: tuple[Place, ...],
    ) -> None:
        super().__init__(nid, ino, parent, name)
        self.up = up
        self.lows = lows
        #: Entries of the private directory may carry marks; None when not looked at yet.
        self.impure: bool | None = None
        #: Whether new entries inherit an ACL; None when not looked at yet.
        self.default_acl: bool | None = None
        self.listing: Listing | None = None

    @property
    def merged(self) -> bool:
        """Whether entries come from more than the private layer."""
        return bool(self.lows)


class File(Node):
    """Anything that is not a directory."""

    __slots__ = (
        "anchor",
        "backing",
        "backing_private",
        "bare",
        "charged",
        "escaped",
        "kind",
        "links",
        "loname",
        "low",
        "lower_fd",
        "magic",
        "meta",
        "opens",
        "twin",
        "up",
        "upname",
        "writers",
    )

    def __init__(
        self, nid: int, ino: int, parent: Directory | None, name: bytes, kind: int
    ) -> None:
        super().__init__(nid, ino, parent, name)
        #: S_IFMT part of the mode.
        self.kind = kind
        #: Where the private copy is: directory and name; None while there is none.
        self.up: Place | None = None
        self.upname = b""
        #: Where the lower file is.
        self.low: Place | None = None
        self.loname = b""
        #: O_PATH descriptor of the lower file once its name may be gone.
        self.lower_fd = -1
        #: What is in the private layer is a magic link; all that is seen is the lower file's.
        self.magic = False
        #: Keeps the inode of a magic link that was removed, so that its number is not reused.
        self.anchor = -1
        #: The private copy holds metadata only; the data are still the lower file's.
        self.meta = False
        #: Names this file has for its users, when that is not the private copy's link count.
        self.links: int | None = None
        #: Stands for a character device 0:0 (see layers.ESCAPED).
        self.escaped = False
        self.opens = 0
        self.writers = 0
        #: Passthrough id registered with the kernel, 0 for none, and which file it is.
        self.backing = 0
        self.backing_private = False
        #: Blocks of 512 bytes the ledger has been told of while somebody may write.
        self.charged = 0
        self.twin: File | None = None
        #: Known to have no capabilities, which the kernel asks for before it lets anybody write.
        self.bare = False

    @property
    def private(self) -> bool:
        """Whether data and metadata are the container's own."""
        return not self.meta and self.has_copy

    @property
    def has_copy(self) -> bool:
        """Whether the metadata at least are the container's own."""
        return not self.magic and (self.up is not None or self.fd >= 0)

    def release(self) -> None:
        """Close what the node holds."""
        super().release()
        if self.lower_fd >= 0:
            os.close(self.lower_fd)
            self.lower_fd = -1
        if self.anchor >= 0:
            os.close(self.anchor)
            self.anchor = -1


def split_id(nid: int) -> tuple[int, int, int]:
    """Return (epoch, slot, inode) of a computed id."""
    return nid >> EPOCH_SHIFT, nid >> SLOT_SHIFT & 0xF, nid & INODE_MASK


class NodeTable:
    """Every node the kernel has a reference to, by id."""

    def __init__(self, root: Directory) -> None:
        self.root = root
        self.nodes: dict[int, Node] = {protocol.ROOT_ID: root}
        #: Computed id → the id in use, for nodes which split.
        self.moved: dict[int, int] = {}
        self._moved_from: dict[int, int] = {}
        #: Part of the ids of files; see above.
        self.epoch = 0
        # Plain numbers begin anywhere, so that those of two servers of a mount do not meet.
        self._sequence = int.from_bytes(os.urandom(4), "little") << 16
        self._large: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.nodes)

    def dump(self) -> dict[str, Any]:
        """Return how ids are given out, for the table of a server that goes on."""
        return {
            "epoch": self.epoch,
            "sequence": self._sequence,
            "moved": self.moved,
            "moved_from": self._moved_from,
            "large": self._large,
        }

    def load(self, dumped: dict[str, Any]) -> None:
        """Give ids out as the table that was dumped did; the nodes are to be added."""
        self.epoch, self._sequence = dumped["epoch"], dumped["sequence"]
        self.moved, self._moved_from = dumped["moved"], dumped["moved_from"]
        self._large = dumped["large"]

    def identify(self, slot: int, inode: int) -> int:
        """Return the id for a directory, computed where its inode number allows."""
        if slot < UNCOMPUTED and inode <= INODE_MASK:
            return slot << SLOT_SHIFT | inode
        return self._plain(slot, inode)

    def identify_file(self, slot: int, inode: int) -> int:
        """Return the id for anything else, which may have been moved by a split."""
        if slot < UNCOMPUTED and inode <= INODE_MASK:
            nid = self.epoch << EPOCH_SHIFT | slot << SLOT_SHIFT | inode
        else:
            nid = self._plain(slot, inode)
        return self.moved.get(nid, nid) if self.moved else nid

    def _plain(self, slot: int, inode: int) -> int:
        known = self._large.get((slot, inode))
        if known is None:
            known = self._large[slot, inode] = self.fresh()
        return known

    def fresh(self) -> int:
        """Return an id which means nothing."""
        self._sequence += 1
        return self.epoch << EPOCH_SHIFT | UNCOMPUTED << SLOT_SHIFT | self._sequence

    def get(self, nid: int) -> Node:
        """Return the node. Raises ESTALE when it is unknown."""
        node = self.nodes.get(nid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def add(self, node: Node) -> None:
        """Enter a node under its id."""
        self.nodes[node.nid] = node

    def split(self, node: File, slot: int, inode: int) -> File:
        """Give the name of ``node`` a new node born as (slot, inode), and return it."""
        nid = self.identify_file(slot, inode)
        while nid in self.nodes or nid == node.nid:
            nid = self.fresh()
        twin = File(nid, node.ino, node.parent, node.name, node.kind)
        self.nodes[nid] = twin
        origin = self._moved_from.get(node.nid, node.nid)
        self.moved[origin] = nid
        self._moved_from[nid] = origin
        node.twin = twin
        return twin

    def rename(self, node: File, slot: int, inode: int) -> None:
        """Let an object that was replaced by another keep the id it is known by."""
        former = self._moved_from.pop(node.nid, None)
        if former is not None and self.moved.get(former) == node.nid:
            # What it was known by goes to whatever gets that inode next.
            del self.moved[former]
        computed = self.identify_file(slot, inode)
        if computed != node.nid:
            self.moved[computed] = node.nid
            self._moved_from[node.nid] = computed

    def forget(self, nid: int, count: int) -> Node | None:
        """Drop ``count`` references; return the node when it was the last one."""
        node = self.nodes.get(nid)
        if node is None or nid == protocol.ROOT_ID:
            return None
        node.lookups -= count
        if node.lookups > 0:
            return None
        del self.nodes[nid]
        origin = self._moved_from.pop(nid, None)
        if origin is not None and self.moved.get(origin) == nid:
            del self.moved[origin]
        return node
