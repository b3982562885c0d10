"""From a configuration to limits: what CPU, memory, I/O and counts mean to the kernel of today.

The conversions are those of ctid.conf(5); ``cgroups`` knows how to write the result down. At the
start of a container ``limits`` gives all of it at once; the ``apply_…`` functions make a running
container follow a changed setting. A missing controller is NoKernelSupport with its name (5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import cgroups_v1, resources_inside, ubc
from runtime.cgroup_limits import BlockDevice, Limits
from runtime.cgroups import Cgroup, hierarchies
from runtime.errors import InvalidValue, IoFailed, NoKernelSupport, ResourcesFailed
from runtime.memory import memory_of
from runtime.settings_resources import (
    CPUUNITS_LEAST,
    CPUUNITS_MOST,
    format_cpulist,
    online_cpus,
    parse_cpulist,
)
from runtime.units import PAGE, UNLIMITED, human

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.container import Container

#: Weight of each I/O priority: 4, the usual one, is what the kernel gives everybody; the ends are
#: a tenth and ten times of it, the steps between them equal ratios.
IO_WEIGHTS = (10, 18, 32, 56, 100, 215, 464, 1000)


def limits(config: Config, private: Path | None = None) -> Limits:
    """Return every limit of a configuration; ``private`` is on the device whose I/O is limited.

    Values nobody can read count as unset.
    """
    cpu, memory = cpu_limits(config, config.ctid), memory_limits(config)
    io = io_limits(config, private)
    return Limits(
        cpu_units=cpu.cpu_units,
        cpu_quota=cpu.cpu_quota,
        cpus=cpu.cpus,
        nodes=cpu.nodes,
        memory_bytes=memory.memory_bytes,
        swap_bytes=memory.swap_bytes,
        guarantee_bytes=memory.guarantee_bytes,
        tasks=count_limits(config).tasks,
        io_weight=io.io_weight,
        io_bytes_per_s=io.io_bytes_per_s,
        io_operations_per_s=io.io_operations_per_s,
        io_device=io.io_device,
    )


def apply_start(cgroup: Cgroup, config: Config, private: Path, warn: Callable[[str], None]) -> None:
    """Limit a new cgroup before anything runs in it.

    What is not limited asks for no controller. A limit that cannot be enforced raises
    NoKernelSupport naming the controller, or what the kernel's refusal is; a priority that no I/O
    scheduler honours is only warned of.
    """
    for part in (
        cpu_limits(config, config.ctid, always=False),
        memory_limits(config, always=False),
        count_limits(config, always=False),
    ):
        cgroup.set(part)
    io = io_limits(config, private)
    rates = Limits(
        io_bytes_per_s=io.io_bytes_per_s or None,
        io_operations_per_s=io.io_operations_per_s or None,
        io_device=io.io_device,
    )
    cgroup.set(rates)
    if io.io_weight != IO_WEIGHTS[4]:
        try:
            cgroup.set(Limits(io_weight=io.io_weight))
        except NoKernelSupport as error:
            warn(f"the I/O priority has no effect: {error.message}")


# CPU


def cpu_limits(config: Mapping[str, str], ctid: int, *, always: bool = True) -> Limits:
    """Return weight, quota, processors and nodes; without ``always`` only what is not usual."""
    units = _whole(config.get("CPUUNITS"), 1000)
    units = min(max(units, CPUUNITS_LEAST), CPUUNITS_MOST)
    quota = cpu_quota(config)
    allowed = processors(config, ctid)
    cpus = "" if allowed is None else format_cpulist(allowed)
    nodes = config.get("NODEMASK", "")
    nodes = "" if nodes == "all" else nodes
    if always:
        return Limits(cpu_units=units, cpu_quota=quota or 0.0, cpus=cpus, nodes=nodes)
    return Limits(
        cpu_units=None if units == 1000 else units,
        cpu_quota=quota,
        cpus=cpus or None,
        nodes=nodes or None,
    )


def cpu_quota(config: Mapping[str, str]) -> float | None:
    """Return how many processors' worth of time there is; None without a limit.

    CPULIMIT is percent of one processor, CPULIMIT_MHZ is converted by the processor's speed, CPUS
    is a number of processors; the smallest decides (guide §4.2.2), never above the server.
    """
    most = len(online_cpus())
    count = _whole(config.get("CPUS"), 0)
    asked = [limit for limit in (_cpulimit(config), float(count) or None) if limit is not None]
    # The kernel's least quota is 1 ms in each period of 100 (sched-bwc.rst).
    wanted = min(asked, default=None)
    return None if wanted is None or wanted >= most else max(wanted, 0.01)


def _cpulimit(config: Mapping[str, str]) -> float | None:
    """Return how many processors' worth of time CPULIMIT and CPULIMIT_MHZ ask for; None: no limit."""
    asked = []
    percent = _whole(config.get("CPULIMIT"), 0)
    if percent:
        asked.append(percent / 100)
    mhz = _whole(config.get("CPULIMIT_MHZ"), 0)
    speed = cpu_mhz() if mhz else None
    if speed:
        asked.append(mhz / speed)
    return min(asked, default=None)


