"""The guest tools: the QEMU guest agent, installed from a CD we make and updated by the guest's means.

Without an agent nothing can be run inside, so ``install`` puts a CD with scripts into a drive and
says what to type; Windows guests get the CD of the virtio project where the server has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime import files
from runtime.errors import DevicesFailed, NotRunning, VzError
from vmm import devices, iso9660
from vmm.agent import Agent
from vmm.change import Change
from vmm.devices import Cdrom
from vmm.domain import Domain

if TYPE_CHECKING:
    from vmm.machine import Machine

#: The CD, beside the machine's disks: the bundle may move, its drive then still has it.
_IMAGE = "tools.iso"
#: Where distributions put the CD with drivers and agent for Windows guests.
_WINDOWS = (
    Path("/usr/share/virtio-win/virtio-win.iso"),
    Path("/var/lib/libvirt/images/virtio-win.iso"),
)
_PACKAGES = r"""
if command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -q update || echo "apt-get update failed: trying with what is known" >&2
  apt-get -q -y install qemu-guest-agent
elif command -v dnf >/dev/null; then dnf -q -y @DNF@ qemu-guest-agent
elif command -v yum >/dev/null; then yum -q -y @DNF@ qemu-guest-agent
elif command -v zypper >/dev/null; then zypper -n -q @ZYPPER@ qemu-guest-agent
elif command -v apk >/dev/null; then apk add -u qemu-guest-agent
elif command -v pacman >/dev/null; then pacman -S --noconfirm qemu-guest-agent
elif command -v pkg >/dev/null; then pkg install -y qemu-guest-agent
else echo "no package manager is known here: install the QEMU guest agent by hand" >&2; exit 3
fi || exit
"""
_INSTALL = (
    "#!/bin/sh\n# Installs and starts the QEMU guest agent by the system's own package manager.\n"
    + _PACKAGES.replace("@DNF@", "install").replace("@ZYPPER@", "install")
    + r"""
if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then
  # Debian's unit starts by the device's rule; where the device is there already, nobody does.
  systemctl enable qemu-guest-agent 2>/dev/null; systemctl restart qemu-guest-agent
elif command -v rc-service >/dev/null; then
  rc-update add qemu-guest-agent default; rc-service qemu-guest-agent restart
elif command -v service >/dev/null; then service qemu-guest-agent restart
fi
echo "The guest tools are installed."
"""
)
#: The update restarts the agent, so it runs on its own; a second one at a time makes no sense.
_UPDATE = (
    "(mkdir /tmp/.vztools 2>/dev/null || exit 0; trap 'rmdir /tmp/.vztools' EXIT\n"
    + _PACKAGES.replace("@DNF@", "upgrade").replace("@ZYPPER@", "update")
    + ") </dev/null >/tmp/vztools.log 2>&1"
)
_README = """These are the guest tools of this virtual machine: the QEMU guest agent.

As root:    mount /dev/cdrom /mnt; sh /mnt/install.sh

They let the server run commands inside, set addresses and passwords, and take snapshots of quiet
file systems. For Windows take guest-agent/qemu-ga-x86_64.msi of virtio-win.iso
(https://fedorapeople.org/groups/virt/virtio-win/).
"""


def image() -> bytes:
    """Return the CD."""
    content = {"install.sh": _INSTALL.encode(), "readme.txt": _README.encode()}
    # Always the same bytes: a machine's bundle is not changed by doing it again.
    return iso9660.image("VZTOOLS", content, made_s=0)


def install(machine: Machine) -> str:
    """Put the CD into a drive and return what is to be done inside; raises DevicesFailed."""
    version = _version(machine)
    if version is not None:
        machine.progress.say(f"The guest tools (agent {version}) answer already.")
    family = machine.read_domain().setting("ostype")
    path = machine.record.home / _IMAGE
    if family == "windows":
        found = next((place for place in _WINDOWS if place.is_file()), None)
        if found is None:
            raise DevicesFailed(
                "this server has no virtio-win.iso, the CD with the guest agent for Windows",
                hint=f"https://fedorapeople.org/groups/virt/virtio-win/ → {_WINDOWS[0]}",
            )
        path = found
    else:
        files.replace(path, image(), mode=0o644)
    change = Change(machine)
    drive = _drive(change)
    drive.image = str(path)
    change.domain.set_setting(f"{drive.name}.image", None)
    change.update(drive.element)
    change.apply()
    if family == "windows":
        return f"In the guest, run guest-agent\\qemu-ga-x86_64.msi of the CD in {drive.name}"
    return f"In the guest, as root: mount /dev/cdrom /mnt; sh /mnt/install.sh ({drive.name})"


def _drive(change: Change) -> Cdrom:
    """Return the drive for the CD: the first empty one; a stopped machine gets one if need be."""
    from vmm import hardware
    from vmm.wish import Wish

    drives = [found for found in devices.all_of(change.domain) if type(found) is Cdrom]
    for found in drives:
        if not found.connected or Path(found.image).name == _IMAGE:
            return found
    if drives:
        raise DevicesFailed(
            f"{drives[0].name} has a medium: {drives[0].image}",
            hint=f"pctl set {change.machine.label} --device-disconnect {drives[0].name}",
        )
    if change.running:
        raise DevicesFailed(
            f"machine {change.machine.label} has no CD drive, and none can be added while it runs",
            hint=f"pctl set {change.machine.label} --device-add cdrom, then restart it",
        )
    made = hardware.add(change, "cdrom", Wish())
    assert isinstance(made, Cdrom)
    return made


def _version(machine: Machine) -> str | None:
    """Return the version of a running machine's agent, None when there is none."""
    try:
        found = Agent(machine.running(), machine.label).call("guest-info", timeout_s=1)
    except VzError:
        return None
    return str(found["version"])


def wants_update(domain: Domain) -> bool:
    """Whether the agent is to be updated when the machine has started."""
    return domain.setting("tools-autoupdate") == "on"


def update(machine: Machine) -> None:
    """Let the guest update its agent by its package manager, and do not wait; raises NotRunning."""
    machine.agent().call("guest-exec", path="/bin/sh", arg=["-c", _UPDATE])
    machine.progress.say("The guest tools are being updated (/tmp/vztools.log inside).")


def autoupdate(change: Change, text: str) -> None:
    """Set whether the agent is updated at each ``start --wait``; raises InvalidValue."""
    from runtime import units

    on = units.yes_no(text)
    change.domain.set_setting("tools-autoupdate", "on" if on else None)
    change.say(f"Set the tools-autoupdate parameter to {'on' if on else 'off'}")
    if on and change.running:
        machine = change.machine

        def act() -> None:
            try:
                update(machine)
            except NotRunning as error:
                machine.progress.warn(error.message)

        change.afterwards(act)
