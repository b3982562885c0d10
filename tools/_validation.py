"""The rules of vzcfgvalidate(8): what makes a container's configuration consistent.

A rule yields what is wrong, with the repair; it sees the values as earlier repairs left them.
Beancounters are judged where they decide; with VSwap the server's size is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from runtime import ubc
from runtime.config import ConfigFile
from runtime.errors import InvalidValue
from runtime.memory import Scheme, memory_of, scheme_of
from runtime.settings_resources import CPUUNITS_LEAST, CPUUNITS_MOST
from runtime.sizing import Server
from runtime.units import KIB, PAGE, UNLIMITED, Pair, human, pair


class Level(StrEnum):
    """How bad a finding is; a recommendation alone does not fail the validation."""

    ERROR = "Error"
    WARNING = "Warning"
    RECOMMENDATION = "Recommendation"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; ``repair`` is what keys should become (None: nobody can say)."""

    level: Level
    text: str
    repair: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a configuration is judged against besides itself; None: not judged."""

    server: Server | None = None
    #: Size in bytes of the file system of the private areas.
    disk_bytes: int | None = None
    #: Memory guaranteed to the other containers, in bytes.
    guaranteed_bytes: int = 0
    #: Addresses of the other containers → their ids.
    addresses: Mapping[str, int] = field(default_factory=dict)


#: barrier ≤ limit, barrier = limit, and the two whose limit must be "unlimited".
_ORDERED = (
    "KMEMSIZE",
    "TCPSNDBUF",
    "TCPRCVBUF",
    "OTHERSOCKBUF",
    "DGRAMRCVBUF",
    "PRIVVMPAGES",
    "LOCKEDPAGES",
    "NUMFLOCK",
    "DCACHESIZE",
)
_EQUAL = (
    "NUMPROC",
    "NUMTCPSOCK",
    "NUMOTHERSOCK",
    "SHMPAGES",
    "NUMFILE",
    "NUMPTY",
    "NUMSIGINFO",
    "NUMIPTENT",
)
_ENDLESS = ("VMGUARPAGES", "OOMGUARPAGES")
_REQUIRED = (*_EQUAL, *_ENDLESS, *_ORDERED, "PHYSPAGES")

_PER_SOCKET = 2560
_PER_PROCESS = 40 * KIB
_PER_FILE = 384
_FILES_PER_PROCESS = 32


class Values:
    """The keys of a file as they stand now: rules that come later see earlier repairs."""

    def __init__(self, file: ConfigFile) -> None:
        """Look at ``file``."""
        self._file = file

    def text(self, key: str) -> str:
        """Return the value of ``key``, empty when it is unset."""
        return self._file.get(key) or ""

    def items(self) -> dict[str, str]:
        """Return all of them."""
        return self._file.items()

    def pair(self, key: str) -> Pair | None:
        """Return a beancounter's pair, its barrier above its limit too; None: unset, unreadable."""
        first, _, second = self.text(key).partition(":")
        try:
            low = ubc.parse(key, first).limit
            return Pair(low, ubc.parse(key, second).limit if second else low)
        except InvalidValue:
            return None

    def limits(self, key: str) -> Pair:
        """Return a pair which is known to be readable."""
        return self.pair(key) or Pair(0, 0)


Rule = Callable[[Values, Surroundings], Iterator[Finding]]


def findings(
    file: ConfigFile,
    around: Surroundings,
    decide: Callable[[Finding], bool] = lambda finding: False,
) -> Iterator[Finding]:
    """Yield what is wrong with ``file``; where ``decide`` agrees, it is repaired and not yielded."""
    for bad in file.bad:
        yield Finding(Level.ERROR, f"line {bad.number} is ignored: {bad.reason}")
    values = Values(file)
    vswap = scheme_of(file.items()) is Scheme.VSWAP
    rules: tuple[Rule, ...] = (_ordered, _memory) if vswap else (_required, _pairs, _formulas)
    for rule in (_readable, *rules, _disk, _processors, _addresses):
        for finding in rule(values, around):
            if finding.repair is not None and decide(finding):
                for key, value in finding.repair.items():
                    file.set(key, value)
            else:
                yield finding


def _text(low: int, high: int) -> str:
    return str(Pair(min(low, UNLIMITED), min(high, UNLIMITED)))


def _readable(values: Values, around: Surroundings) -> Iterator[Finding]:
    for row in ubc.BEANCOUNTERS:
        text = values.text(row.key)
        if text and values.pair(row.key) is None:
            yield Finding(Level.ERROR, f"{row.name} is not a limit (currently, {text})")


