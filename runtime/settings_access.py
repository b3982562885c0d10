"""Settings that say what a container may do: capabilities, features, devices, bind mounts.

Sources: vzctl(8), ctid.conf(5), capabilities(7).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from runtime import features
from runtime.errors import InvalidValue, PciFailed
from runtime.settings import Setting, whole, yes_no

_LIVE_DEVICES = "runtime.resources_devices:apply"

#: Capabilities by their name without CAP_, in the order of capabilities(7); setveid and ve_admin
#: of the OpenVZ kernel are accepted in files and mean nothing today.
CAPABILITIES = (
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "setveid",
    "ve_admin",
)


def switches(
    known: Collection[str],
    what: str,
    *,
    upper: bool,
    possible: Callable[[str, bool], None] | None = None,
) -> Callable[[str], str]:
    """Return a check for ``NAME:on|off[,NAME:on|off…]`` with names out of ``known``.

    ``possible`` raises what it has against switching a name.
    """

    def check(text: str) -> str:
        words = []
        for word in re.split(r"[,\s]+", text.strip()):
            name, _, state = word.partition(":")
            name, state = name.lower().removeprefix("cap_"), state.lower()
            if name not in known:
                raise InvalidValue(
                    f"unknown {what}: {name!r}", hint=f"known are: {', '.join(known)}"
                )
            if state not in ("on", "off"):
                raise InvalidValue(f"neither on nor off: {word!r}", hint=f"write {name}:on")
            if possible is not None:
                possible(name, state == "on")
            words.append(f"{name.upper() if upper else name}:{state}")
        return " ".join(words)

    return check


def merge_words(stored: str | None, checked: Sequence[str]) -> str | None:
    """Merge ``NAME:VALUE`` words into the stored ones: a name keeps its place, the last one wins."""
    words: dict[str, str] = {}
    for word in " ".join([(stored or "").replace(",", " "), *checked]).split():
        words[word.rpartition(":")[0].lower()] = word
    return " ".join(words.values()) or None


def merge_grants(stored: str | None, checked: Sequence[str]) -> str | None:
    """Merge ``DEVICE:RIGHTS`` words; the right ``none`` takes the device away, alone all of them."""
    if "none" in checked:
        last = len(checked) - 1 - checked[::-1].index("none")
        stored, checked = None, checked[last + 1 :]
    merged = merge_words(stored, checked) or ""
    return " ".join(word for word in merged.split() if not word.endswith(":none")) or None


def _rights(text: str, word: str) -> str:
    if text == "none":
        return text
    if not text or set(text) - set("rwq") or len(set(text)) != len(text):
        raise InvalidValue(f"not rights on a device: {word!r}", hint="write r, w, q, or none")
    return "".join(letter for letter in "rwq" if letter in text)


def devices(text: str) -> str:
    """Check ``b|c:MAJOR:MINOR|all:RIGHTS`` or ``none``; raises InvalidValue."""
    if text == "none":
        return text
    match = re.fullmatch(r"([bc]):([0-9]{1,4}):(all|\*|[0-9]{1,7}):([a-z]+)", text)
    if match is None:
        raise InvalidValue(
            f"not a device: {text!r}", hint="write b|c:MAJOR:MINOR|all:[r][w][q], or none"
        )
    major, minor = int(match[2]), match[3]
    # Device numbers are 12 and 20 bits wide (include/linux/kdev_t.h).
    if major >= 1 << 12 or (minor.isdecimal() and int(minor) >= 1 << 20):
        raise InvalidValue(f"there is no such device number: {text!r}")
    minor = str(int(minor)) if minor.isdecimal() else "all"
    return f"{match[1]}:{major}:{minor}:{_rights(match[4], text)}"


def devnodes(text: str) -> str:
    """Check ``NAME:RIGHTS``, NAME a device node below /dev, or ``none``; raises InvalidValue."""
    if text == "none":
        return text
    name, colon, rights = text.rpartition(":")
    name = name.removeprefix("/dev/")
    parts = name.split("/")
    bad = any(part in ("", ".", "..") for part in parts) or re.search(r"[\s:\"'\\$`]", name)
    if not colon or bad:
        raise InvalidValue(f"not a device node: {text!r}", hint="write NAME:[r][w][q], or none")
    return f"{name}:{_rights(rights, text)}"


_BIND_FLAGS = frozenset(("nosuid", "noexec", "nodev", "ro"))


def bindmount(text: str) -> str:
    """Check ``[SOURCE:]TARGET[,nosuid,noexec,nodev,ro]``; raises InvalidValue.

    A source that is no directory of this server is refused: the container would not start again.
    """
    place, *flags = text.split(",")
    source, _, target = place.rpartition(":")
    unknown = set(flags) - _BIND_FLAGS
    if unknown:
        raise InvalidValue(
            f"unknown mount option: {', '.join(sorted(unknown))}",
            hint=f"known are: {', '.join(sorted(_BIND_FLAGS))}",
        )
    for path in (source, target) if source else (target,):
        if not path.startswith("/") or ".." in path.split("/") or re.search(r"[\s:\"'\\$`]", path):
            raise InvalidValue(f"not an absolute path without blanks or '..': {path!r}")
    clean = os.path.normpath(target)
    if clean == "/":
        raise InvalidValue("nothing can be mounted over the container's root")
    if source and not os.path.isdir(source):
        raise InvalidValue(f"{source} is no directory of this server", hint="make it first")
    head = f"{os.path.normpath(source)}:{clean}" if source else f":{clean}"
    return ",".join([head, *sorted(set(flags))])


def merge_bindmounts(stored: str | None, checked: Sequence[str]) -> str | None:
    """Add bind mounts; one with the same target replaces the older one."""
    mounts = {_target(word): word for word in (stored or "").split()}
    mounts.update({_target(word): word for word in checked})
    return " ".join(mounts.values()) or None


def remove_bindmounts(stored: str | None, checked: Sequence[str]) -> str | None:
    """Remove the bind mounts with these targets (``all``: every one); raises InvalidValue."""
    mounts = {_target(word): word for word in (stored or "").split()}
    for target in checked:
        if target == "all":
            mounts.clear()
        elif mounts.pop(os.path.normpath(target), None) is None:
            raise InvalidValue(f"nothing is mounted by BINDMOUNT at {target}")
    return " ".join(mounts.values()) or None


def _target(word: str) -> str:
    return word.partition(",")[0].rpartition(":")[2]


def pci_add(text: str) -> str:
    """Refuse a PCI device, telling how its parts get inside; raises InvalidValue, PciFailed."""
    name = _pci(text)
    place = Path("/sys/bus/pci/devices") / name
    if not place.is_dir():
        raise PciFailed(f"this server has no PCI device {name}")
    links = sorted(path.name for path in place.glob("net/*"))
    raise PciFailed(
        f"a container has no PCI bus: device {name} cannot be given to it",
        hint=f"--netdev_add {links[0]} gives it the network interface"
        if links
        else "--devnodes gives it the device's node in /dev; a virtual machine takes all of it",
    )


def _pci(text: str) -> str:
    """Return a PCI address with its domain (lspci(8), -D); raises InvalidValue."""
    match = re.fullmatch(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.lower())
    if match is None:
        raise InvalidValue(f"not a PCI device: {text!r}", hint="write [DOMAIN:]BUS:SLOT.FUNCTION")
    return f"{match[1] or '0000'}:{match[2]}"


def remove_pci(stored: str | None, checked: Sequence[str]) -> str | None:
    """Remove PCI devices which an old configuration names; raises PciFailed."""
    words = (stored or "").split()
    for name in checked:
        left = [word for word in words if word.lower() not in (name, name.removeprefix("0000:"))]
        if left == words:
            raise PciFailed(f"the container has no PCI device {name}")
        words = left
    return " ".join(words) or None


ROWS = (
    Setting(
        "capability",
        "CAPABILITY",
        "a capability to give or take",
        check=switches(CAPABILITIES, "capability", upper=True),
        metavar="NAME:on|off",
        merge=merge_words,
        group="Rights",
    ),
    Setting(
        "features",
        "FEATURES",
        "a feature to switch",
        check=switches(features.FEATURES, "feature", upper=False, possible=features.check),
        metavar="NAME:on|off",
        merge=merge_words,
        group="Rights",
    ),
    Setting(
        "devices",
        "DEVICES",
        "access to a device by number; RIGHTS of r, w, q, or none",
        check=devices,
        metavar="b|c:MAJOR:MINOR|all:RIGHTS|none",
        merge=merge_grants,
        live=_LIVE_DEVICES,
        group="Rights",
    ),
    Setting(
        "devnodes",
        "DEVNODES",
        "access to a device by its node in the server's /dev; RIGHTS as above",
        check=devnodes,
        metavar="NAME:RIGHTS|none",
        merge=merge_grants,
        live=_LIVE_DEVICES,
        group="Rights",
    ),
    Setting(
        "bindmount_add",
        "BINDMOUNT",
        "a directory of the server to show inside; without SOURCE a private one",
        check=bindmount,
        metavar="[SOURCE:]TARGET[,FLAG…]",
        merge=merge_bindmounts,
        group="Mounts",
    ),
    Setting(
        "bindmount_del",
        "BINDMOUNT",
        "a bind mount to remove, or all",
        metavar="TARGET|all",
        merge=remove_bindmounts,
        group="Mounts",
    ),
    Setting(
        "noatime",
        "NOATIME",
        "do not record when files were read",
        check=yes_no,
        choices=("yes", "no"),
        group="Mounts",
    ),
    Setting(
        "pci_add",
        "PCI",
        "refused: a container has no PCI bus (--netdev_add, --devnodes)",
        check=pci_add,
        metavar="[DOMAIN:]BUS:SLOT.FUNCTION",
        group="Obsolete",
    ),
    Setting(
        "pci_del",
        "PCI",
        "a PCI device of an old configuration to forget",
        check=_pci,
        metavar="[DOMAIN:]BUS:SLOT.FUNCTION",
        merge=remove_pci,
        group="Obsolete",
    ),
    Setting(
        "class_id",
        "CLASSID",
        "traffic class (obsolete; kept in the file)",
        check=whole(0, 15),
        metavar="N",
        group="Obsolete",
    ),
    Setting(
        "offline_management",
        "OFFLINE_MANAGEMENT",
        "management panel (obsolete; kept in the file)",
        check=yes_no,
        choices=("yes", "no"),
        group="Obsolete",
    ),
    Setting(
        "offline_service",
        "OFFLINE_SERVICE",
        "services of the management panel (obsolete; kept in the file)",
        metavar="NAME…",
        group="Obsolete",
    ),
)
