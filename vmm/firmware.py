"""The firmware of a machine: a BIOS, or UEFI whose variables are kept in the bundle.

Which UEFI image fits the machine is chosen by libvirt from the descriptions that its packages
install (libvirt.org/kbase/secureboot.html, qemu docs/interop/firmware.json).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lxml.builder import E

from runtime import units
from runtime.errors import NoKernelSupport, SnapshotFailed
from vmm.domain import Domain, child, drop

if TYPE_CHECKING:
    from vmm.change import Change

#: The variables of a machine, in its bundle: libvirt's own place does not outlive a reboot.
VARIABLES = "nvram.fd"
_DESCRIPTIONS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))


def is_efi(domain: Domain) -> bool:
    """Whether the machine boots by UEFI firmware."""
    system = domain.root.find("os")
    if system is None:
        return False
    loader = system.find("loader")
    return system.get("firmware") == "efi" or (
        loader is not None and loader.get("type") == "pflash"
    )


def efi_boot(change: Change, text: str) -> None:
    """Boot by UEFI firmware instead of a BIOS, or back.

    Raises NoKernelSupport (no firmware is installed), SnapshotFailed.
    """
    from vmm import snapshots

    on = units.yes_no(text)
    system = child(change.domain.root, "os")
    for name in ("loader", "nvram", "firmware"):
        drop(system, name)
    system.attrib.pop("firmware", "")
    if on:
        if not any(place.glob("*.json") for place in _DESCRIPTIONS if place.is_dir()):
            raise NoKernelSupport(
                "no UEFI firmware for machines is installed", hint="apt-get install ovmf"
            )
        if snapshots.exist(change.machine.record):
            raise SnapshotFailed(
                f"machine {change.machine.label} has snapshots, which UEFI firmware excludes",
                hint="delete the snapshots first",
            )
        system.set("firmware", "efi")
        nvram = E.nvram(str(change.machine.record.home / VARIABLES))
        child(system, "type").addnext(nvram)
    change.say(f"Set the efi-boot parameter to {'on' if on else 'off'}")
    change.later("--efi-boot")
