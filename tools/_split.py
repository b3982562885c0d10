"""The arithmetic of vzsplit(8): equal parts of a server as the limits of one container."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import VzError
from runtime.sizing import LOW_MEMORY_SHARE, SYSTEM_RESERVE, Server
from runtime.units import PAGE, UNLIMITED, Pair

LEVELS = (
    "Free resource distribution. Any parameters may be increased",
    "Normal resource distribution. Secondary parameters may be increased",
    "Partial resource shortage. Auxiliary parameters may be increased",
    "Overall resource shortage. Please, do not change any parameters!",
)

#: Least memory of one container, and of it the kernel's part, in bytes.
_LEAST_MEMORY = 5_542_912
_LEAST_LOW = 1_348_608
#: Least and most of some parameters (vzsplit(8)).
_LEAST_PROCESSES = 30
_LEAST_PAGES = 1024
_MOST_THREADS = 8000
_SOCKET = 2560
_TCP_BUFFER = 64 << 10
_DATAGRAM_BUFFER = 32 << 10
#: Disk space (KiB) and files that stay with the server, and a container's usual part.
_SERVER_SPACE_KIB = 10 << 20
_SERVER_FILES = 100_000
_USUAL_SPACE_KIB = 2 << 20
_USUAL_FILES = 200_000


@dataclass(frozen=True, slots=True)
class _Level:
    """How generously the kernel's memory is given out on one level of shortage."""

    kernel_share: float
    processes: float
    processes_per_average: int
    bytes_per_process: int
    socket_base: int
    socket_each: int
    least_low: int
    signals: int
    directory_entry: float
    private_factor: float
    locked_percent: int


_GRADES = (
    _Level(1.0, 1.0, 8, 81920, 262144, 4096, 10 << 20, 1024, 1.5 * 384, 6.0, 10),
    _Level(1.2, 1.5, 5, 65536, 131072, 3036, 2 << 20, 512, 1.2 * 384, 3.0, 3),
    _Level(1.8, 2.0, 3, 53248, 65536, 2560, 0, 256, 384.0, 1.5, 1),
)


class NotEnough(VzError):
    """The server is too small for that many containers."""

    code = 1


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system containers will live on: KiB and files it can hold."""

    space_kib: int
    files: int


@dataclass(frozen=True, slots=True)
class Part:
    """One container's part: the level of shortage and its limits."""

    level: int
    ubc: dict[str, Pair]
    vswap: dict[str, str]
    disk: dict[str, Pair]
    warnings: tuple[str, ...]


def most_containers(server: Server) -> int:
    """Return how many containers the memory of ``server`` is enough for."""
    by_memory = (server.both_bytes - SYSTEM_RESERVE) // _LEAST_MEMORY
    by_low = (server.low_bytes - SYSTEM_RESERVE) // _LEAST_LOW
    return max(min(by_memory, by_low), 0)


def split(server: Server, count: int, disk: Disk | None) -> Part:
    """Return the part of each of ``count`` containers; raises NotEnough."""
    most = most_containers(server)
    if count > most:
        raise NotEnough(
            f"On node with {server.both_bytes >> 20} Mb of memory (RAM + swap) "
            f"{count} Containers cannot be allocated",
            hint=f"The maximum allowed value is {most}",
        )
    each = (server.both_bytes - SYSTEM_RESERVE) // count
    threads = min(server.threads_max, _MOST_THREADS * (2 if server.low_bytes > 2 << 30 else 1))
    level, limits = _beancounters(server, count, each, threads)
    ram_pages = (server.ram_bytes - SYSTEM_RESERVE) // count // PAGE
    swap_pages = server.swap_bytes // count // PAGE
    vswap = {
        "PHYSPAGES": f"0:{ram_pages}",
        "SWAPPAGES": f"0:{swap_pages}",
        "VM_OVERCOMMIT": "1.5",
    }
    space, warnings = _disk(disk, count)
    return Part(level, limits, vswap, space, warnings)


