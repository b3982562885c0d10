"""The settings of a machine, one row each: option, help, how it changes the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from lxml.builder import E

from runtime import units
from runtime.errors import (
    BadHostname,
    CpuMaskFailed,
    InvalidValue,
    IoFailed,
    NodeMaskFailed,
    PasswordFailed,
)
from vmm import devices, guestsettings, memory
from vmm.change import Change
from vmm.domain import child, drop
from vmm.faults import AgentSilent

_MOST_CPUS = 255
#: A machine with hot-plugged processors can have this many, or what the server has.
_HOTPLUG_CPUS = 8
_PERIOD_US = 100_000
_NOTICE_S = 5.0
#: Order of elements in <domain>, as far as we add some (the schema does not insist, people do).
_TAIL = ("os", "features", "cpu", "clock", "devices")


@dataclass(frozen=True, slots=True)
class Row:
    """One setting."""

    option: str
    metavar: str
    help: str
    apply: Callable[[Change, str], None]


def cpus(change: Change, text: str) -> None:
    """Set how many processors the machine has; raises InvalidValue."""
    count = whole(text, 1, _MOST_CPUS, "the number of processors")
    domain, before = change.domain, change.domain.cpus
    most = domain.most_cpus
    vcpu = child(domain.root, "vcpu", before=_TAIL)
    if hotplug := domain.setting("cpu-hotplug") == "on":
        vcpu.set("current", str(count))
        vcpu.text = str(max(most, count))
    else:
        vcpu.text = str(count)
        vcpu.attrib.pop("current", "")
    memory.fit_cell(domain)
    change.say(f"Set the cpus parameter to {count}")
    if hotplug and before < count <= most:
        import libvirt

        change.hot(
            "plug in processors",
            lambda: change.raw.setVcpusFlags(count, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        )
        change.hot("bring processors online", lambda: _online(change, count))
    elif count != before:
        change.later("--cpus")


def _online(change: Change, count: int) -> None:
    """Let the guest use new processors: some wait to be told. No agent: nothing is done."""
    try:
        agent = change.machine.agent()
    except AgentSilent:
        change.later("processors which the guest has to bring online itself")
        return
    # The guest learns of them by ACPI, a moment after QEMU has them.
    deadline = time.monotonic() + _NOTICE_S
    while time.monotonic() < deadline:
        found = agent.call("guest-get-vcpus")
        waiting = [
            {"logical-id": cpu["logical-id"], "online": True} for cpu in found if not cpu["online"]
        ]
        if waiting:
            agent.call("guest-set-vcpus", vcpus=waiting)
        if len(found) >= count and not waiting:
            return
        time.sleep(0.1)


def cpu_hotplug(change: Change, text: str) -> None:
    """Allow processors to be plugged into the running machine."""
    on = units.yes_no(text)
    domain = change.domain
    vcpu = child(domain.root, "vcpu", before=_TAIL)
    now = domain.cpus
    if on:
        vcpu.text = str(max(now, _HOTPLUG_CPUS, os.cpu_count() or 1))
        vcpu.set("current", str(now))
    else:
        vcpu.text = str(now)
        vcpu.attrib.pop("current", "")
    domain.set_setting("cpu-hotplug", "on" if on else "off")
    memory.fit_cell(domain)
    change.later("--cpu-hotplug")


def cpuunits(change: Change, text: str) -> None:
    """Set the weight against other environments; raises InvalidValue."""
    count = whole(text, 8, 500_000, "the number of CPU units")
    # cgroup v2 has weights (1000 units are the default of 100), v1 shares (the default is 1024).
    shares = min(max(count // 10, 1), 10_000) if _unified() else max(count * 1024 // 1000, 2)
    tune = child(change.domain.root, "cputune", before=_TAIL)
    child(tune, "shares").text = str(shares)
    change.domain.set_setting("cpuunits", str(count))
    change.say(f"Set the cpuunits parameter to {count}")
    change.hot("set CPU units", lambda: _scheduler(change, {"cpu_shares": shares}))


def cpulimit(change: Change, text: str) -> None:
    """Set how much processor time it gets, in percent of one or MHz; raises InvalidValue."""
    percent = cpu_percent(text)
    quota = percent * _PERIOD_US // 100 if percent else -1
    tune = child(change.domain.root, "cputune", before=_TAIL)
    for name in ("global_period", "global_quota"):
        drop(tune, name)
    if percent:
        tune.append(E.global_period(str(_PERIOD_US)))
        tune.append(E.global_quota(str(quota)))
    change.domain.set_setting("cpulimit", str(percent) if percent else None)
    change.say(f"Set the cpulimit parameter to {percent or 'unlimited'}")
    change.hot(
        "set CPU limit",
        lambda: _scheduler(change, {"global_period": _PERIOD_US, "global_quota": quota}),
    )


def cpu_percent(text: str) -> int:
    """Return a limit in percent of one processor, 0 meaning none; raises InvalidValue."""
    most = 100 * (os.cpu_count() or 1)
    word = text.strip().lower()
    if word.endswith("m"):
        speed = _processor_mhz()
        percent = whole(word[:-1], 0, 10**7, "the CPU limit") * 100 // speed
    else:
        percent = whole(word.removesuffix("%"), 0, 10**6, "the CPU limit")
    return 0 if percent >= most else percent


def _processor_mhz() -> int:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("cpu MHz"):
                return max(int(float(line.partition(":")[2])), 1)
    raise InvalidValue("the speed of the processors is not known", hint="give the limit in percent")


def cpumask(change: Change, text: str) -> None:
    """Set on which processors of the server it runs; raises CpuMaskFailed."""
    chosen = number_set(text, os.cpu_count() or 1, CpuMaskFailed)
    vcpu = child(change.domain.root, "vcpu", before=_TAIL)
    everywhere = len(chosen) == (os.cpu_count() or 1)
    if everywhere:
        vcpu.attrib.pop("cpuset", "")
    else:
        vcpu.set("cpuset", ",".join(map(str, sorted(chosen))))
    change.say(f"Set the cpumask parameter to {'all' if everywhere else vcpu.get('cpuset')}")

    def pin() -> None:
        import libvirt

        places = tuple(number in chosen for number in range(os.cpu_count() or 1))
        for number in range(len(change.raw.vcpus()[0])):
            change.raw.pinVcpuFlags(number, places, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        change.raw.pinEmulator(places, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    change.hot("set the CPU mask", pin)


def nodemask(change: Change, text: str) -> None:
    """Set from which NUMA nodes it gets memory; raises NodeMaskFailed."""
    count = len([n for n in os.listdir("/sys/devices/system/node") if n.startswith("node")])
    chosen = number_set(text, count, NodeMaskFailed)
    drop(change.domain.root, "numatune")
    if len(chosen) < count:
        tune = child(change.domain.root, "numatune", before=_TAIL)
        tune.append(E.memory(mode="strict", nodeset=",".join(map(str, sorted(chosen)))))
    change.later("--nodemask")


def number_set(
    text: str, count: int, error: type[CpuMaskFailed] | type[NodeMaskFailed]
) -> set[int]:
    """Return the numbers that ``0,2-3`` or ``all`` means, all below ``count``; raises ``error``."""
    if text.strip().lower() == "all":
        return set(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise error(f"not a list of numbers: {text!r}", hint="write 0,2-3 or all")
        chosen |= set(range(int(first), int(last or first) + 1))
    if not chosen or max(chosen) >= count:
        raise error(f"this server has 0 to {count - 1}: {text!r}")
    return chosen


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


def description(change: Change, text: str) -> None:
    """Set what people read about it."""
    change.domain.description = text


def template(change: Change, text: str) -> None:
    """Make it a template, or a machine again; raises AlreadyRunning."""
    yes = units.yes_no(text)
    if yes:
        change.machine.stopped("make a template of")
    change.domain.set_setting("template", "yes" if yes else None)


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


def efi_boot(change: Change, text: str) -> None:
    """Boot by UEFI firmware instead of a BIOS; libvirt refuses where there is none."""
    system = child(change.domain.root, "os")
    if units.yes_no(text):
        system.set("firmware", "efi")
    else:
        system.attrib.pop("firmware", "")
        drop(system, "loader")
        drop(system, "nvram")
    change.later("--efi-boot")


def userpasswd(change: Change, text: str) -> None:
    """Set a user's password inside; raises PasswordFailed, NotRunning."""
    user, colon, password = text.partition(":")
    if not colon or not user or not password:
        raise PasswordFailed("write --userpasswd USER:PASSWORD")
    change.inside(
        "set a password", lambda agent: agent.set_password(user, password, crypted=change.crypted)
    )
    change.say("Authentication tokens updated successfully.")


