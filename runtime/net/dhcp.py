"""DHCP in host-only networks: one dnsmasq(8) a bridge, run from a file of ours.

The module that owns dnsmasq. The file is the whole configuration; when it changes, the server is
replaced (20 ms), the leases being kept in a file of theirs.
"""

from __future__ import annotations

import ipaddress
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime import files
from runtime.errors import NoKernelSupport, SystemFailure
from runtime.net.networks import VirtualNetwork
from runtime.paths import Paths
from runtime.state import Process

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """An address that is given to one adapter only."""

    mac: str
    address: str


def configuration(
    network: VirtualNetwork, reservations: Iterable[Reservation], directory: Path
) -> str:
    """Return dnsmasq's configuration for a network (dnsmasq(8))."""
    mask = ipaddress.ip_interface(network.ip).netmask
    lines = [
        "port=0",  # no name service: there is nothing to resolve in a host-only network
        f"interface={network.bridge}",
        "except-interface=lo",
        "bind-interfaces",
        "no-hosts",
        "no-resolv",
        "no-ping",  # the guard already keeps foreign addresses out
        "dhcp-authoritative",
        f"dhcp-leasefile={directory}/{network.bridge}.leases",
        f"dhcp-range={network.scope_start},{network.scope_end},{mask},12h",
        "dhcp-option=3",  # no router: there is no way out
        "dhcp-option=6",  # no name servers
        f"user={_user()}",
    ]
    lines += sorted(f"dhcp-host={r.mac},{r.address}" for r in reservations)
    return "\n".join(lines) + "\n"


def _user() -> str:
    for name in ("dnsmasq", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return "root"


def _directory(paths: Paths) -> Path:
    return paths.run / "net"


def running(paths: Paths, bridge: str) -> Process | None:
    """Return the live server of a bridge, None when there is none."""
    try:
        process = Process(**json.loads((_directory(paths) / f"{bridge}.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return process if process.alive else None


def ensure(paths: Paths, network: VirtualNetwork, reservations: Iterable[Reservation]) -> None:
    """Have a server that does what the definition says; raises NoKernelSupport, SystemFailure."""
    directory = _directory(paths)
    directory.mkdir(parents=True, exist_ok=True)
    text = configuration(network, reservations, directory).encode()
    target = directory / f"{network.bridge}.conf"
    with suppress(OSError):
        if target.read_bytes() == text and running(paths, network.bridge) is not None:
            return
    program = shutil.which("dnsmasq", path=_PATH)
    if program is None:
        raise NoKernelSupport(
            "dnsmasq is not installed: host-only networks have no DHCP without it",
            hint="apt-get install dnsmasq-base",
        )
    stop(paths, network.bridge)
    files.replace(target, text, mode=0o600, durable=False)
    pid_file = directory / f"{network.bridge}.pid"
    argv = [program, f"--conf-file={target}", f"--pid-file={pid_file}"]
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": _PATH, "LC_ALL": "C"},
        cwd="/",
    )
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()
        raise SystemFailure(f"dnsmasq does not start for {network.name}: {words[:200]}")
    process = Process.of(int(pid_file.read_text()))
    if process is None:
        raise SystemFailure(f"dnsmasq for {network.name} ended at once")
    files.replace(
        directory / f"{network.bridge}.json",
        json.dumps(asdict(process)).encode(),
        mode=0o600,
        durable=False,
    )


def stop(paths: Paths, bridge: str) -> None:
    """End the server of a bridge; absent is success."""
    process = running(paths, bridge)
    if process is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while process.alive and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.alive:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    for suffix in ("json", "conf", "pid"):
        with suppress(FileNotFoundError):
            (_directory(paths) / f"{bridge}.{suffix}").unlink()
