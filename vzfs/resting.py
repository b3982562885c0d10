"""A server nobody asks for anything leaves what it knows to the next one, and ends.

What an idle server costs is memory, and most containers are idle most of the time. So it writes
down what the kernel knows from it and hands that on, with the descriptors that must stay open:
locks, layers, the private mount. Whoever keeps the connection starts another server when a request
comes. To the kernel nothing has changed: unlike after a death (see ``recovery``) every id, lock,
watch, working directory and open file is what it was.

Not all can be written down: files open for writing, which change unseen; objects without a name;
copies that are under way. A server that has any of these goes on, and so does one that knows very
much.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vzfs.control import Control
from vzfs.inodes import Directory, File, Node

if TYPE_CHECKING:
    from vzfs.layers import Place
    from vzfs.operations import Operations
    from vzfs.options import Options

#: More nodes than this are not written down: the first request would wait for them.
_MOST = 4096
_NONE = -1
_DIRECTORY, _FILE, _CONTROL = range(3)
#: What a File knows that is one bit, in the order of the bits.
_MARKS = ("magic", "meta", "escaped", "backing_private", "bare")


class Tangled(Exception):
    """The server knows something that cannot be written down."""


class Left:
    """What a server left: its descriptors, each in its place, and what it wrote down."""

    def __init__(self, options: Options, fds: list[int]) -> None:
        """Take over ``fds``, which `leave` returned for a mount of the same ``options``."""
        rest = iter(fds)
        state = next(rest)
        with open(state, "rb") as file:
            self._state: dict[str, Any] = marshal.load(file)
        self.lock, self.upper, self.work, self.temporary, self.index = (
            next(rest) for _number in range(5)
        )
        self.lower = [next(rest) for _layer in options.lower]
        self.magic = next(rest) if options.template_area is not None else _NONE
        self.quota = next(rest) if options.ledger is not None else _NONE

    @property
    def guarded(self) -> bool:
        """Whether the private area is reached through a mount that a guard can watch."""
        return bool(self._state["guarded"])

    def take_up(self, core: Operations) -> None:
        """Let ``core`` know what the server that left this knew."""
        core.resumed = self._state["resumed"]
        core.table.load(self._state["table"])
        places = list(_roots(core))
        for parent, name in self._state["places"]:
            places.append(places[parent].child(name))
        nodes: list[Node] = [core.root]
        for row in self._state["nodes"]:
            node = _node(core, row, nodes, places)
            if node is not None:
                nodes.append(node)


def leave(core: Operations) -> list[int] | None:
    """Return what to hand on so that another server may go on, None when this one must.

    The accounts are settled then, and none of them may change any more. The first descriptor is to
    be closed by the caller, the others stay the server's.
    """
    if core.busy or len(core.table) > _MOST:
        return None
    try:
        state = _Writer(core).state()
    except Tangled:
        return None
    if not core.rest_accounts():
        return None
    memory = os.memfd_create("vzfs-rests", os.MFD_CLOEXEC)
    with open(memory, "wb", closefd=False) as file:
        marshal.dump(state, file)
    os.lseek(memory, 0, os.SEEK_SET)
    return [memory, *core.stack.kept(), *core.kept()]


class _Writer:
    """Writes a core down: places and nodes become rows which name others by their number."""

    def __init__(self, core: Operations) -> None:
        self.core = core
        self._places: dict[Place, int] = {place: at for at, place in enumerate(_roots(core))}
        self._rows: list[tuple[int, bytes]] = []
        self._numbers: dict[int, int] = {id(core.root): 0}
        self._nodes: list[tuple[Any, ...]] = []

    def state(self) -> dict[str, Any]:
        """Return it; raises Tangled."""
        core = self.core
        for node in core.table.nodes.values():
            if isinstance(node, Directory):
                self._directory(node)
        controls = []
        for node in core.table.nodes.values():
            if isinstance(node, File):
                self._file(node)
            elif isinstance(node, Control):
                controls.append((_CONTROL, node.name, node.lookups, node.opens))
        return {
            "resumed": core.resumed,
            "guarded": core.guard is not None,
            "table": core.table.dump(),
            "places": self._rows,
            "nodes": [*self._nodes, *controls],
        }

    def _directory(self, node: Directory) -> int:
        """Write a directory and those above it; return its number."""
        chain = []
        above: Directory | None = node
        while above is not None and id(above) not in self._numbers:
            chain.append(above)
            above = above.parent
        if above is None:
            raise Tangled  # it was removed
        for here in reversed(chain):
            assert here.parent is not None
            row = (
                _DIRECTORY,
                self._numbers[id(here.parent)],
                *self._common(here),
                self.core.table.nodes.get(here.nid) is here,
                self._place(here.up),
                tuple(self._place(place) for place in here.lows),
            )
            self._append(here, row)
        return self._numbers[id(node)]

    def _file(self, node: File) -> None:
        held = (node.lower_fd, node.anchor)
        if node.parent is None or node.twin is not None or node.writers or max(held) >= 0:
            raise Tangled
        row = (
            _FILE,
            self._directory(node.parent),
            *self._common(node),
            node.kind,
            self._place(node.up),
            node.upname,
            self._place(node.low),
            node.loname,
            sum(1 << bit for bit, name in enumerate(_MARKS) if getattr(node, name)),
            node.links,
            node.opens,
            node.backing,
        )
        self._append(node, row)

    @staticmethod
    def _common(node: Node) -> tuple[int, int, bytes, int, int | None]:
        if node.fd >= 0:
            raise Tangled
        return node.nid, node.ino, node.name, node.lookups, node.generation

    def _append(self, node: Node, row: tuple[Any, ...]) -> None:
        # The root is number 0 and has no row.
        self._nodes.append(row)
        self._numbers[id(node)] = len(self._nodes)

    def _place(self, place: Place | None) -> int:
        """Return the number of a place, written with those above it; raises Tangled."""
        if place is None:
            return _NONE
        chain = []
        above: Place | None = place
        while above is not None and above not in self._places:
            if above.pinned:
                raise Tangled
            chain.append(above)
            above = above.parent
        if above is None:
            raise Tangled
        for here in reversed(chain):
            assert here.parent is not None
            self._rows.append((self._places[here.parent], here.name))
            self._places[here] = len(self._places)
        return self._places[place]


def _roots(core: Operations) -> Iterator[Place]:
    """Yield the places that every other lies below."""
    yield core.stack.upper.root
    yield from core.roots
    yield core.index_place
    if core.magic is not None:
        yield core.magic.root


def _node(
    core: Operations, row: tuple[Any, ...], nodes: list[Node], places: list[Place]
) -> Node | None:
    """Make and enter the node of a row; None where there is none any more."""
    kind, *rest = row
    if kind == _CONTROL:
        name, lookups, opens = rest
        control = core.control_file(name)
        if control is not None:
            control.lookups, control.opens = lookups, opens
        return None

    def place(number: int) -> Place | None:
        return None if number == _NONE else places[number]

    number, nid, ino, name, lookups, generation, *own = rest
    parent = nodes[number]
    assert isinstance(parent, Directory)
    node: Node
    if kind == _DIRECTORY:
        known, up, lows = own
        node = Directory(nid, ino, parent, name, place(up), tuple(places[low] for low in lows))
    else:
        known = True
        kind, up, upname, low, loname, marks, links, opens, backing = own
        node = file = File(nid, ino, parent, name, kind)
        file.up, file.upname, file.low, file.loname = place(up), upname, place(low), loname
        for bit, mark in enumerate(_MARKS):
            setattr(file, mark, bool(marks >> bit & 1))
        file.links, file.opens, file.backing = links, opens, backing
    node.lookups, node.generation = lookups, generation
    if known:
        core.table.add(node)
    return node
