"""What ``list -i`` tells of a machine, as facts and as text in the product's layout."""

from __future__ import annotations

from typing import Any

from runtime.paths import Paths
from vmm import account, devices, display, firmware, images, networks, status, undo, uptime
from vmm.device import Device
from vmm.domain import Domain
from vmm.registry import MachineRecord
from vmm.status import State

_MIB = 1 << 20


def facts(paths: Paths, record: MachineRecord, domain: Domain, state: State) -> dict[str, Any]:
    """Return everything known of a machine without asking libvirt."""
    _, pid = status.process(paths, record)
    passed = uptime.seconds(domain, pid)
    return {
        "uuid": record.uuid,
        "name": record.name,
        "description": domain.description,
        "type": "VM",
        "state": state.value,
        "os": domain.setting("distribution", "other"),
        "template": domain.setting("template") == "yes",
        "uptime_s": round(passed) if passed is not None else None,
        "home": str(record.home),
        "owner": account.owner(domain),
        "start_as_user": domain.setting("start-as-user", "administrator"),
        "undo_disks": undo.mode(domain),
        "undo_pending": undo.pending(domain),
        "firmware": "efi" if firmware.is_efi(domain) else "bios",
        "select_boot_device": domain.root.find("os/bootmenu[@enable='yes']") is not None,
        "tools_autoupdate": domain.setting("tools-autoupdate") == "on",
        "rate": domain.setting("rate") or None,
        "rate_bound": domain.setting("ratebound") == "yes",
        "autostart": domain.setting("onboot", "no"),
        "autostop": domain.setting("autostop", "shutdown"),
        "on_crash": domain.setting("on-crash", "pause"),
        "boot_order": boot_order(domain),
        "remote_display": display.describe(domain),
        "acceleration": domain.root.get("type"),
        "cpus": domain.cpus,
        "cpu_hotplug": domain.setting("cpu-hotplug") == "on",
        "cpuunits": int(domain.setting("cpuunits", "1000")),
        "cpulimit": int(domain.setting("cpulimit", "0")),
        "ioprio": int(domain.setting("ioprio", "4")),
        "iolimit": int(domain.setting("iolimit", "0")),
        "iopslimit": int(domain.setting("iopslimit", "0")),
        "memory_bytes": domain.memory_bytes,
        "mem_hotplug": domain.setting("mem-hotplug") == "on",
        "memquota": domain.setting("memquota", "auto"),
        "video_bytes": display.video_bytes(domain),
        "devices": [_device(paths, domain, device) for device in devices.all_of(domain)],
    }


def _device(paths: Paths, domain: Domain, device: Device) -> dict[str, Any]:
    found: dict[str, Any] = device.facts()
    if type(device) is devices.Disk:
        found["size_bytes"] = images.virtual_bytes(device.image)
    if isinstance(device, devices.Adapter):
        found["network"] = networks.of(domain, device)
        found["type"] = networks.kind(paths, domain, device)
        found["ips"] = domain.setting(f"{device.name}.ips").split()
    return found


def boot_order(domain: Domain) -> list[str]:
    """Return the devices tried at boot, first to last."""
    if domain.root.find("os/kernel") is not None:
        return ["kernel"]
    numbered = []
    for device in devices.all_of(domain):
        boot = device.element.find("boot")
        if boot is not None:
            numbered.append((int(boot.get("order", "0")), device.name))
    if numbered:
        return [name for _, name in sorted(numbered)]
    words = {"hd": "hdd", "cdrom": "cdrom", "fd": "fdd", "network": "net"}
    order = []
    for boot in domain.root.findall("os/boot"):
        kind = words.get(boot.get("dev", ""), "")
        order += [device.name for device in devices.all_of(domain) if device.kind == kind][:1]
    return order


def lines(found: dict[str, Any], hardware: list[str]) -> list[str]:
    """Return the facts in the layout of prlctl; ``hardware`` are the lines of the devices."""
    hours, rest = divmod(found["uptime_s"] or 0, 3600)
    return [
        f"ID: {{{found['uuid']}}}",
        f"Name: {found['name']}",
        f"Description: {found['description']}",
        f"Type: {found['type']}",
        f"State: {found['state']}",
        f"OS: {found['os']}",
        f"Template: {'yes' if found['template'] else 'no'}",
        f"Uptime: {hours:02d}:{rest // 60:02d}:{rest % 60:02d}",
        f"Home: {found['home']}/",
        f"Owner: {found['owner']}",
        f"Autostart: {found['autostart']}",
        f"Autostop: {found['autostop']}",
        f"On Crash: {found['on_crash']}",
        f"Undo disks: {found['undo_disks']}{' (undecided changes)' if found['undo_pending'] else ''}",
        f"Boot order: {' '.join(found['boot_order'])}",
        f"EFI boot: {'on' if found['firmware'] == 'efi' else 'off'}",
        f"Select boot device: {'on' if found['select_boot_device'] else 'off'}",
        f"Start as user: {found['start_as_user']}",
        f"Tools autoupdate: {'on' if found['tools_autoupdate'] else 'off'}",
        f"Remote display: {found['remote_display']}",
        "Hardware:",
        (
            f"  cpu cpus={found['cpus']} VT-x {'hotplug ' if found['cpu_hotplug'] else ''}"
            f"accl={'high' if found['acceleration'] == 'kvm' else 'off'} mode=64"
            f" cpuunits={found['cpuunits']} cpulimit={found['cpulimit'] or 'unlimited'}"
            f" ioprio={found['ioprio']} iolimit='{found['iolimit']}'"
        ),
        f"  memory {found['memory_bytes'] // _MIB}Mb"
        + (" hotplug=on" if found["mem_hotplug"] else ""),
        f"  video {found['video_bytes'] // _MIB}Mb 3d acceleration=off",
        f"  memory_quota {found['memquota']}",
        *(
            [f"  rate {found['rate']} bound={'yes' if found['rate_bound'] else 'no'}"]
            if found["rate"]
            else []
        ),
        *(f"  {line}" for line in hardware),
    ]
