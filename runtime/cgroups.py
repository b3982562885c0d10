"""Control groups of containers: one API over v1, v2 and both at once (cgroups(7)).

Every controller is looked up once: in a v1 hierarchy of its own, else among those of the v2
hierarchy. A container's directory is ``pyvz<tag>/<ctid>`` in each; limits are written there. In
v2 its processes live one level below, in ``ct``: the delegated root of its cgroup namespace,
so that the directory with the limits never has processes of its own (cgroup-v2.rst, "No Internal
Process Constraint") and never belongs to the container.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from runtime import cgroups_v1, cgroups_v2
from runtime.cgroup_limits import FAMILIES, BlockDevice, DeviceRule, Limits
from runtime.errors import (
    CpuMaskFailed,
    DevicesFailed,
    IoFailed,
    NoKernelSupport,
    ResourcesFailed,
    SchedulerFailed,
    SystemFailure,
    VzError,
)

__all__ = ["BlockDevice", "Cgroup", "DeviceRule", "Hierarchies", "Limits", "hierarchies"]

#: v1 controllers a container gets a directory in, where they are mounted.
_V1 = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "name=systemd")
_V2 = frozenset(("cpu", "cpuset", "memory", "pids", "io"))
_V1_NAME = {"io": "blkio"}
_INNER = "ct"

_SETTERS = {
    "cpu": (cgroups_v1.set_cpu, cgroups_v2.set_cpu, SchedulerFailed),
    "cpuset": (cgroups_v1.set_cpuset, cgroups_v2.set_cpuset, CpuMaskFailed),
    "memory": (cgroups_v1.set_memory, cgroups_v2.set_memory, ResourcesFailed),
    "pids": (cgroups_v1.set_pids, cgroups_v2.set_pids, ResourcesFailed),
    "io": (cgroups_v1.set_io, cgroups_v2.set_io, IoFailed),
    "devices": (cgroups_v1.set_devices, cgroups_v2.set_devices, DevicesFailed),
}
_Failure = type[VzError]


@dataclass(frozen=True)
class Hierarchies:
    """Where controllers are mounted on this host."""

    #: v1 controller (or ``name=systemd``) → mount point.
    v1: Mapping[str, str]
    #: Mount point of v2, None without one.
    v2: str | None
    #: Controllers v2 has (those bound to v1 are missing).
    v2_controllers: frozenset[str]

    def directories(self, name: str) -> Iterator[str]:
        """Yield the v1 directory ``name`` in each hierarchy once."""
        for mount in dict.fromkeys(self.v1[c] for c in _V1 if c in self.v1):
            yield f"{mount}/{name}"


@functools.cache
def hierarchies() -> Hierarchies:
    """Return the hierarchies of this host; raises NoKernelSupport when there are none."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        found = parse(file)
    if not found.v1 and found.v2 is None:
        raise NoKernelSupport("no cgroup file system is mounted", hint="mount /sys/fs/cgroup")
    return found


def parse(mountinfo: Iterator[str] | list[str]) -> Hierarchies:
    """Return the hierarchies in the lines of /proc/PID/mountinfo (proc(5))."""
    v1: dict[str, str] = {}
    v2 = None
    for line in mountinfo:
        left, _, right = line.partition(" - ")
        mount = left.split()[4].replace("\\040", " ")
        kind, _source, options = right.split()[:3]
        if kind == "cgroup2" and v2 is None:
            v2 = mount
        elif kind == "cgroup":
            for option in options.split(","):
                if option in _V1:
                    v1.setdefault(option, mount)
    controllers: frozenset[str] = frozenset()
    if v2 is not None:
        with suppress(OSError):
            controllers = frozenset(cgroups_v1.read(v2, "cgroup.controllers").split())
    return Hierarchies(v1, v2, controllers)


@dataclass(frozen=True)
class Entrance:
    """Open descriptors through which a process enters a cgroup, made before its fork."""

    #: The v2 directory, for clone3; -1 without v2.
    v2_fd: int
    tasks: tuple[int, ...]

    def enter(self) -> None:
        """Move this single-threaded process into the v1 directories; raises OSError.

        Writing 0 to ``tasks`` spares the grace period which ``cgroup.procs`` costs.
        """
        for fd in self.tasks:
            os.write(fd, b"0")

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.v2_fd, *self.tasks):
            if fd >= 0:
                os.close(fd)


