"""Limits and figures in cgroup v2 directories (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import suppress

from runtime import syscalls
from runtime.cgroup_limits import DeviceRule, Limits
from runtime.cgroups_v1 import read, write
from runtime.errors import NoKernelSupport
from runtime.units import UNLIMITED

_PERIOD_US = 100_000
#: How often controllers are turned on again which something else turned off meanwhile.
_PASSES = 10
#: Files a container may own in its delegated directory (cgroup-v2.rst, "Delegation").
DELEGATED = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")


def _or_max(value: int) -> str:
    return "max" if value >= UNLIMITED else str(value)


def set_cpu(directory: str, limits: Limits) -> None:
    """Apply weight and quota."""
    if limits.cpu_units is not None:
        write(directory, "cpu.weight", str(min(10000, max(1, limits.cpu_units // 10))))
    if limits.cpu_quota is not None:
        quota = str(int(limits.cpu_quota * _PERIOD_US)) if limits.cpu_quota else "max"
        write(directory, "cpu.max", f"{quota} {_PERIOD_US}")


def set_cpuset(directory: str, limits: Limits) -> None:
    """Apply processors and memory nodes; empty means the parent's."""
    for name, value in (("cpuset.cpus", limits.cpus), ("cpuset.mems", limits.nodes)):
        if value is not None:
            write(directory, name, value or "\n")


def set_memory(directory: str, limits: Limits) -> None:
    """Apply memory and swap, which v2 limits apart, and the guarantee."""
    if limits.guarantee_bytes is not None:
        write(directory, "memory.low", _or_max(limits.guarantee_bytes))
    if limits.memory_bytes is not None:
        write(directory, "memory.max", _or_max(limits.memory_bytes))
    if limits.swap_bytes is not None:
        if os.path.exists(f"{directory}/memory.swap.max"):
            write(directory, "memory.swap.max", _or_max(limits.swap_bytes))
        elif limits.swap_bytes not in (0, UNLIMITED):
            raise NoKernelSupport(
                "this kernel does not account swap", hint="boot it with swapaccount=1"
            )


def set_pids(directory: str, limits: Limits) -> None:
    """Apply the number of tasks."""
    if limits.tasks is not None:
        write(directory, "pids.max", _or_max(limits.tasks))


def set_io(directory: str, limits: Limits) -> None:
    """Apply weight and rates."""
    if limits.io_weight is not None:
        for name in ("io.weight", "io.bfq.weight"):
            if os.path.exists(f"{directory}/{name}"):
                write(directory, name, f"default {limits.io_weight}")
                break
        else:
            if limits.io_weight != 100:
                raise NoKernelSupport("this kernel offers no I/O weights", hint="use --iolimit")
    words = []
    for unit, rate in (("bps", limits.io_bytes_per_s), ("iops", limits.io_operations_per_s)):
        if rate is not None:
            words += [f"{direction}{unit}={rate or 'max'}" for direction in "rw"]
    if not words or (limits.io_device is None and all(word.endswith("=max") for word in words)):
        return
    if limits.io_device is None:
        raise NoKernelSupport("the private area is on no block device whose I/O can be limited")
    write(
        directory, "io.max", f"{limits.io_device.major}:{limits.io_device.minor} {' '.join(words)}"
    )


def set_devices(directory: str, limits: Limits) -> None:
    """Let a BPF program allow exactly the listed devices below ``directory``."""
    if limits.devices is None:
        return
    program = syscalls.bpf_load_device_program(device_program(limits.devices))
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Without flags a later program replaces this one, and none below can widen it.
            syscalls.bpf_attach_device_program(fd, program)
        finally:
            os.close(fd)
    finally:
        os.close(program)


# linux/bpf_common.h, linux/bpf.h
_LDX_W = 0x61
_ALU64_MOV_X, _ALU_AND_K, _ALU_RSH_K, _ALU64_MOV_K = 0xBF, 0x54, 0x74, 0xB7
_JMP_JNE_K, _EXIT = 0x55, 0x95
_TYPE = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}


def device_program(rules: tuple[DeviceRule, ...]) -> bytes:
    """Return the eBPF instructions that allow ``rules`` and deny the rest.

    The argument is struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor.
    """

    def instruction(
        code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0
    ) -> bytes:
        return struct.pack("<BBhi", code, dst | src << 4, offset, value)

    out = [
        instruction(_LDX_W, 2, 1, 0),
        instruction(_ALU64_MOV_X, 3, 2),
        instruction(_ALU_AND_K, 2, value=0xFFFF),
        instruction(_ALU_RSH_K, 3, value=16),
        instruction(_LDX_W, 4, 1, 4),
        instruction(_LDX_W, 5, 1, 8),
    ]
    for rule in rules:
        tests: list[tuple[int, int]] = []
        if rule.kind in _TYPE:
            tests.append((2, _TYPE[rule.kind]))
        if rule.major is not None:
            tests.append((4, rule.major))
        if rule.minor is not None:
            tests.append((5, rule.minor))
        refused = 7 & ~sum(_ACCESS[letter] for letter in set(rule.access))
        masked = (
            [instruction(_ALU64_MOV_X, 6, 3), instruction(_ALU_AND_K, 6, value=refused)]
            if refused
            else []
        )
        # Each test jumps over what is left of this rule: the other tests, mask, verdict.
        length = len(tests) + len(masked) + (1 if masked else 0) + 2
        place = 0
        for register, value in tests:
            place += 1
            out.append(instruction(_JMP_JNE_K, register, offset=length - place, value=value))
        out += masked
        if masked:
            place += len(masked) + 1
            out.append(instruction(_JMP_JNE_K, 6, offset=length - place, value=0))
        out += [instruction(_ALU64_MOV_K, 0, value=1), instruction(_EXIT)]
    out += [instruction(_ALU64_MOV_K, 0, value=0), instruction(_EXIT)]
    return b"".join(out)


def pass_on(path: Sequence[str], controllers: frozenset[str]) -> None:
    """Pass ``controllers`` on along ``path``, parent first; those the first lacks are left out.

    systemd turns off in the root what none of its units uses, at each daemon-reload and when a
    unit goes. The kernel refuses that (EBUSY) from the moment the next directory passes the
    controller on as well, so what was lost before then is turned on again. Raises OSError.
    """
    wanted = controllers & set(read(path[0], "cgroup.controllers").split())
    for _ in range(_PASSES):
        lost = False
        for directory in path:
            have = set(read(directory, "cgroup.controllers").split())
            on = set(read(directory, "cgroup.subtree_control").split())
            lost = lost or not wanted <= have
            if new := sorted((wanted & have) - on):
                try:
                    write(directory, "cgroup.subtree_control", " ".join(f"+{n}" for n in new))
                except FileNotFoundError:  # turned off above since it was read
                    lost = True
        if not lost:
            return


def figures(directory: str) -> dict[str, int]:
    """Return usage figures: bytes, nanoseconds, items."""
    found: dict[str, int] = {}
    sources = {
        "memory_bytes": "memory.current",
        "swap_bytes": "memory.swap.current",
        "tasks": "pids.current",
    }
    for key, name in sources.items():
        with suppress(OSError):
            found[key] = int(read(directory, name))
    with suppress(OSError):
        for line in read(directory, "cpu.stat").splitlines():
            key, _, value = line.partition(" ")
            if key == "usage_usec":
                found["cpu_ns"] = int(value) * 1000
    return found
