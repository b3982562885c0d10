"""Systems under test: each one below a root of its own, swept and checked for strays afterwards."""

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

from runtime import files
from runtime.paths import Paths

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


class System:
    """A whole pyvz below one directory, driven by its commands as a user does."""

    def __init__(self, root: Path, *, service: bool = False) -> None:
        """Use the system at ``root``; ``service`` lets commands use and start the warm service."""
        self.root = root
        self.paths = Paths(root)
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "VZ_ROOT": str(root),
            "LC_ALL": "C.UTF-8",
            "HOME": "/root",
            "TERM": "xterm",
        }
        if not service:
            self._environment["VZ_SERVICE"] = "no"

    def popen(self, *words: str | int, **settings: object) -> subprocess.Popen[bytes]:
        """Start a command of ours without waiting for it."""
        argv = [str(BIN / str(words[0])), *map(str, words[1:])]
        return subprocess.Popen(argv, env=self._environment, **settings)  # type: ignore[call-overload]

    def run(
        self, *words: str | int, stdin: bytes | None = None, timeout_s: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of ours to its end; text out, nothing raised."""
        process = self.popen(
            *words,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(
                f"{words} took longer than {timeout_s} s: {out!r} {err!r}"
            ) from None
        return subprocess.CompletedProcess(
            process.args,
            process.returncode,
            out.decode("utf-8", "replace"),
            err.decode("utf-8", "replace"),
        )

    def ok(self, *words: str | int, stdin: bytes | None = None, timeout_s: float = 180) -> str:
        """Run a command which must succeed; return its standard output."""
        done = self.run(*words, stdin=stdin, timeout_s=timeout_s)
        assert done.returncode == 0, f"{words} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fails(self, code: int, *words: str | int, stdin: bytes | None = None) -> str:
        """Run a command which must fail with ``code`` and one clear line; return its stderr."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == code, f"{words} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert done.stderr.strip(), f"{words} failed without a word"
        return done.stderr

    def status(self, ctid: int) -> dict[str, bool]:
        """Return what ``vzctl status --json`` tells."""
        return json.loads(self.ok("vzctl", "status", ctid, "--json"))

    def create(self, ctid: int, template: str = "busybox", *options: str) -> int:
        """Create a container and return its id."""
        self.ok("vzctl", "create", ctid, "--ostemplate", template, "--force", *options)
        return ctid

    def close(self) -> None:
        """Stop and remove everything that runs or is mounted below the root."""
        for conf in self.paths.conf_dir.glob("[0-9]*.conf"):
            ctid = conf.name.split(".")[0]
            if ctid != "0":
                self.run("vzctl", "stop", ctid, "--fast")
                self.run("vzctl", "umount", ctid)
        self.kill_all()
        for _ in range(100):
            mounts = self.mounts()
            if not mounts:
                break
            for mount in reversed(mounts):
                subprocess.run(["umount", "-l", mount], check=False, capture_output=True)

    def kill_all(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to every process that belongs to this system."""
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 5
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)

    def cgroups(self) -> list[Path]:
        """Return the cgroup directories of this system."""
        return [
            Path(place)
            for place, _dirs, _files in os.walk("/sys/fs/cgroup")
            if f"pyvz{self.paths.tag}" in place.split("/")
        ]

    def processes(self) -> list[int]:
        """Return the processes of this system: in its cgroups, or its service."""
        found = set()
        for group in self.cgroups():
            try:
                found.update(int(word) for word in (group / "cgroup.procs").read_text().split())
            except OSError:
                continue
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                try:
                    words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"tools.service" in words and os.fsencode(self.root) in words:
                    found.add(int(entry))
        return sorted(found)

    def mounts(self) -> list[str]:
        """Return what is mounted below the root."""
        with open("/proc/self/mounts") as file:
            points = [line.split()[1].replace("\\040", " ") for line in file]
        return [point for point in points if point.startswith(f"{self.root}/")]

    def strays(self) -> list[str]:
        """Return what is left though nothing should run: processes, mounts, cgroups."""
        left = [f"process {pid}: {_command_line(pid)}" for pid in self.processes()]
        left += [f"mount {mount}" for mount in self.mounts()]
        left += [
            f"cgroup {group}"
            for group in self.cgroups()
            if group.name.removeprefix("server-").isdecimal()
        ]
        return left


def _command_line(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    except OSError:
        return "?"


@pytest.fixture(scope="session")
def template_area() -> Iterator[Path]:
    """The template area which all systems of a run share; VZ_TEST_TEMPLATES keeps it between runs."""
    kept = os.environ.get("VZ_TEST_TEMPLATES")
    area = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="pyvz-templates-", dir="/var/tmp"))
    area.mkdir(parents=True, exist_ok=True)
    yield area
    if not kept:
        shutil.rmtree(area, ignore_errors=True)


def make_root(template_area: Path) -> Path:
    """Return a new root whose template area is the shared one."""
    root = Path(tempfile.mkdtemp(prefix="pyvz-", dir="/var/tmp"))
    (root / "vz").mkdir()
    (root / "vz/template").symlink_to(template_area)
    return root


def _system(template_area: Path, *, service: bool) -> Iterator[System]:
    root = make_root(template_area)
    system = System(root, service=service)
    try:
        yield system
        clean = System(root)
        for conf in system.paths.conf_dir.glob("[0-9]*.conf"):
            ctid = conf.name.split(".")[0]
            if ctid != "0":
                clean.run("vzctl", "stop", ctid, "--fast")
                clean.run("vzctl", "umount", ctid)
        for pid in system.processes():
            if "tools.service" in _command_line(pid):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while system.strays() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert system.strays() == [], "something of the system is left"
    finally:
        System(root).close()
        for group in reversed(system.cgroups()):
            try:
                group.rmdir()
            except OSError:
                continue
        files.remove_tree(root)


@pytest.fixture
def system(template_area: Path) -> Iterator[System]:
    """A system whose commands run without the warm service."""
    yield from _system(template_area, service=False)


@pytest.fixture
def warm_system(template_area: Path) -> Iterator[System]:
    """A system whose commands start and use the warm service."""
    yield from _system(template_area, service=True)


@pytest.fixture(scope="module")
def shared_system(template_area: Path) -> Iterator[System]:
    """One system for the tests of a module which leave its containers as they find them."""
    yield from _system(template_area, service=False)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory on a real file system; the trees in it are not worth keeping."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)
