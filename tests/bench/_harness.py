"""What the benchmarks share: interleaved rounds, medians, ratios, JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BIN = TOP / ".venv" / "bin"


def arguments(description: str) -> argparse.Namespace:
    """Parse the options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--rounds", type=int, default=15, help="measured rounds of each (default 15)"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: does it work at all?")
    args = parser.parse_args()
    if args.quick:
        args.rounds = 3
    return args


def interleaved(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Run each candidate once a round, in turn; return the seconds of each by name.

    One round before them is not counted. A candidate that raises is left out, with a line on
    stderr.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    broken: set[str] = set()
    for number in range(rounds + 1):
        for name, act in candidates.items():
            if name in broken:
                continue
            begin = time.perf_counter()
            try:
                act()
            except (OSError, subprocess.SubprocessError) as error:
                broken.add(name)
                detail = getattr(error, "stderr", b"") or b""
                print(f"{name} does not work here: {error} {detail[-300:]!r}", file=sys.stderr)
                continue
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: times for name, times in seconds.items() if times}


def report(what: str, seconds: dict[str, list[float]], *, base: str) -> dict[str, object]:
    """Return (and print on stderr) medians in ms and ratios to ``base``."""
    medians = {name: statistics.median(times) * 1e3 for name, times in seconds.items()}
    reference = medians.get(base)
    rows = {}
    for name, value in sorted(medians.items(), key=lambda item: item[1]):
        ratio = round(value / reference, 3) if reference else None
        rows[name] = {
            "median_ms": round(value, 2),
            "min_ms": round(min(seconds[name]) * 1e3, 2),
            "ratio": ratio,
        }
        print(f"{what:<28} {name:<34} {value:9.2f} ms  × {base} {ratio}", file=sys.stderr)
    return {"what": what, "base": base, "rows": rows}


def emit(results: list[dict[str, object]]) -> None:
    """Print the results as JSON on stdout."""
    json.dump({"benchmarks": results, "kernel": os.uname().release}, sys.stdout, indent=2)
    print()


def run(*argv: str | Path, env: dict[str, str] | None = None, ok: tuple[int, ...] = (0,)) -> None:
    """Run a command silently; raises CalledProcessError unless its status is in ``ok``."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, env=env, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode not in ok:
        raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)


class LegacyHost:
    """Runs commands where only cgroup v1 is seen, for peers that refuse a hybrid host.

    A small process with a mount namespace of its own starts them, so that a peer pays neither for
    the namespace nor for the size of this process.
    """

    def __init__(self, *wrapper: str) -> None:
        """Start the process; ``close`` ends it. ``wrapper`` makes its mount namespace."""
        self._process = subprocess.Popen(
            [*(wrapper or ("unshare", "--mount")), sys.executable, "-ISc", _SPAWNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @classmethod
    def wanted(cls) -> bool:
        """Whether this host has both kinds of cgroups."""
        return Path("/sys/fs/cgroup/unified/cgroup.controllers").exists()

    def run(self, *argv: str | Path, ok: tuple[int, ...] = (0,)) -> None:
        """Do as ``run`` does, without its environment."""
        words = [str(word) for word in argv]
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)
        status, said = json.loads(self._process.stdout.readline())
        if status not in ok:
            raise subprocess.CalledProcessError(status, words, b"", said.encode())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


_SPAWNER = """
import json, os, subprocess, sys
if os.path.ismount("/sys/fs/cgroup/unified"):
    subprocess.run(["umount", "/sys/fs/cgroup/unified"], check=True)
for line in sys.stdin:
    done = subprocess.run(json.loads(line), stdin=subprocess.DEVNULL, capture_output=True)
    print(json.dumps([done.returncode, done.stderr.decode(errors="replace")]), flush=True)
"""


def installed(*programs: str) -> bool:
    """Whether all these programs are there."""
    return all(shutil.which(program) for program in programs)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory on a disk file system, removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix="pyvz-bench-", dir="/var/tmp"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
