"""``psrvctl usb``: which USB devices of the server belong to which machine."""

from __future__ import annotations

import argparse
import json

from tools._command import JSON, Context, Verb, option
from tools.verbs_vm import opened


def list_(context: Context, args: argparse.Namespace) -> None:
    """List the server's USB devices and the machines they are assigned to."""
    from vmm import usb

    owners = usb.assignments(context.paths)
    found = usb.present()
    if args.json:
        print(
            json.dumps(
                [{**device.facts(), "machine": owners.get(device.ident)} for device in found],
                indent=2,
            )
        )
        return
    for device in found:
        owner = owners.get(device.ident)
        print(f"{device.name:<40} '{device.ident}' {'{' + owner + '}' if owner else ''}".rstrip())
    # Assigned ones that are unplugged at the moment are shown too: they connect when they return.
    for ident, owner in owners.items():
        if ident not in [device.ident for device in found]:
            print(f"{'disconnected':<40} '{ident}' {{{owner}}}")


def set_(context: Context, args: argparse.Namespace) -> None:
    """Assign a USB device to a machine: at once if it runs, and at each start."""
    from vmm import usb

    with opened(context, args.machine, "usb set") as machine:
        usb.assign(machine, args.device)
        machine.progress.say("The USB device has been successfully assigned.")


def delete(context: Context, args: argparse.Namespace) -> None:
    """Take a USB device back from its machine."""
    from vmm import usb

    owner = usb.owner(context.paths, args.device)
    with opened(context, owner, "usb del") as machine:
        usb.release(machine, args.device)
        machine.progress.say("The assignment of the USB device has been successfully removed.")


_DEVICE = option("device", help="the device as 'usb list' shows it", metavar="DEVICE")

VERBS: tuple[Verb, ...] = (
    Verb("list", "list USB devices and their machines", list_, (JSON,), changes=False),
    Verb("set", "assign a USB device to a machine", set_,
         (_DEVICE, option("machine", help="name or UUID", metavar="ID"))),
    Verb("del", "take a USB device back", delete, (_DEVICE,)),
)  # fmt: skip