def cpu_mhz() -> float | None:
    """Return the speed of the fastest processor in MHz; None when the kernel does not tell."""
    with suppress(OSError, ValueError):
        with open(
            "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", encoding="ascii"
        ) as file:
            return int(file.read()) / 1000
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        speeds = re.findall(r"^(?:cpu MHz|clock)\s*:\s*([0-9.]+)", file.read(), re.MULTILINE)
    return max(map(float, speeds), default=None)


def processors(config: Mapping[str, str], ctid: int) -> frozenset[int] | None:
    """Return the processors a container may run on; None: all.

    CPUMASK says which. CPUS says how many are seen, so that a program which asks for the number
    of processors starts as many threads; containers begin at different ones, by their id.
    """
    online = online_cpus()
    chosen = online
    text = config.get("CPUMASK", "")
    if text and text not in ("all", "auto"):
        try:
            # Processors that were taken off line since leave the rest.
            chosen = parse_cpulist(text) & online or online
        except InvalidValue:
            chosen = online
    count = _whole(config.get("CPUS"), 0)
    if 0 < count < len(chosen):
        row = sorted(chosen)
        start = ctid * count % len(row)
        chosen = frozenset(row[(start + index) % len(row)] for index in range(count))
    return None if chosen == online else chosen


def apply_cpu(ct: Container, before: Config, after: Config) -> None:
    """Let a running container follow its CPU settings; a limit above the server's power is told."""
    most = len(online_cpus())
    changed = any(before.get(key) != after.get(key) for key in ("CPULIMIT", "CPULIMIT_MHZ"))
    asked = _cpulimit(after)
    if changed and asked is not None and asked > most:
        ct.progress.warn(
            f"a CPU limit of {asked:.0%} is more than the {most:.0%} of this server: it limits nothing"
        )
    _cgroup(ct).set(cpu_limits(after, ct.ctid))
    balance(ct.paths.tag)


def balance(tag: str) -> None:
    """Give all containers together the weight of their sum against the server's own processes.

    Without that a hundred containers would weigh as much as one process beside their common group
    (cpu.shares, cpu.weight). Where nothing can be weighed, nothing is done.
    """
    hosts = hierarchies()
    for mount, name, most in (
        (hosts.v1.get("cpu"), "cpu.shares", 1 << 18),
        (hosts.v2 if "cpu" in hosts.v2_controllers else None, "cpu.weight", 10_000),
    ):
        if mount is None:
            continue
        top = f"{mount}/pyvz{tag}"
        total = 0
        with suppress(OSError, ValueError):
            for child in os.listdir(top):
                if child.isdecimal():
                    with suppress(FileNotFoundError):
                        total += int(cgroups_v1.read(f"{top}/{child}", name))
            if total:
                cgroups_v1.write(top, name, str(min(total, most)))
        return


# memory


