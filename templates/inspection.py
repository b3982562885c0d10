"""What a file tree is: its init, its packages; read without running anything of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from vzfs import syscalls

#: The signal that makes each init halt: systemd(1) SIGRTMIN+3, sysvinit's powerfail entry,
#: busybox init's poweroff. Without an init the first process is ended like any other.
HALT_SIGNALS = {
    "systemd": signal.SIGRTMIN + 3,
    "sysvinit": signal.SIGPWR,
    "openrc": signal.SIGUSR2,
    "busybox": signal.SIGUSR2,
    "none": signal.SIGTERM,
}

_PATH = os.O_PATH | os.O_CLOEXEC
_RESOLVE_IN_ROOT = 0x10  # linux/openat2.h


def resolve(tree: Path, path: str) -> Path | None:
    """Return where ``path`` leads inside ``tree``, links followed as if it were the root.

    None when nothing is there.
    """
    root = os.open(tree, _PATH | os.O_DIRECTORY)
    try:
        fd = syscalls.openat2(root, os.fsencode(path.lstrip("/") or "."), _PATH, _RESOLVE_IN_ROOT)
    except OSError:
        return None
    finally:
        os.close(root)
    try:
        return Path(os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def init_of(tree: Path) -> str:
    """Return which init the tree boots with: a key of `HALT_SIGNALS`."""
    for place in ("/sbin/init", "/usr/sbin/init", "/init"):
        found = resolve(tree, place)
        if found is None or not found.is_file():
            continue
        if found.name == "systemd":
            return "systemd"
        if "busybox" in found.name:
            return "openrc" if resolve(tree, "/sbin/openrc") else "busybox"
        return "sysvinit"
    return "none"


def dpkg_stanzas(tree: Path) -> Iterator[dict[str, str]]:
    """Yield the fields of every installed package of dpkg's database (dpkg(1), status file)."""
    try:
        text = (tree / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("\n"):
            if line[:1] in (" ", "\t"):
                fields[key] = fields.get(key, "") + "\n" + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields.get("Status", "").endswith(" installed"):
            yield fields


def packages_of(tree: Path) -> tuple[tuple[str, str, str], ...]:
    """Return (name, version, architecture) of every installed package, sorted."""
    return tuple(
        sorted(
            (fields["Package"], fields["Version"], fields.get("Architecture", ""))
            for fields in dpkg_stanzas(tree)
        )
    )


def package_directory(name: str, version: str, arch: str) -> str:
    """Return the name of a package's directory: ``name-epoch:version-release.arch``."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, release = rest.rpartition("-")
    if not dash:
        upstream, release = rest, "0"
    return f"{name}-{epoch}:{upstream}-{release}.{arch}"
