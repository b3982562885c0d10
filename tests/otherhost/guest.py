"""The guest itself: QEMU, its disks and ports, and the time it may take."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.otherhost.image import Image
from vmm.acceleration import Acceleration

#: Memory in MiB and processors: those of a small server.
_MEMORY_MIB = 6144
_PROCESSORS = 2


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the guest, found there as /dev/disk/by-id/virtio-NAME."""

    path: Path
    name: str
    format: str = "raw"
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Ports:
    """The files in which the guest's two ways out end."""

    #: The guest's console.
    console: Path
    #: A JSON line for each test.
    reports: Path


def command(image: Image, disks: list[Disk], ports: Ports, acceleration: Acceleration) -> list[str]:
    """Return the command that boots the guest; its log comes out on standard output.

    The guest has a network interface, as servers have, from which nothing is reached.
    """
    kvm = acceleration is Acceleration.KVM
    # It dies with us, however we end.
    argv = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    argv += ["-nodefaults", "-display", "none", "-no-reboot"]
    argv += ["-machine", "q35", "-accel", "kvm" if kvm else "tcg,thread=multi"]
    argv += ["-cpu", "host" if kvm else "max", "-smp", str(_PROCESSORS), "-m", str(_MEMORY_MIB)]
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
    argv += ["-chardev", f"file,id=console,path={_escaped(ports.console)}"]
    argv += ["-serial", "chardev:console", "-device", "virtio-serial-pci"]
    argv += ["-chardev", "stdio,id=log,signal=off"]
    argv += ["-device", "virtserialport,chardev=log,name=pyvz.log"]
    argv += ["-chardev", f"file,id=reports,path={_escaped(ports.reports)}"]
    argv += ["-device", "virtserialport,chardev=reports,name=pyvz.reports"]
    return argv


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def run(argv: list[str], log: Callable[[bytes], None], timeout_s: float) -> bool:
    """Run the guest until it powers off; hand on what it says as it comes.

    Returns False when it had to be ended after ``timeout_s``. Raises CalledProcessError when QEMU
    itself failed.
    """
    deadline = time.monotonic() + timeout_s
    # An end of file on standard input would close the guest's port: what it says would wait.
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while (left := deadline - time.monotonic()) > 0:
                    if selector.select(left):
                        if not (chunk := os.read(process.stdout.fileno(), 65536)):
                            break
                        log(chunk)
                else:
                    return False
            if status := process.wait():
                raise subprocess.CalledProcessError(status, argv)
        finally:
            process.kill()
    return True
