"""Run tests in a Debian 12 guest: systemd, cgroup v2 only, a kernel without FUSE passthrough.

The guest is built from packages when first asked for and kept; it needs no network afterwards.
With VZ_TEST_TEMPLATES, the templates kept there are in the guest too. A guest that was started with
--stay carries out all that is asked for until it is ended.
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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from runtime.errors import VzError
from tests.otherhost import checkout, guest, image, results
from tests.otherhost.guest import Disk, End, Ports
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
#: In the cache: what the last order left. In a guest's place: its disk.
_LAST, _CHANGES = "last", "changes.qcow2"
_PAGE = image.TOP / "docs/supported-hosts.md"


def default_arguments() -> list[str]:
    """Return the tests that run when none are named."""
    return ["tests/unit", *(f"tests/system/test_{story}.py" for story in STORIES)]


def options(words: list[str]) -> argparse.Namespace:
    """Parse the command line; what follows ``--`` is pytest's."""
    parser = argparse.ArgumentParser(prog="./runtests other-host", description=__doc__)
    parser.add_argument(
        "--stay", action="store_true", help="boot a guest for other runs to use, until Ctrl-C"
    )
    parser.add_argument("--keep", action="store_true", help="keep the guest's disk as it was left")
    parser.add_argument("--rebuild", action="store_true", help="build the guest anew")
    parser.add_argument(
        "--record", action="store_true", help=f"put the outcomes in {_PAGE.name}, beside older ones"
    )
    parser.add_argument(
        "--run", metavar="SCRIPT", type=Path, help="run this shell script there, and no tests"
    )
    parser.add_argument("--hours", type=float, help="the time the order may take")
    parser.add_argument(
        "--processors", type=int, metavar="N", help="the guest's; emulated, one less than here"
    )
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST ARGUMENT")
    asked = parser.parse_args(words)
    if asked.hours is not None and asked.hours <= 0:
        parser.error("--hours must be more than 0")
    if asked.processors is not None and asked.processors <= 0:
        parser.error("--processors must be more than 0")
    if asked.run is not None and not asked.run.is_file():
        parser.error(f"{asked.run} is not a file")
    if asked.stay and (asked.run or asked.pytest or asked.record or asked.hours):
        parser.error("--stay runs nothing: start what is to run beside it")
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
    try:
        built = image.ensure(cache, rebuild=asked.rebuild)
    except (VzError, OSError, subprocess.CalledProcessError) as error:
        print(f"other-host: the guest cannot be built: {error}", file=sys.stderr)
        return _UNFINISHED
    how = acceleration.choose(None)
    try:
        if asked.stay:
            return _stay(built, how, asked)
        with guest.connected(Ports(built.staying)) as there:
            if there is not None:
                _clear_last(cache)
                return _order(there, Ports(built.staying), cache, how, asked)
        # Not before: another run may be using the guest that stays, and write there.
        _clear_last(cache)
        with _own(built, cache, how, asked) as ports, guest.connected(ports) as there:
            if there is None:
                raise ConnectionRefusedError("the guest takes no orders")
            return _order(there, ports, cache, how, asked)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"other-host: QEMU failed: {error}", file=sys.stderr)
        return _UNFINISHED


def _clear_last(cache: Path) -> None:
    shutil.rmtree(cache / _LAST, ignore_errors=True)
    (cache / _LAST).mkdir()


def _stay(built: image.Image, how: Acceleration, asked: argparse.Namespace) -> int:
    """Keep a guest for other runs until it ends or a signal comes; return the exit status."""
    with image.locked(built.place / "staying.lock", wait=False) as mine:
        if not mine:
            print("other-host: a guest stays already", file=sys.stderr)
            return _UNFINISHED
        shutil.rmtree(built.staying, ignore_errors=True)
        built.staying.mkdir()
        try:
            with _booted(built, built.staying, how, asked) as process:
                print("other-host: the guest stays until Ctrl-C; run tests in another terminal")
                sys.stdout.flush()
                return _UNFINISHED if process.wait() else 0
        finally:
            shutil.rmtree(built.staying, ignore_errors=True)


@contextmanager
def _own(
    built: image.Image, cache: Path, how: Acceleration, asked: argparse.Namespace
) -> Iterator[Ports]:
    """Boot a guest for one order; its console and, where that was asked for, its disk are kept."""
    with tempfile.TemporaryDirectory(prefix="guest-", dir=cache) as name:
        ports = Ports(Path(name))
        try:
            with _booted(built, ports.place, how, asked):
                yield ports
        finally:
            if ports.console.exists():
                shutil.copy(ports.console, cache / _LAST)
        if asked.keep:
            kept = shutil.move(ports.place / _CHANGES, cache / _LAST / _CHANGES)
            print(f"other-host: the disk as it was left: {kept}")


def _booted(
    built: image.Image, place: Path, how: Acceleration, asked: argparse.Namespace
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    disks = _disks(built, place)
    count = asked.processors or guest.processors(how)
    return guest.booted(guest.command(built, disks, how, count), Ports(place))


def _order(
    there: guest.Line, ports: Ports, cache: Path, how: Acceleration, asked: argparse.Namespace
) -> int:
    """Have one order carried out and tell what came of it; return the exit status."""
    last = cache / _LAST
    script = asked.run.read_text() if asked.run else ""
    arguments = "".join(f"{word}\0" for word in pytest_arguments(asked.pytest))
    order = last / "order.tar"
    checkout.write(
        image.TOP, order, {"/srv/asked/command": script, "/srv/asked/arguments": arguments}
    )
    hours = asked.hours or _HOURS[how]
    with open(last / "log", "wb") as log, open(last / "reports", "wb") as reports:

        def tell(port: str, chunk: bytes) -> None:
            kept = log if port == "log" else reports
            kept.write(chunk)
            kept.flush()
            if port == "log":
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()

        end = guest.carry_out(there, order, ports, tell, hours * 3600)
    order.unlink()
    if end is not End.DONE:
        late = f" ({hours:g} hours)" if end is End.LATE else ""
        print(f"other-host: {end.value}{late}", file=sys.stderr)
    print(f"other-host: log and reports are in {last}")
    if asked.run:
        return 0 if end is End.DONE else _UNFINISHED
    told = results.read((last / "reports").read_text(errors="replace").splitlines())
    print(results.summary(told))
    if asked.record:
        manner = "emulated" if how is Acceleration.EMULATED else "KVM"
        results.record(_PAGE, cache / "recorded", told, time.strftime("%Y-%m-%d"), manner)
    if told.status is None:
        return _UNFINISHED
    return 0 if told.good else _FAILED


def _disks(built: image.Image, scratch: Path) -> list[Disk]:
    """Return the guest's disks: its own, of which only changes are written, and the templates."""
    own = Disk(scratch / _CHANGES, "root", "qcow2", read_only=False)
    base = ["-b", str(built.disk), "-F", "raw"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(own.path)], check=True)
    disks = [own]
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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
