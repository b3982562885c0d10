"""What a list knows of a container, and the fields of vzlist(8) and ``pctl list`` made of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import registry, ubc, unsaved
from runtime import status as status_module
from runtime.config import Config, ConfigFile
from runtime.errors import InvalidValue
from runtime.registry import Record
from runtime.status import Status
from runtime.units import KIB, UNLIMITED, amount
from tools._listing import Field, Value

if TYPE_CHECKING:
    from tools._command import Context


class Entry:
    """One container in a list; what costs something is looked up when a column asks for it."""

    def __init__(
        self, context: Context, record: Record, file: ConfigFile, *, unsaved_too: bool = False
    ) -> None:
        """Describe the container of ``record``; ``unsaved_too``: it may have unsaved settings."""
        self.context = context
        self.record = record
        self._file = file
        self._unsaved_too = unsaved_too

    @property
    def ctid(self) -> int:
        """The container's id."""
        return self.record.ctid

    @functools.cached_property
    def config(self) -> Config:
        """Its effective configuration: what is in force, for a running container."""
        config = self.context.config(self.ctid, self._file)
        if self._unsaved_too:
            config = config.with_overrides(unsaved.read(self.context.paths, self.ctid))
        return config

    @functools.cached_property
    def private(self) -> Path:
        """Its private area."""
        return self.context.paths.area(self.config["VE_PRIVATE"])

    @functools.cached_property
    def status(self) -> Status:
        """Its status now."""
        return status_module.status(self.context.paths, self.ctid, self.private)

    @functools.cached_property
    def uptime_s(self) -> float | None:
        """Seconds since its start; None when it does not run."""
        run = self.status.run
        return time.time() - run.started_s if self.status.running and run else None

    def usage(self, resource: str) -> int | None:
        """Return what it uses of ``resource`` now; None when it does not run or nobody counts.

        Disk space and files are those of a stopped one too.
        """
        from runtime import usage

        if resource in ("diskspace", "diskinodes"):
            if not self.status.mounted:
                return usage.on_disk(self.context.paths, self.ctid, resource)
        elif not self.status.running:
            return None
        return usage.current(self.context.paths, self.ctid, resource)


def entries(context: Context) -> list[Entry]:
    """Return every configured container."""
    kept = unsaved.kept_of(context.paths)
    return [
        Entry(context, record, file, unsaved_too=record.ctid in kept)
        for record, file in registry.records(context.paths)
    ]


def _key(name: str) -> Callable[[Entry], Value]:
    return lambda entry: entry.config.get(name) or None


def _number(name: str) -> Callable[[Entry], Value]:
    def value(entry: Entry) -> Value:
        text = entry.config.get(name)
        return int(text) if text and text.isdecimal() else None

    return value


def addresses(entry: Entry) -> Value:
    """Return the addresses of an entry: those of venet0 and of its adapters."""
    words = (entry.config.get("IP_ADDRESS") or "").split()
    for adapter in (entry.config.get("NETIF") or "").split(";"):
        words += [part[3:] for part in adapter.split(",") if part.startswith("ip=")]
    return [word.partition("/")[0] for word in words] or None


def _adapters(entry: Entry) -> Value:
    names = []
    for adapter in (entry.config.get("NETIF") or "").split(";"):
        names += [part[7:] for part in adapter.split(",") if part.startswith("ifname=")]
    return names or None


def _adapter_part(prefix: str) -> Callable[[Entry], Value]:
    def value(entry: Entry) -> Value:
        found = []
        for adapter in (entry.config.get("NETIF") or "").split(";"):
            found += [p[len(prefix) :] for p in adapter.split(",") if p.startswith(prefix)]
        return found or None

    return value


def _load_average(entry: Entry) -> Value:
    if not entry.status.running:
        return None
    from runtime import usage

    return usage.load_average(entry.context.paths, entry.ctid)


def ostemplate(entry: Entry) -> Value:
    """Return the OS template without the leading dot of EZ templates."""
    return (entry.config.get("OSTEMPLATE") or "").lstrip(".") or None


