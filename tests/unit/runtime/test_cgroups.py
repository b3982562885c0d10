"""Control groups: hierarchies found, device programs right, limits grouped."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from runtime import cgroups, cgroups_v2
from runtime.cgroup_limits import DeviceRule, Limits
from runtime.cgroups import Cgroup, Hierarchies, parse
from runtime.cgroups_v2 import device_program

_V1 = [
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n",
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n",
    "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
    "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n",
]


def test_controllers_mounted_together_share_one_directory() -> None:
    found = parse(_V1)
    assert found.v1["cpu"] == found.v1["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert found.v2 is None
    assert list(found.directories("pyvz/101")) == [
        "/sys/fs/cgroup/cpu,cpuacct/pyvz/101",
        "/sys/fs/cgroup/memory/pyvz/101",
        "/sys/fs/cgroup/systemd/pyvz/101",
    ]


def test_a_v2_mount_with_a_blank_in_its_path_is_found() -> None:
    line = "30 23 0:26 / /sys/fs/c\\040g rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    assert parse([line]).v2 == "/sys/fs/c g"


def test_limits_know_which_controllers_they_ask() -> None:
    limits = Limits(cpu_quota=0.5, tasks=10)
    asked = [name for name in ("cpu", "cpuset", "memory", "pids", "io") if limits.asked(name)]
    assert asked == ["cpu", "pids"]


def run(program: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Run a device program as the kernel would: the few instructions it is made of."""
    registers = [0] * 11
    context = {0: access << 16 | kind, 4: major, 8: minor}
    place = 0
    while True:
        code, both, offset, value = struct.unpack_from("<BBhi", program, place * 8)
        dst, src = both & 15, both >> 4
        place += 1
        if code == 0x61:
            registers[dst] = context[offset]
        elif code == 0xBF:
            registers[dst] = registers[src]
        elif code == 0x54:
            registers[dst] &= value & 0xFFFFFFFF
        elif code == 0x74:
            registers[dst] >>= value
        elif code == 0xB7:
            registers[dst] = value
        elif code == 0x55:
            place += offset if registers[dst] != value else 0
        elif code == 0x95:
            return registers[0]
        else:
            pytest.fail(f"unknown instruction {code:#x}")


_RULES = (
    DeviceRule("c", 1, 3),
    DeviceRule("c", 136, None, "rw"),
    DeviceRule("b", None, None, "m"),
)
_CHAR, _BLOCK, _MKNOD, _READ, _WRITE = 2, 1, 1, 2, 4


@pytest.mark.parametrize(
    ("kind", "access", "major", "minor", "allowed"),
    [
        (_CHAR, _READ | _WRITE, 1, 3, True),
        (_CHAR, _READ, 1, 1, False),
        (_BLOCK, _READ, 1, 3, False),
        (_CHAR, _READ | _WRITE, 136, 77, True),
        (_CHAR, _MKNOD, 136, 77, False),
        (_CHAR, _MKNOD | _READ, 136, 77, False),
        (_BLOCK, _MKNOD, 8, 0, True),
        (_BLOCK, _READ, 8, 0, False),
    ],
)
def test_a_device_program_allows_exactly_its_rules(
    kind: int, access: int, major: int, minor: int, allowed: bool
) -> None:
    assert run(device_program(_RULES), kind, access, major, minor) == int(allowed)


class _Groups:
    """A chain of v2 directories in which systemd turns controllers off in the root."""

    def __init__(self, strips: list[int], has: str) -> None:
        self.passed: list[set[str]] = [set(), set(), set()]
        self._has = set(has.split())
        self._strips = strips
        self._reads = 0

    def read(self, directory: str, name: str) -> str:
        self._reads += 1
        if self._reads in self._strips and not self.passed[1]:
            self.passed[0].clear()
        at = int(directory)
        if name == "cgroup.subtree_control":
            return " ".join(self.passed[at])
        return " ".join(self._has if at == 0 else self.passed[at - 1])

    def write(self, directory: str, name: str, text: str) -> None:
        new = {word.removeprefix("+") for word in text.split()}
        at = int(directory)
        if not new <= (self._has if at == 0 else self.passed[at - 1]):
            raise FileNotFoundError(2, "No such file or directory")
        self.passed[at] |= new


@pytest.mark.parametrize("strips", [[], [4], [5], [6, 11], [4, 8, 10, 12]])
def test_controllers_arrive_though_systemd_turns_them_off_meanwhile(
    monkeypatch: pytest.MonkeyPatch, strips: list[int]
) -> None:
    groups = _Groups(strips, "cpu io memory rdma")
    monkeypatch.setattr(cgroups_v2, "read", groups.read)
    monkeypatch.setattr(cgroups_v2, "write", groups.write)
    cgroups_v2.pass_on(("0", "1", "2"), frozenset(("cpu", "io", "memory", "pids")))
    assert groups.passed == [{"cpu", "io", "memory"}] * 3


def test_the_file_servers_group_loses_the_rates_the_container_has_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: Hierarchies({}, str(tmp_path), frozenset()))
    (tmp_path / "pyvzt").mkdir()
    group = Cgroup("t", 101)
    group.limit_server([])
    assert group.v2_server is not None and not Path(group.v2_server).exists()
    place = tmp_path / "pyvzt/server-101"
    place.mkdir()
    limit = place / "io.max"
    limit.write_text("8:0 rbps=max wbps=4096 riops=max wiops=max\n")
    group.limit_server([])
    assert limit.read_text().startswith("8:0 rbps=max wbps=max riops=max wiops=max")
    group.limit_server(["8:0 rbps=max wbps=1 riops=max wiops=max"])
    assert "wbps=1" in limit.read_text()
