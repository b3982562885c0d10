"""A small world of network namespaces: a host with an uplink, a LAN, a remote machine, containers.

Nothing of it touches this machine's own network. The "host" of a test is a namespace; code under
test is entered into it, exactly as a command would run there.
"""

from __future__ import annotations

import os
import pickle
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import state, syscalls
from runtime.config import Config
from runtime.net import attach, links
from runtime.net.announce import checksum
from runtime.net.server import Server, container_config
from runtime.paths import Paths

HOST4, REMOTE4, OTHER4 = "198.18.0.1", "198.18.0.254", "198.18.0.2"
HOST6, REMOTE6 = "fd18::1", "fd18::fe"


@dataclass
class Place:
    """A network namespace, held by a sleeping process."""

    name: str
    process: subprocess.Popen[bytes]
    user: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End the holder: the namespace dies unless something keeps it."""
        self.process.kill()
        self.process.wait()

    def run(self, *argv: str | int, ok: bool = True) -> str:
        """Run a program in the namespace; return its output."""
        words = [
            "nsenter",
            "-t",
            str(self.pid),
            "-n",
            *(["-U", "--preserve-credentials"] if self.user else []),
        ]
        done = subprocess.run(
            [*words, *map(str, argv)], check=False, capture_output=True, text=True
        )
        assert not ok or done.returncode == 0, f"{self.name}: {argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 40.0) -> Any:
        """Run a Python function in a child inside the namespace; return what it returns."""
        return self.spawn(function, *arguments).result(timeout_s)

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> Job:
        """Start a Python function in a child inside the namespace."""
        receiver, sender = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(receiver)
                kinds = ["user", "net"] if self.user else ["net"]
                for kind in kinds:
                    fd = os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY)
                    syscalls.setns(fd, 0)
                answer: tuple[bool, Any] = (True, function(*arguments))
                status = 0
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(sender, "wb") as pipe:
                pickle.dump(answer, pipe)
            os._exit(status)
        os.close(sender)
        return Job(pid, receiver)

    def answers(self, address: str, *, timeout_s: float = 1.0, source: str | None = None) -> bool:
        """Whether ``address`` answers a ping from here."""
        return bool(self.call(ping, address, timeout_s, source))


@dataclass
class Job:
    """A child that computes something."""

    pid: int
    pipe: int

    def result(self, timeout_s: float = 40.0) -> Any:
        """Wait for it; raises what it raised as an AssertionError."""
        data = b""
        deadline = time.monotonic() + timeout_s
        while True:
            ready, _, _ = select.select([self.pipe], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError("a job in a namespace did not end in time")
            chunk = os.read(self.pipe, 1 << 16)
            if not chunk:
                break
            data += chunk
        os.close(self.pipe)
        os.waitpid(self.pid, 0)
        good, value = pickle.loads(data)
        assert good, value
        return value


class Lab:
    """The world, and a system of ours on its host."""

    def __init__(self, root: Path, *, uplink: bool = True) -> None:
        """Make namespaces host, lan, remote and other; ``uplink`` connects the host."""
        self.paths = Paths(root)
        for directory in (self.paths.conf_dir, self.paths.lock_dir, self.paths.lib, self.paths.run):
            directory.mkdir(parents=True, exist_ok=True)
        self.places: list[Place] = []
        self.host = self.place("host")
        self.lan = self.place("lan")
        self.remote = self.place("remote")
        self.other = self.place("other")
        self.containers: dict[int, Place] = {}
        self.lan.run("ip", "link", "add", "sw", "type", "bridge")
        self.lan.run("ip", "link", "set", "sw", "up")
        self.connect(self.remote, "eth0", f"{REMOTE4}/24", f"{REMOTE6}/64")
        self.connect(self.other, "eth0", f"{OTHER4}/24", "fd18::2/64")
        if uplink:
            self.connect(self.host, "up0", f"{HOST4}/24", f"{HOST6}/64")
            self.host.run("ip", "route", "add", "default", "via", REMOTE4)
            self.host.run("ip", "-6", "route", "add", "default", "via", REMOTE6)

    def place(self, name: str, *, user: bool = False) -> Place:
        """Make a namespace; ``user`` makes it owned by a user namespace of its own."""
        flags = ["-n", "-U", "-r"] if user else ["-n"]
        process = subprocess.Popen(
            ["unshare", *flags, "sleep", "infinity"], stdin=subprocess.DEVNULL
        )
        own = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with suppress(OSError):
                comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
                if comm == "sleep" and os.readlink(f"/proc/{process.pid}/ns/net") != own:
                    break
            time.sleep(0.005)
        found = Place(name, process, user)
        self.places.append(found)
        found.run("ip", "link", "set", "lo", "up")
        if not user:
            # Else every new link is mute in IPv6 for a second or two (duplicate detection).
            found.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
        return found

    def connect(self, place: Place, ifname: str, *addresses: str) -> None:
        """Give a place an interface in the LAN."""
        port = f"{place.name}-{ifname}"[:15]
        self.lan.run(
            "ip", "link", "add", port, "type", "veth", "peer", "name", ifname, "netns", place.pid
        )
        self.lan.run("ip", "link", "set", port, "master", "sw", "up")
        for address in addresses:
            more = ["nodad"] if ":" in address else []
            place.run("ip", "addr", "add", address, "dev", ifname, *more)
        place.run("ip", "link", "set", ifname, "up")

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Be in the host's namespace with this thread."""
        fd = links.open_namespace(self.host.pid)
        try:
            with links.entered(fd):
                yield
        finally:
            os.close(fd)

    @contextmanager
    def server(self) -> Iterator[Server]:
        """A Server in the host's namespace."""
        with self.on_host(), Server(self.paths) as server:
            yield server

    def configure(self, ctid: int, **keys: str) -> Config:
        """Write a container's configuration and return what it amounts to."""
        lines = [f'{key}="{value}"\n' for key, value in keys.items()]
        self.paths.ct_conf(ctid).write_text("".join(lines))
        return container_config(self.paths, ctid)

    def server_config(self, **keys: str) -> None:
        """Write vz.conf."""
        self.paths.global_config.write_text("".join(f'{k}="{v}"\n' for k, v in keys.items()))

    def boot(self, ctid: int, *, user: bool = True) -> Place:
        """Give a container a namespace and a run state, no network yet."""
        place = self.place(f"ct{ctid}", user=user)
        self.containers[ctid] = place
        state.RunState(ctid, state.Phase.RUNNING, init=state.Process.of(place.pid)).save(self.paths)
        return place

    def start(self, ctid: int, *, user: bool = True, **keys: str) -> Place:
        """Start a container with a configuration, network and all."""
        config = self.configure(ctid, **keys)
        place = self.boot(ctid, user=user)
        with self.on_host():
            attach.setup(self.paths, ctid, config, place.pid)
        return place

    def change(self, ctid: int, **keys: str) -> None:
        """Change a running container's configuration, live."""
        before = container_config(self.paths, ctid)
        after = self.configure(ctid, **keys)
        with self.on_host():
            attach.apply_live(self.paths, ctid, before, after, self.containers[ctid].pid)

    def stop(self, ctid: int) -> None:
        """Stop a container."""
        self.containers.pop(ctid).kill()
        with self.on_host():
            attach.teardown(self.paths, ctid, container_config(self.paths, ctid))
        state.forget(self.paths, ctid)

    def leftovers(self) -> list[str]:
        """Return what of containers is in the host's network: links, routes, proxies, rules."""
        found = re.findall(r"^\d+: (v[eth\d]+\.\d+)", self.host.run("ip", "-o", "link"), re.M)
        for family in ("-4", "-6"):
            found += self.host.run("ip", family, "route", "show", "proto", "181").splitlines()
            found += self.host.run("ip", family, "neigh", "show", "proxy").splitlines()
        rules = self.host.run("nft", "list", "ruleset")
        found += re.findall(r"chain (?:in_)?(v[eth\d]+\.\d+)", rules)
        found += re.findall(r'"(veth\d+\.\d+)" : ', rules)
        return found

    def close(self) -> None:
        """End every holder; the namespaces go with them."""
        from runtime.net import dhcp, networks

        for network in networks.load_all(self.paths).values():
            dhcp.stop(self.paths, network.bridge)
        for place in self.places:
            place.kill()


