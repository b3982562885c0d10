"""The machine all tests of machines share: booted once a run, suspended, copied for each test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.state import start_ticks
from tests.system.conftest import System
from vmm.daemon import Daemon, alive

#: Built guests are kept between runs here when it is set, as templates are.
KEPT = "VZ_TEST_TEMPLATES"


class Lab(System):
    """A system with a golden guest that is booted already."""

    base: Path

    def vm(self, *words: str | int, **settings: object) -> str:
        """Run pctl, which must succeed."""
        return self.ok("pctl", *words, **settings)  # type: ignore[arg-type]

    def inside(self, name: str, script: str) -> str:
        """Return what a shell command inside prints."""
        return self.vm("exec", name, script)

    def facts(self, name: str = "demo") -> dict[str, object]:
        """Return what ``list -i --json`` tells."""
        return json.loads(self.vm("list", "-i", name, "--json"))

    def state(self, name: str = "demo") -> str:
        """Return the state ``status`` tells."""
        return self.vm("status", name).split()[-1]

    @property
    def homes(self) -> Path:
        """Where bundles are."""
        return self.paths.machines

    @property
    def home(self) -> Path:
        """The bundle of the shared machine."""
        return self.homes / "demo.pvm"

    @property
    def disk(self) -> Path:
        """Its first disk."""
        return self.home / "hdd0.qcow2"

    def sweep(self) -> None:
        """Remove every machine."""
        records = self.paths.lib / "machines"
        for record in records.glob("*.json") if records.is_dir() else ():
            self.run("pctl", "umount", record.stem)
            self.run("pctl", "delete", record.stem, "--force")
        for bundle in self.homes.glob("*.pvm"):
            shutil.rmtree(bundle)

    def daemons(self) -> list[int]:
        """Return the processes of our libvirtd and its machines."""
        place = Daemon(self.paths).directory / "run"
        found = [alive(place / "libvirtd.pid"), *(alive(p) for p in (place / "qemu").glob("*.pid"))]
        return [pid for pid in found if pid is not None]

    def stop_daemons(self) -> None:
        """End libvirtd and whatever QEMU is left."""
        for pid in self.daemons():
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while self.daemons() and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in self.daemons():
            os.kill(pid, signal.SIGKILL)


def _partitions() -> set[str]:
    """Return the cgroups below which libvirt puts machines."""
    return {str(path) for path in Path("/sys/fs/cgroup").glob("*/machine")}


@pytest.fixture(scope="session")
def lab(template_area: Path) -> Iterator[Lab]:
    """The system in which machines run, with a booted and suspended one to copy from."""
    before = _partitions()
    root = Path(tempfile.mkdtemp(prefix="pyvz-vm-", dir="/var/tmp"))
    (root / "vz").mkdir()
    (root / "vz/template").symlink_to(template_area)
    system = Lab(root)
    try:
        system.vm("create", "demo", "-d", "golden")
        system.vm("set", "demo", "--cpu-hotplug", "on", "--mem-hotplug", "on")
        system.vm("start", "demo", "--wait")
        system.vm("suspend", "demo")
        system.vm("unregister", "demo")
        system.base = root / "base.pvm"
        system.home.rename(system.base)
        yield system
        system.sweep()
        assert not [name for name in _running(root) if "qemu" in name], "a QEMU is left"
        assert system.mounts() == []
    finally:
        system.stop_daemons()
        system.close()
        for path in sorted(_partitions() - before):
            for place, _dirs, _files in os.walk(path, topdown=False):
                subprocess.run(["rmdir", place], check=False, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


def _running(root: Path) -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and start_ticks(int(entry)) is not None:
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(root) in words:
                found.append(words.split(b"\0")[0].decode())
    return found


@pytest.fixture
def suspended(lab: Lab) -> Iterator[Lab]:
    """The lab with the machine "demo" in it, suspended."""
    lab.homes.mkdir(parents=True, exist_ok=True)
    shutil.copytree(lab.base, lab.home, copy_function=_share)
    lab.vm("register", lab.home, "--preserve-uuid")
    try:
        yield lab
    finally:
        lab.sweep()


def _share(source: str, target: str) -> None:
    """Copy a file; the saved memory, which is only read and then removed, is shared."""
    if source.endswith(".sav"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


@pytest.fixture
def running(suspended: Lab) -> Lab:
    """The lab with the machine "demo" running, its agent answering."""
    suspended.vm("resume", "demo")
    return suspended


@pytest.fixture
def stopped(suspended: Lab) -> Lab:
    """The lab with the machine "demo" stopped."""
    suspended.vm("stop", "demo", "--kill")
    return suspended