def _required(values: Values, around: Surroundings) -> Iterator[Finding]:
    for key in _REQUIRED:
        if not values.text(key):
            yield Finding(Level.ERROR, f"parameter {key.lower()} not found")


def _ordered(values: Values, around: Surroundings) -> Iterator[Finding]:
    """Judge the beancounters that a VSwap configuration may have besides."""
    for row in ubc.BEANCOUNTERS:
        limits = values.pair(row.key)
        if limits is not None and limits.barrier > limits.limit and not row.limit_only:
            yield _disorder(row.key, limits)


def _disorder(key: str, limits: Pair) -> Finding:
    return Finding(
        Level.ERROR,
        f"barrier should be <= limit for {key.lower()} "
        f"(currently, {limits.barrier}:{limits.limit})",
        {key: _text(limits.barrier, limits.barrier)},
    )


def _pairs(values: Values, around: Surroundings) -> Iterator[Finding]:
    for key in _EQUAL:
        limits = values.pair(key)
        if limits is not None and limits.barrier != limits.limit:
            yield Finding(
                Level.ERROR,
                f"barrier should be equal to limit for {key.lower()} "
                f"(currently, {limits.barrier}:{limits.limit})",
                {key: _text(max(limits), max(limits))},
            )
    for key in _ORDERED:
        limits = values.pair(key)
        if limits is not None and limits.barrier > limits.limit:
            yield _disorder(key, limits)
    for key in (*_ENDLESS, "PHYSPAGES"):
        limits = values.pair(key)
        if limits is not None and limits.limit != UNLIMITED:
            yield Finding(
                Level.ERROR,
                f"limit should be = {UNLIMITED} for {key.lower()} (currently, {limits.limit})",
                {key: _text(limits.barrier, UNLIMITED)},
            )
    limits = values.pair("PHYSPAGES")
    # One number alone is the limit: its barrier is the 0 it should be.
    if limits is not None and ":" in values.text("PHYSPAGES") and limits.barrier != 0:
        yield Finding(
            Level.ERROR,
            f"barrier should be = 0 for physpages (currently, {limits.barrier})",
            {"PHYSPAGES": _text(0, limits.limit)},
        )


def _formulas(values: Values, around: Surroundings) -> Iterator[Finding]:
    """Judge the relations between beancounters, in an order in which repairs do not undo others."""
    if any(values.pair(key) is None for key in _REQUIRED):
        return
    average = values.pair("AVNUMPROC")
    processes = average.barrier if average else values.limits("NUMPROC").barrier // 2

    sockets = sum(values.limits(key).barrier for key in ("NUMTCPSOCK", "NUMOTHERSOCK", "NUMPTY"))
    want = min(max(processes * _FILES_PER_PROCESS, sockets), UNLIMITED)
    now = values.limits("NUMFILE").barrier
    if now < want:
        yield _less(Level.WARNING, "numfile", now, want, {"NUMFILE": _text(want, want)})

    want = min(values.limits("NUMFILE").barrier * _PER_FILE, UNLIMITED)
    cache = values.limits("DCACHESIZE")
    if cache.limit < want:
        repair = {"DCACHESIZE": _text(cache.barrier, want)}
        yield _less(Level.WARNING, "dcachesize.lim", cache.limit, want, repair)

    want = _PER_PROCESS * processes + values.limits("DCACHESIZE").limit
    yield from _barrier(values, "KMEMSIZE", want, Level.ERROR)

    private, guaranteed = values.limits("PRIVVMPAGES"), values.limits("VMGUARPAGES").barrier
    if private.barrier < guaranteed:
        repair = {"PRIVVMPAGES": _text(guaranteed, max(private.limit, guaranteed))}
        yield _less(Level.WARNING, "privvmpages.bar", private.barrier, guaranteed, repair)

    for key in ("TCPRCVBUF", "TCPSNDBUF"):
        yield from _barrier(values, key, 64 * KIB, Level.WARNING)
    for key in ("DGRAMRCVBUF", "OTHERSOCKBUF"):
        if values.limits(key).barrier < 32 * KIB:
            yield from _barrier(values, key, 32 * KIB, Level.WARNING)
        else:
            yield from _barrier(values, key, 129 * KIB, Level.RECOMMENDATION)
    yield from _gap(values, "TCPSNDBUF", "NUMTCPSOCK", Level.ERROR)
    yield from _gap(values, "OTHERSOCKBUF", "NUMOTHERSOCK", Level.ERROR)
    yield from _gap(values, "TCPRCVBUF", "NUMTCPSOCK", Level.WARNING)


