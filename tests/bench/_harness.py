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
