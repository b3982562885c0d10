"""The lines pstat(8) shows: the server above, its containers and machines below."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum

from runtime.units import UNLIMITED
from tools._monitor import Look
from tools._rates import GuestRates, Level, NodeRates, Thresholds, rates

_MIB = 1 << 20
_TERSE_ROWS = 10


class Detail(StrEnum):
    """How much is shown."""

    BRIEF = "brief"
    STANDARD = "standard"
    VERBOSE = "verbose"


class Table(StrEnum):
    """Which table stands below the server's lines."""

    GENERAL = "general"
    DISK = "disk"
    ACCOUNTING = "accounting"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text; ``level`` colours the word in brackets, ``head`` a table's headings."""

    text: str
    level: Level | None = None
    head: bool = False


def lines(
    before: Look,
    after: Look,
    thresholds: Thresholds,
    *,
    detail: Detail = Detail.STANDARD,
    table: Table = Table.GENERAL,
) -> list[Line]:
    """Return the whole screen."""
    node, guests = rates(before, after)
    out = _node_lines(after, node, thresholds, detail)
    if detail is not Detail.BRIEF:
        out.append(Line(""))
        out += _TABLES[table](guests, detail)
    return out


def _node_lines(look: Look, node: NodeRates, judge: Thresholds, detail: Detail) -> list[Line]:
    server, counts = look.node, look.node.processes
    containers = sum(guest.kind == "ct" for guest in look.guests.values())
    machines = len(look.guests) - containers
    clock = time.strftime("%H:%M:%S")
    out = [
        Line(
            f" {clock} up {_duration(server.uptime_s)}, {server.users} users, "
            f"load average: {', '.join(server.load)}"
        ),
        Line(
            f"CTNum {containers}, VMNum {machines}, procs {counts.total}: "
            f"running {counts.running}, sleeping {counts.sleeping}, "
            f"unint {counts.uninterruptible}, zombie {counts.zombie}, stopped {counts.stopped}"
        ),
    ]
    busy = 100 - node.idle
    cpu = judge.judge(CPU=busy, CPU_WAIT=node.cpu_wait)
    out.append(
        Line(
            f"CPU [{cpu:^4}]: CTs {node.containers:3.0f}%, CT0 {node.own:3.0f}%, "
            f"user {node.user:3.0f}%, sys {node.system:3.0f}%, idle {node.idle:3.0f}%, "
            f"waiting {node.cpu_wait:3.0f}%",
            cpu,
        )
    )
    memory = server.memory
    level = judge.judge(MEM=node.memory_used, MEM_WAIT=node.memory_wait)
    free = memory.get("MemAvailable", memory["MemFree"])
    text = (
        f"Mem [{level:^4}]: total {memory['MemTotal'] // _MIB}MB, free {free // _MIB}MB, "
        f"waiting {node.memory_wait:3.0f}%"
    )
    if detail is Detail.VERBOSE:
        text += (
            f", unused {memory['MemFree'] // _MIB}MB, cached {memory.get('Cached', 0) // _MIB}MB, "
            f"slab {memory.get('Slab', 0) // _MIB}MB"
        )
    out.append(Line(text, level))
    level = judge.judge(SWAP=node.swap_used)
    out.append(
        Line(
            f"Swap [{level:^4}]: tot {memory.get('SwapTotal', 0) // _MIB}MB, "
            f"free {memory.get('SwapFree', 0) // _MIB}MB, in {_mb(node.swap_in_per_s)}MB/s, "
            f"out {_mb(node.swap_out_per_s)}MB/s",
            level,
        )
    )
    level = judge.judge(NET_ERRORS=node.network[4])
    text = (
        f"Net [{level:^4}]: tot: in {_mb(node.network[0])}MB/s {node.network[1]:.0f}pkt/s, "
        f"out {_mb(node.network[2])}MB/s {node.network[3]:.0f}pkt/s"
    )
    if detail is Detail.VERBOSE or level is not Level.OK:
        text += f", errors and drops {node.network[4]:.0f}/s"
    out.append(Line(text, level))
    level = judge.judge(DISK_WAIT=node.io_wait)
    out.append(
        Line(
            f"Disks [{level:^4}]: in {_mb(node.read_per_s)}MB/s, "
            f"out {_mb(node.written_per_s)}MB/s, waiting {node.io_wait:3.0f}%",
            level,
        )
    )
    return out


