"""The description of a new machine: the hardware a guest system expects, as libvirt's XML."""

from __future__ import annotations

import platform
from pathlib import Path

from lxml.builder import E

from vmm import peripherals
from vmm.acceleration import Acceleration
from vmm.domain import Domain, Element, child, drop
from vmm.systems import System

AGENT_CHANNEL = "org.qemu.guest_agent.0"
VIDEO_BYTES = 32 << 20
_MIB = 1 << 20
#: QEMU's machine types whose PCI bus takes hot-plugged devices without prepared ports.
_MACHINE = {"x86_64": "pc", "aarch64": "virt"}
#: Elements of <domain> after which <cpu> or <features> must not stand: keeps new ones in order.
_TAIL = ("clock", "on_poweroff", "on_reboot", "on_crash", "devices")


def blank(name: str, uuid: str, system: System, acceleration: Acceleration) -> Domain:
    """Return a machine without disks and adapters."""
    architecture = platform.machine()
    memory = str(system.memory_bytes // _MIB)
    root: Element = E.domain(
        E.name(name),
        E.uuid(uuid),
        E.metadata(),
        E.memory(memory, unit="MiB"),
        E.currentMemory(memory, unit="MiB"),
        E.vcpu("1", placement="static"),
        E.os(
            E.type("hvm", arch=architecture, machine=_MACHINE.get(architecture, "pc")),
            E.boot(dev="hd"),
            E.boot(dev="cdrom"),
        ),
        E.features(E.acpi(), E.apic()),
        E.clock(offset=system.clock),
        E.on_poweroff("destroy"),
        E.on_reboot("restart"),
        E.on_crash("preserve"),
        E.devices(
            E.controller(type="scsi", index="0", model="virtio-scsi"),
            E.controller(type="virtio-serial", index="0"),
            E.serial(E.target(port="0"), E.alias(name="ua-serial0"), type="pty"),
            E.channel(E.target(type="virtio", name=AGENT_CHANNEL), type="unix"),
            E.input(type="tablet", bus="usb"),
            E.video(E.model(type="vga", vram=str(VIDEO_BYTES // 1024), heads="1")),
            E.memballoon(E.stats(period="5"), model="virtio"),
            E.rng(E.backend("/dev/urandom", model="random"), model="virtio"),
        ),
    )
    domain = Domain(root)
    domain.devices.insert(0, peripherals.Usb.new(system.usb).element)
    set_acceleration(domain, acceleration)
    domain.set_setting("ostype", system.family)
    domain.set_setting("distribution", system.name)
    return domain


def set_acceleration(domain: Domain, acceleration: Acceleration) -> bool:
    """Let the machine run on KVM or emulated; return whether that changed anything."""
    changed = domain.root.get("type") != acceleration.value
    domain.root.set("type", acceleration.value)
    cpu = child(domain.root, "cpu", before=_TAIL)
    wanted = "host-passthrough" if acceleration is Acceleration.KVM else "maximum"
    # A processor model somebody chose by name stays.
    if cpu.get("mode") in (None, "host-passthrough", "maximum") and cpu.get("mode") != wanted:
        cpu.set("mode", wanted)
        changed = True
    return changed


def boot_directly(domain: Domain, kernel: Path, initrd: Path, command_line: str) -> None:
    """Let QEMU load the kernel itself, without firmware boot order or boot loader."""
    system = domain.root.find("os")
    assert system is not None
    for name in ("kernel", "initrd", "cmdline", "boot"):
        drop(system, name)
    system.extend([E.kernel(str(kernel)), E.initrd(str(initrd)), E.cmdline(command_line)])
