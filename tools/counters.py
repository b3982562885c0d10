"""``pctl statistics``: counters of running containers and machines, under the product's names.

Those of machines are in ``vmm.statistics``. Sizes are bytes, times nanoseconds, but ``guest.ram.*``,
``guest.swap.*``, ``guest.fs*`` and ``host.ram.*`` KiB as in the product; ``guest.cpu.usage`` is in
percent of one processor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase

from runtime.config import Config
from runtime.errors import ConfigMissing, InvalidOption, NotRunning
from runtime.paths import Paths
from runtime.units import KIB
from tools import environments
from tools._command import JSON, Context, Verb, option
from tools._entries import entries
from tools._machine_entries import machine_entries
from tools.environments import Kind
from tools.verbs_vm import opened

#: Seconds between the two looks that a first ``guest.cpu.usage`` is made of.
_LOOK_S = 0.25
_LOOP_S = 1.0
_ETHERNET = re.compile(r"eth([0-9]+)")

Counters = dict[str, int]


def of_container(paths: Paths, ctid: int, config: Config) -> Counters:
    """Return the counters of a running container; raises NotRunning."""
    from runtime.usage import Usage

    usage = Usage(paths, ctid)
    pid = usage.init_pid()
    if pid is None:
        raise NotRunning(f"container {ctid} is not running", hint=f"pctl start {ctid}")
    memory, io = usage.memory, usage.figures.io()
    found = {
        "guest.cpu.time": usage.figures.cpu().total_ns,
        "guest.ram.usage": (memory.used - memory.cache) // KIB,
        "guest.ram.cached": memory.cache // KIB,
        "guest.swap.usage": memory.swap // KIB,
        "host.ram.used": memory.used // KIB,
        "devices.disk0.read_total": io.read_bytes,
        "devices.disk0.read_requests": io.reads,
        "devices.disk0.write_total": io.written_bytes,
        "devices.disk0.write_requests": io.writes,
    }
    if memory.limit is not None:
        found["guest.ram.total"] = memory.limit // KIB
    if memory.swap_limit is not None:
        found["guest.swap.total"] = memory.swap_limit // KIB
    with suppress(OSError):
        found["guest.cpu.count"] = len(os.sched_getaffinity(pid))
    with suppress(OSError):
        disk = os.statvfs(paths.area(config["VE_ROOT"]))
        found["guest.fs0.total"] = disk.f_blocks * disk.f_frsize // KIB
        found["guest.fs0.free"] = disk.f_bavail * disk.f_frsize // KIB
    found.update(_adapters(pid))
    return found


def _adapters(pid: int) -> Iterator[tuple[str, int]]:
    """Yield what passed the interfaces in the network namespace of ``pid`` (proc_pid_net(5))."""
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return
    for line in lines:
        name, _, numbers = line.partition(":")
        name = name.strip()
        if name == "lo":
            continue
        ethernet = _ETHERNET.fullmatch(name)
        head = f"net.nic{ethernet[1]}" if ethernet else f"net.{name}"
        fields = [int(word) for word in numbers.split()]
        yield f"{head}.bytes_in", fields[0]
        yield f"{head}.pkts_in", fields[1]
        yield f"{head}.bytes_out", fields[8]
        yield f"{head}.pkts_out", fields[9]


def _traffic(context: Context) -> dict[str, Counters]:
    """Return what each environment sent and received of each class of networks."""
    from runtime.net import accounting, taps
    from runtime.net.nft import Nft

    with Nft() as nft:
        counters = (
            accounting.read(nft) if accounting.present(nft) else accounting.saved(context.paths)
        )
    found = accounting.by_environment(counters, taps.owners(context.paths), (4, 6))
    return {
        who: {
            f"net.classful.traffic{number}.{key}": value
            for number, traffic in of_one.items()
            for key, value in (
                ("bytes_in", traffic.bytes_in),
                ("pkts_in", traffic.packets_in),
                ("bytes_out", traffic.bytes_out),
                ("pkts_out", traffic.packets_out),
            )
        }
        for who, of_one in found.items()
    }


def _look(context: Context, ident: str | None, pattern: str) -> dict[str, Counters]:
    """Return the counters of one environment, or of all that run, by what people call them."""
    wanted = None if ident is None else environments.kind_of(context, ident)
    if ident is not None and wanted is None:
        raise ConfigMissing(
            f"no container or machine is called {ident!r}", hint="pctl list shows those that run"
        )
    traffic = _traffic(context) if _may_match(pattern, "net.classful.") else {}
    found: dict[str, Counters] = {}
    if wanted is Kind.CONTAINER and ident is not None:
        ct = environments.find_container(context, ident)
        if not ct.status().running:
            raise NotRunning("Container is not running", hint=f"pctl start {ct.ctid}")
        found[ct.record.label] = {
            **of_container(context.paths, ct.ctid, ct.config),
            **traffic.get(str(ct.ctid), {}),
        }
    elif wanted is None:
        for entry in entries(context):
            if entry.status.running:
                with suppress(NotRunning):  # it ended meanwhile
                    found[entry.record.label] = {
                        **of_container(context.paths, entry.ctid, entry.config),
                        **traffic.get(str(entry.ctid), {}),
                    }
    if wanted is not Kind.CONTAINER:
        names = (
            [ident]
            if ident is not None
            else [row.record.uuid for row in machine_entries(context) if row.running]
        )
        for name in names:
            from vmm import statistics

            with opened(context, name) as machine:
                found[machine.label] = {
                    **statistics.read(machine, file_systems=_may_match(pattern, "guest.fs")),
                    **traffic.get(machine.record.uuid, {}),
                }
    return found


def _may_match(pattern: str, head: str) -> bool:
    """Whether names that begin with ``head`` may match a shell pattern."""
    literal = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return literal.startswith(head) or head.startswith(literal)


def statistics(context: Context, args: argparse.Namespace) -> None:
    """Print counters of a running container or machine, or of all."""
    if bool(args.ident) == args.all:
        raise InvalidOption(
            "give either an ID or -a", hint="pctl statistics ID, or -a for all that run"
        )
    ident = args.ident or None
    cpu_time = "guest.cpu.time"
    before, at_s = None, 0.0
    if fnmatchcase("guest.cpu.usage", args.filter):
        before, at_s = _look(context, ident, cpu_time), time.monotonic()
        time.sleep(_LOOK_S)
    while True:
        now, now_s = _look(context, ident, args.filter), time.monotonic()
        if before is not None:
            for label, counters in now.items():
                used_ns = counters.get(cpu_time, 0) - before.get(label, {}).get(cpu_time, 0)
                if label in before:
                    counters["guest.cpu.usage"] = round(used_ns / (now_s - at_s) / 1e7)
            before, at_s = now, now_s
        _print(now, args)
        if not args.loop:
            return
        time.sleep(_LOOP_S)


def _print(found: dict[str, Counters], args: argparse.Namespace) -> None:
    shown = {
        label: {key: counters[key] for key in sorted(counters) if fnmatchcase(key, args.filter)}
        for label, counters in found.items()
    }
    if args.json:
        print(json.dumps(shown, indent=2), flush=True)
        return
    for label, counters in shown.items():
        if args.all:
            print(f"{label}:")
        for key, value in counters.items():
            print(f"{key:<40}{value}", flush=True)


# fmt: off
VERBS = (
    Verb("statistics", "print counters", statistics, (
         option("ident", help="the container or machine", metavar="ID", nargs="?"),
         option("-a", "--all", help="all that run", action="store_true"),
         option("--filter", help="only matching names", metavar="PATTERN", default="*"),
         option("--loop", help="again every second", action="store_true"), JSON), changes=False),
)
