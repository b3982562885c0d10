"""Settings that say how much of the server a container may use, and what it may do with it.

Sources: vzctl(8), ctid.conf(5). Checks are pure; ``resources*`` modules apply the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from runtime import settings_access
from runtime.errors import CpuMaskFailed, InvalidValue, NodeMaskFailed
from runtime.settings import Setting, whole, yes_no
from runtime.ubc import BEANCOUNTERS, parse
from runtime.units import KIB, PAGE, UNLIMITED, amount, duration, pair

CPUUNITS_LEAST = 8
CPUUNITS_MOST = 500_000
#: Highest I/O limit, in bytes per second (vzctl(8)).
IOLIMIT_MOST = 2 << 30

_LIVE_CPU = "runtime.resources:apply_cpu"
_LIVE_MEMORY = "runtime.resources:apply_memory"
_LIVE_COUNTS = "runtime.resources:apply_counts"
_LIVE_IO = "runtime.resources:apply_io"
_LIVE_DISK = "runtime.resources_disk:apply"


def parse_cpulist(text: str) -> frozenset[int]:
    """Return the numbers of a list like ``0,2-5`` (cpuset(7), List format); raises InvalidValue."""
    numbers: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", word)
        if match is None:
            raise InvalidValue(
                f"not a list of numbers: {text!r}", hint="write numbers and ranges, like 0,2-5"
            )
        first = int(match[1])
        last = int(match[2] or match[1])
        if last < first:
            raise InvalidValue(f"a range that runs backwards: {word!r}")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def format_cpulist(numbers: frozenset[int]) -> str:
    """Return ``numbers`` as a list with ranges: ``0,2-5``."""
    words: list[str] = []
    run: list[int] = []
    for number in [*sorted(numbers), -1]:
        if run and number == run[-1] + 1:
            run.append(number)
            continue
        if run:
            words.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
        run = [number]
    return ",".join(words)


def _online(path: str) -> frozenset[int]:
    try:
        with open(path, encoding="ascii") as file:
            return parse_cpulist(file.read())
    except FileNotFoundError:
        return frozenset([0])


def online_cpus() -> frozenset[int]:
    """Return the processors of the server that are online."""
    return _online("/sys/devices/system/cpu/online")


def online_nodes() -> frozenset[int]:
    """Return the NUMA nodes of the server that are online; {0} on a kernel without NUMA."""
    return _online("/sys/devices/system/node/online")


def cpuunits(text: str) -> str:
    """Check a CPU weight; raises InvalidValue."""
    return whole(CPUUNITS_LEAST, CPUUNITS_MOST)(text)


def cpulimit(text: str) -> str:
    """Check a CPU limit: percent of one core, or megahertz with ``m``; raises InvalidValue."""
    match = re.fullmatch(r"([0-9]{1,7})(%?|[mM](?:[hH][zZ])?)", text.strip())
    if match is None:
        raise InvalidValue(
            f"not a CPU limit: {text!r}", hint="write percent of one core (50), or MHz (500m)"
        )
    return match[1] + ("m" if match[2][:1] in ("m", "M") and match[2] else "")


def _cpulimit_keys(value: str | None) -> dict[str, str | None]:
    """Return the two keys that hold a CPU limit: percent and megahertz exclude one another."""
    if value is not None and value.endswith("m"):
        return {"CPULIMIT": None, "CPULIMIT_MHZ": value[:-1]}
    return {"CPULIMIT": value, "CPULIMIT_MHZ": None}


def cpus(text: str) -> str:
    """Check a number of processors; 0 and "unlimited" mean all. Raises InvalidValue."""
    if text.strip().lower() in ("unlimited", "all"):
        return "0"
    return whole(0, 4096)(text)


def cpumask(text: str) -> str:
    """Check a list of processors of this server, ``all`` or ``auto``.

    Raises InvalidValue when it is no list, CpuMaskFailed when the server has none of them.
    """
    if text in ("all", "auto"):
        return text
    wanted = parse_cpulist(text)
    missing = wanted - online_cpus()
    if missing:
        raise CpuMaskFailed(
            f"this server has no processor {format_cpulist(missing)}",
            hint=f"processors online: {format_cpulist(online_cpus())}",
        )
    return format_cpulist(wanted)


def nodemask(text: str) -> str:
    """Check a list of NUMA nodes of this server, or ``all``; raises as ``cpumask`` does."""
    if text == "all":
        return text
    wanted = parse_cpulist(text)
    missing = wanted - online_nodes()
    if missing:
        raise NodeMaskFailed(
            f"this server has no NUMA node {format_cpulist(missing)}",
            hint=f"nodes online: {format_cpulist(online_nodes())}",
        )
    return format_cpulist(wanted)


def ram(text: str) -> str:
    """Check an amount of RAM in bytes; returns it as ``0:PAGES``. Raises InvalidValue."""
    size_bytes = amount(text)
    count = UNLIMITED if size_bytes >= UNLIMITED else size_bytes // PAGE
    if count < 1:
        raise InvalidValue(f"too little memory: {text!r}", hint="write bytes, or 512M, or 1G")
    return _limit_pages(count)


def swap(text: str) -> str:
    """Check an amount of swap in bytes; returns it as ``0:PAGES``. Raises InvalidValue."""
    size_bytes = amount(text)
    return _limit_pages(UNLIMITED if size_bytes >= UNLIMITED else size_bytes // PAGE)


def _limit_pages(count: int) -> str:
    return f"0:{'unlimited' if count >= UNLIMITED else count}"


def vm_overcommit(text: str) -> str:
    """Check the factor between RAM + swap and what may be allocated; raises InvalidValue."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or float(text) <= 0:
        raise InvalidValue(f"not a factor above 0: {text!r}", hint="write a number like 1.5")
    return text