def _beancounters(
    server: Server, count: int, each: int, threads: int
) -> tuple[int, dict[str, Pair]]:
    """Return the level of shortage and every beancounter of one container."""
    for level, grade in enumerate(_GRADES):
        low, guaranteed = _halves(
            server.low_bytes * LOW_MEMORY_SHARE * grade.kernel_share, count, each
        )
        kernel = low // 2
        average = kernel // grade.bytes_per_process
        if low < grade.least_low or average < _LEAST_PROCESSES // 2:
            continue
        processes = max(int(grade.processes * threads / count), _LEAST_PROCESSES, 2 * average)
        processes = min(processes, average * grade.processes_per_average)
        each_tcp = (low - kernel) // 3
        if each_tcp < grade.socket_base + grade.socket_each * processes:
            continue
        gap = grade.socket_each * processes
        rest = each_tcp - gap
        buffers = {
            "TCPSNDBUF": Pair(rest, each_tcp),
            "TCPRCVBUF": Pair(rest, each_tcp),
            "OTHERSOCKBUF": Pair(rest // 2, rest // 2 + gap),
            "DGRAMRCVBUF": Pair(rest // 2, rest // 2),
        }
        return level, _rest_of(
            grade, server, count, each, kernel, guaranteed, processes, average, buffers
        )
    return _shortage(server, count, each, threads)


def _halves(low_total: float, count: int, each: int) -> tuple[int, int]:
    """Return the kernel's part of one container in bytes, and the guaranteed pages."""
    low = int(low_total / count)
    guaranteed = (each - low) // PAGE
    if guaranteed < _LEAST_PAGES:
        guaranteed = _LEAST_PAGES
        low = each - guaranteed * PAGE
    return low, guaranteed


def _shortage(server: Server, count: int, each: int, threads: int) -> tuple[int, dict[str, Pair]]:
    """Return the limits when no level fits: processes are halved until the kernel's part does."""
    grade = _GRADES[-1]
    low, guaranteed = _halves(server.low_bytes * LOW_MEMORY_SHARE * 2.0, count, each)
    processes = max(int(grade.processes * threads / count), _LEAST_PROCESSES)
    while True:
        processes = max(processes // 2, _LEAST_PROCESSES)
        average = processes // 2
        gap = _SOCKET * processes
        kernel = low - 2 * (_DATAGRAM_BUFFER + _TCP_BUFFER + gap)
        spare = kernel - average * grade.bytes_per_process
        if spare >= 0:
            break
        if processes == _LEAST_PROCESSES:
            raise NotEnough(
                "Fatal resource shortage", hint="try to decrease the number of Containers"
            )
    buffers = {
        "TCPSNDBUF": Pair(_TCP_BUFFER, _TCP_BUFFER + gap),
        "TCPRCVBUF": Pair(_TCP_BUFFER, _TCP_BUFFER + min(spare, gap)),
        "OTHERSOCKBUF": Pair(_DATAGRAM_BUFFER, _DATAGRAM_BUFFER + gap),
        "DGRAMRCVBUF": Pair(_DATAGRAM_BUFFER, _DATAGRAM_BUFFER),
    }
    limits = _rest_of(grade, server, count, each, kernel, guaranteed, processes, average, buffers)
    return len(_GRADES), limits


def _rest_of(
    grade: _Level,
    server: Server,
    count: int,
    each: int,
    kernel: int,
    guaranteed: int,
    processes: int,
    average: int,
    buffers: dict[str, Pair],
) -> dict[str, Pair]:
    """Return every beancounter once the kernel's memory and the processes are decided."""
    files = average * 32
    entries = int(files * grade.directory_entry)
    locks = min(files // 10, 1000)
    private = int(guaranteed * grade.private_factor)
    if private > each // PAGE:
        private = guaranteed
    # One container of several may not allocate more than 60 % of the RAM.
    if count > 1 and private > 0.6 * server.ram_bytes / PAGE:
        private = int(0.6 * server.ram_bytes / PAGE)
        guaranteed = min(guaranteed, private)
    # Unlike the kernel's own arithmetic a file needs a name and a socket is a file: see vzcfgvalidate.
    terminals = min(max(processes // 10, 4), 512)
    files = max(files, 2 * processes + terminals)
    return {
        "NUMPROC": _same(processes),
        "AVNUMPROC": _same(average),
        "NUMTCPSOCK": _same(processes),
        "NUMOTHERSOCK": _same(processes),
        "VMGUARPAGES": Pair(guaranteed, UNLIMITED),
        "KMEMSIZE": Pair(kernel, int(kernel * 1.1)),
        **buffers,
        "OOMGUARPAGES": Pair(guaranteed, UNLIMITED),
        "PRIVVMPAGES": Pair(private, int(private * 1.1)),
        "LOCKEDPAGES": _same(max(kernel * grade.locked_percent // 204800, 4)),
        "SHMPAGES": _same(private // 10),
        "PHYSPAGES": Pair(0, UNLIMITED),
        "NUMFILE": _same(files),
        "NUMFLOCK": Pair(locks, int(locks * 1.1)),
        "NUMPTY": _same(terminals),
        "NUMSIGINFO": _same(grade.signals),
        "DCACHESIZE": Pair(int(entries / 1.03), entries),
        "NUMIPTENT": _same(min(max(2000 // count, 4), 200)),
    }


def _same(value: int) -> Pair:
    return Pair(value, value)


def _disk(disk: Disk | None, count: int) -> tuple[dict[str, Pair], tuple[str, ...]]:
    """Return the disk limits of one container: half of an equal part, and what to warn of."""
    warnings: list[str] = []
    space, files = 2 * _USUAL_SPACE_KIB * count, 2 * _USUAL_FILES * count
    if disk is not None:
        if disk.space_kib // 2 < _SERVER_SPACE_KIB:
            warnings.append("Recommended minimal size of /vz partition is 20Gb!")
            left = disk.space_kib // 2
        else:
            left = disk.space_kib - _SERVER_SPACE_KIB
        fit = left // _USUAL_SPACE_KIB
        if fit < count:
            warnings.append(
                f"/vz partition do not have space required for {count} Containers; "
                f"the maximum allowed value is {fit}. Default disk space values will be used"
            )
        else:
            space = left
            # File systems without a fixed number of files (btrfs, xfs) report 0 or a guess.
            if disk.files:
                spare = (
                    disk.files // 2
                    if disk.files // 2 < _SERVER_FILES
                    else disk.files - _SERVER_FILES
                )
                files = spare
    space_each, files_each = space // (2 * count), files // (2 * count)
    return (
        {
            "DISKSPACE": Pair(int(space_each / 1.1), space_each),
            "DISKINODES": Pair(int(files_each / 1.1), files_each),
        },
        tuple(warnings),
    )
