"""Old configuration formats made new (vzcfgconvert(8)), and beancounters made VSwap."""

from __future__ import annotations

from runtime import ubc
from runtime.config import ConfigFile
from runtime.memory import Scheme, memory_of, scheme_of
from runtime.units import PAGE, UNLIMITED, Pair

#: Parameters of the first format → the present ones.
_RENAMED = {
    "TCPSENDBUF": "TCPSNDBUF",
    "UNIXSOCKBUF": "OTHERSOCKBUF",
    "SOCKRCVBUF": "DGRAMRCVBUF",
    "NUMUNIXSOCK": "NUMOTHERSOCK",
    "TOTVMPAGES": "PRIVVMPAGES",
    "IPCSHMPAGES": "SHMPAGES",
}
_FIRST_FORMAT = (*_RENAMED, "ANONSHPAGES", "RSSPAGES")
#: Memory parameters that a VSwap configuration derives.
_DERIVED = (
    "KMEMSIZE",
    "LOCKEDPAGES",
    "PRIVVMPAGES",
    "SHMPAGES",
    "VMGUARPAGES",
    "OOMGUARPAGES",
    "TCPSNDBUF",
    "TCPRCVBUF",
    "OTHERSOCKBUF",
    "DGRAMRCVBUF",
    "DCACHESIZE",
    "AVNUMPROC",
    "MEMINFO",
    "SLMMODE",
    "SLMMEMORYLIMIT",
    "SLMPATTERN",
)


def is_old(file: ConfigFile) -> bool:
    """Whether ``file`` is older than the format with a VERSION and needs converting."""
    return not file.get("VERSION") and (
        any(key in file for key in _FIRST_FORMAT) or "KMEMSIZE" in file
    )


def convert(file: ConfigFile) -> None:
    """Bring an old configuration to the present format; a second time would scale it again."""
    if any(key in file for key in _FIRST_FORMAT):
        _first_to_second(file)
    for key, factor in (("KMEMSIZE", 1.2), ("NUMFILE", 1.6), ("DCACHESIZE", 2.0)):
        _multiply(file, key, factor)
    file.set("VERSION", "2")


def _first_to_second(file: ConfigFile) -> None:
    for old, new in _RENAMED.items():
        value = file.get(old)
        if value is not None and new not in file:
            file.set(new, value)
        file.unset(old)
    if "RSSPAGES" in file and "PHYSPAGES" not in file:
        file.set("PHYSPAGES", str(Pair(0, UNLIMITED)))
    for key in ("RSSPAGES", "ANONSHPAGES"):
        file.unset(key)
    _multiply(file, "KMEMSIZE", 1.44)
    _multiply(file, "NUMOTHERSOCK", 2.67)
    for key in ("TCPSNDBUF", "TCPRCVBUF"):
        limits = ubc.lenient(key, file.get(key))
        if limits is not None:
            file.set(key, str(Pair(limits.barrier, _times(limits.limit, 2))))
    processes = ubc.lenient("NUMPROC", file.get("NUMPROC"))
    if processes is not None and "NUMFILE" not in file:
        count = _times(processes.limit, 20.48)
        file.set("NUMFILE", str(Pair(count, count)))
    files = ubc.lenient("NUMFILE", file.get("NUMFILE"))
    if files is not None and "DCACHESIZE" not in file:
        size = _times(files.limit, 512)
        file.set("DCACHESIZE", str(Pair(size, size)))
    kernel = ubc.lenient("KMEMSIZE", file.get("KMEMSIZE"))
    if kernel is not None and "AVNUMPROC" not in file:
        average = kernel.barrier // 67584
        file.set("AVNUMPROC", str(Pair(average, average)))


def _multiply(file: ConfigFile, key: str, factor: float) -> None:
    limits = ubc.lenient(key, file.get(key))
    if limits is not None:
        file.set(key, str(Pair(*(_times(value, factor) for value in limits))))


def _times(value: int, factor: float) -> int:
    return UNLIMITED if ubc.unlimited(value) else min(round(value * factor), UNLIMITED)


def to_vswap(file: ConfigFile) -> bool:
    """Replace memory beancounters or SLM by RAM, swap and overcommit; return whether it did."""
    if scheme_of(file.items()) not in (Scheme.SLM, Scheme.UBC):
        return False
    memory = memory_of(file.items())
    file.set("PHYSPAGES", f"0:{memory.ram_bytes // PAGE}")
    file.set("SWAPPAGES", f"0:{memory.swap_bytes // PAGE}")
    if memory.overcommit is not None:
        file.set("VM_OVERCOMMIT", f"{memory.overcommit:.3f}".rstrip("0").rstrip("."))
    for key in _DERIVED:
        file.unset(key)
    file.set("VERSION", "2")
    return True