class Cgroup:
    """The control groups of one container, or of the supervisors of one system."""

    def __init__(self, tag: str, ctid: int | None) -> None:
        """Name the group of container ``ctid`` of the system with ``tag`` (``Paths.tag``).

        ``ctid`` None means the group of supervisors. Nothing is made.
        """
        self._hosts = hierarchies()
        self.tag = tag
        self._top = f"pyvz{tag}"
        self._name = f"{self._top}/{ctid if ctid is not None else 'supervisors'}"
        self._is_container = ctid is not None

    @property
    def _v2(self) -> str | None:
        return None if self._hosts.v2 is None else f"{self._hosts.v2}/{self._name}"

    @property
    def v2_inner(self) -> str | None:
        """The v2 directory processes live in: the root of the container's cgroup namespace."""
        if self._v2 is None or not self._is_container:
            return self._v2
        return f"{self._v2}/{_INNER}"

    @property
    def v2_server(self) -> str | None:
        """The v2 directory its file server is in while the container's I/O is limited."""
        if self._v2 is None:
            return None
        place, name = os.path.split(self._v2)
        return f"{place}/server-{name}"

    def io_rates(self) -> list[str]:
        """Return the lines of ``io.max`` that hold for the container in v2."""
        if self._v2 is None or not os.path.exists(f"{self._v2}/io.max"):
            return []
        return cgroups_v1.read(self._v2, "io.max").splitlines()

    def limit_server(self, rates: list[str]) -> None:
        """Let these lines of ``io.max``, and no others, hold for the file server's group in v2.

        The group is made for them. One that is there stays without any: the pages written from it
        reach the disk in its name for some time after the server left. Raises OSError.
        """
        assert self.v2_server is not None
        if rates:
            with suppress(FileExistsError):
                os.mkdir(self.v2_server)
        elif not os.path.isdir(self.v2_server):
            return
        named = {line.partition(" ")[0] for line in rates}
        for line in cgroups_v1.read(self.v2_server, "io.max").splitlines():
            if (device := line.partition(" ")[0]) not in named:
                unlimited = f"{device} rbps=max wbps=max riops=max wiops=max"
                cgroups_v1.write(self.v2_server, "io.max", unlimited)
        for line in rates:
            cgroups_v1.write(self.v2_server, "io.max", line)

    def exists(self) -> bool:
        """Whether any directory of it is there."""
        return any(os.path.isdir(place) for place in self._places())

    @property
    def has_legacy(self) -> bool:
        """Whether there is the v1 hierarchy that systemd keeps its services in."""
        return "name=systemd" in self._hosts.v1

    def _places(self) -> list[str]:
        places = list(self._hosts.directories(self._name))
        if self._v2 is not None:
            places.append(self._v2)
        return places

    def create(self, owner: int | None = None) -> None:
        """Make the directories; ``owner`` is the host id of the container's root.

        The owner may make groups below and move its processes there. Raises SystemFailure.
        """
        try:
            for place in self._hosts.directories(self._name):
                self._make_v1(place)
            if self._v2 is not None:
                self._make_v2(owner)
            if owner is not None and self.has_legacy:
                place = f"{self._hosts.v1['name=systemd']}/{self._name}"
                _give(place, owner, ("cgroup.procs", "tasks"))
        except OSError as error:
            raise SystemFailure(
                f"cannot make control group {self._name}: {error.strerror} ({error.filename})"
            ) from error

    def _make_v1(self, place: str) -> None:
        for directory in (os.path.dirname(place), place):
            try:
                os.mkdir(directory)
            except FileExistsError:
                continue
            if os.path.exists(f"{directory}/cpuset.cpus"):
                cgroups_v1.inherit_cpuset(directory)
            if os.path.exists(f"{directory}/memory.use_hierarchy"):
                with suppress(OSError):  # always on since Linux 5.11
                    cgroups_v1.write(directory, "memory.use_hierarchy", "1")

    def _make_v2(self, owner: int | None) -> None:
        assert self._hosts.v2 is not None and self._v2 is not None
        top = f"{self._hosts.v2}/{self._top}"
        for directory in (top, self._v2, self.v2_inner or self._v2):
            with suppress(FileExistsError):
                os.mkdir(directory)
        if wanted := _V2 & self._hosts.v2_controllers:
            path = (self._hosts.v2, top, *((self._v2,) if self._is_container else ()))
            cgroups_v2.pass_on(path, wanted)
        if owner is not None and self.v2_inner is not None:
            _give(self.v2_inner, owner, cgroups_v2.DELEGATED)

    def entrance(self) -> Entrance:
        """Open the way in; raises OSError."""
        tasks = tuple(
            os.open(f"{place}/tasks", os.O_WRONLY | os.O_CLOEXEC)
            for place in self._hosts.directories(self._name)
        )
        fd = -1
        if self.v2_inner is not None:
            fd = os.open(self.v2_inner, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return Entrance(fd, tasks)

    def entrance_of(self, pid: int) -> Entrance:
        """Open the way to where process ``pid`` of the container is; raises OSError.

        In v2 the container's root group can hold no process once its init has passed controllers
        on: who enters later joins init's own group.
        """
        found = self.entrance()
        if found.v2_fd < 0:
            return found
        inner = self.v2_inner
        assert inner is not None and self._hosts.v2 is not None
        if not cgroups_v1.read(inner, "cgroup.subtree_control"):
            return found
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.startswith("0::"):
                    path = os.path.normpath(self._hosts.v2 + line[3:].rstrip("\n"))
                    if path.startswith(f"{inner}/"):
                        os.close(found.v2_fd)
                        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                        return Entrance(fd, found.tasks)
        return found

    def set(self, limits: Limits) -> None:
        """Apply the limits that are given; raises NoKernelSupport naming a missing controller.

        What the kernel refuses raises SchedulerFailed, CpuMaskFailed, ResourcesFailed, IoFailed or
        DevicesFailed.
        """
        for family in FAMILIES:
            if not limits.asked(family):
                continue
            set_v1, set_v2, failure = _SETTERS[family]
            v1 = self._hosts.v1.get(_V1_NAME.get(family, family))
            try:
                if v1 is not None:
                    set_v1(f"{v1}/{self._name}", limits)
                elif self._v2 is not None and (
                    family in self._hosts.v2_controllers or family == "devices"
                ):
                    set_v2(self._v2, limits)
                else:
                    raise NoKernelSupport(f"this kernel has no cgroup controller '{family}'")
            except OSError as error:
                raise failure(
                    f"the kernel refuses {error.filename or family}: {error.strerror}"
                ) from error

    def freeze(self, *, timeout_s: float = 10.0) -> None:
        """Stop every process until ``thaw``; raises NoKernelSupport, SystemFailure on timeout."""
        self._freezer(frozen=True, timeout_s=timeout_s)

    def thaw(self) -> None:
        """Let frozen processes go on; nothing there is success. Raises NoKernelSupport."""
        self._freezer(frozen=False, timeout_s=10.0)

    def _freezer(self, *, frozen: bool, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        if self._v2 is not None and os.path.exists(f"{self._v2}/cgroup.freeze"):
            cgroups_v1.write(self._v2, "cgroup.freeze", "1" if frozen else "0")
            done = f"frozen {int(frozen)}"
            while done not in cgroups_v1.read(self._v2, "cgroup.events"):
                self._check_time(deadline, "freeze" if frozen else "thaw")
            return
        if "freezer" not in self._hosts.v1:
            raise NoKernelSupport("this kernel has no cgroup freezer")
        place = f"{self._hosts.v1['freezer']}/{self._name}"
        word = "FROZEN" if frozen else "THAWED"
        try:
            cgroups_v1.write(place, "freezer.state", word)
            while cgroups_v1.read(place, "freezer.state") != word:
                self._check_time(deadline, "freeze" if frozen else "thaw")
        except FileNotFoundError:
            # A group that is gone has nothing to thaw.
            if frozen:
                raise SystemFailure(f"the control group {self._name} is gone") from None

    def _check_time(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            raise SystemFailure(f"the processes of {self._name} do not {what}")
        time.sleep(0.002)

    def is_frozen(self) -> bool:
        """Return whether it was frozen."""
        with suppress(OSError):
            if self._v2 is not None:
                return cgroups_v1.read(self._v2, "cgroup.freeze") == "1"
            place = f"{self._hosts.v1.get('freezer', '')}/{self._name}"
            return cgroups_v1.read(place, "freezer.state") != "THAWED"
        return False

    def pids(self) -> list[int]:
        """Return the host process ids in it and below, sorted."""
        place = self._v2 or next(iter(self._places()), None)
        found: set[int] = set()
        for directory, _names, _files in os.walk(place) if place is not None else ():
            with suppress(OSError):
                found.update(map(int, cgroups_v1.read(directory, "cgroup.procs").split()))
        return sorted(found)

    def kill(self, *, timeout_s: float = 10.0) -> None:
        """Kill every process and wait for the last; raises SystemFailure when one stays.

        A process in uninterruptible sleep stays. Idempotent.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = 0.0005
        while self.exists():
            if self._v2 is not None and os.path.exists(f"{self._v2}/cgroup.kill"):
                with suppress(OSError):
                    cgroups_v1.write(self._v2, "cgroup.kill", "1")
            else:
                for pid in self.pids():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            left = self.pids()
            if not left:
                return
            if self.is_frozen():
                # A frozen v1 group keeps its dead: they must run to die.
                with suppress(OSError, VzError):
                    self.thaw()
            if time.monotonic() > deadline:
                raise SystemFailure(
                    f"processes of {self._name} cannot be killed: {', '.join(map(str, left[:5]))}"
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)

    def stats(self) -> dict[str, int]:
        """Return usage figures: memory_bytes, swap_bytes, tasks, cpu_ns, as far as known."""
        found: dict[str, int] = {}
        if self._v2 is not None:
            found.update(cgroups_v2.figures(self._v2))
        for family in ("memory", "pids", "cpuacct"):
            if family in self._hosts.v1:
                place = f"{self._hosts.v1[family]}/{self._name}"
                found.update(cgroups_v1.figures(family, place))
        both = found.pop("memory_and_swap_bytes", None)
        if both is not None:
            found["swap_bytes"] = max(0, both - found.get("memory_bytes", 0))
        return found

    def destroy(self, *, timeout_s: float = 5.0) -> None:
        """Remove the directories, which no process may be left in; absent is success.

        Raises SystemFailure.
        """
        deadline = time.monotonic() + timeout_s
        if self.v2_server is not None:
            with suppress(OSError):  # mostly there is none; a server that is left keeps it
                os.rmdir(self.v2_server)
        for place in self._places():
            pause_s = 0.0005
            while True:
                try:
                    _remove(place)
                    break
                except OSError as error:
                    # The last process may still be on its way out of the group.
                    if time.monotonic() > deadline:
                        raise SystemFailure(
                            f"cannot remove control group {place}: {error.strerror}"
                        ) from error
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, 0.05)


def prune(tag: str) -> None:
    """Remove what the groups of the system with ``tag`` were made in, where none is left."""
    group = Cgroup(tag, None)
    for place in group._places():
        with suppress(OSError):
            os.rmdir(place)
            os.rmdir(os.path.dirname(place))


def _give(place: str, owner: int, names: tuple[str, ...]) -> None:
    os.chown(place, owner, owner)
    for name in names:
        with suppress(FileNotFoundError):
            os.chown(f"{place}/{name}", owner, owner)


def _remove(place: str) -> None:
    try:
        os.rmdir(place)
        return
    except FileNotFoundError:
        return
    except OSError:
        pass
    for directory, names, _files in os.walk(place, topdown=False):
        for name in names:
            with suppress(FileNotFoundError):
                os.rmdir(f"{directory}/{name}")
    with suppress(FileNotFoundError):
        os.rmdir(place)
