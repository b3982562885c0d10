"""Places of disks on their interfaces: which are free, which are taken and by whom."""

from __future__ import annotations

from runtime.errors import DevicesFailed, InvalidValue
from vmm.devices import BUSES, Disk, all_of
from vmm.domain import Domain


def free_position(domain: Domain, bus: str) -> int:
    """Return the first free position of an interface; raises DevicesFailed when it is full."""
    taken = _positions(domain, bus)
    for position in range(BUSES[bus][2]):
        if position not in taken:
            return position
    raise DevicesFailed(
        f"all {BUSES[bus][2]} positions of {bus} are in use", hint="choose another --iface"
    )


def check_position(domain: Domain, bus: str, position: int) -> int:
    """Return ``position`` if a disk can be put there; raises InvalidValue, DevicesFailed."""
    most = BUSES[bus][2]
    if not 0 <= position < most:
        raise InvalidValue(f"{bus} has the positions 0 to {most - 1}: {position}")
    holder = _positions(domain, bus).get(position)
    if holder is not None:
        raise DevicesFailed(f"position {position} of {bus} is used by {holder}")
    return position


def _positions(domain: Domain, bus: str) -> dict[int, str]:
    return {
        device.position: device.name
        for device in all_of(domain)
        if isinstance(device, Disk) and device.bus == bus
    }
