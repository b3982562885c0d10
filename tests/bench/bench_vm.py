"""Machines: our commands against virsh on the same libvirtd, time to an answering guest, memory.

.venv/bin/python tests/bench/bench_vm.py [--quick]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime.paths import Paths
from tests.bench._harness import BIN, TOP, arguments, emit, interleaved, report, run, scratch
from vmm.daemon import Daemon


def resident_mib(pid: int) -> float:
    """Return the proportional memory of a process (smaps_rollup, Pss), in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(place: Path, rounds: int) -> list[dict[str, object]]:
    """Return the results."""
    # As users have it: after the first command that changes something, the warm service answers.
    env = {**os.environ, "VZ_ROOT": str(place)}
    pctl = BIN / "pctl"
    daemon = Daemon(Paths(place))
    socket = daemon.socket
    virsh = ("virsh", "-q", "-c", f"qemu+unix:///system?socket={socket}")
    run(pctl, "create", "demo", "-d", "golden", env=env)  # builds the guest, starts libvirtd
    begin = time.perf_counter()
    run(pctl, "create", "boot", "-d", "golden", env=env)
    run(pctl, "start", "boot", "--wait", env=env)
    answering_s = time.perf_counter() - begin
    pid = daemon.pid()
    assert pid is not None
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    memory = {"libvirtd_mib": resident_mib(pid), "reaper_mib": resident_mib(parent)}
    results: list[dict[str, object]] = []

    def pair(what: str, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
        seconds = interleaved(
            {
                "virsh": lambda: run(*virsh, *theirs),
                "pctl": lambda: run(pctl, *ours, env=env),
            },
            rounds,
        )
        results.append(report(what, seconds, base="virsh"))

    pair("list", ("list", "-a"), ("list", "--all"))
    pair("status", ("status", "boot"), ("domstate", "boot"))

    def toggle(start: tuple[str | Path, ...], stop: tuple[str | Path, ...]) -> None:
        run(*start, env=env)
        run(*stop, env=env)

    seconds = interleaved(
        {
            "virsh": lambda: toggle((*virsh, "start", "demo"), (*virsh, "destroy", "demo")),
            "pctl": lambda: toggle((pctl, "start", "demo"), (pctl, "stop", "demo", "--kill")),
        },
        max(rounds // 3, 2),
    )
    results.append(report("start and stop", seconds, base="virsh"))

    def snapshot_virsh() -> None:
        run(*virsh, "snapshot-create-as", "demo", "bench")
        run(*virsh, "snapshot-delete", "demo", "bench")

    def snapshot_pctl() -> None:
        run(pctl, "snapshot", "demo", "-n", "bench", env=env)
        run(pctl, "snapshot-delete", "demo", "-i", "bench", env=env)

    seconds = interleaved({"virsh": snapshot_virsh, "pctl": snapshot_pctl}, max(rounds // 3, 2))
    results.append(report("snapshot and delete", seconds, base="virsh"))
    results.append({"what": "create to answering agent", "seconds": round(answering_s, 2)})
    rounded = {key: round(value, 1) for key, value in memory.items()}
    results.append({"what": "memory of our processes (PSS)", **rounded})
    print(f"create to answering agent: {answering_s:.2f} s; {rounded}", file=sys.stderr)
    return results


def main() -> None:
    """Measure and print."""
    args = arguments(__doc__ or "")
    with scratch() as place:
        kept = os.environ.get("VZ_TEST_TEMPLATES")
        if kept:
            (place / "vz").mkdir()
            (place / "vz/template").symlink_to(kept)
        env = {**os.environ, "VZ_ROOT": str(place), "VZ_SERVICE": "no"}
        try:
            emit(measure(place, args.rounds))
        finally:
            for name in ("demo", "boot"):
                subprocess.run(
                    [BIN / "pctl", "delete", name, "--force"],
                    env=env, check=False, capture_output=True,
                )  # fmt: skip
            subprocess.run(
                [BIN / "python3", "-m", "tools.service", "--stop", place], check=False, cwd=TOP
            )
            Daemon(Paths(place)).stop()


if __name__ == "__main__":
    main()
