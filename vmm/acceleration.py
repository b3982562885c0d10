"""Whether a guest can really run on KVM here, or must be emulated.

libvirt advertises KVM as soon as /dev/kvm opens; inside a virtual machine without nesting it opens
and no guest runs. So the processor's flags decide, and an administrator's word before them.
"""

from __future__ import annotations

import os
import platform
from enum import StrEnum
from pathlib import Path

from runtime.errors import InvalidValue
from runtime.paths import Paths
from runtime.progress import Progress

#: linux/kvm.h
_KVM_CREATE_VM = 0xAE01
_SETTING = "VM_ACCELERATION"


class Acceleration(StrEnum):
    """libvirt's domain types that we use."""

    KVM = "kvm"
    EMULATED = "qemu"


def choose(configured: str | None) -> Acceleration:
    """Return how machines run here; ``configured`` is VM_ACCELERATION of vz.conf.

    Raises InvalidValue.
    """
    word = (configured or "auto").lower()
    if word in ("kvm", "on"):
        return Acceleration.KVM
    if word in ("tcg", "qemu", "off"):
        return Acceleration.EMULATED
    if word != "auto":
        raise InvalidValue(f"{_SETTING} is {configured!r}", hint="write auto, kvm or tcg")
    return Acceleration.KVM if _kvm_works() else Acceleration.EMULATED


def _kvm_works() -> bool:
    if platform.machine() in ("x86_64", "i686"):
        return _has_flags() and os.access("/dev/kvm", os.R_OK | os.W_OK)
    return _creates_a_machine()


def _has_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    with open(cpuinfo, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                return not {"vmx", "svm"}.isdisjoint(line.split())
    return False


def _creates_a_machine() -> bool:
    """Whether the kernel makes an empty machine: what other architectures offer as a test."""
    import fcntl

    try:
        with open("/dev/kvm", "r+b", buffering=0) as device:
            os.close(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
    except OSError:
        return False
    return True


def warn_once(paths: Paths, progress: Progress, acceleration: Acceleration) -> None:
    """Tell once a boot that machines are emulated."""
    if acceleration is Acceleration.KVM:
        return
    marker = paths.run / "libvirt" / "emulation-told"
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    progress.warn(
        "this server cannot run guests on KVM (no vmx or svm in /proc/cpuinfo): "
        "machines are emulated, about ten times slower"
    )
