"""Many idle containers: our own memory for each, time to start them, page cache of the template.

.venv/bin/python tests/bench/bench_density.py [--quick] [--count 100]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench._harness import BIN, emit, run, scratch


def memory_kib(pid: int) -> tuple[int, int]:
    """Return USS and PSS of a process in KiB (proc(5), smaps_rollup)."""
    private = proportional = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            private += int(rest.split()[0])
        elif name == "Pss":
            proportional += int(rest.split()[0])
    return private, proportional


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    count = 10 if args.quick else args.count
    with scratch() as place:
        root = place / "vz"
        root.mkdir()
        os.environ["VZ_ROOT"] = str(root)
        ids = range(101, 101 + count)
        try:
            run(BIN / "pctl", "create", "101", "--ostemplate", "busybox", "--force")
            for ctid in ids[1:]:
                run(BIN / "pctl", "clone", "101", "--name", str(ctid))
            disk = sum(f.lstat().st_blocks for f in (root / "vz/private/101").rglob("*")) // 2
            time.sleep(1.0)
            begin = time.perf_counter()
            for ctid in ids:
                run(BIN / "pctl", "start", str(ctid))
            seconds = time.perf_counter() - begin
            time.sleep(40.0)  # until what serves files and /proc rests
            emit(
                [
                    _memory(root, list(ids))
                    | {"start_ms": round(seconds / count * 1e3, 1), "disk_kib": disk}
                ]
            )
        finally:
            run(BIN / "vz", "stop", "--fast", ok=(0, 3))
            run(BIN / "python", "-m", "tools.service", "--stop", root)


def _memory(root: Path, ids: list[int]) -> dict[str, object]:
    uss, pss = [], []
    for ctid in ids:
        state = json.loads((root / f"run/vz/ct/{ctid}.json").read_text())
        keeper = state["supervisor"]["pid"]
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        ours = {keeper, *map(int, children)} - {state["init"]["pid"]}
        pairs = [memory_kib(pid) for pid in ours]
        uss.append(sum(pair[0] for pair in pairs))
        pss.append(sum(pair[1] for pair in pairs))
    print(
        f"{len(ids)} idle containers: own memory of each USS {statistics.median(uss)} KiB, "
        f"PSS {statistics.median(pss)} KiB",
        file=sys.stderr,
    )
    return {
        "what": "our memory per idle container",
        "count": len(ids),
        "uss_kib": {"median": statistics.median(uss), "max": max(uss)},
        "pss_kib": {"median": statistics.median(pss), "max": max(pss)},
    }


if __name__ == "__main__":
    main()
