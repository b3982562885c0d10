"""Run tests in a Debian 12 guest: systemd, cgroup v2 only, a kernel without FUSE passthrough.

The guest is built from packages when first asked for and kept; it needs no network afterwards.
With VZ_TEST_TEMPLATES, the templates kept there are in the guest too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shlex import join

from runtime.errors import VzError
from tests.otherhost import checkout, guest, image, results
from tests.otherhost.guest import Disk, Ports
from vmm import acceleration
from vmm.acceleration import Acceleration

#: What runs when no tests are named: all that a host without passthrough and with systemd could
#: change, without what needs a network or emulates machines inside the emulated one.
STORIES = (
    *("commands_hosts", "commands_life", "commands_state", "commands_service"),
    *("container_life", "container_crashes", "features"),
    *("resources_limits", "resources_disk", "resources_view", "security_escapes"),
    *("vzfs_overlay", "vzfs_union", "vzfs_magic", "vzfs_quota", "vzfs_quota_inside"),
    *("vzfs_restart", "vzfs_util", "net_containers", "net_guard"),
)
#: Hours an emulated run may take, and one on KVM.
_HOURS = {Acceleration.EMULATED: 3.0, Acceleration.KVM: 0.7}
_FAILED, _UNFINISHED = 1, 3
_PAGE = image.TOP / "docs/supported-hosts.md"


def default_arguments() -> list[str]:
    """Return the tests that run when none are named."""
    return ["tests/unit", *(f"tests/system/test_{story}.py" for story in STORIES)]


def options(words: list[str]) -> argparse.Namespace:
    """Parse the command line; what follows ``--`` is pytest's."""
    parser = argparse.ArgumentParser(prog="./runtests other-host", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the guest's disk as it was left")
    parser.add_argument("--rebuild", action="store_true", help="build the guest anew")
    parser.add_argument(
        "--record", action="store_true", help=f"write the outcome into {_PAGE.name}"
    )
    parser.add_argument(
        "--run", metavar="SCRIPT", type=Path, help="run this shell script there, and no tests"
    )
    parser.add_argument("--hours", type=float, help="the time the guest may take")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST ARGUMENT")
    asked = parser.parse_args(words)
    if asked.hours is not None and asked.hours <= 0:
        parser.error("--hours must be more than 0")
    if asked.run is not None and not asked.run.is_file():
        parser.error(f"{asked.run} is not a file")
    return asked


def pytest_arguments(words: list[str]) -> list[str]:
    """Return pytest's arguments: without a path among them, the default tests are selected from."""
    named = any(word.partition("::")[0].startswith("tests") for word in words)
    return ["-v", "--tb=short", "-p", "no:cacheprovider", "-m", "not slow"] + (
        words if named else [*default_arguments(), *words]
    )


def main(words: list[str]) -> int:
    """Build, boot, watch, tell; return the exit status."""
    asked = options(words)
    cache = image.cache_dir()
    arguments = pytest_arguments(asked.pytest)
    try:
        built = image.ensure(cache, rebuild=asked.rebuild)
    except (VzError, OSError, subprocess.CalledProcessError) as error:
        print(f"other-host: the guest cannot be built: {error}", file=sys.stderr)
        return _UNFINISHED
    how = acceleration.choose(None)
    place = cache / "last"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    script = asked.run.read_text() if asked.run else ""
    given = {"command": script, "arguments": "".join(f"{word}\0" for word in arguments)}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="disks-", dir=cache) as name:
        disks = _disks(built, Path(name), {f"/srv/asked/{file}": given[file] for file in given})
        ports = Ports(place / "console", place / "reports")
        argv = guest.command(built, disks, ports, how)
        hours = asked.hours or _HOURS[how]
        with open(place / "log", "wb") as log:

            def tell(chunk: bytes) -> None:
                log.write(chunk)
                log.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()

            try:
                finished = guest.run(argv, tell, hours * 3600)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"other-host: QEMU failed: {error}", file=sys.stderr)
                return _UNFINISHED
        if asked.keep:
            kept = shutil.move(disks[0].path, place / disks[0].path.name)
            print(f"other-host: the disk as it was left: {kept}")
    if not finished:
        print(f"other-host: ended after {hours} hours", file=sys.stderr)
    print(f"other-host: log, console and reports are in {place}")
    if asked.run:
        return 0 if finished else _UNFINISHED
    told = results.read((place / "reports").read_text(errors="replace").splitlines())
    print(results.summary(told))
    if asked.record:
        took = f"{how.value}, {(time.monotonic() - started) / 60:.0f} minutes"
        today = time.strftime("%Y-%m-%d")
        results.record(_PAGE, told, join(asked.pytest), today, took)
    if told.status is None:
        return _UNFINISHED
    return 0 if told.good else _FAILED


def _disks(built: image.Image, scratch: Path, files: dict[str, str]) -> list[Disk]:
    """Return the guest's disks: its own, of which only changes are written, and what it is given."""
    own = Disk(scratch / "changes.qcow2", "root", "qcow2", read_only=False)
    base = ["-b", str(built.disk), "-F", "raw"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(own.path)], check=True)
    source = Disk(scratch / "checkout.tar", "checkout")
    checkout.write(image.TOP, source.path, files)
    disks = [own, source]
    kept = os.environ.get("VZ_TEST_TEMPLATES")
    if kept and Path(kept).is_dir():
        templates = Disk(scratch / "templates.tar", "templates")
        tar = ["tar", "-c", "--xattrs", "--numeric-owner", "--exclude=./machines"]
        done = subprocess.run([*tar, "-C", kept, "-f", str(templates.path), "."], check=False)
        # 1: a file changed while it was read, as those of a test running beside this may.
        if done.returncode > 1:
            done.check_returncode()
        disks.append(templates)
    return disks


if __name__ == "__main__":
    # What stands in a "finally" is done then as well: the guest's disks are large.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
