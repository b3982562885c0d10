"""What mounts of one template share: page cache, PSS of a mapped library, memory of the servers.

.venv/bin/python tests/bench/bench_vzfs_memory.py [--quick] > result.json
"""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP), str(TOP / "tests/system")]

from posixcases import beds, calls  # noqa: E402  (needs the path above)

from tests.bench._harness import emit, scratch  # noqa: E402

SIZE = 32 << 20


def smaps(pid: int, word: str) -> int:
    """Return a figure of /proc/PID/smaps_rollup in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{word}:"):
            return int(line.split()[1]) << 10
    return 0


def own_memory(pid: int) -> int:
    """Return what would be freed if a process ended (USS), in bytes."""
    return smaps(pid, "Private_Clean") + smaps(pid, "Private_Dirty")


def cached() -> int:
    """Return the size of the page cache in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) << 10
    return 0


def user(path: Path) -> tuple[int, int]:
    """Fork a process that maps a whole file and waits; return (pid, pipe it waits on)."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        one = os.open(path, os.O_RDONLY)
        memory = mmap.mmap(one, SIZE, prot=mmap.PROT_READ)
        sum(memory[offset] for offset in range(0, SIZE, 4096))
        os.write(told, b"r")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    return child, 0


def mapping(pid: int) -> int:
    """Return the PSS of the mapped file in bytes."""
    pss, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            inside = line.endswith("/library")
        elif inside and line.startswith("Pss:"):
            pss += int(line.split()[1]) << 10
    return pss


def measure(kind: type[beds.Bed], place: Path, count: int) -> dict[str, object]:
    """Mount one layer `count` times, map the same file in each, return the figures."""
    layer = place / "layer"
    layer.mkdir(exist_ok=True)
    if not (layer / "library").exists():
        with open(layer / "library", "wb") as file:
            file.write(os.urandom(1 << 20) * (SIZE >> 20))
            file.flush()
            os.fsync(file.fileno())  # dirty pages would not be dropped below
    with ExitStack() as stack:
        made = []
        for number in range(count):
            bed = kind(place / f"{kind.name}-{count}-{number}")
            bed.lowers = (layer,)
            bed.mount()
            stack.callback(bed.abandon)
            made.append(bed)
        servers = [b.server for b in made if isinstance(b, beds.Vzfs)]
        idle = [own_memory(pid) for pid in servers]
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
        before = cached()
        users = []
        for bed in made:
            pid, _ = user(bed.merged / "library")
            stack.callback(os.waitpid, pid, 0)
            stack.callback(os.kill, pid, signal.SIGKILL)
            users.append(pid)
        grown = cached() - before
        pss = sum(mapping(pid) for pid in users)
    return {
        "copies_in_page_cache": round(grown / SIZE, 2),
        "pss_of_all_in_file_sizes": round(pss / SIZE, 2),
        "server_uss_idle_mib": round(max(idle) / (1 << 20), 2) if idle else None,
    }


def main() -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 mounts only")
    parser.add_argument("--beds", default="overlayfs,vzfs-kernel,vzfs-pyfuse3")
    args = parser.parse_args()
    results: list[dict[str, object]] = []
    with calls.own_mounts(), scratch() as place:
        for count in (10,) if args.quick else (10, 100):
            rows = {}
            for name in args.beds.split(","):
                rows[name] = measure(beds.BEDS[name], place, count)
                print(f"{count} mounts {name}: {rows[name]}", file=sys.stderr)
            results.append({"what": f"{count} mounts map one library", "rows": rows})
        emit(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
