"""Gives USB devices to running machines as they appear: ``python -m vmm.usbwatch ROOT``.

It hears of devices from the kernel itself (netlink, NETLINK_KOBJECT_UEVENT), so that it works with
and without udev. One per system; it ends when no running machine has devices assigned.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
from pathlib import Path

from runtime import locks
from runtime.errors import VzError
from runtime.log import Log
from runtime.net.server import server_file
from runtime.paths import Paths
from runtime.progress import Silent
from vmm import usb
from vmm.connection import Hypervisor
from vmm.machine import Machine

#: linux/netlink.h; group 1 is what the kernel says itself, 2 what udev says afterwards.
_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
#: How often it looks whether it is still needed.
_LOOK_S = 15.0
#: A device brings several events (itself, its interfaces): the machine is served once for all.
_GATHER_S = 0.5


def uevent_socket() -> socket.socket:
    """Return a socket that receives the kernel's device events; raises OSError."""
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _KOBJECT_UEVENT
    )
    made.bind((0, _KERNEL_GROUP))
    return made


def fields(message: bytes) -> dict[str, str]:
    """Return the variables of an event ("add@/devices/…", then KEY=VALUE, NUL-separated)."""
    words = message.decode("utf-8", "replace").split("\0")[1:]
    return dict(word.split("=", 1) for word in words if "=" in word)


def is_usb_device(message: bytes) -> bool:
    """Whether a device (not one of its interfaces) was plugged in or out."""
    found = fields(message)
    return (
        found.get("SUBSYSTEM") == "usb"
        and found.get("DEVTYPE") == "usb_device"
        and found.get("ACTION") in ("add", "remove")
    )


def serve(paths: Paths) -> None:
    """Bring every machine that waits for devices in line with what is plugged in now."""
    uri = server_file(paths).get("LIBVIRT_URI")
    for record in usb.waiting(paths):
        try:
            with (
                locks.environment(paths, record.uuid, "usb", timeout_s=60),
                Hypervisor(paths, uri=uri or None) as way,
            ):
                usb.plug_in(Machine(paths, record, way, Silent()))
        except VzError as error:
            Log(paths.log, program="usbwatch").write(f"{record.name}: {error.message}")


def run(paths: Paths) -> int:
    """Watch until no machine needs it; return 0, at once when another one watches."""
    paths.run.mkdir(parents=True, exist_ok=True)
    lock = os.open(paths.run / "usbwatch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    with uevent_socket() as events:
        # What came before we listened.
        serve(paths)
        while usb.waiting(paths):
            if not select.select([events], [], [], _LOOK_S)[0]:
                continue
            plugged = False
            while select.select([events], [], [], _GATHER_S)[0]:
                plugged |= is_usb_device(events.recv(1 << 16))
            if plugged:
                serve(paths)
    return 0


if __name__ == "__main__":
    sys.exit(run(Paths(Path(sys.argv[1]))))
