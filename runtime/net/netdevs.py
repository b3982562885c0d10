"""NETDEV: interfaces of the server that a container has for itself while it runs.

An interface goes back when the container stops. A virtual one would die with the container's
network namespace, and a real one would come back with what the container made of it: the
namespace is therefore pinned by a mount of its file until everything is back, and that works for
the next command too when nobody lives who could do it.

What is out is recorded before it is moved. Found again by its index: a container may rename it.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runtime import files, mounts, syscalls
from runtime.errors import NetdevFailed
from runtime.net import names
from runtime.net.links import IFF_UP, LinkFailed, Links, entered
from runtime.paths import Paths

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
# linux/if.h
_IFF_PROMISC, _IFF_ALLMULTI = 0x100, 0x200
_MS_BIND = 0x1000  # linux/mount.h


@dataclass(frozen=True, slots=True)
class Lent:
    """An interface a container has, and what it was on the server."""

    name: str
    #: Its index inside, 0 before it is there.
    index: int
    mac: str
    mtu: int
    group: int


def check(text: str) -> str:
    """Check the name of an interface of the server; raises NetdevFailed."""
    if not _NAME.fullmatch(text) or text in ("lo", names.VENET):
        raise NetdevFailed(
            f"invalid name of a network device: {text[:40]!r}",
            hint="the name of an interface of this server: pnetcfg if list",
        )
    return text


def check_removal(text: str) -> str:
    """Check one argument of ``--netdev_del``; raises NetdevFailed."""
    return text if text == "all" else check(text)


def parse(text: str | None) -> tuple[str, ...]:
    """Return the interfaces of a ``NETDEV`` value, each once; raises NetdevFailed."""
    return tuple(dict.fromkeys(check(word) for word in (text or "").replace(",", " ").split()))


def add(stored: str | None, given: Sequence[str]) -> str | None:
    """Add interfaces to a stored list; raises NetdevFailed."""
    return " ".join(dict.fromkeys((*parse(stored), *given))) or None


def remove(stored: str | None, given: Sequence[str]) -> str | None:
    """Take interfaces out of a stored list, ``all`` empties it; raises NetdevFailed."""
    present = list(parse(stored))
    for name in given:
        if name == "all":
            present.clear()
        elif name in present:
            present.remove(name)
        else:
            raise NetdevFailed(
                f"the container does not have the network device {name}",
                hint=f"it has {', '.join(present)}" if present else "it has none",
            )
    return " ".join(present) or None


def _record(paths: Paths, ctid: int) -> Path:
    return paths.run / "net" / f"netdev.{ctid}"


def _pin(paths: Paths, ctid: int) -> Path:
    return paths.run / "net" / f"netns.{ctid}"


def lent(paths: Paths, ctid: int) -> list[Lent]:
    """Return the interfaces a container has at the moment, as recorded."""
    try:
        return [Lent(**row) for row in json.loads(_record(paths, ctid).read_bytes())]
    except (OSError, ValueError, TypeError):
        return []


def borrowers(paths: Paths) -> dict[int, list[Lent]]:
    """Return container → interfaces, for every container that has some."""
    found = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(paths.run / "net"):
            kind, _, number = name.partition(".")
            if kind == "netdev" and number.isdecimal():
                found[int(number)] = lent(paths, int(number))
    return found


def _save(paths: Paths, ctid: int, rows: Iterable[Lent]) -> None:
    # Not durable: interfaces are where they belong after a reboot, and the file is gone too.
    text = json.dumps([asdict(row) for row in rows]).encode()
    files.replace(_record(paths, ctid), text, mode=0o600, durable=False)


def apply(
    paths: Paths,
    host: Links,
    ctid: int,
    wanted: Sequence[str],
    netns_fd: int,
    uplinks: Collection[str],
    inside: Collection[str] = (),
) -> None:
    """Have just these interfaces in a container; may be repeated. Raises NetdevFailed.

    ``uplinks`` never leave the server; ``inside`` are names that are taken in the container.
    """
    have = {row.name for row in lent(paths, ctid)}
    if not wanted and not have:
        return
    fresh = [name for name in wanted if not is_there(paths, ctid, name, netns_fd)]
    for name in fresh:  # all of them before the first is moved
        if name in inside:
            raise NetdevFailed(f"the container has an adapter called {name} already")
        _may_leave(paths, host, ctid, name, uplinks)
    give_back(paths, host, ctid, keep=wanted)
    if fresh:
        _pinned(paths, ctid, netns_fd)
    for name in fresh:
        _move_in(paths, host, ctid, name, netns_fd)


def is_there(paths: Paths, ctid: int, name: str, netns_fd: int) -> bool:
    """Whether a container has an interface of the server, in whatever name."""
    row = next((row for row in lent(paths, ctid) if row.name == name), None)
    if row is None:
        return False
    with entered(netns_fd), Links() as guest:
        return _find(guest, row) is not None


def _find(guest: Links, row: Lent) -> int | None:
    """Return the index an interface has inside, None when it is not there."""
    if not row.index:  # killed between the move and the record
        return guest.index(row.name)
    return row.index if guest.by_index(row.index) is not None else None


def _may_leave(paths: Paths, host: Links, ctid: int, name: str, uplinks: Collection[str]) -> None:
    """Raise NetdevFailed when an interface is not there or the server needs it."""
    links = host.all()
    link = next((link for link in links if link.name == name), None)
    if link is None:
        holder = next(
            (other for other, rows in borrowers(paths).items()
             if other != ctid and any(row.name == name for row in rows)),
            None,
        )  # fmt: skip
        raise NetdevFailed(
            f"there is no network device {name} on this server",
            hint=f"container {holder} has it" if holder else "pnetcfg if list shows them",
        )
    above = next((other.name for other in links if other.lower == link.index), None)
    master = next((other.name for other in links if other.index == link.master), None)
    ours = (names.GROUP_ROUTED, names.GROUP_BRIDGED, names.GROUP_BRIDGE)
    if name in uplinks:
        why = "the server's own way out (an uplink)"
    elif link.group in ours:
        why = "part of an environment's network"
    elif master:
        why = f"a port of {master}"
    elif above:
        why = f"what {above} is made of"
    else:
        return
    raise NetdevFailed(f"{name} stays on the server: it is {why}")


def _pinned(paths: Paths, ctid: int, netns_fd: int) -> None:
    """Keep the container's network namespace until ``give_back``; twice is success."""
    place = _pin(paths, ctid)
    place.touch(mode=0o600)
    if mounts.is_mount_point(place):
        with suppress(OSError):
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            with mounts.closing(fd):
                if os.path.sameopenfile(fd, netns_fd):
                    return
        syscalls.umount(str(place), syscalls.MNT_DETACH)
    try:
        syscalls.mount(f"/proc/self/fd/{netns_fd}", str(place), None, _MS_BIND)
    except OSError as error:
        raise NetdevFailed(f"the network cannot be kept: {error.strerror}") from error


