"""What the verbs of pctl(8) do with a machine's hardware, snapshots and disks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import InvalidOption
from tools._command import JSON, Context, Option, Verb, option
from tools.verbs_vm import ID, opened

if TYPE_CHECKING:
    from vmm.snapshots import Snapshot
    from vmm.wish import Wish

_PREFIX = "setting_"
#: Keys of a container's sample and the settings of a machine they mean.
_SAMPLE_KEYS = {"CPUS": "cpus", "CPUUNITS": "cpuunits", "CPULIMIT": "cpulimit",
                "CPUMASK": "cpumask", "IOPRIO": "ioprio", "IOPSLIMIT": "iopslimit"}  # fmt: skip


def set_(context: Context, args: argparse.Namespace) -> None:
    """Change settings and devices of a machine: all of it or nothing."""
    from vmm import hardware, renaming, settings
    from vmm.change import Change

    rows = settings.rows()
    given = {
        name: value
        for name in rows
        if (value := getattr(args, _PREFIX + name.replace("-", "_"), None)) is not None
    }
    if args.vnc_nopasswd:
        given["vnc-passwd"] = ""
    if args.applyconfig:
        given = {**_sample(context, args.applyconfig), **given}
    devices = (args.device_add, args.device_set, args.device_del, args.device_connect,
               args.device_disconnect)  # fmt: skip
    if not given and not any(devices) and not args.name:
        raise InvalidOption("nothing to set", hint="pctl set --help lists the settings")
    with opened(context, args.ident, "set") as machine:
        if args.name:
            renaming.check(machine, args.name)
        if given or any(devices):
            change = Change(machine, crypted=args.crypted)
            try:
                for name in rows:
                    if name in given:
                        rows[name].apply(change, given[name])
                wish = _wish(args)
                if args.device_add:
                    hardware.add(change, args.device_add, wish)
                if args.device_set:
                    hardware.configure(change, args.device_set, wish)
                if args.device_del:
                    hardware.remove(change, args.device_del, destroy_image=args.destroy_image)
                if args.device_connect:
                    hardware.connect(change, args.device_connect, on=True)
                if args.device_disconnect:
                    hardware.connect(change, args.device_disconnect, on=False)
            except BaseException:
                change.give_up()
                raise
            change.apply()
        if args.name:
            renaming.rename(machine, args.name)
        machine.progress.say("The VM has been successfully configured.")


def _sample(context: Context, name: str) -> dict[str, str]:
    """Return the settings of a container sample that mean something to a machine.

    Raises SampleMissing.
    """
    from runtime import units
    from runtime.config import ConfigFile
    from runtime.errors import SampleMissing

    path = context.paths.sample(name)
    if "/" in name or not path.is_file():
        raise SampleMissing(f"there is no sample {name!r}", hint=f"samples are {path.parent}/ve-*")
    file = ConfigFile.read(path)
    found = {
        option_name: value
        for key, option_name in _SAMPLE_KEYS.items()
        if (value := file.get(key)) and value != "unlimited"
    }
    pages = units.pair(file.get("PHYSPAGES") or "unlimited").limit
    if pages < units.UNLIMITED_32:
        found["memsize"] = f"{units.bytes_of_pages(pages)}B"
    if file.get("IOLIMIT"):
        found["iolimit"] = f"{file.get('IOLIMIT')}B"
    return found


def _flag(word: str | None) -> bool | None:
    return {"yes": True, "no": False}.get(word or "")


def _wish(args: argparse.Namespace) -> Wish:
    from vmm.wish import Wish

    if args.split:
        raise InvalidOption(
            "disks are single files here, never pieces of 2 GB",
            hint="without --split: an expanding disk grows as it is written",
        )
    return Wish(
        image=args.image,
        device=args.device,
        type=args.type,
        size=args.size,
        iface=args.iface,
        position=args.position,
        recreate=args.recreate,
        network=args.network,
        mac=args.mac,
        card=args.adapter_type,
        ipadd=tuple(args.ipadd or ()),
        ipdel=tuple(args.ipdel or ()),
        dhcp=_flag(args.dhcp),
        gateway=args.gw,
        configure=_flag(args.configure),
        ipfilter=_flag(args.ipfilter),
        macfilter=_flag(args.macfilter),
        preventpromisc=_flag(args.preventpromisc),
        passthrough=args.passthr,
        output=args.output,
        socket=args.socket,
        socket_mode=args.socket_mode,
    )


def _set_options() -> tuple[Option, ...]:
    from vmm import settings

    table = tuple(
        option(
            f"--{row.option}",
            help=row.help,
            dest=_PREFIX + row.option.replace("-", "_"),
            metavar=row.metavar,
        )
        for row in settings.rows().values()
    )
    return (ID, *table, *_DEVICE_OPTIONS)


def info(context: Context, args: argparse.Namespace) -> None:
    """Print everything about a machine."""
    from runtime.errors import BadConfig
    from tools._machine_entries import MachineEntry
    from vmm import registry

    entry = MachineEntry(context, registry.find(context.paths, args.ident))
    if entry.domain is None:
        raise BadConfig(f"the description of {entry.label} cannot be read: {entry.record.config}")
    found, text = entry.page()
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(text))


def snapshot(context: Context, args: argparse.Namespace) -> None:
    """Take a snapshot of disks, memory and description."""
    from vmm import snapshots

    with opened(context, args.ident, "snapshot") as machine:
        machine.progress.say("Creating the snapshot...")
        made = snapshots.create(machine, args.name or "", args.description or "")
        machine.progress.say(f"The snapshot with ID {made.braced} has been successfully created.")


def snapshot_list(context: Context, args: argparse.Namespace) -> None:
    """List a machine's snapshots; needs no libvirt."""
    from vmm import registry, snapshots

    record = registry.find(context.paths, args.ident)
    have = snapshots.listing(record)
    if args.json:
        print(json.dumps([snapshots.facts(one) for one in have], indent=2, ensure_ascii=False))
    elif args.id:
        _print_snapshot(snapshots.find(record, args.id))
    elif args.tree:
        _print_tree(have, None, "")
    else:
        print("PARENT_SNAPSHOT_ID                      SNAPSHOT_ID")
        for one in have:
            parent = "{" + one.parent + "}" if one.parent else ""
            print(f"{parent:>38} {'*' if one.current else ' '}{one.braced:>38}".rstrip())


