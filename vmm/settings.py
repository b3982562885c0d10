"""The settings of a machine, one row each: option, help, how it changes the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime import units
from vmm import diskload, inside, memory, processors, startup
from vmm.change import Change


@dataclass(frozen=True, slots=True)
class Row:
    """One setting."""

    option: str
    metavar: str
    help: str
    apply: Callable[[Change, str], None]


def description(change: Change, text: str) -> None:
    """Set what people read about it."""
    change.domain.description = text


def template(change: Change, text: str) -> None:
    """Make it a template, or a machine again; raises AlreadyRunning."""
    yes = units.yes_no(text)
    if yes:
        change.machine.stopped("make a template of")
    change.domain.set_setting("template", "yes" if yes else None)


def offline_management(change: Change, text: str) -> None:
    """Note whether the product's management panel, which no longer exists, was to be used."""
    change.domain.set_setting("offline-management", "yes" if units.yes_no(text) else "no")


def rows() -> dict[str, Row]:
    """Return the table by option."""
    # Modules that only few settings need.
    from vmm import account, display, firmware, guesttools, traffic, undo

    table = (
        Row("cpus", "N", "number of processors", processors.cpus),
        Row("cpu-hotplug", "on|off", "plug processors into the running machine", processors.cpu_hotplug),
        Row("cpuunits", "N", "weight against others, 8 to 500000", processors.cpuunits),
        Row("cpulimit", "N|Nm", "processor time in percent of one, or MHz; 0: none", processors.cpulimit),
        Row("cpumask", "N,N-N|all", "processors of the server it may use", processors.cpumask),
        Row("nodemask", "N,N-N|all", "NUMA nodes its memory is from", processors.nodemask),
        Row("memsize", "MB", "memory", memory.memsize),
        Row("mem-hotplug", "on|off", "plug memory into the running machine", memory.mem_hotplug),
        Row("memquota", "auto|MIN:MAX[:PRIO[:MAXBALLOON]]", "share of the server's memory",
            memory.memquota),
        Row("videosize", "MB", "memory of the video card", display.videosize),
        Row("ioprio", "0-7", "disk priority", diskload.ioprio),
        Row("iolimit", "N[K|M|G]", "disk bandwidth, MB a second; 0: no limit", diskload.iolimit),
        Row("iopslimit", "N", "disk operations a second; 0: no limit", diskload.iopslimit),
        Row("description", "TEXT", "what people read about it", description),
        Row("onboot", "yes|no|auto", "start with the server", startup.onboot),
        Row("autostart", "on|off|auto", "same as --onboot", startup.onboot),
        Row("autostart-delay", "SEC", "seconds to wait after the one before", startup.autostart_delay),
        Row("autostop", "stop|suspend|shutdown", "when the server stops", startup.autostop),
        Row("on-crash", "pause|restart[:no-report]", "when the guest panics", startup.on_crash),
        Row("template", "yes|no", "make it a template", template),
        Row("undo-disks", "off|discard|ask", "what a session writes: stays, goes, or is asked for",
            undo.set_mode),
        Row("host-admin", "ACCOUNT|none", "account of the server that answers for it",
            account.host_admin),
        Row("start-as-user", "administrator|owner|ACCOUNT", "account QEMU runs as",
            account.start_as_user),
        Row("tools-autoupdate", "on|off", "update the guest agent after each start --wait",
            guesttools.autoupdate),
        Row("rate", "[DEV:]CLASS:KBPS…|none", "share of the links in a traffic class", traffic.rate),
        Row("ratebound", "yes|no", "the rate is also the most it gets", traffic.rate_bound),
        Row("select-boot-device", "on|off", "the firmware offers a boot menu", startup.boot_menu),
        Row("offline-management", "yes|no", "management panel: obsolete, kept", offline_management),
        Row("device-bootorder", "\"DEV DEV…\"", "order of boot devices", startup.boot_order),
        Row("efi-boot", "on|off", "UEFI firmware", firmware.efi_boot),
        Row("vnc-port", "PORT", "port of the remote display", display.vnc_port),
        Row("vnc-passwd", "PASSWORD", "password of the remote display", display.vnc_password),
        Row("vnc-address", "ADDRESS", "address of the remote display", display.vnc_address),
        Row("vnc-mode", "auto|manual|off", "remote display", display.vnc_mode),
        Row("userpasswd", "USER:PASSWORD", "set a user's password inside", inside.userpasswd),
        Row("hostname", "NAME", "host name inside", inside.hostname),
        Row("nameserver", "ADDRESS…", "DNS servers inside", inside.nameserver),
        Row("searchdomain", "DOMAIN…", "domains searched inside", inside.searchdomain),
    )  # fmt: skip
    return {row.option: row for row in table}
