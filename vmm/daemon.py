"""A libvirtd of our own: started on demand without systemd, everything of it in the run directory.

libvirt has its directories compiled in, so it runs in a mount namespace in which they are ours; the
server's own /etc/libvirt and /var/lib/libvirt stay as they are. It ends by itself when no machine
has run and no command has asked for ``_IDLE_S`` seconds.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime import files, unixsocket
from runtime.errors import NoKernelSupport, SystemFailure
from runtime.paths import Paths
from runtime.state import start_ticks

#: What must be installed, as Debian names it.
PACKAGES = (
    "libvirt-daemon-system",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "qemu-system-x86",
    "qemu-utils",
)
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IDLE_S = 300
#: The first start asks QEMU for its capabilities: seconds on a slow machine.
_START_S = 60.0
_POLL_S = 0.02


class Daemon:
    """The libvirtd of one system (one ``--root``)."""

    def __init__(self, paths: Paths) -> None:
        """Describe it; nothing is started."""
        self._paths = paths
        self.directory = paths.run / "libvirt"

    @property
    def socket(self) -> Path:
        """Where it listens, readable by root alone."""
        return self.directory / "run" / "libvirt-sock"

    @property
    def states(self) -> Path:
        """Where it keeps the state of running machines: NAME.xml and NAME.pid."""
        return self.directory / "run" / "qemu"

    def answers(self) -> bool:
        """Whether it runs and accepts connections."""
        try:
            unixsocket.connect(self.socket).close()
        except OSError:
            return False
        return True

    def used(self) -> bool:
        """Whether it runs, or has died and left machines running."""
        return self.answers() or any(alive(file) for file in self.states.glob("*.pid"))

    def start(self) -> None:
        """Start it unless it answers; raises NoKernelSupport (not installed), SystemFailure."""
        if self.answers():
            return
        program = find_program("libvirtd")
        self.directory.mkdir(parents=True, exist_ok=True)
        os.chmod(self.directory, 0o711)
        with self._starting():
            if self.answers():
                return
            self._write_configuration()
            self._launch(program)

    def stop(self) -> None:
        """Ask it to end and wait; running machines go on. Not running is success."""
        pid = self.pid()
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while start_ticks(pid) is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def pid(self) -> int | None:
        """Return the process id of libvirtd, or None."""
        return alive(self.directory / "run" / "libvirtd.pid")

    @contextmanager
    def _starting(self) -> Iterator[None]:
        fd = os.open(self.directory / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write_configuration(self) -> None:
        etc = self.directory / "etc"
        for name in ("etc", "run", "lib", "cache", "log"):
            (self.directory / name).mkdir(exist_ok=True)
        daemon = {
            "unix_sock_rw_perms": "0700",
            "unix_sock_ro_perms": "0700",
            "auth_unix_rw": "none",
            "auth_unix_ro": "none",
            "host_uuid": self._host_uuid(),
            "log_outputs": "3:file:/var/log/libvirt/libvirtd.log",
        }
        account = _account(self._paths)
        qemu: dict[str, str | int] = {
            "user": account,
            "group": "root" if account == "root" else "kvm",
            "dynamic_ownership": 0 if account == "root" else 1,
            # Remembering needs trusted xattrs on every image, which migration then trips over.
            "remember_owner": 0,
            "stdio_handler": "file",
            "vnc_auto_unix_socket": 0,
        }
        if not _security_driver():
            qemu["security_driver"] = "none"
        _write(etc / "libvirtd.conf", daemon)
        _write(etc / "qemu.conf", qemu)
        _write(etc / "network.conf", {})

    def _host_uuid(self) -> str:
        """Return an identity of its own per system: migration refuses equal ones."""
        with open("/etc/machine-id", encoding="ascii") as file:
            machine = file.read().strip()
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{machine}{self._paths.root}"))

    def _launch(self, program: str) -> None:
        from tempfile import TemporaryFile

        with suppress(FileNotFoundError):
            (self.directory / "run" / "libvirtd.pid").unlink()
        argv = [
            sys.executable, "-m", "vmm.reaper", os.fspath(self.directory),
            program, "--timeout", str(_IDLE_S),
            "--config", "/etc/libvirt/libvirtd.conf", "--pid-file", "/run/libvirt/libvirtd.pid",
        ]  # fmt: skip
        top = Path(__file__).resolve().parents[1]
        environment = {"PATH": _SEARCH, "LC_ALL": "C", "HOME": "/root", "PYTHONPATH": str(top)}
        with TemporaryFile() as errors:
            process = subprocess.Popen(
                argv,
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
            deadline = time.monotonic() + _START_S
            while not self.answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    errors.seek(0)
                    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
                    raise SystemFailure(
                        f"libvirtd did not start: {lines[-1] if lines else 'no message'}",
                        hint=f"see {self.directory / 'log/libvirtd.log'}",
                    )
                time.sleep(_POLL_S)
        # It is meant to outlive us: no warning about a child that was not waited for.
        process.returncode = 0


def alive(pid_file: Path) -> int | None:
    """Return the live process whose id is in ``pid_file``, or None."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if start_ticks(pid) is not None else None


def find_program(name: str) -> str:
    """Return the path of a program of libvirt's or QEMU's; raises NoKernelSupport."""
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        raise NoKernelSupport(
            f"virtual machines need {name}, which is not installed",
            hint=f"apt-get install --no-install-recommends {' '.join(PACKAGES)}",
        )
    return found


def system_socket() -> Path | None:
    """Return the socket of the server's own libvirt when something listens on it."""
    for name in ("virtqemud-sock", "libvirt-sock"):
        path = Path("/run/libvirt") / name
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(os.fspath(path))
            return path
    return None


def _account(paths: Paths) -> str:
    """Return the account QEMU runs as: libvirt's own where it can reach the machines' homes."""
    with suppress(KeyError, OSError):
        pwd.getpwnam("libvirt-qemu")
        place = paths.machines
        while not place.exists():
            place = place.parent
        open_ways = all(os.stat(p).st_mode & 0o001 for p in (place, *place.parents))
        if paths.is_default and open_ways:
            return "libvirt-qemu"
    return "root"


def _security_driver() -> bool:
    """Whether the kernel has AppArmor or SELinux for libvirt to confine QEMU with."""
    return any(
        Path(place).exists()
        for place in ("/sys/kernel/security/apparmor", "/sys/fs/selinux/enforce")
    )


def _write(path: Path, values: dict[str, str] | dict[str, str | int]) -> None:
    lines = [
        f"{key} = {value}\n" if isinstance(value, int) else f'{key} = "{value}"\n'
        for key, value in values.items()
    ]
    files.replace(path, "".join(lines).encode(), mode=0o600, durable=False)
