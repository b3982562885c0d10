"""Counters of running machines, under the names of the product (``devices.ide0.read_total``…)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm import devices
from vmm.domain import Domain
from vmm.faults import AgentSilent, translated

if TYPE_CHECKING:
    from vmm.machine import Machine

_KIB = 1024


def read(machine: Machine, *, file_systems: bool = True) -> dict[str, int]:
    """Return the counters of a machine; ``file_systems`` asks its agent too. Raises NotRunning.

    Sizes are bytes, times nanoseconds, but guest.ram.* KiB as in the product.
    """
    raw = machine.running()
    with translated(f"statistics of {machine.label}"):
        numbers = machine.hypervisor.raw.domainListGetStats([raw], 0, 0)[0][1]
    live = machine.live()
    found = {**_disks(live, numbers), **_adapters(live, numbers), **_memory(numbers)}
    found["guest.cpu.time"] = numbers.get("cpu.time", 0)
    found["guest.cpu.count"] = numbers.get("vcpu.current", 0)
    if "balloon.rss" in numbers:
        found["host.ram.used"] = numbers["balloon.rss"]
    uptime = _uptime(machine)
    if uptime is not None:
        found["guest.uptime"] = uptime
    if file_systems:
        found.update(_file_systems(machine))
    return found


def _disks(live: Domain, numbers: dict[str, Any]) -> dict[str, int]:
    names = {
        device.target: f"{device.bus}{device.position}"
        for device in devices.all_of(live)
        if isinstance(device, devices.Disk)
    }
    found = {}
    for index in range(numbers.get("block.count", 0)):
        name = names.get(numbers.get(f"block.{index}.name", ""))
        if name is None:
            continue
        for theirs, ours in (
            ("rd.bytes", "read_total"), ("rd.reqs", "read_requests"),
            ("wr.bytes", "write_total"), ("wr.reqs", "write_requests"),
            ("fl.reqs", "flush_requests"), ("allocation", "allocation"),
        ):  # fmt: skip
            value = numbers.get(f"block.{index}.{theirs}")
            if value is not None:
                found[f"devices.{name}.{ours}"] = value
    return found


def _adapters(live: Domain, numbers: dict[str, Any]) -> dict[str, int]:
    names = {adapter.host_device: adapter.number for adapter in devices.adapters(live)}
    found = {}
    for index in range(numbers.get("net.count", 0)):
        number = names.get(numbers.get(f"net.{index}.name", ""))
        if number is None:
            continue
        # What the server's end received, the guest sent.
        for theirs, ours in (
            ("tx.bytes", "bytes_in"), ("tx.pkts", "pkts_in"),
            ("rx.bytes", "bytes_out"), ("rx.pkts", "pkts_out"),
        ):  # fmt: skip
            found[f"net.nic{number}.{ours}"] = numbers.get(f"net.{index}.{theirs}", 0)
    return found


def _memory(numbers: dict[str, Any]) -> dict[str, int]:
    found = {"guest.ram.balloon_actual": numbers.get("balloon.current", 0)}
    names = {
        "balloon.available": "guest.ram.total",
        "balloon.usable": "guest.ram.usable",
        "balloon.unused": "guest.ram.free",
        "balloon.swap_in": "guest.ram.swapin",
        "balloon.swap_out": "guest.ram.swapout",
        "balloon.disk_caches": "guest.ram.cached",
    }
    found.update({ours: numbers[key] for key, ours in names.items() if key in numbers})
    if "guest.ram.total" in found and "guest.ram.free" in found:
        found["guest.ram.usage"] = found["guest.ram.total"] - found["guest.ram.free"]
    return found


def _file_systems(machine: Machine) -> dict[str, int]:
    try:
        mounted = machine.agent().call("guest-get-fsinfo")
    except AgentSilent:
        return {}
    found = {}
    for index, entry in enumerate(item for item in mounted if "total-bytes" in item):
        found[f"guest.fs{index}.total"] = entry["total-bytes"] // _KIB
        found[f"guest.fs{index}.free"] = (entry["total-bytes"] - entry["used-bytes"]) // _KIB
    return found


def _uptime(machine: Machine) -> int | None:
    from vmm import status

    _, pid = status.process(machine.paths, machine.record)
    seconds = status.uptime_s(pid) if pid is not None else None
    return round(seconds) if seconds is not None else None
