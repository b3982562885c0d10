"""``0.conf``: limits for the services of the server itself, so that containers always get theirs.

The host's own services live in systemd's ``system.slice``; its properties are set through
systemctl(1), the interface systemd has for that. A server without systemd has no such group:
refused, naming what lacks.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from runtime.errors import NoKernelSupport, ResourcesFailed
from runtime.resources import count_limits, cpu_limits, memory_limits
from runtime.units import UNLIMITED

SLICE = "system.slice"


def properties(config: Mapping[str, str]) -> dict[str, str]:
    """Return systemd.resource-control(5) properties for the keys of 0.conf that are set."""
    found: dict[str, str] = {}
    cpu = cpu_limits(config, 0, always=False)
    memory = memory_limits(config, always=False)
    tasks = count_limits(config, always=False).tasks
    if cpu.cpu_units is not None:
        # 1000 units are the weight 100 that everybody has (features: cpu.weight = units / 10).
        found["CPUWeight"] = str(min(max(cpu.cpu_units // 10, 1), 10000))
    if cpu.cpu_quota is not None:
        found["CPUQuota"] = f"{cpu.cpu_quota * 100:.0f}%"
    if cpu.cpus is not None:
        found["AllowedCPUs"] = cpu.cpus
    for name, value in (
        ("MemoryMax", memory.memory_bytes),
        # A container without SWAPPAGES has no swap; the server's services keep theirs.
        ("MemorySwapMax", memory.swap_bytes if config.get("SWAPPAGES") else None),
        ("TasksMax", tasks),
    ):
        if value is not None:
            found[name] = "infinity" if value >= UNLIMITED else str(value)
    return found


def apply(config: Mapping[str, str]) -> dict[str, str]:
    """Limit the server's own services as ``config`` says; return the properties that were set.

    Raises NoKernelSupport without systemd, ResourcesFailed when it refuses.
    """
    wanted = properties(config)
    if not wanted:
        return wanted
    if not os.path.isdir("/run/systemd/system"):
        raise NoKernelSupport(
            f"the server's own services cannot be limited: systemd ({SLICE}) is not running here"
        )
    words = [f"{name}={value}" for name, value in wanted.items()]
    done = subprocess.run(
        ["systemctl", "set-property", "--runtime", SLICE, *words],
        env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ResourcesFailed(f"systemctl set-property {SLICE}: {done.stderr.strip()}")
    return wanted
