"""What must not be the same in two containers, or come from the server: reset in every tree."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from templates import inspection

_EMPTIED = ("etc/resolv.conf", "etc/machine-id", "etc/fstab")
_REMOVED = (
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/cache/ldconfig/aux-cache",
    "etc/.pwd.lock",
)
_HOSTS = """\
127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
"""


def reset(tree: Path) -> None:
    """Take everything out of a new tree that is this server's or would be every container's.

    Host name, name servers, machine id, host keys of the secure shell, logs, temporary files, the
    content of /dev, /proc, /run and /sys. Raises OSError.
    """
    for name in _EMPTIED:
        path = tree / name
        if path.parent.is_dir():
            with suppress(FileNotFoundError):
                path.unlink()
            path.touch(mode=0o644)
            os.chmod(path, 0o644)
    for name in _REMOVED:
        (tree / name).unlink(missing_ok=True)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    if (tree / "etc").is_dir():
        _write(tree / "etc/hostname", "localhost\n")
        _write(tree / "etc/hosts", _HOSTS)
    for place in ("dev", "proc", "run", "sys", "tmp", "var/tmp"):
        real = inspection.resolve(tree, place)
        if real is not None and real.is_dir() and real != tree:
            _empty(real)
    log = tree / "var/log"
    if log.is_dir():
        for place, _directories, names in os.walk(log):
            for name in names:
                os.unlink(os.path.join(place, name))


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
    os.chmod(path, 0o644)


def _empty(directory: Path) -> None:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
