"""Which devices a container may use: always the harmless ones, others by DEVICES and DEVNODES.

Nodes are never made inside (a user namespace may not): the host's, or some made for the container,
are bound one by one into its own /dev, and its cgroup refuses the rest.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import features, mounts, syscalls
from runtime.cgroup_limits import DeviceRule
from runtime.errors import DevicesFailed

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.paths import Paths

#: Nodes every Linux program expects, as in the OCI specification (config-linux.md).
BASIC = ("null", "zero", "full", "random", "urandom", "tty")
_ALWAYS = (
    DeviceRule("c", 1, 3),
    DeviceRule("c", 1, 5),
    DeviceRule("c", 1, 7),
    DeviceRule("c", 1, 8),
    DeviceRule("c", 1, 9),
    DeviceRule("c", 5, 0),
    DeviceRule("c", 5, 1),
    DeviceRule("c", 5, 2),
    # Pseudo-terminals: 136…143 (Documentation/admin-guide/devices.txt).
    *(DeviceRule("c", major, None) for major in range(136, 144)),
)


@dataclass(frozen=True, slots=True)
class Node:
    """A device that appears in the container's /dev at ``name``, its root's."""

    name: str
    major: int
    minor: int
    kind: str = "c"
    mode: int = 0o666


@dataclass(frozen=True, slots=True)
class Access:
    """What a container may do with devices."""

    rules: tuple[DeviceRule, ...]
    #: Nodes of the host's /dev to bind, relative to it: those everybody may open.
    nodes: tuple[str, ...]
    #: Nodes of the container's own: its root's, whoever may open the host's.
    own: tuple[Node, ...] = ()


def access(config: Mapping[str, str]) -> Access:
    """Return the access a configuration gives; raises DevicesFailed for a node that is none."""
    rules = list(_ALWAYS)
    own: dict[str, Node] = {}
    for word in config.get("DEVICES", "").split():
        parts = word.split(":")
        if len(parts) != 4 or parts[0] not in ("b", "c"):
            raise DevicesFailed(f"DEVICES: not b|c:MAJOR:MINOR|all:RIGHTS: {word!r}")
        kind, major, minor, rights = parts
        number = int(minor) if minor.isdecimal() else None
        rules.append(DeviceRule(kind, int(major), number, _letters(rights)))
        node = _numbered(kind, int(major), number) if number is not None else None
        if node is not None:
            own[node.name] = node
    for word in config.get("DEVNODES", "").split():
        name, _, rights = word.rpartition(":")
        node = _named(name.removeprefix("/dev/"))
        rules.append(DeviceRule(node.kind, node.major, node.minor, _letters(rights)))
        own[node.name] = node
    for feature in features.nodes(config):
        rules.append(DeviceRule("c", *feature.number))
        own[feature.node] = Node(feature.node, *feature.number)
    basic = tuple(name for name in BASIC if name not in own)
    return Access(tuple(dict.fromkeys(rules)), basic, tuple(own.values()))


def made(paths: Paths, ctid: int, node: Node, owner: int) -> int:
    """Return a detached bind mount of a new node of user and group ``owner``; raises OSError.

    It lies on a file system of its own, which ends with the last mount of it. Call it as the
    host's root: on what a user namespace mounts, no device can be opened.
    """
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
    with mounts.closing(mounts.new("tmpfs", {"size": "4k", "mode": "0700"}, attributes)) as place:
        device = os.makedev(node.major, node.minor)
        kind = stat.S_IFBLK if node.kind == "b" else stat.S_IFCHR
        os.mknod("node", kind, device, dir_fd=place)
        os.chmod("node", node.mode, dir_fd=place)
        os.chown("node", owner, owner, dir_fd=place)
        try:
            return mounts.clone("node", dir_fd=place)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Before Linux 6.15 only what is attached somewhere can be cloned.
        return _clone_attached(place, paths.run / "ct" / f"{ctid}.node")


def _clone_attached(place: int, scratch: Path) -> int:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        while mounts.is_mount_point(scratch):  # of one that was killed here
            syscalls.umount(str(scratch), syscalls.MNT_DETACH)
        with mounts.closing(os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as target:
            syscalls.move_mount(place, target)
        try:
            return mounts.clone(str(scratch / "node"))
        finally:
            syscalls.umount(str(scratch), syscalls.MNT_DETACH)
    finally:
        scratch.rmdir()


def _named(name: str) -> Node:
    """Return the node that the server's /dev has at ``name``; raises DevicesFailed."""
    try:
        found = os.stat(f"/dev/{name}")
    except OSError as error:
        raise DevicesFailed(f"DEVNODES: /dev/{name}: {error.strerror}") from error
    if not stat.S_ISBLK(found.st_mode) and not stat.S_ISCHR(found.st_mode):
        raise DevicesFailed(f"DEVNODES: /dev/{name} is no device")
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return Node(name, major, minor, kind, stat.S_IMODE(found.st_mode) & 0o666)


def _numbered(kind: str, major: int, minor: int) -> Node | None:
    """Return the server's node of a device, None where the kernel has no name for it (sysfs(5))."""
    place = f"/sys/dev/{'block' if kind == 'b' else 'char'}/{major}:{minor}/uevent"
    with suppress(OSError), open(place, encoding="ascii") as file:
        for line in file:
            if line.startswith("DEVNAME=") and (name := line[8:].strip()):
                with suppress(DevicesFailed):
                    return _named(name)
    return None


def _letters(rights: str) -> str:
    """Return cgroup letters for vzctl's: ``q`` (quota operations) needs opening for reading."""
    letters = "".join(letter for letter in "rw" if letter in rights.replace("q", "r"))
    return (letters or "r") + "m"
