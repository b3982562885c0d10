"""A load goes on while its file server is killed again and again.

The tests play the supervisor: they hold a duplicate of the /dev/fuse descriptor and fork another
server when one was killed.
"""

import hashlib
import json
import mmap
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import mixedload
import pytest
from posixcases.beds import supervised
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)
from posixcases.trees import difference, snapshot

pytestmark = pytest.mark.root

KILLS = int(os.environ.get("PYVZ_CRASH_KILLS", "100"))


@pytest.mark.parametrize("bed", ["vzfs-kernel", "vzfs-plain", "vzfs-pyfuse3"])
def test_a_mixed_load_survives_many_deaths_of_the_server(home: Path, bed: str) -> None:
    subject = supervised(bed, home)
    if lost := subject.loses_requests():
        pytest.skip(lost)
    loads = 3
    kills = KILLS
    dice = random.Random(7)
    for number in range(loads):
        folder = subject.lower / f"load{number}"
        folder.mkdir()
        for name in range(12):
            (folder / f"lower{name}").write_bytes(dice.randbytes(dice.choice([100, 9000, 400_000])))
    below = snapshot(subject.lower)
    subject.mount()
    stop = mmap.mmap(-1, 1)
    children = []
    reports = []
    try:
        for number in range(loads):
            near, far = os.pipe()
            child = os.fork()
            if child == 0:
                subject.let_go()
                mixedload.run(subject.merged / f"load{number}", number, stop, far)
                os._exit(0)
            os.close(far)
            children.append(child)
            reports.append(near)
        died_early = 0
        for _ in range(kills):
            # A request may be begun twice, on one server and the next; a third is more than the
            # kernel tries (ESTALE), so every server gets some time.
            time.sleep(dice.choice([0.1, 0.15, 0.3]))
            if subject.died():
                died_early += 1
            else:
                subject.kill()
            subject.serve(resume=True)
        time.sleep(0.3)
        stop[0] = 1
        results = [_report(near) for near in reports]
        assert died_early == 0, subject.log.read_text()[-2000:]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        if subject.server >= 0 and subject.died():
            subject.let_go()
        for child in children:
            os.waitpid(child, 0)
        for near in reports:
            os.close(near)
        if any("error" in r for r in locals().get("results", [{"error": ""}])):
            subject.abandon()
    for result in results:
        assert "error" not in result, result["error"]
    subject.remount()
    try:
        for number, result in enumerate(results):
            folder = subject.merged / f"load{number}"
            files, folders = result["files"], result["folders"]
            for name, digest in files.items():
                assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
            for name in folders:
                assert (folder / name).is_dir()
            known = set(files) | set(folders)
            extra = set(os.listdir(folder)) - known
            assert len(extra) <= 1, f"names nobody made: {extra}"  # the reader's own file
    finally:
        subject.abandon()
    assert not difference(snapshot(subject.lower), below)
    acts, repeated = (sum(r[k] for r in results) for k in ("acts", "repeated"))
    print(f"{bed}: {kills} kills, {acts} acts, {repeated} of them found done")
    assert acts > kills
    assert not repeated, "a user was told of an error though the act was done"


def _report(near: int) -> dict[str, Any]:
    text = b""
    deadline = time.monotonic() + 60
    os.set_blocking(near, False)
    while time.monotonic() < deadline:
        try:
            piece = os.read(near, 1 << 20)
        except BlockingIOError:
            time.sleep(0.01)
            continue
        if not piece:
            break
        text += piece
    return dict(json.loads(text)) if text else {"error": "the load hangs"}


@pytest.mark.parametrize("bed", ["vzfs-plain", "vzfs-pyfuse3"])
def test_a_server_killed_while_it_takes_a_write_in_fails_nobody(home: Path, bed: str) -> None:
    subject = supervised(bed, home)
    if lost := subject.loses_requests():
        pytest.skip(lost)
    subject.mount()
    writers = 4
    shared = mmap.mmap(-1, 1 + writers)  # whether to stop; who wrote since the last kill
    children = []
    try:
        for number in range(writers):
            child = os.fork()
            if child == 0:
                subject.let_go()
                os._exit(_write_on(subject.merged / f"file{number}", shared, 1 + number))
            children.append(child)
        dice = random.Random(3)
        for _ in range(40):
            shared[1:] = bytes(writers)
            deadline = time.monotonic() + 30
            while not any(shared[1:]):
                assert time.monotonic() < deadline, "nobody can write any more"
                time.sleep(0.0005)
            # Early in its life a server reads requests into memory it has not used yet.
            time.sleep(dice.random() * 0.004)
            subject.kill()
            subject.serve(resume=True)
        shared[0] = 1
        failures = [os.strerror(status) for status in map(_end, children) if status]
    finally:
        subject.abandon()
    assert not failures


def _write_on(path: Path, shared: mmap.mmap, done: int) -> int:
    """Write till told to stop; return the number of the first error, 0 for none."""
    data = os.urandom(1 << 20)
    one = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    while not shared[0]:
        try:
            os.pwrite(one, data, 0)
        except OSError as error:
            shared[done] = 1
            return error.errno or 1
        shared[done] = 1
        time.sleep(0.001)
    return 0


def _end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