def _less(level: Level, what: str, now: int, want: int, repair: Mapping[str, str]) -> Finding:
    return Finding(level, f"{what} should be > {want} (currently, {now})", repair)


def _barrier(values: Values, key: str, want: int, level: Level) -> Iterator[Finding]:
    """Judge a barrier; its repair keeps the distance to the limit."""
    now = values.limits(key)
    want = min(want, UNLIMITED)
    if now.barrier < want:
        repair = {key: _text(want, now.limit + want - now.barrier)}
        yield _less(level, f"{key.lower()}.bar", now.barrier, want, repair)


def _gap(values: Values, key: str, sockets: str, level: Level) -> Iterator[Finding]:
    """Judge the room between barrier and limit which every socket needs."""
    now, name = values.limits(key), key.lower()
    want = min(_PER_SOCKET * values.limits(sockets).barrier, UNLIMITED)
    gap = UNLIMITED if now.limit == UNLIMITED else now.limit - now.barrier
    if gap < want:
        repair = {key: _text(now.barrier, now.barrier + want)}
        yield _less(level, f"{name}.lim-{name}.bar", gap, want, repair)


def _disk(values: Values, around: Surroundings) -> Iterator[Finding]:
    if values.text("DISK_QUOTA").lower() == "no":
        return
    for key, unit in (("DISKSPACE", KIB), ("DISKINODES", 0)):
        text = values.text(key)
        if not text:
            yield Finding(Level.ERROR, f"parameter {key.lower()} not found")
            continue
        first, _, second = text.partition(":")
        try:
            soft = pair(first, unit=unit).limit
            hard = pair(second, unit=unit).limit if second else soft
        except InvalidValue:
            yield Finding(Level.ERROR, f"{key.lower()} is not a limit (currently, {text})")
            continue
        if soft > hard:
            yield Finding(
                Level.ERROR,
                f"barrier should be <= limit for {key.lower()} (currently, {soft}:{hard})",
                {key: _text(soft, soft)},
            )
        elif key == "DISKSPACE" and around.disk_bytes is not None:
            size_kib = around.disk_bytes // KIB
            if size_kib < hard < UNLIMITED:
                yield Finding(
                    Level.WARNING,
                    f"diskspace.lim should be < {size_kib}, the size of the file system "
                    f"(currently, {hard})",
                )


def _memory(values: Values, around: Surroundings) -> Iterator[Finding]:
    """Judge RAM and swap against the server."""
    if around.server is None:
        return
    memory, server = memory_of(values.items()), around.server
    if memory.ram_bytes > server.ram_bytes:
        yield Finding(
            Level.WARNING,
            f"physpages.lim should be < {server.ram_bytes // PAGE}, the server's RAM "
            f"(currently, {memory.ram_bytes // PAGE})",
        )
    elif memory.total_bytes > server.both_bytes:
        yield Finding(
            Level.WARNING,
            f"RAM and swap should be < {human(server.both_bytes)}, the server's "
            f"(currently, {human(memory.total_bytes)})",
        )
    promised = around.guaranteed_bytes + memory.guarantee_bytes
    if promised > server.ram_bytes:
        yield Finding(
            Level.WARNING,
            f"guarantees of all containers should be < {human(server.ram_bytes)}, the server's RAM "
            f"(currently, {human(promised)})",
        )


def _processors(values: Values, around: Surroundings) -> Iterator[Finding]:
    text = values.text("CPUUNITS")
    if not text:
        return
    units = int(text) if text.isdecimal() else 0
    if not CPUUNITS_LEAST <= units <= CPUUNITS_MOST:
        clamped = min(max(units, CPUUNITS_LEAST), CPUUNITS_MOST) if text.isdecimal() else 1000
        yield Finding(
            Level.ERROR,
            f"cpuunits should be from {CPUUNITS_LEAST} to {CPUUNITS_MOST} (currently, {text})",
            {"CPUUNITS": str(clamped)},
        )


def _addresses(values: Values, around: Surroundings) -> Iterator[Finding]:
    for address in sorted(addresses_of(values.items())):
        holder = around.addresses.get(address)
        if holder is not None:
            text = f"address {address} belongs to container {holder}"
            yield Finding(Level.ERROR, text)


def addresses_of(values: Mapping[str, str]) -> set[str]:
    """Return the addresses in IP_ADDRESS and NETIF, without masks."""
    words = set(values.get("IP_ADDRESS", "").split())
    for adapter in values.get("NETIF", "").split(";"):
        words |= {part[3:] for part in adapter.split(",") if part.startswith("ip=")}
    return {word.partition("/")[0].lower() for word in words if word}
