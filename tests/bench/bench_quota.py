"""What disk quotas cost: a metadata storm and 4 KiB writes, with and without, far and near.

    python -m tests.bench.bench_quota [--rounds N] [--quick]

Microseconds per operation, minima of interleaved rounds; read them as ratios to "no quota".
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.bench._harness import arguments, interleaved
from tests.system.quotabed import QuotaBed

_FILES = 200
_WRITES = 2000
_FAR = 1 << 40
_OWNERS = {"sub_quotas": 1, "ugid_limit": 100}


def _storm(top: Path) -> None:
    for number in range(_FILES):
        path = f"{top}/s{number}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"x" * 100)
        os.close(fd)
        os.chmod(path, 0o600)
        os.rename(path, path + "r")
        os.unlink(path + "r")


def _metadata(top: Path) -> None:
    for number in range(_FILES):
        path = f"{top}/d{number}"
        os.mkdir(path)
        os.chmod(path, 0o700)
        os.rename(path, path + "r")
        os.rmdir(path + "r")


def _writes(fd: int) -> None:
    block = b"x" * 4096
    for number in range(_WRITES):
        os.pwrite(fd, block, number * 4096)


def main() -> int:
    """Measure and print JSON."""
    args = arguments(__doc__ or "")
    top = Path(tempfile.mkdtemp(prefix="vzfs-bench-"))
    beds = {name: QuotaBed(top / name.replace(" ", "-")) for name in ("none", "one", "two", "near")}
    limits: dict[str, dict[str, int]] = {
        "one": {"block_soft": _FAR, "block_hard": _FAR, "inode_soft": 10**9, "inode_hard": 10**9},
        "two": {"block_soft": _FAR, "block_hard": _FAR, **_OWNERS},
        "near": {"block_soft": 32768, "block_hard": 32768},
    }
    names = {
        "none": "no quota",
        "one": "first level",
        "two": "both levels",
        "near": "near the limit",
    }
    result: dict[str, dict[str, float]] = {}
    try:
        mounts = {}
        for name, bed in beds.items():
            if name == "none":
                bed.options = type(bed.options)(**{**vars_of(bed), "ledger": None})
            mounts[name] = bed.mount(**limits.get(name, {}))
        fds = {n: os.open(m / "w", os.O_RDWR | os.O_CREAT) for n, m in mounts.items()}
        for what, count, act in (
            ("create, write, chmod, rename, unlink", _FILES, lambda n: _storm(mounts[n])),
            ("mkdir, chmod, rename, rmdir", _FILES, lambda n: _metadata(mounts[n])),
            ("4 KiB write", _WRITES, lambda n: _writes(fds[n])),
        ):
            seconds = interleaved({n: functools.partial(act, n) for n in beds}, args.rounds)
            result[what] = {
                names[n]: round(min(times) / count * 1e6, 2) for n, times in seconds.items()
            }
        for fd in fds.values():
            os.close(fd)
        time.sleep(0.1)
    finally:
        for bed in beds.values():
            bed.close()
        top.rmdir()
    print(json.dumps(result, indent=2))
    return 0


def vars_of(bed: QuotaBed) -> dict[str, object]:
    """Return the fields of a bed's options."""
    import dataclasses

    return {f.name: getattr(bed.options, f.name) for f in dataclasses.fields(bed.options)}


if __name__ == "__main__":
    sys.exit(main())
