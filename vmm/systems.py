"""Guest operating systems: what a machine for each looks like before anything is installed."""

from __future__ import annotations

from dataclasses import dataclass

_GIB = 1 << 30
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class System:
    """The hardware a guest system is given by default; sizes in bytes."""

    name: str
    family: str
    title: str
    disk_bus: str = "virtio"
    card: str = "virtio"
    memory_bytes: int = _GIB
    disk_bytes: int = 64 * _GIB
    #: Windows keeps local time in the hardware clock.
    clock: str = "utc"
    usb: str = "qemu-xhci"


_ROWS = (
    System("linux", "linux", "Other Linux"),
    System("debian", "linux", "Debian"),
    System("ubuntu", "linux", "Ubuntu", memory_bytes=2 * _GIB),
    System("rhel", "linux", "Red Hat Enterprise Linux", memory_bytes=2 * _GIB),
    System("centos", "linux", "CentOS", memory_bytes=2 * _GIB),
    System("fedora", "linux", "Fedora", memory_bytes=2 * _GIB),
    System("sles", "linux", "SUSE Linux Enterprise Server", memory_bytes=2 * _GIB),
    System("suse", "linux", "openSUSE", memory_bytes=2 * _GIB),
    System("golden", "linux", "Small Linux guest built from Debian packages",
           memory_bytes=256 * _MIB, disk_bytes=256 * _MIB),
    System("win-2022", "windows", "Windows Server 2022", "sata", "e1000e", 4 * _GIB, clock="localtime"),
    System("win-2019", "windows", "Windows Server 2019", "sata", "e1000e", 4 * _GIB, clock="localtime"),
    System("win-2008", "windows", "Windows Server 2008", "ide", "e1000", 2 * _GIB, clock="localtime",
           usb="ich9-ehci1"),
    System("win-11", "windows", "Windows 11", "sata", "e1000e", 4 * _GIB, clock="localtime"),
    System("win-10", "windows", "Windows 10", "sata", "e1000e", 4 * _GIB, clock="localtime"),
    System("win-7", "windows", "Windows 7", "ide", "e1000", 2 * _GIB, clock="localtime",
           usb="ich9-ehci1"),
    System("windows", "windows", "Other Windows", "sata", "e1000e", 4 * _GIB, clock="localtime"),
    System("freebsd", "freebsd", "FreeBSD"),
    System("openbsd", "freebsd", "OpenBSD"),
    System("solaris", "solaris", "Solaris", "sata", "e1000", 2 * _GIB, usb="ich9-ehci1"),
    System("other", "other", "Other system", "ide", "e1000", usb="ich9-ehci1"),
)  # fmt: skip

SYSTEMS = {row.name: row for row in _ROWS}
#: --ostype: what stands for a whole family.
FAMILIES = {"linux": "linux", "windows": "windows", "freebsd": "freebsd", "solaris": "solaris",
            "other": "other"}  # fmt: skip


def choose(distribution: str | None, family: str | None) -> tuple[System, bool]:
    """Return the hardware for a system, and whether its name is known.

    An unknown name is accepted (the guest does not care what we call it) as "other".
    """
    word = (distribution or FAMILIES.get((family or "linux").lower(), family) or "linux").lower()
    found = SYSTEMS.get(word)
    if found is not None:
        return found, True
    nearest = next((row for name, row in SYSTEMS.items() if word.startswith(name)), None)
    return nearest or SYSTEMS["other"], False


def listing() -> str:
    """Return the table ``--distribution list`` prints."""
    width = max(len(name) for name in SYSTEMS) + 2
    lines = ["The following values are allowed:"]
    lines += [f"  {row.name:<{width}}{row.title}" for row in _ROWS]
    return "\n".join(lines)