def _move_in(paths: Paths, host: Links, ctid: int, name: str, netns_fd: int) -> None:
    index = host.need(name)
    message = host.route.link("get", index=index)[0]
    row = Lent(
        name,
        0,
        message.get_attr("IFLA_ADDRESS") or "",
        message.get_attr("IFLA_MTU") or 0,
        message.get_attr("IFLA_GROUP") or 0,
    )
    others = [other for other in lent(paths, ctid) if other.name != name]
    _save(paths, ctid, [*others, row])
    try:
        host.change(index, net_ns_fd=netns_fd)
    except LinkFailed as error:
        _save(paths, ctid, others)
        why = (
            "the kernel keeps devices of its kind on the server"
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP)
            else os.strerror(error.errno)
        )
        raise NetdevFailed(f"{name} cannot be moved into the container: {why}") from error
    with entered(netns_fd), Links() as guest:
        _save(paths, ctid, [*others, replace(row, index=guest.need(name))])


def give_back(paths: Paths, host: Links, ctid: int, *, keep: Collection[str] = ()) -> None:
    """Take interfaces home, all but ``keep``, as they were; absent is success.

    Those that are no longer in the container's namespace are forgotten: it deleted them, or moved
    them on into a namespace with whose end the kernel sends real ones home. Raises NetdevFailed.
    """
    rows = lent(paths, ctid)
    place = _pin(paths, ctid)
    if not rows and not place.exists():
        return
    left = list(rows)
    with ExitStack() as stack:
        if mounts.is_mount_point(place):
            netns_fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, netns_fd)
            home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, home)
            for row in rows:
                if row.name not in keep:
                    _move_out(host, row, netns_fd, home)
                    left.remove(row)
                    _save(paths, ctid, left)
        else:
            left = []
    if not left:
        if mounts.is_mount_point(place):
            syscalls.umount(str(place), syscalls.MNT_DETACH)
        place.unlink(missing_ok=True)
        _record(paths, ctid).unlink(missing_ok=True)


def _move_out(host: Links, row: Lent, netns_fd: int, home: int) -> None:
    taken = host.names()
    free = (f"dev{number}" for number in itertools.count())  # as the kernel calls such a one
    name = row.name if row.name not in taken else next(n for n in free if n not in taken)
    with entered(netns_fd), Links() as guest:
        index = _find(guest, row)
        if index is None:
            return
        # What the container put on top of it would go on using it.
        for link in guest.all():
            if link.lower == index:
                guest.delete(link.name)
        guest.flags(index, 0, IFF_UP | _IFF_PROMISC | _IFF_ALLMULTI)
        # Another name of it that the server has already would keep it inside.
        guest.drop_other_names(index)
        try:
            guest.change(index, net_ns_fd=home, ifname=name)
        except LinkFailed as error:
            raise NetdevFailed(f"{row.name} cannot be moved back: {error.message}") from error
    index = host.need(name)
    # What the container may have changed; a driver that refuses one of them keeps it.
    words: dict[str, Any] = {"group": row.group, "ifalias": "", "mtu": row.mtu, "address": row.mac}
    for key, value in words.items():
        if value or key in ("group", "ifalias"):
            with suppress(LinkFailed):
                host.change(index, **{key: value})