def _print_snapshot(one: Snapshot) -> None:
    print(f"ID: {one.braced}")
    print(f"Name: {one.name}")
    print(f"Date: {one.date}")
    print(f"Current: {'yes' if one.current else 'no'}")
    print(f"State: {one.word}")
    print(f"Description: <![CDATA[{one.description}]]>")


def _print_tree(have: list[Snapshot], parent: str | None, indent: str) -> None:
    for one in have:
        if one.parent == parent:
            print(f"{indent}{'*' if one.current else '_'}{one.braced} {one.name}".rstrip())
            _print_tree(have, one.uuid, indent + "  ")


def snapshot_switch(context: Context, args: argparse.Namespace) -> None:
    """Return a machine to a snapshot."""
    from vmm import snapshots

    with opened(context, args.ident, "snapshot-switch") as machine:
        machine.progress.say("Switching to the snapshot...")
        snapshots.switch(machine, args.id)
        machine.progress.say("The VM has been successfully switched to the snapshot.")


def snapshot_delete(context: Context, args: argparse.Namespace) -> None:
    """Delete a snapshot, with or without those made after it."""
    from vmm import snapshots

    with opened(context, args.ident, "snapshot-delete") as machine:
        machine.progress.say("Deleting the snapshot...")
        snapshots.delete(machine, args.id, children=args.children)
        machine.progress.say("The snapshot has been successfully deleted.")


