"""The contents of a container's own /proc/meminfo, cpuinfo, stat and so on (proc(5)).

Everything is computed from the container's cgroups when it is read. What the kernel does not
count per container is 0, or left out where the format allows it.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from contextlib import suppress

from runtime import ubc
from runtime.errors import InvalidValue
from runtime.figures import Figures
from runtime.memory import Scheme, pages, scheme_of
from runtime.paths import Paths
from runtime.settings_resources import online_cpus, parse_cpulist
from runtime.sizing import parse_meminfo
from runtime.units import PAGE

#: Ticks per second in /proc/stat (USER_HZ).
_HZ = 100
_TICK_NS = 10**9 // _HZ
#: How long what comes from the server's own files is good, in seconds.
_FRESH_S = 1.0
_SETTINGS_S = 0.25
#: The kernel's sampling of the load (include/linux/sched/loadavg.h).
_LOAD_PERIOD_S = 5.0
_LOAD_MINUTES = (1, 5, 15)
#: So long after the last reader the load is no longer sampled.
_LOAD_WATCHED_S = 300.0


class Load:
    """The load averages of one container.

    The kernel keeps none per cgroup. While somebody reads them, tasks are counted every 5 s as the
    kernel does; before the first reader, the time they ran (and waited for disks) since the last
    count stands for the count, which is exact for what was not waiting for a processor.
    """

    def __init__(self, figures: Figures, started_s: float) -> None:
        """Begin with no load at ``started_s`` (CLOCK_BOOTTIME)."""
        self._figures = figures
        self._averages = [0.0, 0.0, 0.0]
        self._at = started_s
        self._busy_ns = 0
        self._waited_us = 0
        self._watched = -math.inf
        #: Tasks that ran or waited at the last count, and all of them.
        self.running = 0
        self.total = 0
        self.last_pid = 0

    def pause_s(self) -> float | None:
        """Return seconds until the next count is due; None: nobody looks."""
        now = _boottime()
        if now - self._watched > _LOAD_WATCHED_S:
            return None
        return self._at + _LOAD_PERIOD_S - now

    def read(self) -> tuple[float, ...]:
        """Return the averages over 1, 5 and 15 minutes."""
        now = _boottime()
        if self.pause_s() is None:
            self._elapse(now, self._mean(now))
            self._count()
        elif now - self._at >= _LOAD_PERIOD_S:
            self.sample()
        self._watched = now
        return tuple(self._averages)

    def sample(self) -> None:
        """Count the tasks now and let the averages follow."""
        self._elapse(_boottime(), self._count())

    def _mean(self, now: float) -> float:
        """Return how many tasks ran or waited for a disk, on average since the last count."""
        busy = self._figures.cpu().total_ns
        waited = self._figures.stalled_us("io") or 0
        seconds = max(now - self._at, 0.001)
        mean = (busy - self._busy_ns) / 1e9 / seconds
        return max(mean + (waited - self._waited_us) / 1e6 / seconds, 0.0)

    def _elapse(self, now: float, active: float) -> None:
        seconds = max(now - self._at, 0.0)
        for index, minutes in enumerate(_LOAD_MINUTES):
            keep = math.exp(-seconds / (60 * minutes))
            self._averages[index] = self._averages[index] * keep + active * (1 - keep)
        self._at = now
        self._busy_ns = self._figures.cpu().total_ns
        self._waited_us = self._figures.stalled_us("io") or 0

    def _count(self) -> int:
        threads = self._figures.threads()
        running = 0
        for tid in threads:
            with suppress(OSError, ValueError), open(f"/proc/{tid}/stat", "rb", 0) as file:
                line = file.read(512)
                place = line.rindex(b")") + 2
                running += line[place : place + 1] in (b"R", b"D")
        self.running, self.total = running, len(threads)
        self.last_pid = _inner_pid(max(threads, default=0))
        return running


def _inner_pid(pid: int) -> int:
    """Return the id that host process ``pid`` has in its own pid namespace."""
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


class View:
    """The files of one container."""

    def __init__(
        self, paths: Paths, ctid: int, started_boottime_s: float, started_s: float
    ) -> None:
        """Show container ``ctid`` of the system at ``paths``, which started then."""
        self.started_s = started_s
        self._started = started_boottime_s
        self._figures = Figures(paths.tag, ctid, keep_open=True)
        self._settings_path = paths.run / "procview" / f"{ctid}.json"
        self._settings: dict[str, str] = {}
        self._settings_at = -math.inf
        self._settings_mtime = 0
        self._host: dict[str, int] = {}
        self._host_at = -math.inf
        self._stanzas: list[tuple[int, bytes]] = []
        self._stanzas_at = -math.inf
        self.load = Load(self._figures, started_boottime_s)

    def settings(self) -> dict[str, str]:
        """Return the configuration keys the view depends on, as they were last written."""
        now = time.monotonic()
        if now - self._settings_at > _SETTINGS_S:
            self._settings_at = now
            with suppress(OSError, ValueError):
                mtime = os.stat(self._settings_path).st_mtime_ns
                if mtime != self._settings_mtime:
                    self._settings = json.loads(self._settings_path.read_bytes())
                    self._settings_mtime = mtime
        return self._settings

    def host_memory(self) -> dict[str, int]:
        """Return the server's /proc/meminfo in bytes, at most a second old."""
        now = time.monotonic()
        if now - self._host_at > _FRESH_S:
            with open("/proc/meminfo", encoding="ascii") as file:
                self._host = parse_meminfo(file.read())
            self._host_at = now
        return self._host

    def processors(self) -> list[int]:
        """Return the processors the container may run on."""
        try:
            allowed = parse_cpulist(self._figures.cpus() or "")
        except InvalidValue:
            allowed = online_cpus()
        return sorted(allowed)

    def total_memory(self) -> tuple[int, int]:
        """Return the RAM and swap that are shown, in bytes."""
        host, settings = self.host_memory(), self.settings()
        mode, _, number = settings.get("MEMINFO", "").partition(":")
        if mode == "none":
            return host["MemTotal"], host["SwapTotal"]
        memory = self._figures.memory_limits()
        ram = min(memory[0] or host["MemTotal"], host["MemTotal"])
        if scheme_of(settings) is not Scheme.VSWAP and number.isdecimal():
            privvmpages = ubc.lenient("PRIVVMPAGES", settings.get("PRIVVMPAGES"))
            if mode == "pages":
                ram = int(number) * PAGE
            elif mode == "privvmpages" and privvmpages is not None:
                ram = min(pages(privvmpages.barrier) * int(number), host["MemTotal"])
        swap = host["SwapTotal"] if memory[1] is None else min(memory[1], host["SwapTotal"])
        return ram, swap

    def meminfo(self) -> bytes:
        """Return /proc/meminfo."""
        host = self.host_memory()
        total, swap_total = self.total_memory()
        if self.settings().get("MEMINFO") == "none":
            with open("/proc/meminfo", "rb") as file:
                return file.read()
        used = self._figures.memory(now_only=True)
        free = max(total - used.used, 0)
        cached_swap = max(swap_total - used.swap, 0)
        file_pages = used.active_file + used.inactive_file
        available = min(free + file_pages + used.slab_reclaimable, total)
        slab = min(used.kernel, used.used)
        rows = (
            ("MemTotal", total),
            ("MemFree", free),
            ("MemAvailable", available),
            ("Buffers", 0),
            ("Cached", used.cache),
            ("SwapCached", 0),
            ("Active", used.active_anonymous + used.active_file),
            ("Inactive", used.inactive_anonymous + used.inactive_file),
            ("Active(anon)", used.active_anonymous),
            ("Inactive(anon)", used.inactive_anonymous),
            ("Active(file)", used.active_file),
            ("Inactive(file)", used.inactive_file),
            ("Unevictable", used.unevictable),
            ("Mlocked", 0),
            ("SwapTotal", swap_total),
            ("SwapFree", cached_swap),
            ("Dirty", used.dirty),
            ("Writeback", used.writeback),
            ("AnonPages", used.anonymous),
            ("Mapped", used.mapped),
            ("Shmem", used.shared),
            ("KReclaimable", used.slab_reclaimable),
            ("Slab", slab),
            ("SReclaimable", used.slab_reclaimable),
            ("SUnreclaim", max(slab - used.slab_reclaimable, 0)),
            ("CommitLimit", total + swap_total),
            ("Committed_AS", used.anonymous + used.shared + used.swap),
            ("VmallocTotal", host.get("VmallocTotal", 0)),
            ("VmallocUsed", 0),
            ("VmallocChunk", 0),
        )
        lines = [f"{name + ':':<15} {size >> 10:>8} kB\n" for name, size in rows]
        lines.append("HugePages_Total:       0\nHugePages_Free:        0\n")
        lines.append(f"Hugepagesize:   {host.get('Hugepagesize', 2 << 20) >> 10:>8} kB\n")
        return "".join(lines).encode()

    def swaps(self) -> bytes:
        """Return /proc/swaps."""
        _, total = self.total_memory()
        text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        if total:
            used = min(self._figures.memory(now_only=True).swap, total)
            text += f"{'none':<40}virtual\t\t{total >> 10}\t\t{used >> 10}\t\t0\n"
        return text.encode()

    def cpuinfo(self) -> bytes:
        """Return /proc/cpuinfo: the container's processors, counted from 0."""
        now = time.monotonic()
        if now - self._stanzas_at > _FRESH_S:
            with open("/proc/cpuinfo", "rb") as file:
                text = file.read()
            found = []
            for stanza in re.split(rb"\n\n+", text.strip(b"\n")):
                match = re.match(rb"processor\s*:\s*(\d+)", stanza)
                found.append((int(match[1]) if match else -1, stanza))
            self._stanzas, self._stanzas_at = found, now
        allowed = self.processors()
        places = {number: place for place, number in enumerate(allowed)}
        out = []
        for number, stanza in self._stanzas:
            if number < 0:  # s390 and the like end with a block about the whole machine
                out.append(stanza + b"\n\n")
            elif number in places:
                line = f"processor\t: {places[number]}".encode()
                changed = re.sub(rb"\Aprocessor\s*:\s*\d+", line, stanza)
                changed = re.sub(
                    rb"(?m)^siblings(\s*): \d+", rb"siblings\1: %d" % len(places), changed
                )
                changed = re.sub(
                    rb"(?m)^cpu cores(\s*): \d+", rb"cpu cores\1: %d" % len(places), changed
                )
                out.append(changed + b"\n\n")
        return b"".join(out)

    def online(self) -> bytes:
        """Return /sys/devices/system/cpu/online."""
        count = len(self.processors())
        return b"0\n" if count <= 1 else f"0-{count - 1}\n".encode()

    def uptime(self) -> bytes:
        """Return /proc/uptime: seconds since the start, and those its processors were idle."""
        up = self._up()
        busy = self._figures.cpu().total_ns / 1e9
        idle = max(up * len(self.processors()) - busy, 0.0)
        return f"{up:.2f} {idle:.2f}\n".encode()

    def _up(self) -> float:
        return max(_boottime() - self._started, 0.0)

    def stat(self) -> bytes:
        """Return /proc/stat."""
        allowed = self.processors()
        up_ns = int(self._up() * 1e9)
        each = self._figures.cpu_of_each()
        if each is not None:
            times = [each[number] for number in allowed if number < len(each)]
            # What ran before the processors were restricted happened all the same.
            rest_user = sum(user for user, _ in each) - sum(user for user, _ in times)
            rest_system = sum(system for _, system in each) - sum(system for _, system in times)
        else:
            total = self._figures.cpu()
            share = max(len(allowed), 1)
            times = [(total.user_ns // share, total.system_ns // share)] * len(allowed)
            rest_user = rest_system = 0
        user = sum(row[0] for row in times) + rest_user
        system = sum(row[1] for row in times) + rest_system
        idle = max(up_ns * max(len(times), 1) - user - system, 0)
        lines = [_cpu_line("cpu ", user, system, idle)]
        for place, (user_ns, system_ns) in enumerate(times):
            spare = max(up_ns - user_ns - system_ns, 0)
            lines.append(_cpu_line(f"cpu{place}", user_ns, system_ns, spare))
        load = self.load
        lines.append(
            f"intr 0\nctxt 0\nbtime {int(self.started_s)}\n"
            f"processes {max(load.last_pid, self._figures.tasks().now)}\n"
            f"procs_running {max(load.running, 1)}\nprocs_blocked 0\nsoftirq 0\n"
        )
        return "".join(lines).encode()

    def loadavg(self) -> bytes:
        """Return /proc/loadavg."""
        averages = " ".join(f"{value:.2f}" for value in self.load.read())
        load = self.load
        return f"{averages} {load.running}/{load.total} {load.last_pid}\n".encode()

    def diskstats(self) -> bytes:
        """Return /proc/diskstats: its own operations and sectors; times are not counted."""
        lines = []
        for device, io in sorted(self._figures.io_of_each().items()):
            major, _, minor = device.partition(":")
            try:
                name = os.path.basename(os.readlink(f"/sys/dev/block/{device}"))
            except OSError:
                continue
            lines.append(
                f"{major:>4} {minor:>7} {name} {io.reads} 0 {io.read_bytes >> 9} 0 "
                f"{io.writes} 0 {io.written_bytes >> 9} 0 0 0 0 0 0 0 0 0 0\n"
            )
        return "".join(lines).encode()


def _cpu_line(name: str, user_ns: int, system_ns: int, idle_ns: int) -> str:
    ticks = (user_ns // _TICK_NS, 0, system_ns // _TICK_NS, idle_ns // _TICK_NS, 0, 0, 0, 0, 0, 0)
    return f"{name} {' '.join(map(str, ticks))}\n"


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