def memguarantee(text: str) -> str:
    """Check a memory guarantee: ``auto`` or percent of the RAM; raises InvalidValue."""
    if text == "auto":
        return text
    return whole(0, 100)(text.removesuffix("%"))


def meminfo(text: str) -> str:
    """Check the mode of /proc/meminfo: none, pages:N or privvmpages:N; raises InvalidValue."""
    word = text.strip().lower()
    if word == "none" or re.fullmatch(r"(pages|privvmpages):[1-9][0-9]{0,17}", word):
        return word
    raise InvalidValue(
        f"not a mode of /proc/meminfo: {text!r}", hint="write none, pages:N or privvmpages:N"
    )


def _ubc(key: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        limits = parse(key, text)
        if key == "PHYSPAGES" and limits.limit < 1:
            raise InvalidValue(f"too little memory: {text!r}")
        if key == "NUMPROC" and limits.limit < 1:
            # Nothing could be started inside any more, not even what would look.
            raise InvalidValue("a container has at least one process", hint="'unlimited': no limit")
        return str(limits)

    return check


def diskspace(text: str) -> str:
    """Check soft:hard disk space in KiB; raises InvalidValue."""
    return str(pair(text, unit=KIB))


def diskinodes(text: str) -> str:
    """Check a soft:hard number of files; raises InvalidValue."""
    return str(pair(text, unit=0))


def quotatime(text: str) -> str:
    """Check a grace period; returns seconds. Raises InvalidValue."""
    return str(duration(text))


def iolimit(text: str) -> str:
    """Check an I/O limit in bytes per second, 0 for none; raises InvalidValue."""
    limit = 0 if text.strip().lower() == "unlimited" else amount(text)
    if limit > IOLIMIT_MOST:
        raise InvalidValue(f"an I/O limit is at most 2G bytes per second: {text!r}")
    return str(limit)


#: What a bare number of an option means to pctl (vzctl counts bytes): the suffix to add.
PCTL_UNITS = {"iolimit": "M"}


def _beancounter_rows() -> tuple[Setting, ...]:
    rows = []
    for row in BEANCOUNTERS:
        memory = row.key in ("PHYSPAGES", "SWAPPAGES", "VMGUARPAGES", "OOMGUARPAGES", "PRIVVMPAGES")
        rows.append(
            Setting(
                row.name,
                row.key,
                f"{row.help}, in {row.unit.value}",
                check=_ubc(row.key),
                metavar="LIMIT" if row.limit_only else "BARRIER[:LIMIT]",
                live=_LIVE_MEMORY if memory else _LIVE_COUNTS,
                group="User beancounters",
                host=True,
            )
        )
    return tuple(rows)


ROWS = (
    Setting(
        "cpuunits",
        "CPUUNITS",
        "CPU weight, 8 to 500000; 1000 is usual",
        check=cpuunits,
        metavar="N",
        live=_LIVE_CPU,
        group="CPU",
        host=True,
    ),
    Setting(
        "cpulimit",
        "CPULIMIT",
        "CPU limit in percent of one core, or in MHz (500m); 0: none",
        check=cpulimit,
        metavar="N[m]",
        live=_LIVE_CPU,
        group="CPU",
        also=_cpulimit_keys,
    ),
    Setting(
        "cpus",
        "CPUS",
        "number of processors seen and used; 0: all",
        check=cpus,
        metavar="N",
        live=_LIVE_CPU,
        group="CPU",
    ),
    Setting(
        "cpumask",
        "CPUMASK",
        "processors to run on, like 0,2-5; all, auto",
        check=cpumask,
        metavar="LIST",
        live=_LIVE_CPU,
        group="CPU",
    ),
    Setting(
        "nodemask",
        "NODEMASK",
        "NUMA nodes to take memory from; all",
        check=nodemask,
        metavar="LIST",
        live=_LIVE_CPU,
        group="CPU",
    ),
    Setting(
        "ram",
        "PHYSPAGES",
        "RAM in bytes (512M, 1G)",
        check=ram,
        metavar="SIZE",
        live=_LIVE_MEMORY,
        group="Memory",
    ),
    Setting(
        "swap",
        "SWAPPAGES",
        "swap space in bytes (512M, 1G)",
        check=swap,
        metavar="SIZE",
        live=_LIVE_MEMORY,
        group="Memory",
    ),
    Setting(
        "vm_overcommit",
        "VM_OVERCOMMIT",
        "memory that may be allocated, as a multiple of RAM and swap together",
        check=vm_overcommit,
        metavar="FACTOR",
        live=_LIVE_MEMORY,
        group="Memory",
    ),
    Setting(
        "memguarantee",
        "MEMGUARANTEE",
        "RAM kept for it when the server runs short, in percent; auto",
        check=memguarantee,
        metavar="PERCENT",
        live=_LIVE_MEMORY,
        group="Memory",
    ),
    Setting(
        "meminfo",
        "MEMINFO",
        "total memory shown inside without VSwap: none, pages:N, privvmpages:N",
        check=meminfo,
        metavar="MODE[:N]",
        live="runtime.resources:apply_meminfo",
        group="Memory",
    ),
    *_beancounter_rows(),
    Setting(
        "reset_ub",
        "RESET_UB",
        "apply every stored limit again",
        check=yes_no,
        live="runtime.resources:apply_all",
        group="User beancounters",
        stored=False,
        flag=True,
    ),
    Setting(
        "diskquota",
        "DISK_QUOTA",
        "whether disk quota is counted",
        check=yes_no,
        choices=("yes", "no"),
        live="runtime.resources_disk:apply_enabled",
        group="Disk",
    ),
    Setting(
        "diskspace",
        "DISKSPACE",
        "disk space, soft[:hard], in KiB or with a suffix",
        check=diskspace,
        metavar="SOFT[:HARD]",
        live=_LIVE_DISK,
        group="Disk",
    ),
    Setting(
        "diskinodes",
        "DISKINODES",
        "number of files, soft[:hard]",
        check=diskinodes,
        metavar="SOFT[:HARD]",
        live=_LIVE_DISK,
        group="Disk",
    ),
    Setting(
        "quotatime",
        "QUOTATIME",
        "grace period over a soft limit, in seconds",
        check=quotatime,
        metavar="SECONDS",
        live=_LIVE_DISK,
        group="Disk",
    ),
    Setting(
        "quotaugidlimit",
        "QUOTAUGIDLIMIT",
        "users and groups with quotas of their own; 0: none",
        check=whole(0, 2**31 - 1),
        metavar="N",
        live="runtime.resources_disk:apply_users",
        group="Disk",
    ),
    Setting(
        "ioprio",
        "IOPRIO",
        "disk I/O priority, 0 (lowest) to 7; 4 is usual",
        check=whole(0, 7),
        metavar="N",
        live=_LIVE_IO,
        group="Disk I/O",
    ),
    Setting(
        "iolimit",
        "IOLIMIT",
        "disk bytes per second; 0: no limit",
        check=iolimit,
        metavar="N[BKMG]",
        live=_LIVE_IO,
        group="Disk I/O",
    ),
    Setting(
        "iopslimit",
        "IOPSLIMIT",
        "disk operations per second; 0: no limit",
        check=whole(0, 2**31 - 1),
        metavar="N",
        live=_LIVE_IO,
        group="Disk I/O",
    ),
    *settings_access.ROWS,
)