def capture(context: Context, args: argparse.Namespace) -> None:
    """Store a machine's screen as a PNG image."""
    from vmm import display

    with opened(context, args.ident) as machine:
        data = display.capture(machine, Path(args.file) if args.file else None)
        if args.file:
            machine.progress.say(f"The screen has been stored in {args.file}")
        elif sys.stdout.isatty():
            raise InvalidOption("an image is nothing for a terminal", hint="--file FILE")
        else:
            sys.stdout.buffer.write(data)


def mount(context: Context, args: argparse.Namespace) -> None:
    """Mount a stopped machine's partitions on the server, or say which there are."""
    from vmm import hostmount

    mode = args.option or "ro"
    if mode not in ("ro", "rw"):
        raise InvalidOption(f"unknown mount option: {mode!r}", hint="-o ro or -o rw")
    with opened(context, args.ident, "mount") as machine:
        if args.info:
            for line in hostmount.describe(machine):
                print(line)
            return
        for place in hostmount.mount(machine, writable=mode == "rw"):
            machine.progress.say(f"Mounted {place}")


def umount(context: Context, args: argparse.Namespace) -> None:
    """Unmount what ``mount`` mounted."""
    from vmm import hostmount

    with opened(context, args.ident, "umount") as machine:
        hostmount.umount(machine)
        machine.progress.say("The VM has been successfully unmounted.")


def installtools(context: Context, args: argparse.Namespace) -> None:
    """Put the CD that installs the guest agent into a machine's drive, and say what to do."""
    from vmm import guesttools

    with opened(context, args.ident, "installtools") as machine:
        machine.progress.say(guesttools.install(machine))


def reset_uptime(context: Context, args: argparse.Namespace) -> None:
    """Begin to count anew since when a machine runs."""
    from vmm import uptime

    with opened(context, args.ident, "reset-uptime") as machine:
        uptime.reset(machine)


def problem_report(context: Context, args: argparse.Namespace) -> None:
    """Write an archive with what a support person needs, secrets left out."""
    from vmm import report

    if args.send:
        raise InvalidOption(
            "reports are sent nowhere: read it first, then give it to whom you trust",
            hint=f"pctl problem-report {args.ident} > report.tar.gz",
        )
    if sys.stdout.isatty():
        raise InvalidOption("an archive is nothing for a terminal", hint="> FILE.tar.gz")
    with opened(context, args.ident) as machine:
        report.write(machine, sys.stdout.buffer)


