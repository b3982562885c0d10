"""Everything a start needs to know, worked out and checked before anything is done."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import caps, devices, features, privatearea, resources_inside
from runtime.config import Config, ConfigFile
from runtime.defaults import DEFAULTS
from runtime.errors import PrivateBroken
from runtime.features import switches
from runtime.init import Init, Kind
from runtime.net import names
from runtime.paths import Paths
from runtime.rootfs import Bind, View

if TYPE_CHECKING:
    from runtime.registry import Record
    from vzfs.options import Options

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The value of $container: what makes distributions know where they are
#: (https://systemd.io/CONTAINER_INTERFACE).
CONTAINER = "pyvz"
#: Pseudo-terminals of a container without NUMPTY.
_TERMINALS = 1024
#: Where the server's id is shown: the only place no init mounts something of its own over.
_HOST_ID = "/dev/vz"


@dataclass(frozen=True, slots=True)
class BindSource:
    """A directory of the host to show inside."""

    source: str
    bind: Bind
    read_only: bool = False
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """One container, ready to be started."""

    paths: Paths
    record: Record
    config: Config
    private: Path
    #: VE_ROOT: where the host sees the tree.
    target: Path
    options: Options
    #: What each process is limited to.
    inside: resources_inside.Inside
    access: devices.Access
    #: Numbers of the capabilities in the bounding set.
    capabilities: frozenset[int]
    view: View
    binds: tuple[BindSource, ...]
    environment: Mapping[str, str]
    hostname: str
    #: It was configured: /etc/hostname inside follows, since an init sets what it reads there.
    hostname_given: bool = False
    #: None: what the tree has (``init.detect``).
    init: Init | None = None
    #: Process 1 keeps the caller's standard descriptors instead of the console.
    inherit_stdio: bool = False
    warnings: tuple[str, ...] = field(default=())

    @property
    def ctid(self) -> int:
        """The container's id."""
        return self.record.ctid

    @property
    def wants_network(self) -> bool:
        """Whether the configuration names addresses or adapters."""
        return names.wanted(self.config)

    @property
    def sets_clock(self) -> bool:
        """Whether its root may set the server's clock."""
        return self.view.privileged and not self.capabilities.isdisjoint(caps.numbers(["sys_time"]))

    def with_init(self, argv: Sequence[str]) -> Plan:
        """Return the plan that runs ``argv`` (nothing: idles) under our own init."""
        return replace(self, init=Init(Kind.OWN, tuple(argv)))

    def running(self, argv: Sequence[str]) -> Plan:
        """Return the plan that runs ``argv`` under our own init on the caller's descriptors."""
        init = Init(Kind.OWN, tuple(argv))
        return replace(self, init=init, inherit_stdio=True, view=replace(self.view, consoles=0))


def make(paths: Paths, record: Record, config: Config) -> Plan:
    """Return the plan for a container.

    Raises what its configuration and private area deserve: PrivateMissing, PrivateBroken,
    TemplateMissing, CapabilityFailed, DevicesFailed, InvalidValue.
    """
    private = privatearea.location(paths, config)
    inside = resources_inside.inside(config)
    requested = switches(config.get("CAPABILITY"))
    access = devices.access(config)
    binds = _binds(config, private)
    if features.enabled(config, "host-id"):
        binds = (*binds, BindSource(str(features.host_id(paths)), Bind(_HOST_ID), read_only=True))
    privileged = features.enabled(config, "privileged")
    useless = [] if privileged else caps.without_effect(requested)
    warnings = features.warnings(config)
    if useless:
        warnings.append(
            f"capability {', '.join(useless)}: without effect in a container of its own ids"
        )
    return Plan(
        paths,
        record,
        config,
        private,
        privatearea.mount_point(paths, config),
        privatearea.options(paths, record.ctid, config),
        inside,
        access,
        caps.numbers(caps.bounding(requested, privileged=privileged)),
        View(
            access.nodes,
            tuple(source.bind for source in binds),
            terminals=_terminals(inside.terminals),
            own_nodes=tuple(node.name for node in access.own),
            nesting=features.enabled(config, "nesting"),
            privileged=privileged,
        ),
        binds,
        environment(record, config),
        config.get("HOSTNAME") or f"ct{record.ctid}",
        hostname_given=bool(config.get("HOSTNAME")),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True)
class Order:
    """What a supervisor is forked for."""

    paths: Paths
    ctid: int
    #: Start it, not only mount it.
    run: bool
    #: Process 1 keeps the caller's standard descriptors, and the caller hears how it ended.
    follow: bool = False
    #: It writes to the log.
    logging: bool = True

    def pack(self) -> bytes:
        """Return it as bytes, without the many objects that ``pickle`` would write to."""
        flags = b"".join(b"y" if flag else b"n" for flag in (self.run, self.follow, self.logging))
        return b"%s%d %s" % (flags, self.ctid, os.fsencode(self.paths.root))

    @classmethod
    def unpack(cls, packed: bytes) -> Order:
        """Return what ``pack`` made bytes of."""
        ctid, _, root = packed[3:].partition(b" ")
        run, follow, logging = (flag == ord("y") for flag in packed[:3])
        return cls(Paths(Path(os.fsdecode(root))), int(ctid), run, follow, logging)


def pack(plan: Plan) -> int:
    """Return the descriptor of a memory file that holds ``plan``: it costs no process's memory."""
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        pickle.dump(plan, file, protocol=pickle.HIGHEST_PROTOCOL)
    return fd


def unpack(fd: int) -> Plan:
    """Return the plan that ``pack`` put there."""
    found = pickle.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    assert isinstance(found, Plan)
    return found


def reread(plan: Plan) -> Plan:
    """Return the plan of the same container from its files as they are now (reboot from inside)."""
    server = None
    if plan.paths.global_config.exists():
        server = ConfigFile.read(plan.paths.global_config)
    config = Config(
        ctid=plan.ctid,
        container=ConfigFile.read(plan.record.conf),
        server=server,
        defaults=DEFAULTS,
    )
    return make(plan.paths, plan.record, config)


def environment(record: Record, config: Config) -> dict[str, str]:
    """Return the environment of the container's init."""
    found = {
        "PATH": _PATH,
        "TERM": "linux",
        "container": CONTAINER,
        # The second console is pts/1: logins wanted there (CONTAINER_INTERFACE, "container_ttys").
        "container_ttys": "pts/1",
    }
    if record.uuid:
        found["container_uuid"] = record.uuid
    for word in config.get("VE_ENVIRONMENT", "").split():
        name, _, value = word.partition("=")
        found[name] = value
    return found


def _terminals(limit: int | None) -> int:
    # devpts takes 0…1048576 (Documentation/filesystems/devpts.rst); two are the consoles.
    return _TERMINALS if limit is None else min(max(limit, 0) + 2, 1 << 20)


def _binds(config: Config, private: Path) -> tuple[BindSource, ...]:
    found = []
    for word in config.get("BINDMOUNT", "").split():
        place, *flags = word.split(",")
        source, _, target = place.rpartition(":")
        if not source:
            # Without a source: a directory of the container's own that reinstalling keeps.
            own = private / "bind" / target.strip("/").replace("/", "-")
            own.mkdir(mode=0o755, parents=True, exist_ok=True)
            source = str(own)
        if not os.path.isdir(source):
            raise PrivateBroken(
                f"BINDMOUNT: {source} is no directory of this server",
                hint="pctl set … --bindmount_del removes it",
            )
        names = frozenset(flags)
        found.append(BindSource(source, Bind(target), "ro" in names, names - {"ro"}))
    return tuple(found)
