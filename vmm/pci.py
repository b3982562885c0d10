"""PCI devices of the server handed to a machine (VFIO): what there is, and what stands against it.

Source: kernel Documentation/driver-api/vfio.rst (groups), ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import DevicesFailed, InvalidValue
from runtime.paths import Paths
from runtime.registry import printable
from vmm import registry
from vmm.change import Change
from vmm.domain import Domain
from vmm.peripherals import Pci

_SYSFS = Path("/sys")
_ADDRESS = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
#: PCI class of bridges (pci_ids.h): those of a group stay with the server.
_BRIDGE = "0x0604"


@dataclass(frozen=True, slots=True)
class Host:
    """The server's PCI devices as sysfs shows them."""

    sysfs: Path = _SYSFS

    def find(self, word: str) -> str:
        """Return the full address of a device given by address or interface name.

        Raises DevicesFailed, InvalidValue.
        """
        interface = self.sysfs / "class/net" / word / "device"
        if "/" not in word and interface.exists():
            word = os.path.basename(os.path.realpath(interface))
        domain, bus, slot, function = _parts(word)
        address = f"{domain}:{bus}:{slot}.{function}"
        if not self._place(address).is_dir():
            raise DevicesFailed(f"the server has no PCI device {address}", hint="lspci -D")
        return address

    def check(self, address: str) -> list[str]:
        """Return the other devices that go to the machine with one; raises DevicesFailed.

        Devices of one IOMMU group cannot be told apart by the hardware, so none of them may stay in
        use by the server.
        """
        place = self._place(address)
        if self._read(place, "class").startswith(_BRIDGE):
            raise DevicesFailed(f"{address} is a PCI bridge: bridges stay with the server")
        group = place / "iommu_group"
        if not group.exists():
            raise DevicesFailed(
                f"{address} cannot be given to a machine: this server has no IOMMU in use",
                hint="turn on VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on",
            )
        members = sorted(os.listdir(group / "devices"))
        return [
            other
            for other in members
            if other != address and not self._read(self._place(other), "class").startswith(_BRIDGE)
        ]

    def interfaces(self, address: str) -> list[str]:
        """Return the server's network interfaces on a device."""
        place = self._place(address) / "net"
        return sorted(os.listdir(place)) if place.is_dir() else []

    def _place(self, address: str) -> Path:
        return self.sysfs / "bus/pci/devices" / address

    def _read(self, place: Path, name: str) -> str:
        try:
            return (place / name).read_text(encoding="ascii").strip()
        except OSError:
            return ""


def new(change: Change, word: str | None, host: Host | None = None) -> Pci:
    """Return a device of the server for a machine; raises DevicesFailed, InvalidValue."""
    host = host or Host()
    if word is None:
        raise InvalidValue("which PCI device?", hint="--device 0000:01:00.0, as lspci -D shows it")
    address = host.find(word)
    others = host.check(address)
    holder = _holder(change.machine.paths, address)
    if holder is not None:
        raise DevicesFailed(f"{address} is given to machine {holder} already")
    for name in host.interfaces(address):
        change.machine.progress.warn(f"{name} leaves the server as soon as the machine has it")
    if others:
        change.machine.progress.warn(
            f"{', '.join(others)} share {address}'s IOMMU group: the server must not use them"
        )
    return Pci.new(address)


def _holder(paths: Paths, address: str) -> str | None:
    for record in registry.records(paths):
        if record.config.is_file():
            for element in Domain.load(record.config).devices.findall("hostdev"):
                if element.get("type") == "pci" and Pci(element).address == address:
                    return record.name
    return None


def _parts(word: str) -> tuple[str, str, str, str]:
    match = _ADDRESS.fullmatch(word.strip().lower())
    if match is None:
        raise InvalidValue(
            f"neither a PCI address nor an interface: {printable(word)}",
            hint="0000:01:00.0, as lspci -D shows it",
        )
    return match[1] or "0000", match[2], match[3], match[4]