def memory_limits(config: Mapping[str, str], *, always: bool = True) -> Limits:
    """Return RAM, swap and guarantee; without ``always`` only what is limited."""
    memory = memory_of(config)
    found = Limits(
        memory_bytes=memory.ram_bytes,
        swap_bytes=memory.swap_bytes,
        guarantee_bytes=memory.guarantee_bytes,
    )
    if always:
        return found
    return Limits(
        memory_bytes=None if memory.ram_bytes == UNLIMITED else memory.ram_bytes,
        swap_bytes=None if memory.swap_bytes == UNLIMITED else memory.swap_bytes,
        guarantee_bytes=memory.guarantee_bytes or None,
    )


def apply_memory(ct: Container, before: Config, after: Config) -> None:
    """Let a running container follow its memory settings.

    Raises ResourcesFailed when it uses more than the new limits could hold: nothing is killed.
    """
    from runtime.figures import Figures

    new = memory_limits(after)
    used = Figures(ct.paths.tag, ct.ctid).memory()
    # Page cache can be dropped; what is anonymous, shared or the kernel's has to go somewhere.
    needed = used.anonymous + used.shared + used.swap + used.kernel
    assert new.memory_bytes is not None and new.swap_bytes is not None
    server_bytes = os.sysconf("SC_PHYS_PAGES") * PAGE
    if UNLIMITED > new.memory_bytes > server_bytes:
        ct.progress.warn(
            f"RAM of {human(new.memory_bytes)} is more than the {human(server_bytes)} of this server"
        )
    room = min(new.memory_bytes + new.swap_bytes, UNLIMITED)
    if needed > room:
        raise ResourcesFailed(
            f"the container uses {human(needed)} of memory, more than {human(room)}",
            hint="stop some of its processes first, or give it more swap",
        )
    _cgroup(ct).set(new)
    resources_inside.apply(ct, before, after)


def apply_meminfo(ct: Container, before: Config, after: Config) -> None:
    """Let /proc/meminfo inside follow its mode; what shows it reads the configuration itself."""
    resources_inside.tell_view(ct, after)


# counts


def count_limits(config: Mapping[str, str], *, always: bool = True) -> Limits:
    """Return the number of processes and threads."""
    numproc = ubc.lenient("NUMPROC", config.get("NUMPROC"))
    if numproc is None or numproc.limit == UNLIMITED:
        return Limits(tasks=UNLIMITED if always else None)
    return Limits(tasks=numproc.limit)


def apply_counts(ct: Container, before: Config, after: Config) -> None:
    """Let a running container follow NUMPROC and the counters that are limits of processes."""
    _cgroup(ct).set(count_limits(after))
    resources_inside.apply(ct, before, after)


# I/O


def io_limits(config: Mapping[str, str], private: Path | None) -> Limits:
    """Return weight and rates, and the device they are for; rates of 0 mean none."""
    priority = min(max(_whole(config.get("IOPRIO"), 4), 0), 7)
    return Limits(
        io_weight=IO_WEIGHTS[priority],
        io_bytes_per_s=_whole(config.get("IOLIMIT"), 0),
        io_operations_per_s=_whole(config.get("IOPSLIMIT"), 0),
        io_device=None if private is None else block_device(private),
    )


def block_device(path: Path) -> BlockDevice | None:
    """Return the whole block device under ``path``; None when there is none (tmpfs, NFS).

    Limits are set on whole devices, never on partitions.
    """
    try:
        device = os.stat(path).st_dev
    except OSError:
        return None
    major, minor = os.major(device), os.minor(device)
    if major == 0:  # btrfs and the like have a number of their own: the mount names the device
        found = _device_of_mount(path)
        if found is None:
            return None
        major, minor = found
    try:
        place = os.path.realpath(f"/sys/dev/block/{major}:{minor}")
        if os.path.exists(f"{place}/partition"):
            place = os.path.dirname(place)
        with open(f"{place}/dev", encoding="ascii") as file:
            numbers = file.read().strip().split(":")
    except OSError:
        return None
    return BlockDevice(int(numbers[0]), int(numbers[1]))


