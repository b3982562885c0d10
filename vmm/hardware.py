"""Devices added to a machine, changed, removed, connected: live where QEMU can, else stored."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from runtime import units
from runtime.errors import (
    DevicesFailed,
    InvalidOption,
)
from runtime.paths import Paths
from vmm import (
    devices,
    diskload,
    images,
    networks,
    nics,
    pci,
    peripherals,
    positions,
    reach,
    registration,
    snapshots,
    undo,
)
from vmm.change import Change
from vmm.device import Device
from vmm.devices import Adapter, Cdrom, Disk, Floppy
from vmm.domain import Domain, drop, text
from vmm.peripherals import Pci
from vmm.wish import Wish

_DISK_MB = 65536
#: How long a guest may take to let a device go.
_UNPLUG_S = 20.0


def add(change: Change, kind: str, wish: Wish) -> Device:
    """Add a device; raises DevicesFailed, InvalidValue, InvalidOption."""
    makers: dict[str, Callable[[Change, Wish], Device]] = {
        "hdd": _new_disk,
        "cdrom": _new_cdrom,
        "fdd": _new_floppy,
        "net": nics.new,
        "serial": lambda _change, wish: _port("serial", wish),
        "parallel": lambda _change, wish: _port("parallel", wish),
        "sound": lambda _change, _wish: peripherals.Sound.new(),
        "usb": _new_usb,
        "pci": lambda change, wish: pci.new(change, wish.device),
    }
    maker = makers.get(kind)
    if maker is None:
        raise InvalidOption(f"no such kind of device: {kind!r}", hint=", ".join(makers))
    name = devices.free_name([d.name for d in devices.all_of(change.domain)], kind)
    device = maker(change, wish)
    device.name = name
    change.domain.devices.append(device.element)
    if isinstance(device, Adapter):
        networks.remember(change.domain, name, nics.network_of(change, wish))
    line = describe(change.machine.paths, change.domain, device)
    change.say(f"Creating {line}")
    if isinstance(device, Adapter):
        nics.make_tap(change, device)
    if _hot(device):
        change.attach(device.element)
    else:
        change.later(name)
    if isinstance(device, Adapter):
        nics.store_filters(change, device, wish)
        nics.store_addresses(change, device, wish)
    if type(device) is Disk:
        diskload.fit_throttle(change)
    change.say(f"Created {line}")
    return device


def describe(paths: Paths, domain: Domain, device: Device) -> str:
    """Return the line of a device, with what only the description or the image tells."""
    line = device.line()
    if type(device) is Disk:
        size = images.virtual_bytes(device.image)
        return f"{line} {size >> 20}Mb" if size is not None else line
    if isinstance(device, Adapter):
        kind, network = networks.kind(paths, domain, device), networks.of(domain, device)
        line = line.replace("(+)", f"(+) type={kind} network='{network}'", 1)
        return f"{line} ips='{domain.setting(f'{device.name}.ips')}'"
    return line


def _hot(device: Device) -> bool:
    if type(device) is Disk:
        return device.bus in ("virtio", "scsi", "usb")
    return isinstance(device, (Adapter, Pci))


# hard disks
def _new_disk(change: Change, wish: Wish) -> Disk:
    domain = change.domain
    have = devices.disks(domain)
    bus = wish.iface or (have[0].bus if have else "virtio")
    if bus not in ("ide", "scsi", "sata", "virtio", "usb"):
        raise InvalidOption(f"no such disk interface: {bus!r}", hint="ide, scsi, sata or virtio")
    position = (
        positions.free_position(domain, bus)
        if wish.position is None
        else positions.check_position(domain, bus, wish.position)
    )
    if wish.passthrough and (wish.device is None or bus != "scsi"):
        raise InvalidOption(
            "--passthr hands SCSI commands to a disk of the server",
            hint="--device /dev/X --iface scsi",
        )
    if wish.device is not None:
        made = Disk.new(_block_device(wish.device), plain=True, bus=bus, position=position)
        if wish.passthrough:
            made.pass_through()
        return made
    plain = _is_plain(wish.type)
    name = devices.free_name([d.name for d in devices.all_of(domain)], "hdd")
    default = change.machine.record.home / f"{name}.{'raw' if plain else 'qcow2'}"
    path = Path(wish.image).absolute() if wish.image else default
    if path.exists() and not wish.recreate:
        if wish.image is None:
            raise DevicesFailed(f"{path} exists", hint=f"--image {path} uses it")
        if wish.size is not None:
            raise InvalidOption("an existing image has its size", hint="prl_disk_tool resize")
        check_free(change, path)
        plain = _check_image(path) == "raw"
        return Disk.new(path, plain=plain, bus=bus, position=position)
    if wish.image is not None and wish.size is None and not wish.recreate:
        raise DevicesFailed(f"the image does not exist: {path}", hint="--size N makes one")
    size = units.amount(wish.size or str(_DISK_MB), unit=1 << 20) << 20
    images.check_size(size)
    if path.exists():
        check_free(change, path)
        _check_image(path)
        _set_aside(change, path)
    if not path.parent.is_dir():
        raise DevicesFailed(f"there is no directory {path.parent}")
    images.create(path, size, plain=plain)
    change.on_failure(lambda: path.unlink(missing_ok=True))
    return Disk.new(path, plain=plain, bus=bus, position=position)


def _check_image(path: Path) -> str:
    """Return the format of an existing image; raises DevicesFailed, ImageBroken."""
    if not path.is_file():
        raise DevicesFailed(f"{path} is no file", hint="--device takes a disk of the server")
    format = "qcow2" if images.is_qcow2(path) else "raw"
    size = path.stat().st_size
    if format == "raw" and (size == 0 or size % 512):
        raise DevicesFailed(f"{path} is no disk image: {size} bytes are no whole sectors")
    images.check(path, format)
    reach.check(path, format, path.parent, DevicesFailed)
    return format


def _set_aside(change: Change, path: Path) -> None:
    """Make room for a new image; the old one is back if the change fails."""
    old = path.with_name(f".tmp-{path.name}.{os.getpid()}")
    path.rename(old)

    def back() -> None:
        old.replace(path)

    change.on_failure(back)
    change.afterwards(lambda: old.unlink(missing_ok=True))


def _is_plain(word: str | None) -> bool:
    if word in (None, "expand", "expanding"):
        return False
    if word == "plain":
        return True
    raise InvalidOption(f"no such type of disk: {word!r}", hint="expand or plain")


def check_free(change: Change, path: Path) -> None:
    """Refuse an image that another machine, or this one, uses; raises DevicesFailed."""
    machine = change.machine
    for disk in devices.all_of(change.domain):
        if isinstance(disk, Disk) and disk.image and Path(disk.image).resolve() == path.resolve():
            raise DevicesFailed(f"{path} is {disk.name} of this machine")
    user = registration.image_user(machine.paths, path, but=machine.record.uuid)
    if user is not None:
        raise DevicesFailed(f"{path} is in use by machine {user}")


def _block_device(name: str) -> str:
    try:
        if stat.S_ISBLK(os.stat(name).st_mode):
            return name
    except OSError as error:
        raise DevicesFailed(f"{name}: {error.strerror}") from error
    raise DevicesFailed(f"{name} is no block device")


# drives
def _medium(wish: Wish) -> str:
    path = wish.device or wish.image or ""
    if path:
        path = os.path.abspath(path)
        if not os.path.exists(path):
            raise DevicesFailed(f"the image does not exist: {path}")
        if os.path.isdir(path):
            raise DevicesFailed(f"{path} is a directory, no medium")
    return path


def _new_cdrom(change: Change, wish: Wish) -> Cdrom:
    bus = wish.iface or ("sata" if _uses(change, "sata") else "ide")
    if bus not in ("ide", "scsi", "sata", "usb"):
        raise InvalidOption(f"no such drive interface: {bus!r}", hint="ide, scsi or sata")
    position = (
        positions.free_position(change.domain, bus)
        if wish.position is None
        else positions.check_position(change.domain, bus, wish.position)
    )
    return Cdrom.new(_medium(wish), bus=bus, position=position)


def _new_floppy(change: Change, wish: Wish) -> Floppy:
    return Floppy.new(_medium(wish), position=positions.free_position(change.domain, "fdc"))


def _uses(change: Change, bus: str) -> bool:
    return any(disk.bus == bus for disk in devices.disks(change.domain))


# ports
def _port(kind: str, wish: Wish) -> Device:
    cls = peripherals.Serial if kind == "serial" else peripherals.Parallel
    if wish.device is not None:
        return cls.new("dev", os.path.abspath(wish.device))
    if wish.output is not None:
        return cls.new("file", os.path.abspath(wish.output))
    if wish.socket is not None:
        return cls.new("unix", os.path.abspath(wish.socket), server=wish.socket_mode == "server")
    return cls.new("pty")


def _new_usb(change: Change, _wish: Wish) -> Device:
    if any(device.kind == "usb" for device in devices.all_of(change.domain)):
        raise DevicesFailed("the machine has a USB controller already")
    for element in change.domain.devices.findall("controller"):
        if element.get("type") == "usb":
            change.domain.devices.remove(element)
    return peripherals.Usb.new()


def configure(change: Change, name: str, wish: Wish) -> None:
    """Change a device; raises DevicesFailed, InvalidValue, NotRunning."""
    device = devices.named(change.domain, name)
    if isinstance(device, Adapter):
        nics.configure(change, device, wish)
    elif isinstance(device, Cdrom):
        _insert(change, device, _medium(wish))
    elif isinstance(device, Disk):
        _configure_disk(change, device, wish)
    elif device.kind in ("serial", "parallel"):
        made = _port(device.kind, wish)
        made.name = name
        change.domain.devices.replace(device.element, made.element)
        device = made
        change.later(name)
    else:
        raise DevicesFailed(f"{name} has nothing to set")
    change.say(f"Configured {describe(change.machine.paths, change.domain, device)}")


def _configure_disk(change: Change, disk: Disk, wish: Wish) -> None:
    if wish.size is not None:
        raise InvalidOption("a disk is resized by prl_disk_tool resize")
    if wish.iface is not None or wish.position is not None:
        bus = wish.iface or disk.bus
        if bus not in devices.BUSES or bus == "fdc":
            raise InvalidOption(f"no such disk interface: {bus!r}")
        change.domain.devices.remove(disk.element)
        position = (
            positions.free_position(change.domain, bus)
            if wish.position is None
            else positions.check_position(change.domain, bus, wish.position)
        )
        change.domain.devices.append(disk.element)
        disk.place(bus, position)
        change.later(disk.name)
    if wish.image is not None:
        path = Path(wish.image).absolute()
        if not path.exists():
            raise DevicesFailed(f"the image does not exist: {path}")
        if snapshots.exist(change.machine.record):
            raise DevicesFailed(f"the snapshots of {change.machine.label} are in {disk.image}")
        undo.check_settled(change.machine, change.domain, "changing an image")
        check_free(change, path)
        disk.format = _check_image(path)
        disk.image = str(path)
        change.later(disk.name)


def _insert(change: Change, drive: Cdrom, image: str) -> None:
    drive.image = image
    change.domain.set_setting(f"{drive.name}.image", None)
    change.update(drive.element)


def connect(change: Change, name: str, *, on: bool) -> None:
    """Connect or disconnect a device: a cable, a medium; raises DevicesFailed."""
    device = devices.named(change.domain, name)
    if isinstance(device, Adapter):
        device.connected = on
        nics.update_live(change, name, lambda found: setattr(found, "connected", on))
    elif isinstance(device, Cdrom):
        key = f"{name}.image"
        if on:
            image = device.image or change.domain.setting(key)
            if not image:
                raise DevicesFailed(
                    f"{name} has no medium", hint=f"--device-set {name} --image FILE"
                )
            _insert(change, device, image)
        else:
            image = device.image
            _insert(change, device, "")
            change.domain.set_setting(key, image or None)
    else:
        raise DevicesFailed(
            f"{name} cannot be {'connected' if on else 'disconnected'}",
            hint="adapters and drives can; others are removed with --device-del",
        )
    change.say(f"{'Connected' if on else 'Disconnected'} {name}")


def remove(change: Change, name: str, *, destroy_image: bool = False) -> None:
    """Remove a device; its image stays unless ``destroy_image``. Raises DevicesFailed."""
    device = devices.named(change.domain, name)
    image = Path(device.image) if type(device) is Disk and device.image else None
    if image is not None and snapshots.exist(change.machine.record):
        raise DevicesFailed(
            f"{name} belongs to the snapshots of {change.machine.label}",
            hint="delete the snapshots first",
        )
    if image is not None:
        undo.check_settled(change.machine, change.domain, "removing a disk")
    change.domain.devices.remove(device.element)
    if device.kind == "usb":
        # libvirt would add a controller of its own choice where none is named.
        made = peripherals.Usb.new("none")
        for element in list(change.domain.devices.findall("input")):
            if element.get("bus") == "usb":
                change.domain.devices.remove(element)
        change.domain.devices.append(made.element)
    for key in ("network", "ips", "gateway", "dhcp", "image", "configure", *nics.FILTERS):
        change.domain.set_setting(f"{name}.{key}", None)
    change.say(f"Remove the {name} device.")
    if _hot(device):
        change.hot("unplug", lambda: _unplug(change, name))
        if isinstance(device, Adapter) and device.host_device:
            paths, uuid, end = change.machine.paths, change.machine.record.uuid, device.host_device
            change.afterwards(lambda: networks.detach(paths, uuid, [end]))
    else:
        change.later(name)
    if destroy_image and image is not None:
        change.afterwards(lambda: image.unlink(missing_ok=True))


def _unplug(change: Change, name: str) -> None:
    """Ask the guest to release a device and wait until it has; raises DevicesFailed."""
    import libvirt

    live = change.machine.live()
    if name not in [device.name for device in devices.all_of(live)]:
        return
    found = devices.named(live, name)
    element = found.element
    drop(element, "boot")
    change.raw.detachDeviceFlags(text(element), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    deadline = time.monotonic() + _UNPLUG_S
    while name in [device.name for device in devices.all_of(change.machine.live())]:
        if time.monotonic() > deadline:
            raise DevicesFailed(
                f"the guest does not release {name}", hint="unmount it inside, and try again"
            )
        time.sleep(0.1)