def clock(value: Value) -> str:
    """Return seconds as ``days:hours:minutes:seconds``."""
    seconds = int(float(str(value)))
    days, rest = divmod(seconds, 86400)
    return f"{days:03d}d{rest // 3600:02d}h:{rest // 60 % 60:02d}m:{rest % 60:02d}s"


def _fields(*rows: Field[Entry]) -> dict[str, Field[Entry]]:
    return {row.name: row for row in rows}


BASE: dict[str, Field[Entry]] = _fields(
    Field("ctid", "CTID", 10, lambda e: e.ctid),
    Field("veid", "CTID", 10, lambda e: e.ctid),
    Field("uuid", "UUID", -36, lambda e: e.record.uuid),
    Field("private", "PRIVATE", -32, lambda e: str(e.private)),
    Field("root", "ROOT", -32, lambda e: str(e.context.paths.area(e.config["VE_ROOT"]))),
    Field("hostname", "HOSTNAME", -32, _key("HOSTNAME")),
    Field("name", "NAME", -32, lambda e: e.record.name),
    Field("smart_name", "SMARTNAME", -32, lambda e: e.record.label),
    Field("description", "DESCRIPTION", -32, _key("DESCRIPTION")),
    Field("ostemplate", "OSTEMPLATE", -24, ostemplate),
    Field("distribution", "DISTRIBUTION", -15, _key("DISTRIBUTION")),
    Field("ip", "IP_ADDR", -15, addresses),
    Field("configured_ip", "IP_ADDR", -15, addresses),
    Field("nameserver", "NAMESERVER", -15, _key("NAMESERVER")),
    Field("searchdomain", "SEARCHDOMAIN", -15, _key("SEARCHDOMAIN")),
    Field("status", "STATUS", -9, lambda e: e.status.word),
    Field("laverage", "LAVERAGE", -14, _load_average),
    Field("uptime", "UPTIME", -15, lambda e: e.uptime_s, clock),
    Field("cpulimit", "CPULIM", 6, _number("CPULIMIT")),
    Field("cpulimitM", "CPUL_M", 6, _number("CPULIMIT_MHZ")),
    Field("cpuunits", "CPUUNI", 6, _number("CPUUNITS")),
    Field("cpus", "CPUS", 4, _number("CPUS")),
    Field("cpumask", "CPUMASK", -12, _key("CPUMASK")),
    Field("nodemask", "NODEMASK", -12, _key("NODEMASK")),
    Field("slmmode", "SLMMODE", -7, _key("SLMMODE")),
    Field("slmmemorylimit", "SLMLIMIT", 10, _key("SLMMEMORYLIMIT")),
    Field("host_ifname", "HOST_IFNAME", -16, _adapter_part("host_ifname=")),
    Field("mac", "MAC", -17, _adapter_part("mac=")),
    Field("host_mac", "HOST_MAC", -17, _adapter_part("host_mac=")),
    Field("gw", "GW", -15, _adapter_part("gw=")),
    Field("network", "NETWORK", -16, _adapter_part("network=")),
    Field("ifname", "IFNAME", -8, _adapters),
    Field("netif", "NETIF", -16, _adapters),
    Field("onboot", "ONBOOT", -6, _key("ONBOOT")),
    Field("bootorder", "BOOTORDER", 9, _number("BOOTORDER")),
    Field("disabled", "DISABL", -6, _key("DISABLED")),
    Field("ioprio", "IOPRIO", 6, _number("IOPRIO")),
    Field("iolimit", "IOLIMIT", 10, _number("IOLIMIT")),
    Field("iopslimit", "IOPSLIMIT", 9, _number("IOPSLIMIT")),
    Field("features", "FEATURES", -15, _key("FEATURES")),
    Field("layout", "LAYOUT", -7, lambda e: "vzfs"),
    Field("device", "DEVICE", -8, lambda e: None),
    Field("devnodes", "DEVNODES", -15, _key("DEVNODES")),
    Field("origin_sample", "ORIGIN_SAMPLE", -15, _key("ORIGIN_SAMPLE")),
    Field("ha_enable", "HA_ENABLE", -9, _key("HA_ENABLE")),
    Field("ha_prio", "HA_PRIO", 7, _number("HA_PRIO")),
    Field("type", "T", -2, lambda e: "ct"),
)

