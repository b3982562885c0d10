"""Containers of lxc and podman in the network namespace of a benchmark's host.

Each is started by its own tool with the network that tool makes: lxc a veth pair into a bridge
(as lxc-net's), podman a bridge network of its own with its rules. A tool that is missing or does
not work here is left out, with a line on stderr.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from _harness import LegacyHost, installed, scratch
from bench_start import busybox_root
from netlab import Lab, Place

#: Tools look for bridges in /sys: it has to be that of the host's namespace, cgroups kept. What
#: podman remembers of addresses lies in a place common to all its stores.
_PREPARE = """
place=$(mktemp -d) && mount --rbind /sys/fs/cgroup "$place" && mount -t sysfs sysfs /sys &&
mount --rbind "$place" /sys/fs/cgroup && umount -l "$place" && rmdir "$place" &&
mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni && exec "$@"
"""
_IDLE = ("/bin/sleep", "3600")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two containers of a tool, and the address of the second."""

    one: Place
    two: Place
    address: str


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int


def _place(name: str, pid: int) -> Place:
    return Place(name, _Process(pid))  # type: ignore[arg-type]  # only its pid is used


class _Tools:
    """Runs the tools in namespaces of the host's; what they print goes through a file."""

    def __init__(self, world: Lab, place: Path) -> None:
        self.world, self.place = world, place
        net = f"--net=/proc/{world.host.pid}/ns/net"
        self._host = LegacyHost("nsenter", net, "unshare", "-m", "sh", "-c", _PREPARE, "sh")

    def __call__(self, *argv: str | Path, ok: tuple[int, ...] = (0,)) -> str:
        said = self.place / "said"
        # What a tool leaves running must not keep anybody's pipe open.
        shell = f'"$@" >{said} 2>{said}.err </dev/null'
        try:
            self._host.run("sh", "-c", shell, "sh", *argv, ok=ok)
        except subprocess.CalledProcessError as error:
            detail = Path(f"{said}.err").read_text(errors="replace")[-300:]
            raise RuntimeError(f"{argv[0]} {argv[-1]} → {error.returncode}: {detail}") from error
        return said.read_text()

    def close(self) -> None:
        """End their namespaces."""
        self._host.close()


@contextmanager
def _lxc(tools: _Tools, root: Path) -> Iterator[Pair]:
    host = tools.world.host
    host.run("ip", "link", "add", "lxcbr0", "type", "bridge")
    host.run("ip", "addr", "add", "10.99.1.254/24", "dev", "lxcbr0")
    host.run("ip", "link", "set", "lxcbr0", "up")
    place = tools.place / "lxc"
    place.mkdir()
    names = [f"pyvzbench{os.getpid()}-{number}" for number in (1, 2)]
    try:
        pids = []
        for number, name in enumerate(names, 1):
            conf = tools.place / f"{name}.conf"
            conf.write_text(
                f"lxc.rootfs.path = dir:{root}\nlxc.uts.name = bench\nlxc.mount.auto = proc sys\n"
                "lxc.net.0.type = veth\nlxc.net.0.link = lxcbr0\nlxc.net.0.name = eth0\n"
                "lxc.net.0.flags = up\nlxc.net.0.ipv4.gateway = 10.99.1.254\n"
                f"lxc.net.0.ipv4.address = 10.99.1.{number}/24\n"
                "lxc.apparmor.profile = unconfined\n"
            )
            tools("lxc-start", "-P", place, "-n", name, "-f", conf, "--", *_IDLE)
            pids.append(int(tools("lxc-info", "-P", place, "-n", name, "-p", "-H")))
        yield Pair(_place("lxc1", pids[0]), _place("lxc2", pids[1]), "10.99.1.2")
    finally:
        for name in names:
            tools("lxc-stop", "-P", place, "-n", name, "-k", ok=(0, 1, 2))
        time.sleep(0.5)
        for found in Path("/sys/fs/cgroup").glob(f"*/lxc.*.{names[0][:-2]}-*"):
            found.rmdir()


@contextmanager
def _podman(tools: _Tools, root: Path) -> Iterator[Pair]:
    program = (
        "podman", f"--root={tools.place}/podman", f"--runroot={tools.place}/podman-run",
        "--cgroup-manager=cgroupfs", f"--network-config-dir={tools.place}/podman-net",
    )  # fmt: skip
    limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--cgroups=disabled")
    tools(*program, "network", "create", "--disable-dns", "--subnet", "10.99.2.0/24", "bench")
    try:
        pids = []
        for number in (1, 2):
            address = f"10.99.2.{number + 10}"
            tools(*program, "run", "-d", "--name", f"p{number}", *limits,
                  "--network", "bench", "--ip", address, "--rootfs", root, *_IDLE)  # fmt: skip
            pids.append(int(tools(*program, "inspect", "-f", "{{.State.Pid}}", f"p{number}")))
        yield Pair(_place("podman1", pids[0]), _place("podman2", pids[1]), "10.99.2.12")
    finally:
        tools(*program, "rm", "-f", "-t", "0", "p1", "p2", ok=(0, 1, 125))


@contextmanager
def peers(world: Lab) -> Iterator[dict[str, Pair]]:
    """Yield the pairs of containers that can be had, by tool."""
    found: dict[str, Pair] = {}
    with ExitStack() as stack:
        place = stack.enter_context(scratch())
        place.chmod(0o755)  # lxc asks for it; nothing of value is there
        root = busybox_root(place)
        tools = _Tools(world, place)
        stack.callback(tools.close)
        for name, program, start in (("lxc", "lxc-start", _lxc), ("podman", "podman", _podman)):
            if not installed(program):
                print(f"{name} is not installed: apt-get install {name}", file=sys.stderr)
                continue
            try:
                found[name] = stack.enter_context(start(tools, root))
            except RuntimeError as error:
                print(f"{name} does not work here: {error}", file=sys.stderr)
        yield found