_SNAPSHOT = option("-i", "--id", help="the snapshot", metavar="UUID", required=True)
_NAME = option("-n", "--name", help="name", metavar="NAME")
_DEVICE_OPTIONS: tuple[Option, ...] = (
    option("--name", help="rename the machine", metavar="NAME"),
    option("--applyconfig", help="take the resources of a sample", metavar="SAMPLE"),
    option("--crypted", help="--userpasswd gives a hash", action="store_true"),
    option("--vnc-nopasswd", help="remote display without a password", action="store_true"),
    option("--save", help="accepted: settings of machines are always stored", action="store_true"),
    option("--device-add", help="add a device: hdd, cdrom, fdd, net, serial, parallel, sound, usb, "
           "pci",
           metavar="KIND"),
    option("--device-set", help="change a device", metavar="DEVICE"),
    option("--device-del", help="remove a device", metavar="DEVICE"),
    option("--device-connect", help="connect an adapter or drive", metavar="DEVICE"),
    option("--device-disconnect", help="disconnect an adapter or drive", metavar="DEVICE"),
    option("--detach-only", help="keep the image of a removed disk (default)", action="store_true"),
    option("--destroy-image", help="delete the image of a removed disk", action="store_true"),
    option("--image", help="image of a disk, CD or floppy", metavar="FILE"),
    option("--device", help="device of the server", metavar="DEVICE"),
    option("--type", help="disk: expand, plain; adapter: bridged, host-only, shared, routed",
           metavar="TYPE"),
    option("--size", help="size of a new disk", metavar="MB"),
    option("--iface", help="interface: ide, scsi, sata, virtio", metavar="IFACE"),
    option("--position", help="position on the interface", type=int, metavar="N"),
    option("--recreate", help="overwrite an existing image", action="store_true"),
    option("--split", help="refused: disks are single files", action="store_true"),
    option("--passthr", help="a disk of the server gets the guest's own SCSI commands",
           action="store_true"),
    option("--network", help="network of an adapter", metavar="ID"),
    option("--mac", help="hardware address of an adapter", metavar="ADDRESS|auto"),
    option("--adapter-type", "--card", dest="adapter_type", help="virtio, e1000, e1000e, rtl8139",
           metavar="CARD"),
    option("--ipadd", help="address of an adapter", action="append", metavar="ADDRESS/PREFIX"),
    option("--ipdel", help="remove an address", action="append", metavar="ADDRESS|all"),
    option("--dhcp", help="ask for an address", choices=("yes", "no")),
    option("--gw", help="default gateway", metavar="ADDRESS"),
    option("--configure", help="the agent sets the addresses inside", choices=("yes", "no")),
    option("--ipfilter", help="drop what an adapter sends from other addresses",
           choices=("yes", "no")),
    option("--macfilter", help="drop what an adapter sends from another MAC",
           choices=("yes", "no")),
    option("--preventpromisc", help="keep frames for other MACs from an adapter",
           choices=("yes", "no")),
    option("--output", help="file a port writes to", metavar="FILE"),
    option("--socket", help="socket of a port", metavar="PATH"),
    option("--socket-mode", help="who listens", choices=("server", "client"), default="server"),
)  # fmt: skip

VERBS: tuple[Verb, ...] = (
    Verb("set", "change settings and devices of a machine", set_, _set_options),
    Verb("list", "print everything about a machine", info, (
        option("ident", help="the machine", metavar="ID"),
        option("-i", "--info", help="everything", action="store_true"),
        option("-f", "--full", help="accepted", action="store_true"),
        option("-a", "--all", help="accepted", action="store_true"), JSON), changes=False),
    Verb("snapshot", "take a snapshot", snapshot, (ID, _NAME,
         option("-d", "--description", help="description", metavar="TEXT"))),
    Verb("snapshot-list", "list snapshots", snapshot_list, (ID,
         option("-t", "--tree", help="as a tree", action="store_true"),
         option("-i", "--id", help="only this one, in full", metavar="UUID"), JSON), changes=False),
    Verb("snapshot-switch", "return to a snapshot", snapshot_switch, (ID, _SNAPSHOT)),
    Verb("snapshot-delete", "delete a snapshot", snapshot_delete, (ID, _SNAPSHOT,
         option("-c", "--children", help="with those made after it", action="store_true"))),
    Verb("capture", "store the screen as a PNG image", capture, (ID,
         option("--file", help="the image", metavar="FILE")), changes=False),
    Verb("mount", "mount a stopped machine's partitions", mount, (ID,
         option("-o", "--option", help="ro (default) or rw", metavar="ro|rw"),
         option("--info", help="only tell which partitions there are", action="store_true"))),
    Verb("umount", "unmount a machine's partitions", umount, (ID,), aliases=("unmount",)),
    Verb("installtools", "put the CD with the guest tools into a drive", installtools, (ID,)),
    Verb("reset-uptime", "begin to count the uptime anew", reset_uptime, (ID,)),
    Verb("problem-report", "write an archive for support", problem_report, (ID,
         option("-d", "--dump", help="to standard output (default)", action="store_true"),
         option("-s", "--send", help="refused: reports are sent nowhere", action="store_true"),
         option("--proxy", help="accepted with --send", metavar="SERVER"),
         option("--no-proxy", help="accepted with --send", action="store_true")),
         changes=False),
)  # fmt: skip