def _general(guests: list[GuestRates], detail: Detail) -> list[Line]:
    verbose = detail is Detail.VERBOSE
    head = f"{'CTID':>10} ST {'%VM':>6} {'%KM':>6} {'PROC':>14} {'CPU':>12} {'SOCK':>5} {'FCNT':>5} {'MLAT':>5}"
    head += f" {'RAM':>9} {'SWAP':>9} {'NAME':<16}" if verbose else ""
    out = [Line(f"{head} IP", head=True)]
    for row in sorted(guests, key=lambda row: -row.cpu):
        guest, counts = row.guest, row.guest.processes
        limit = "-" if guest.process_limit is None else str(guest.process_limit)
        quota = _quota(row)
        state = "OK" if not guest.failures else "!F"
        name = guest.name if guest.kind == "ct" else guest.name[:10]
        text = (
            f"{name:>10} {state} {_part(row.memory):>6} {_part(row.kernel):>6} "
            f"{f'{counts.running}/{counts.total}/{limit}':>14} {f'{row.cpu:.1f}/{quota}':>12} "
            f"{guest.sockets:>5} {guest.failures:>5} {row.memory_wait:>4.0f}%"
        )
        if verbose:
            label = (guest.config.get("NAME") or "-") if guest.config is not None else guest.name
            text += f" {guest.memory.used // _MIB:>7}MB {guest.memory.swap // _MIB:>7}MB {label[:16]:<16}"
        out.append(Line(f"{text} {guest.address or '-'}"))
    return out


def _quota(row: GuestRates) -> str:
    """Return the CPU limit in percent of one processor, ``-`` without one."""
    from runtime.resources import cpu_quota

    if row.guest.config is None:
        return "-"
    quota = cpu_quota(row.guest.config)
    return "-" if quota is None else f"{quota * 100:.0f}"


def _disk(guests: list[GuestRates], detail: Detail) -> list[Line]:
    out = [
        Line(
            f"{'CTID/NAME':<24} {'IOPRIO':>6} {'READ kB/s':>12} {'WRITE kB/s':>12} {'IO wait':>8}",
            head=True,
        )
    ]
    for row in sorted(guests, key=lambda row: -row.io_per_s):
        out.append(
            Line(
                f"{row.guest.name[:24]:<24} {row.guest.priority:>6} {row.read_per_s / 1024:>12.1f} "
                f"{row.written_per_s / 1024:>12.1f} {row.io_wait:>7.1f}%"
            )
        )
    return out


def _accounting(guests: list[GuestRates], detail: Detail) -> list[Line]:
    out = [
        Line(
            f"{'CTID/NAME':<24} {'READ kB':>14} {'READS':>10} {'WRITE kB':>14} {'WRITES':>10}",
            head=True,
        )
    ]
    for row in sorted(
        guests, key=lambda row: -(row.guest.io.read_bytes + row.guest.io.written_bytes)
    ):
        io = row.guest.io
        out.append(
            Line(
                f"{row.guest.name[:24]:<24} {io.read_bytes // 1024:>14} {io.reads:>10} "
                f"{io.written_bytes // 1024:>14} {io.writes:>10}"
            )
        )
    return out


_TABLES = {Table.GENERAL: _general, Table.DISK: _disk, Table.ACCOUNTING: _accounting}


def terse(before: Look, after: Look) -> list[str]:
    """Return lines for scripts: the server, then at most ten containers by CPU, unaligned.

    ``node CPU% MEM_USED_MB MEM_TOTAL_MB LOAD1 LOAD5 LOAD15``, then
    ``CTID CPU% RAM_MB SWAP_MB PROCESSES READ_KB/s WRITE_KB/s FAILURES``.
    """
    node, guests = rates(before, after)
    memory = after.node.memory
    free = memory.get("MemAvailable", memory["MemFree"])
    used = (memory["MemTotal"] - free) // _MIB
    out = [
        f"node {100 - node.idle:.1f} {used} {memory['MemTotal'] // _MIB} {' '.join(after.node.load)}"
    ]
    for row in sorted(guests, key=lambda row: -row.cpu)[:_TERSE_ROWS]:
        guest = row.guest
        out.append(
            f"{guest.name} {row.cpu:.1f} {guest.memory.used // _MIB} {guest.memory.swap // _MIB} "
            f"{guest.processes.total} {row.read_per_s / 1024:.1f} {row.written_per_s / 1024:.1f} "
            f"{guest.failures}"
        )
    return out


def objects(before: Look, after: Look) -> dict[str, object]:
    """Return everything with field names, for ``--json``."""
    node, guests = rates(before, after)
    rows = []
    for row in guests:
        guest = row.guest
        rows.append(
            {
                "name": guest.name,
                "ctid": guest.ctid or None,
                "type": guest.kind,
                "cpu_percent": round(row.cpu, 2),
                "ram_bytes": guest.memory.used,
                "swap_bytes": guest.memory.swap,
                "ram_limit_bytes": None
                if guest.allowed.ram_bytes >= UNLIMITED
                else guest.allowed.ram_bytes,
                "processes": guest.processes.total,
                "sockets": guest.sockets,
                "failures": guest.failures,
                "read_bytes_per_s": round(row.read_per_s, 1),
                "write_bytes_per_s": round(row.written_per_s, 1),
                "io_wait_percent": round(row.io_wait, 2),
            }
        )
    return {
        "cpu_percent": round(100 - node.idle, 2),
        "memory_used_percent": round(node.memory_used, 2),
        "containers": sum(guest.kind == "ct" for guest in after.guests.values()),
        "machines": sum(guest.kind == "vm" for guest in after.guests.values()),
        "guests": rows,
    }


def _mb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / _MIB:.3f}"


def _part(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}"
    return f"{days} days, {clock}" if days else clock
