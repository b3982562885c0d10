"""What a read of /proc/meminfo and the others costs inside a container: ours, lxcfs, the kernel.

lxcfs is measured where it runs (``lxcfs /var/lib/lxcfs``); without it its row is missing.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from runtime import procview
from runtime.cgroup_limits import Limits
from runtime.cgroups import Cgroup
from runtime.paths import Paths
from tests.bench import _harness

_READS = 200
_LXCFS = "/var/lib/lxcfs/proc"


def _read(path: str) -> None:
    for _ in range(_READS):
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 65536)
        os.close(fd)


def main() -> int:
    """Run the benchmark; return its exit status."""
    args = _harness.arguments(__doc__ or "")
    with _harness.scratch() as root:
        paths = Paths(root)
        group = Cgroup(paths.tag, 101)
        group.create()
        group.set(Limits(memory_bytes=256 << 20))
        source = procview.Source.starting(paths, 101)
        fd = procview.mount(paths, 101)
        server = os.fork()
        if server == 0:
            procview.serve(fd, source)
            os._exit(0)
        os.close(fd)
        results = []
        try:
            time.sleep(0.2)
            place = procview.directory(paths, 101)
            for name in ("meminfo", "stat", "uptime", "cpuinfo"):
                candidates = {
                    "kernel": lambda name=name: _read(f"/proc/{name}"),
                    "pyvz": lambda name=name: _read(f"{place}/{name}"),
                }
                if os.path.exists(f"{_LXCFS}/{name}"):
                    candidates["lxcfs"] = lambda name=name: _read(f"{_LXCFS}/{name}")
                seconds = _harness.interleaved(candidates, args.rounds)
                results.append(_harness.report(f"{_READS} reads of {name}", seconds, base="kernel"))
        finally:
            procview.unmount(paths, 101)
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            group.destroy()
            for parent in sorted({os.path.dirname(place) for place in group._places()}):
                try:
                    os.rmdir(parent)
                except OSError as error:
                    print(f"{parent}: {error.strerror}", file=sys.stderr)
        _harness.emit(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
