"""FEATURES: what each of vzctl's features means to the kernel of today, and those of this system.

OpenVZ's kernel had a switch for each. Here a container owns its namespaces, so that some are
always on, some cannot be had, and a few still are switches. ``set`` refuses what has no meaning;
configurations that say it all the same are started, with a warning.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import InvalidValue, NoKernelSupport

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.paths import Paths


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: what it takes, or why it is not a switch."""

    name: str
    #: Device node that appears inside where the server has it, and its number (character device).
    node: str = ""
    number: tuple[int, int] = (0, 0)
    #: Kind of network device (ip-link(8)) that can be made inside.
    link: str = ""
    #: Why it cannot be turned on, and what to do instead.
    never: str = ""
    instead: str = ""
    #: Why it cannot be turned off.
    always: str = ""
    default: bool = False
    #: What it costs, told at each start.
    warning: str = ""


_ROOT_MAKES_LINKS = "a container's root makes such devices in its own network"
#: By name, in vzctl(8)'s order; from ``fuse`` on those of this system.
FEATURES: dict[str, Feature] = {
    row.name: row
    for row in (
        Feature("sysfs", always="/sys is always there, read-only", default=True),
        Feature(
            "nfs",
            never="the kernel mounts NFS in the server's own namespace only",
            instead="mount it on the server and use --bindmount_add",
        ),
        Feature("sit", link="sit", always=_ROOT_MAKES_LINKS, default=True),
        Feature("ipip", link="ipip", always=_ROOT_MAKES_LINKS, default=True),
        Feature("ppp", node="ppp", number=(108, 0)),
        Feature("ipgre", link="gre", always=_ROOT_MAKES_LINKS, default=True),
        Feature("bridge", link="bridge", always=_ROOT_MAKES_LINKS, default=True),
        Feature(
            "nfsd",
            never="the kernel's NFS server belongs to the whole server",
            instead="one in user space (nfs-ganesha) works inside",
        ),
        Feature("time", default=True),
        Feature("fuse", node="fuse", number=(10, 229)),
        Feature("tun", node="net/tun", number=(10, 200)),
        Feature("host-id"),
        Feature("nesting"),
        Feature(
            "privileged",
            warning="no user namespace: root inside is root of this server, trust it as such",
        ),
    )
}


def switches(text: str | None) -> dict[str, bool]:
    """Return NAME → on for a stored ``NAME:on NAME:off``, names in lower case; junk is left out."""
    found = {}
    for word in re.split(r"[,\s]+", text or ""):
        name, _, state = word.partition(":")
        if name and state.lower() in ("on", "off"):
            found[name.lower().removeprefix("cap_")] = state.lower() == "on"
    return found


def enabled(config: Mapping[str, str], name: str) -> bool:
    """Whether a container has the feature ``name``."""
    return switches(config.get("FEATURES")).get(name, FEATURES[name].default)


def check(name: str, on: bool) -> None:
    """Raise InvalidValue or NoKernelSupport when a known feature cannot be switched so here."""
    feature = FEATURES[name]
    if on:
        reason = lacking(feature) or (_no_link(feature.link) if feature.link else "")
        if reason:
            raise NoKernelSupport(f"feature {name}: {reason}", hint=feature.instead)
    elif feature.always:
        raise InvalidValue(
            f"feature {name} cannot be turned off: {feature.always}",
            hint="--capability net_admin:off forbids every change of the network"
            if feature.link
            else "",
        )


def lacking(feature: Feature) -> str:
    """Return why a feature is not to be had on this server, "" when it is; asks /dev only."""
    if feature.never:
        return feature.never
    if not feature.node:
        return ""
    try:
        found = os.stat(f"/dev/{feature.node}")
    except OSError as error:
        return f"/dev/{feature.node}: {error.strerror}"
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(*feature.number):
        return f"/dev/{feature.node} is not the device it should be"
    return ""


def warnings(config: Mapping[str, str]) -> list[str]:
    """Return what a configuration asks for and will not get, and what it gets at a price."""
    found = []
    for name, on in switches(config.get("FEATURES")).items():
        feature = FEATURES.get(name)
        if feature is None:
            found.append(f"feature {name}: unknown, without effect")
        elif on and (reason := lacking(feature)):
            found.append(f"feature {name}: {reason}")
        elif on and feature.warning:
            found.append(f"feature {name}: {feature.warning}")
    return found


def nodes(config: Mapping[str, str]) -> list[Feature]:
    """Return the features that are on and bring a device node which is there."""
    return [
        feature
        for feature in FEATURES.values()
        if feature.node and enabled(config, feature.name) and not lacking(feature)
    ]


def _no_link(kind: str) -> str:
    """Return why network devices of ``kind`` cannot be made on this kernel, "" when they can.

    Tried in a network namespace that ends with the process that has it: no file says so.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    from runtime import syscalls

    child = syscalls.fork()
    if child == 0:
        status = 1
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            with IPRoute() as route:
                route.link("add", ifname="probe", kind=kind)
            status = 0
        except NetlinkError:
            pass
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        return ""
    return f"this kernel has no network devices of kind {kind}"


def host_id(paths: Paths) -> Path:
    """Return the directory with the file ``server-id`` that is shown inside at /dev/vz.

    The id is made once, in /etc/vz/server-id, and may be replaced there. Raises OSError.
    """
    from runtime import files, registry

    own = paths.etc / "server-id"
    try:
        text = own.read_bytes()
    except FileNotFoundError:
        text = f"{registry.new_uuid()}\n".encode()
        own.parent.mkdir(parents=True, exist_ok=True)
        files.replace(own, text, mode=0o644)
    shown = paths.run / "host-id"
    shown.mkdir(mode=0o755, parents=True, exist_ok=True)
    files.replace(shown / "server-id", text, mode=0o444, durable=False)
    return shown