@contextmanager
def lab(root: Path, **settings: Any) -> Iterator[Lab]:
    """A Lab that is torn down at the end."""
    with ExitStack() as stack:
        made = Lab(root, **settings)
        stack.callback(made.close)
        yield made


# What runs inside namespaces.


def ping(address: str, timeout_s: float, source: str | None = None) -> float:
    """Send one echo request; return the seconds until its answer, 0 when there is none."""
    if ":" in address:
        family, protocol, request, reply, head = socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129, 0
    else:
        family, protocol, request, reply, head = socket.AF_INET, socket.IPPROTO_ICMP, 8, 0, 20
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        if source:
            sock.bind((source, 0))
        mark = os.urandom(8)
        body = struct.pack("!BBHHH", request, 0, 0, 1, 1) + mark
        if head:
            body = struct.pack("!BBHHH", request, 0, checksum(body), 1, 1) + mark
        begin = time.monotonic()
        try:
            sock.sendto(body, (address, 0))
        except OSError:
            return 0.0
        while (left := begin + timeout_s - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                frame = sock.recv(2048)[head:]
            except OSError:
                return 0.0
            if frame[0] == reply and frame[8:16] == mark:
                return time.monotonic() - begin
    return 0.0


def receive_udp(address: str, port: int, seconds: float, expected: int = 0) -> tuple[int, int]:
    """Receive datagrams for some seconds, or until ``expected`` came; return count and bytes."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind((address, port))
        deadline = time.monotonic() + seconds
        count = size = 0
        while (left := deadline - time.monotonic()) > 0 and not (expected and count >= expected):
            sock.settimeout(left)
            try:
                size += len(sock.recv(65535))
            except TimeoutError:
                break
            count += 1
        return count, size


def listening_udp(place: Place, address: str, port: int, seconds: float, expected: int = 0) -> Job:
    """Start ``receive_udp`` in a place and return once it is bound."""
    job = place.spawn(receive_udp, address, port, seconds, expected)
    table = Path(f"/proc/{place.pid}/net/udp{'6' if ':' in address else ''}")
    deadline = time.monotonic() + 5
    while f":{port:04X} " not in table.read_text():
        assert time.monotonic() < deadline, "the receiver does not start"
        time.sleep(0.005)
    return job


def send_udp(
    address: str, port: int, count: int, size: int, source: str | None = None, gap_s: float = 0.0
) -> int:
    """Send ``count`` datagrams of ``size`` bytes of payload."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind((source, 0))
        sent = 0
        for _ in range(count):
            try:
                sock.sendto(bytes(size), (address, port))
                sent += 1
            except OSError:
                continue
            if gap_s:
                time.sleep(gap_s)
        return sent


def flood_udp(address: str, port: int, seconds: float, mbit: float) -> None:
    """Send full datagrams at a steady rate, whatever becomes of them."""
    size = 1472
    gap_s = size * 8 / (mbit * 1e6)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        begin = time.monotonic()
        sent = 0
        while (now := time.monotonic() - begin) < seconds:
            while sent * gap_s < now:
                with suppress(OSError):
                    sock.send(bytes(size))
                sent += 1
            time.sleep(gap_s)


def sink_tcp(address: str, port: int, count: int = 1) -> list[tuple[float, int]]:
    """Accept ``count`` connections; return seconds and bytes of each, as received."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    results: list[tuple[float, int]] = []
    with socket.create_server((address, port), family=family) as server:
        server.settimeout(20)

        def drain(connection: socket.socket) -> None:
            total, begin = 0, time.monotonic()
            with connection:
                # The sender resets what it has left in its queue.
                with suppress(ConnectionResetError):
                    while data := connection.recv(1 << 18):
                        total += len(data)
            results.append((time.monotonic() - begin, total))

        threads = []
        for _ in range(count):
            connection, _peer = server.accept()
            threads.append(threading.Thread(target=drain, args=(connection,)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    return results


def pour_tcp(
    address: str, port: int, seconds: float, source: str | None = None, warm_s: float = 0.0
) -> tuple[float, int]:
    """Send as much as fits for some seconds; return the seconds and bytes the peer acknowledged.

    The first ``warm_s`` seconds are not counted.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        if source:
            sock.bind((source, 0))
        for _ in range(100):
            try:
                sock.connect((address, port))
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        block = bytes(1 << 16)
        sock.settimeout(0.2)

        def acknowledged() -> int:
            # struct tcp_info, tcpi_bytes_acked: linux/tcp.h
            raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            return int.from_bytes(raw[120:128], "little")

        begin = time.monotonic()
        counted, base = begin, 0
        while (now := time.monotonic()) < begin + seconds:
            if not base and now >= begin + warm_s:
                counted, base = now, acknowledged()
            with suppress(TimeoutError):
                sock.send(block)
        taken, total = time.monotonic() - counted, acknowledged() - base
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return taken, total


def rate_mbit(result: tuple[float, int]) -> float:
    """Return Mbit/s of seconds and bytes."""
    return result[1] * 8 / result[0] / 1e6
