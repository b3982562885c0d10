"""Which devices a container may use: always the harmless ones, others by DEVICES and DEVNODES.

Nodes are never made inside (a user namespace may not): the host's are bound one by one into the
container's own /dev, and its cgroup refuses the rest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from runtime import features
from runtime.cgroup_limits import DeviceRule
from runtime.errors import DevicesFailed

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
class Access:
    """What a container may do with devices."""

    rules: tuple[DeviceRule, ...]
    #: Nodes of the host's /dev to bind, relative to it.
    nodes: tuple[str, ...]


def access(config: Mapping[str, str]) -> Access:
    """Return the access a configuration gives; raises DevicesFailed for a node that is none."""
    rules = list(_ALWAYS)
    nodes = list(BASIC)
    for word in config.get("DEVICES", "").split():
        parts = word.split(":")
        if len(parts) != 4 or parts[0] not in ("b", "c"):
            raise DevicesFailed(f"DEVICES: not b|c:MAJOR:MINOR|all:RIGHTS: {word!r}")
        kind, major, minor, rights = parts
        rules.append(
            DeviceRule(
                kind, int(major), int(minor) if minor.isdecimal() else None, _letters(rights)
            )
        )
    for word in config.get("DEVNODES", "").split():
        name, _, rights = word.rpartition(":")
        name = name.removeprefix("/dev/")
        rules.append(_of_node(name, _letters(rights)))
        nodes.append(name)
    for feature in features.nodes(config):
        rules.append(DeviceRule("c", *feature.number))
        nodes.append(feature.node)
    return Access(tuple(dict.fromkeys(rules)), tuple(dict.fromkeys(nodes)))


def _of_node(name: str, rights: str) -> DeviceRule:
    try:
        found = os.stat(f"/dev/{name}")
    except OSError as error:
        raise DevicesFailed(f"DEVNODES: /dev/{name}: {error.strerror}") from error
    if stat.S_ISBLK(found.st_mode):
        kind = "b"
    elif stat.S_ISCHR(found.st_mode):
        kind = "c"
    else:
        raise DevicesFailed(f"DEVNODES: /dev/{name} is no device")
    return DeviceRule(kind, os.major(found.st_rdev), os.minor(found.st_rdev), rights)


def _letters(rights: str) -> str:
    """Return cgroup letters for vzctl's: ``q`` (quota operations) needs opening for reading."""
    letters = "".join(letter for letter in "rw" if letter in rights.replace("q", "r"))
    return (letters or "r") + "m"