#: The counted resources (user beancounters and quota): name, heading, configuration key.
COUNTED = (
    ("kmemsize", "KMEMSIZE", "KMEMSIZE"),
    ("lockedpages", "LOCKEDP", "LOCKEDPAGES"),
    ("privvmpages", "PRIVVMP", "PRIVVMPAGES"),
    ("shmpages", "SHMP", "SHMPAGES"),
    ("numproc", "NPROC", "NUMPROC"),
    ("physpages", "PHYSP", "PHYSPAGES"),
    ("vmguarpages", "VMGUARP", "VMGUARPAGES"),
    ("oomguarpages", "OOMGUARP", "OOMGUARPAGES"),
    ("numtcpsock", "NTCPSOCK", "NUMTCPSOCK"),
    ("numflock", "NFLOCK", "NUMFLOCK"),
    ("numpty", "NPTY", "NUMPTY"),
    ("numsiginfo", "NSIGINFO", "NUMSIGINFO"),
    ("tcpsndbuf", "TCPSNDB", "TCPSNDBUF"),
    ("tcprcvbuf", "TCPRCVB", "TCPRCVBUF"),
    ("othersockbuf", "OTHSOCKB", "OTHERSOCKBUF"),
    ("dgramrcvbuf", "DGRAMRB", "DGRAMRCVBUF"),
    ("numothersock", "NOTHSOCK", "NUMOTHERSOCK"),
    ("dcachesize", "DCACHESZ", "DCACHESIZE"),
    ("numfile", "NFILE", "NUMFILE"),
    ("numiptent", "NIPTENT", "NUMIPTENT"),
    ("swappages", "SWAPP", "SWAPPAGES"),
    ("diskspace", "DQBLOCKS", "DISKSPACE"),
    ("diskinodes", "DQINODES", "DISKINODES"),
)


#: Bytes in what DISKSPACE counts; DISKINODES takes no suffix.
DISK_UNITS = {"DISKSPACE": KIB, "DISKINODES": 0}


def limit_of(key: str, part: int) -> Callable[[Entry], Value]:
    """Return what reads the barrier (``part`` 0) or the limit (1) of ``key`` in its own unit."""

    def value(entry: Entry) -> Value:
        text = entry.config.get(key)
        if not text:
            return None
        pieces = text.split(":")
        word = pieces[min(part, len(pieces) - 1)]
        if word.isdecimal():
            return int(word)
        # Files written by hand have suffixes; the columns are in the parameter's own unit.
        try:
            if key in DISK_UNITS:
                value = amount(word, unit=DISK_UNITS[key])
                return word if value >= UNLIMITED else value
            limits = ubc.parse(key, word).limit
        except InvalidValue:
            return word
        return word if limits == UNLIMITED else limits

    return value


def _held(resource: str) -> Callable[[Entry], Value]:
    return lambda entry: entry.usage(resource)


def counted_fields() -> dict[str, Field[Entry]]:
    """Return the fields of counted resources: held now, ``.m``, ``.b``/``.s``, ``.l``/``.h``, ``.f``."""
    out: list[Field[Entry]] = []
    for name, heading, key in COUNTED:
        out.append(Field(name, heading, 10 if name != "numproc" else 5, _held(name)))
        if name in ("diskspace", "diskinodes"):
            out.append(Field(f"{name}.s", f"{heading}.S", 10, limit_of(key, 0)))
            out.append(Field(f"{name}.h", f"{heading}.H", 10, limit_of(key, 1)))
            continue
        out.append(Field(f"{name}.m", f"{heading}.M", 10, _held(f"{name}.m")))
        out.append(Field(f"{name}.b", f"{heading}.B", 10, limit_of(key, 0)))
        out.append(Field(f"{name}.l", f"{heading}.L", 10, limit_of(key, 1)))
        out.append(Field(f"{name}.f", f"{heading}.F", 10, _held(f"{name}.f")))
    return _fields(*out)


def all_fields() -> dict[str, Field[Entry]]:
    """Return every field of vzlist(8)."""
    return {**BASE, **counted_fields()}