def hostname(change: Change, text: str) -> None:
    """Set the host name inside; raises BadHostname, NotRunning."""
    if not guestsettings.is_hostname(text):
        raise BadHostname(f"not a host name: {text!r}")
    change.domain.set_setting("hostname", text)
    change.inside("set the host name", lambda agent: guestsettings.set_hostname(agent, text))
    change.say(f"Set the hostname parameter to {text}")


def nameserver(change: Change, text: str) -> None:
    """Set the DNS servers inside; raises BadNameserver, NotRunning."""
    servers = guestsettings.check_servers(text)
    change.domain.set_setting("nameserver", " ".join(servers))
    _resolver(change)


def searchdomain(change: Change, text: str) -> None:
    """Set the domains searched inside; raises BadSearchDomain, NotRunning."""
    domains = guestsettings.check_domains(text)
    change.domain.set_setting("searchdomain", " ".join(domains))
    _resolver(change)


def _resolver(change: Change) -> None:
    servers = change.domain.setting("nameserver").split()
    domains = change.domain.setting("searchdomain").split()
    change.inside(
        "set the DNS servers", lambda agent: guestsettings.set_resolver(agent, servers, domains)
    )


def whole(text: str, least: int, most: int, what: str) -> int:
    """Return a whole number within bounds; raises InvalidValue."""
    word = text.strip()
    if not word.isdecimal() or not word.isascii() or not least <= int(word) <= most:
        raise InvalidValue(f"{what} is {least} to {most}: {text!r}")
    return int(word)