def _device_of_mount(path: Path) -> tuple[int, int] | None:
    best, source = "", ""
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            point = left.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and (real + "/").startswith(point.rstrip("/") + "/"):
                best, source = point, right.split()[1]
    with suppress(OSError):
        if source.startswith("/dev/"):
            number = os.stat(source).st_rdev
            return os.major(number), os.minor(number)
    return None


def apply_io(ct: Container, before: Config, after: Config) -> None:
    """Let a running container follow its I/O settings; raises NoKernelSupport, IoFailed."""
    private = ct.paths.area(after["VE_PRIVATE"])
    new, old = io_limits(after, private), io_limits(before, private)
    weight = new.io_weight if new.io_weight != old.io_weight else None
    cgroup = _cgroup(ct)
    cgroup.set(
        Limits(
            io_bytes_per_s=new.io_bytes_per_s,
            io_operations_per_s=new.io_operations_per_s,
            io_device=new.io_device,
        )
    )
    cgroup.set(Limits(io_weight=weight))
    server = ct.run_state().server
    if server is not None and server.alive:
        share_server(ct.paths.tag, ct.ctid, server.pid)


def share_server(tag: str, ctid: int, server_pid: int) -> None:
    """Let the rates of ``ctid`` hold for what its file server does for it; raises IoFailed.

    What passes the server is read and written by it; fsync(2), copies and metadata are its work
    anywhere. While there are rates it is, in v1, in the container's group, in v2 in one beside
    that with the same rates: in the container's it would be frozen and killed with it, and its
    memory would count.
    """
    own = _blkio(tag, str(ctid))
    if own is not None and os.path.isdir(own):
        limited = any(
            cgroups_v1.read(own, name) for name in _THROTTLES if os.path.exists(f"{own}/{name}")
        )
        _move_server(own, _blkio(tag, "supervisors"), server_pid, join=limited)
    group = Cgroup(tag, ctid)
    rates = group.io_rates()
    if own is None and group.v2_server is not None:
        try:
            group.limit_server(rates)
        except OSError as error:
            raise IoFailed(f"the file server cannot be limited: {error.strerror}") from error
        if rates or os.path.isdir(group.v2_server):
            home = Cgroup(tag, None).v2_inner
            _move_server(group.v2_server, home, server_pid, join=bool(rates))


def release_server(tag: str, ctid: int, server_pid: int) -> None:
    """Take the file server out of its container's group, which is about to be removed."""
    places = [(_blkio(tag, str(ctid)), _blkio(tag, "supervisors"))]
    places.append((Cgroup(tag, ctid).v2_server, Cgroup(tag, None).v2_inner))
    for own, home in places:
        if own is not None and os.path.isdir(own):
            with suppress(IoFailed):
                _move_server(own, home, server_pid, join=False)


def _blkio(tag: str, name: str) -> str | None:
    mount = hierarchies().v1.get("blkio")
    return None if mount is None else f"{mount}/pyvz{tag}/{name}"


def _move_server(own: str, home: str | None, server_pid: int, *, join: bool) -> None:
    # Looked at first: a move costs milliseconds, also where nothing changes.
    try:
        joined = str(server_pid) in cgroups_v1.read(own, "cgroup.procs").split()
        if joined != join:
            target = own if join else home
            assert target is not None
            cgroups_v1.write(target, "cgroup.procs", str(server_pid))
    except (FileNotFoundError, ProcessLookupError):
        return
    except OSError as error:
        raise IoFailed(f"the file server cannot be limited: {error.strerror}") from error


_THROTTLES = tuple(
    f"blkio.throttle.{direction}_{unit}_device"
    for direction in ("read", "write")
    for unit in ("bps", "iops")
)


def apply_all(ct: Container, before: Config, after: Config) -> None:
    """Write every limit again."""
    _cgroup(ct).set(limits(after, ct.paths.area(after["VE_PRIVATE"])))
    resources_inside.apply(ct, before, after)


def _cgroup(ct: Container) -> Cgroup:
    return Cgroup(ct.paths.tag, ct.ctid)


def _whole(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() else default
