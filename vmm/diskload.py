"""How much a machine may do with the server's disks: priority, bandwidth, operations."""

from __future__ import annotations

import os
from collections.abc import Callable

from lxml.builder import E

from runtime import units
from runtime.errors import InvalidValue, IoFailed
from vmm import devices
from vmm.change import Change
from vmm.domain import child, drop
from vmm.words import whole

_TAIL = ("os", "features", "cpu", "clock", "devices")


def ioprio(change: Change, text: str) -> None:
    """Set the disk priority 0 to 7; raises InvalidValue, IoFailed."""
    level = whole(text, 0, 7, "the disk priority")
    # As for containers: 0 → 10, 4 → 500, 7 → 1000 (io.weight and blkio.weight take 10 to 1000).
    weight = 10 + level * 990 // 7
    if _has_io_weight():
        tune = child(change.domain.root, "blkiotune", before=_TAIL)
        child(tune, "weight").text = str(weight)
    elif change.running:
        change.machine.progress.warn(
            "the kernel has no disk weights (BFQ): --ioprio is stored, and holds where it has"
        )
    change.domain.set_setting("ioprio", str(level))
    change.say(f"Set the ioprio parameter to {level}")
    if _has_io_weight():
        change.hot("set the disk priority", lambda: _weight(change, weight))


def iolimit(change: Change, text: str) -> None:
    """Set how many bytes a second all disks together move; raises InvalidValue."""
    limit = units.amount(text if not text.strip().isdecimal() else f"{text}M")
    if limit > 2 << 30:
        raise InvalidValue(f"the I/O limit is at most 2G a second: {text}")
    change.domain.set_setting("iolimit", str(limit) if limit else None)
    change.say(f"Set the iolimit parameter to {limit} bytes/s")
    fit_throttle(change)


def iopslimit(change: Change, text: str) -> None:
    """Set how many operations a second all disks together do; raises InvalidValue."""
    limit = whole(text, 0, 10**9, "the limit of operations")
    change.domain.set_setting("iopslimit", str(limit) if limit else None)
    change.say(f"Set the iopslimit parameter to {limit}")
    fit_throttle(change)


def fit_throttle(change: Change) -> None:
    """Give every hard disk the machine's limits; one group makes them hold for all together."""
    values = {
        "total_bytes_sec": int(change.domain.setting("iolimit", "0")),
        "total_iops_sec": int(change.domain.setting("iopslimit", "0")),
    }
    for disk in devices.disks(change.domain):
        limited = disk.element.find("iotune") is not None
        drop(disk.element, "iotune")
        if not limited and not any(values.values()):
            continue
        if any(values.values()):
            tune = E.iotune(*(E(name, str(value)) for name, value in values.items() if value))
            tune.append(E.group_name("machine"))
            child(disk.element, "target").addnext(tune)
        change.hot("set the disk limits", _throttle(change, disk.target, values))


def _throttle(change: Change, target: str, values: dict[str, int]) -> Callable[[], None]:
    def act() -> None:
        import libvirt

        words: dict[str, int | str] = {**values}
        # libvirt refuses a group without any limit: that takes the disk out of it.
        if any(values.values()):
            words["group_name"] = "machine"
        change.raw.setBlockIoTune(target, words, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    return act


def _has_io_weight() -> bool:
    return any(
        os.path.exists(path)
        for path in (
            "/sys/fs/cgroup/blkio/blkio.weight",
            "/sys/fs/cgroup/blkio/blkio.bfq.weight",
            "/sys/fs/cgroup/system.slice/io.weight",
            "/sys/fs/cgroup/system.slice/io.bfq.weight",
        )
    )


def _weight(change: Change, weight: int) -> None:
    import libvirt

    try:
        change.raw.setBlkioParameters({"weight": weight}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        raise IoFailed(f"cannot set the disk priority: {error.get_error_message()}") from error
