"""How a machine starts and ends: by itself with the server, from which device, after a crash."""

from __future__ import annotations

from lxml.builder import E

from runtime import units
from runtime.errors import InvalidValue
from vmm import devices
from vmm.change import Change
from vmm.domain import child, drop
from vmm.words import choice, whole

#: How long the firmware waits for somebody to open its menu.
_MENU_MS = 10_000


def onboot(change: Change, text: str) -> None:
    """Set whether it starts with the server; raises InvalidValue."""
    word = text.strip().lower()
    if word not in ("yes", "no", "on", "off", "auto"):
        raise InvalidValue(f"neither yes nor no nor auto: {text!r}")
    value = {"on": "yes", "off": "no"}.get(word, word)
    change.domain.set_setting("onboot", value)
    change.say(f"Set the onboot parameter to {value}")


def autostart_delay(change: Change, text: str) -> None:
    """Set how many seconds after the one before it starts."""
    change.domain.set_setting("autostart-delay", str(whole(text, 0, 86400, "the delay in seconds")))


def autostop(change: Change, text: str) -> None:
    """Set what happens to it when the server stops; raises InvalidValue."""
    choice(text, ("stop", "suspend", "shutdown"), "autostop")
    change.domain.set_setting("autostop", text)
    change.say(f"Set the autostop parameter to {text}")


def on_crash(change: Change, text: str) -> None:
    """Set what happens when the guest panics; raises InvalidValue."""
    word, _, report = text.partition(":")
    choice(word, ("pause", "restart"), "on-crash")
    if report not in ("", "no-report"):
        raise InvalidValue(f"unknown: {text!r}", hint="pause or restart, with :no-report or not")
    child(change.domain.root, "on_crash").text = {"pause": "preserve", "restart": "restart"}[word]
    if change.domain.devices.find("panic") is None:
        # How a guest tells that it panicked; without it libvirt never learns.
        change.domain.devices.append(E.panic(model="isa"))
    change.domain.set_setting("on-crash", text)
    change.later("--on-crash")


def boot_order(change: Change, text: str) -> None:
    """Set the order in which devices are tried at boot; raises DevicesFailed, InvalidValue."""
    names = text.split()
    if not names or len(set(names)) != len(names):
        raise InvalidValue(f"not a list of devices: {text!r}", hint='write "hdd0 cdrom0 net0"')
    domain = change.domain
    for device in devices.all_of(domain):
        drop(device.element, "boot")
    system = child(domain.root, "os")
    drop(system, "boot")
    for order, name in enumerate(names, start=1):
        device = devices.named(domain, name)
        if device.kind not in ("hdd", "cdrom", "fdd", "net"):
            raise InvalidValue(f"a machine cannot boot from {name}")
        device.element.append(E.boot(order=str(order)))
    change.later("--device-bootorder")
    change.say(f"Set the boot order to {' '.join(names)}")


def boot_menu(change: Change, text: str) -> None:
    """Let people at the display choose the boot device: the firmware waits for them."""
    on = units.yes_no(text)
    system = child(change.domain.root, "os")
    drop(system, "bootmenu")
    if on:
        menu = E.bootmenu(enable="yes", timeout=str(_MENU_MS))
        system.append(menu)
    change.say(f"Set the select-boot-device parameter to {'on' if on else 'off'}")
    change.later("--select-boot-device")
