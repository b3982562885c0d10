"""The memory of a machine: size, plugging, and the balloon that gives some back."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from lxml.builder import E

from runtime import units
from runtime.errors import InvalidValue, ValidationFailed
from vmm.domain import Domain, child, drop
from vmm.faults import AgentSilent

if TYPE_CHECKING:
    from vmm.change import Change

_MIB = 1 << 20
SMALLEST_BYTES = 32 * _MIB
LARGEST_BYTES = 1 << 43
#: Linux adds memory in sections of 128 MiB (x86-64, SECTION_SIZE_BITS 27).
_BLOCK_BYTES = 128 * _MIB
_SLOTS = 16
_TAIL = ("memory", "currentMemory", "vcpu", "os", "devices")
_AFTER = ("os", "features", "cpu", "clock", "devices")


def memsize(change: Change, text: str) -> None:
    """Set the memory; more can be plugged into a running machine with --mem-hotplug.

    Raises InvalidValue, ValidationFailed.
    """
    size = _size(text)
    domain = change.domain
    before = _plugged(change) if change.running else domain.memory_bytes
    limit = domain.root.find("maxMemory")
    if size > _server_bytes():
        change.machine.progress.warn(f"the server has less memory than {size // _MIB} MB")
    set_size(domain, size)
    change.say(f"Set the memsize parameter to {size // _MIB}Mb")
    if not change.running or size == before:
        return
    hot = domain.setting("mem-hotplug") == "on" and limit is not None
    if not hot or size < before:
        change.later("--memsize")
        return
    more = size - before
    if more % _BLOCK_BYTES:
        raise ValidationFailed(
            f"memory is plugged in by {_BLOCK_BYTES // _MIB} MB: {more // _MIB} MB more",
            hint=f"try {(before + _BLOCK_BYTES) // _MIB}",
        )
    module = E.memory(E.target(E.size(str(more // 1024), unit="KiB"), E.node("0")), model="dimm")
    change.attach(module)
    change.hot("bring memory online", lambda: _online(change))


def _online(change: Change) -> None:
    """Let the guest use what was plugged in: some wait to be told. No agent: nothing is done."""
    try:
        agent = change.machine.agent()
    except AgentSilent:
        change.later("memory which the guest has to bring online itself")
        return
    # The guest learns of the module by ACPI, a moment after QEMU has it.
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        blocks = agent.call("guest-get-memory-blocks")
        waiting = [
            {"phys-index": block["phys-index"], "online": True}
            for block in blocks
            if not block["online"]
        ]
        if waiting:
            agent.call("guest-set-memory-blocks", mem_blks=waiting)
            return
        time.sleep(0.1)


def set_size(domain: Domain, size_bytes: int) -> None:
    """Give the machine its memory at the next start."""
    text = str(size_bytes // 1024)
    for name in ("memory", "currentMemory"):
        element = child(domain.root, name, before=("vcpu", "os", "devices"))
        element.text = text
        element.set("unit", "KiB")
    if domain.setting("mem-hotplug") == "on":
        _add_room(domain)
    fit_cell(domain)


def mem_hotplug(change: Change, text: str) -> None:
    """Allow memory to be plugged in; holds from the next start on."""
    on = units.yes_no(text)
    domain = change.domain
    domain.set_setting("mem-hotplug", "on" if on else "off")
    drop(domain.root, "maxMemory")
    cpu = child(domain.root, "cpu", before=_AFTER)
    drop(cpu, "numa")
    if on:
        _add_room(domain)
    fit_cell(domain)
    change.later("--mem-hotplug")


def fit_cell(domain: Domain) -> None:
    """Let the one NUMA node, which plugged memory needs, hold all processors and memory."""
    if domain.setting("mem-hotplug") != "on":
        return
    cpu = child(domain.root, "cpu", before=_AFTER)
    drop(cpu, "numa")
    cpu.append(
        E.numa(
            E.cell(
                id="0",
                cpus=f"0-{domain.most_cpus - 1}",
                memory=str(domain.memory_bytes // 1024),
                unit="KiB",
            )
        )
    )


def _add_room(domain: Domain) -> None:
    drop(domain.root, "maxMemory")
    # Room for four times as much; it costs the guest nothing until something is plugged in.
    most = domain.memory_bytes * 4
    child(domain.root, "memory", before=_TAIL).addprevious(
        E.maxMemory(str(most // 1024), unit="KiB", slots=str(_SLOTS))
    )


def memquota(change: Change, text: str) -> None:
    """Set how much of the server's memory it keeps: the balloon takes the rest.

    ``MIN:MAX[:PRIO[:MAXBALLOON]]`` in MB and percent. The balloon leaves the machine MAX, but never
    takes more than MAXBALLOON percent of its memory, nor below MIN. Raises InvalidValue.
    """
    domain = change.domain
    if text == "auto":
        target = domain.memory_bytes
        domain.set_setting("memquota", None)
    else:
        target = balloon_target(text, domain.memory_bytes)
        domain.set_setting("memquota", text)
    element = child(domain.root, "currentMemory", before=("vcpu", "os", "devices"))
    element.text = str(target // 1024)
    element.set("unit", "KiB")
    change.say(f"Set the memquota parameter to {text}")

    def inflate() -> None:
        import libvirt

        change.raw.setMemoryFlags(target // 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    change.hot("set the balloon", inflate)


def balloon_target(text: str, memory_bytes: int) -> int:
    """Return what a quota leaves a machine with so much memory, in bytes; raises InvalidValue."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 4 or not all(part.isdecimal() for part in parts):
        raise InvalidValue(
            f"not a memory quota: {text!r}", hint="auto, or MIN:MAX[:PRIO[:MAXBALLOON]] in MB"
        )
    least, most = int(parts[0]) * _MIB, int(parts[1]) * _MIB
    priority = int(parts[2]) if len(parts) > 2 else 50
    percent = int(parts[3]) if len(parts) > 3 else 100
    if priority > 100 or percent > 100:
        raise InvalidValue(f"priority and balloon are 0 to 100: {text!r}")
    if least > most:
        raise InvalidValue(f"the guaranteed memory is greater than the limit: {text!r}")
    floor = max(least, memory_bytes * (100 - percent) // 100, SMALLEST_BYTES)
    return min(max(min(most, memory_bytes), floor), memory_bytes)


def _size(text: str) -> int:
    size = units.amount(text, unit=_MIB) * _MIB
    if not SMALLEST_BYTES <= size <= LARGEST_BYTES:
        raise InvalidValue(
            f"a machine has {SMALLEST_BYTES // _MIB} MB to 8 TB of memory: {text}",
            hint="--memsize counts in megabytes",
        )
    return size


def _plugged(change: Change) -> int:
    """Return what the running machine has, with what was plugged in since its start."""
    return change.machine.live().memory_bytes


def _server_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