def choice(text: str, words: tuple[str, ...], what: str) -> str:
    """Return ``text`` if it is one of ``words``; raises InvalidValue."""
    if text not in words:
        raise InvalidValue(f"unknown value for {what}: {text!r}", hint=", ".join(words))
    return text


def _unified() -> bool:
    try:
        with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as file:
            return "cpu" in file.read().split()
    except OSError:
        return False


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


def _scheduler(change: Change, values: dict[str, int]) -> None:
    import libvirt

    change.raw.setSchedulerParametersFlags(values, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _weight(change: Change, weight: int) -> None:
    import libvirt

    try:
        change.raw.setBlkioParameters({"weight": weight}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        raise IoFailed(f"cannot set the disk priority: {error.get_error_message()}") from error


def rows() -> dict[str, Row]:
    """Return the table by option."""
    from vmm import display

    table = (
        Row("cpus", "N", "number of processors", cpus),
        Row("cpu-hotplug", "on|off", "plug processors into the running machine", cpu_hotplug),
        Row("cpuunits", "N", "weight against others, 8 to 500000", cpuunits),
        Row("cpulimit", "N|Nm", "processor time in percent of one, or MHz; 0: none", cpulimit),
        Row("cpumask", "N,N-N|all", "processors of the server it may use", cpumask),
        Row("nodemask", "N,N-N|all", "NUMA nodes its memory is from", nodemask),
        Row("memsize", "MB", "memory", memory.memsize),
        Row("mem-hotplug", "on|off", "plug memory into the running machine", memory.mem_hotplug),
        Row("memquota", "auto|MIN:MAX[:PRIO[:MAXBALLOON]]", "share of the server's memory",
            memory.memquota),
        Row("videosize", "MB", "memory of the video card", display.videosize),
        Row("ioprio", "0-7", "disk priority", ioprio),
        Row("iolimit", "N[K|M|G]", "disk bandwidth, MB a second; 0: no limit", iolimit),
        Row("iopslimit", "N", "disk operations a second; 0: no limit", iopslimit),
        Row("description", "TEXT", "what people read about it", description),
        Row("onboot", "yes|no|auto", "start with the server", onboot),
        Row("autostart", "on|off|auto", "same as --onboot", onboot),
        Row("autostart-delay", "SEC", "seconds to wait after the one before", autostart_delay),
        Row("autostop", "stop|suspend|shutdown", "when the server stops", autostop),
        Row("on-crash", "pause|restart[:no-report]", "when the guest panics", on_crash),
        Row("template", "yes|no", "make it a template", template),
        Row("device-bootorder", "\"DEV DEV…\"", "order of boot devices", boot_order),
        Row("efi-boot", "on|off", "UEFI firmware", efi_boot),
        Row("vnc-port", "PORT", "port of the remote display", display.vnc_port),
        Row("vnc-passwd", "PASSWORD", "password of the remote display", display.vnc_password),
        Row("vnc-address", "ADDRESS", "address of the remote display", display.vnc_address),
        Row("vnc-mode", "auto|manual|off", "remote display", display.vnc_mode),
        Row("userpasswd", "USER:PASSWORD", "set a user's password inside", userpasswd),
        Row("hostname", "NAME", "host name inside", hostname),
        Row("nameserver", "ADDRESS…", "DNS servers inside", nameserver),
        Row("searchdomain", "DOMAIN…", "domains searched inside", searchdomain),
    )  # fmt: skip
    return {row.option: row for row in table}
