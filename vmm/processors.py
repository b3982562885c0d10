"""The processors of a machine: how many, their weight and limit, where they run."""

from __future__ import annotations

import os
import time

from lxml.builder import E

from runtime import units
from runtime.errors import CpuMaskFailed, InvalidValue, NodeMaskFailed
from vmm import memory
from vmm.change import Change
from vmm.domain import child, drop
from vmm.faults import AgentSilent
from vmm.words import number_set, whole

_MOST_CPUS = 255
#: A machine with hot-plugged processors can have this many, or what the server has.
_HOTPLUG_CPUS = 8
_PERIOD_US = 100_000
_NOTICE_S = 5.0
#: Order of elements in <domain>, as far as we add some (the schema does not insist, people do).
_TAIL = ("os", "features", "cpu", "clock", "devices")


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


def _unified() -> bool:
    try:
        with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as file:
            return "cpu" in file.read().split()
    except OSError:
        return False


def _scheduler(change: Change, values: dict[str, int]) -> None:
    import libvirt

    change.raw.setSchedulerParametersFlags(values, libvirt.VIR_DOMAIN_AFFECT_LIVE)
