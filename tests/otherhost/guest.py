"""The guest itself: QEMU with its disks and ports, booted to take one order after another.

An order is the checkout and what to do with it, sent as a tar to one of the guest's ports (see
``inside/pyvz-orders``). It lives as long as the connection it came over: an order whose sender ends,
however that ends, is stopped in the guest.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.otherhost.image import Image
from vmm.acceleration import Acceleration

#: Memory in MiB: that of a small server.
_MEMORY_MIB = 6144
#: Seconds between two looks at what the guest has written.
_PAUSE_S = 0.2
#: Seconds in which a guest that has an order says something of it, and seconds in which one notices
#: that the other side of its port is closed; both with much to spare for an emulated one.
_HEARD_S, _NOTICED_S = 60.0, 5.0
#: Seconds QEMU gets to write its disks' tables when it is ended.
_END_S = 10.0
#: What ``inside/pyvz-orders`` writes, in one piece, when an order has ended.
_ENDED = b'{"ended": '


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the guest, found there as /dev/disk/by-id/virtio-NAME."""

    path: Path
    name: str
    format: str = "raw"
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Ports:
    """The directory in which the guest's ways in and out end."""

    place: Path

    @property
    def console(self) -> Path:
        """The file the guest's console is written to."""
        return self.place / "console"

    @property
    def log(self) -> Path:
        """The file with the text of all orders."""
        return self.place / "log"

    @property
    def reports(self) -> Path:
        """The file with a JSON line for each test, and one for the end of each order."""
        return self.place / "reports"

    @property
    def orders(self) -> Path:
        """The socket that takes orders, one at a time."""
        return self.place / "orders"


def processors(accelerated: Acceleration) -> int:
    """Return how many processors the guest gets: an emulated one leaves one to the server."""
    have = len(os.sched_getaffinity(0))
    return have if accelerated is Acceleration.KVM else max(1, have - 1)


def command(image: Image, disks: list[Disk], acceleration: Acceleration, count: int) -> list[str]:
    """Return the command that boots the guest with ``count`` processors; its ports are relative.

    It is nice to all else on the server. The guest has a network interface, as servers have, from
    which nothing is reached.
    """
    kvm = acceleration is Acceleration.KVM
    # It dies with us, however we end.
    argv = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "19", "qemu-system-x86_64"]
    argv += ["-nodefaults", "-display", "none", "-no-reboot"]
    argv += ["-machine", "q35", "-accel", "kvm" if kvm else "tcg,thread=multi"]
    argv += ["-cpu", "host" if kvm else "max", "-smp", str(count), "-m", str(_MEMORY_MIB)]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    argv += ["-append", "root=LABEL=root rw console=ttyS0 panic=10 quiet"]
    for disk in disks:
        path = str(disk.path).replace(",", ",,")
        argv += [
            "-drive",
            f"file={path},format={disk.format},if=none,id={disk.name},cache=unsafe"
            + (",read-only=on" if disk.read_only else ""),
            "-device",
            f"virtio-blk-pci,drive={disk.name},serial={disk.name}",
        ]
    argv += ["-device", "virtio-rng-pci", "-nic", "user,restrict=on,model=virtio-net-pci"]
    argv += ["-chardev", "file,id=console,path=console", "-serial", "chardev:console"]
    argv += ["-device", "virtio-serial-pci"]
    for name in ("log", "reports"):
        argv += ["-chardev", f"file,id={name},path={name}"]
        argv += ["-device", f"virtserialport,chardev={name},name=pyvz.{name}"]
    argv += ["-chardev", "socket,id=orders,path=orders,server=on,wait=off"]
    argv += ["-device", "virtserialport,chardev=orders,name=pyvz.orders"]
    return argv


@contextmanager
def booted(argv: list[str], ports: Ports) -> Iterator[subprocess.Popen[bytes]]:
    """Boot the guest with its ports in place; it is ended, its disks whole, on the way out.

    Raises CalledProcessError when QEMU ends before it has its ports.
    """
    with subprocess.Popen(argv, cwd=ports.place, stdin=subprocess.DEVNULL) as process:
        try:
            while not ports.orders.exists():
                if process.poll() is not None:
                    raise subprocess.CalledProcessError(process.returncode, argv)
                time.sleep(_PAUSE_S)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


class Line:
    """The connection to a guest. Its first bytes may be lost, and then the order is: see ``again``."""

    def __init__(self, place: int, name: str) -> None:
        """Connect to the socket in the directory ``place``; raises OSError."""
        # Through the directory's descriptor: a socket's path has at most 107 bytes.
        self._path = f"/proc/self/fd/{place}/{name}"
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        try:
            made.connect(self._path)
        except OSError:
            made.close()
            raise
        return made

    def again(self) -> None:
        """Connect anew, when the guest has noticed that this connection is closed.

        Linux drops what a port has received when the port is closed (``port_fops_release()`` of
        drivers/char/virtio_console.c), and the guest closes its own after each order and, idle,
        each second. A reader does not notice either when the other side changes without a pause.
        """
        self.socket.close()
        time.sleep(_NOTICED_S)
        self.socket = self._connect()

    def close(self) -> None:
        """Hang up: an order that runs is stopped in the guest."""
        self.socket.close()


@contextmanager
def connected(ports: Ports) -> Iterator[Line | None]:
    """Connect to the guest whose ports are there, None without one; waits for a running order."""
    with ExitStack() as stack:
        try:
            place = os.open(ports.place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        stack.callback(os.close, place)
        fcntl.flock(place, fcntl.LOCK_EX)
        try:
            line = Line(place, ports.orders.name)
        except (FileNotFoundError, ConnectionRefusedError):
            yield None
            return
        stack.callback(line.close)
        yield line


class End(StrEnum):
    """How an order ended."""

    DONE = "done"
    LATE = "its time was over"
    GONE = "the guest has gone"


def carry_out(
    line: Line,
    order: Path,
    ports: Ports,
    tell: Callable[[str, bytes], None],
    timeout_s: float,
) -> End:
    """Send the order, a tar, and wait for its end; hand on what the guest says as it comes.

    It is sent again to a guest that says nothing of it. ``tell`` gets the port's name, log or
    reports, and the bytes. Raises OSError.
    """
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb")) for path in (ports.log, ports.reports)]
        for file in files:
            file.seek(0, os.SEEK_END)
        try:
            _send(line, order, deadline)
            sent, heard = time.monotonic(), False
            while True:
                left = deadline - time.monotonic()
                gone = _is_closed(line.socket)
                log, reports = (file.read() for file in files)
                tell("log", log)
                tell("reports", reports)
                if _ENDED in reports:
                    return End.DONE
                if gone or left < 0:
                    return End.GONE if gone else End.LATE
                heard = heard or bool(log or reports)
                if not heard and time.monotonic() - sent > _HEARD_S:
                    line.again()
                    _send(line, order, deadline)
                    sent = time.monotonic()
        except TimeoutError:
            return End.LATE
        except (BrokenPipeError, ConnectionRefusedError):
            return End.GONE


def _send(line: Line, order: Path, deadline: float) -> None:
    line.socket.settimeout(max(_PAUSE_S, deadline - time.monotonic()))
    with open(order, "rb") as body:
        line.socket.sendfile(body)
    line.socket.settimeout(_PAUSE_S)


def _is_closed(connection: socket.socket) -> bool:
    """Wait a little; return whether the guest's side is closed. It never sends anything here."""
    try:
        return not connection.recv(1)
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
