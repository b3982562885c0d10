"""The parent of a libvirtd of our own: gives it private directories and reaps its orphans at once.

Run as ``python -m vmm.reaper DIR PROGRAM [ARGUMENT…]``; it takes a mount namespace of its own. QEMU
detaches from libvirtd; on a system whose first process reaps late (or never) its zombies would look
like running machines. This process is their subreaper (prctl(2)) and lives until the last is gone.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from runtime import syscalls

# linux/mount.h
_MS_BIND = 4096
_MS_SLAVE = 1 << 19
#: What libvirtd has compiled in, and the directory below DIR which it sees there.
PLACES = (
    ("/etc/libvirt", "etc"),
    ("/run/libvirt", "run"),
    ("/var/lib/libvirt", "lib"),
    ("/var/cache/libvirt", "cache"),
    ("/var/log/libvirt", "log"),
)


def main(argv: list[str]) -> int:
    """Run the program; return its status when it and everything it left behind have ended."""
    directory = Path(argv[0])
    syscalls.unshare(syscalls.CLONE_NEWNS)
    # What the server mounts later (a disk with images) is seen here; our mounts are not seen there.
    syscalls.mount(None, "/", None, syscalls.MS_REC | _MS_SLAVE)
    for place, name in PLACES:
        (directory / name).mkdir(parents=True, exist_ok=True)
        Path(place).mkdir(parents=True, exist_ok=True)
        syscalls.mount(os.fspath(directory / name), place, None, _MS_BIND)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    pid = os.posix_spawn(argv[1], argv[1:], os.environ)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: _pass_on(pid, number))
    result = 0
    while True:
        try:
            child, status = os.wait()
        except ChildProcessError:
            return result
        if child == pid:
            result = os.waitstatus_to_exitcode(status) & 0xFF


def _pass_on(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
