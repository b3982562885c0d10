"""Magic links made for private files: vzpkg link and vzcache."""

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
from conftest import System

from vzfs.options import SESSION

pytestmark = pytest.mark.root


@pytest.fixture
def pair() -> Iterator[System]:
    """A system with a template area of its own and two stopped containers, 101 and 102."""
    root = Path(tempfile.mkdtemp(prefix="pyvz-", dir="/var/tmp"))
    system = System(root)
    try:
        system.create(101)
        system.create(102)
        yield system
        assert system.strays() == []
    finally:
        system.close()
        shutil.rmtree(root, ignore_errors=True)


def own(system: System, ctid: int) -> Path:
    return system.paths.private(ctid) / "root"


def sums(system: System, ctid: int) -> str:
    """Return the checksums of what the container sees."""
    system.ok("vzctl", "start", ctid)
    try:
        return system.ok(
            "vzctl", "exec", ctid,
            "cd /; find opt bin/busybox etc -type f -exec sha256sum {} + | sort; ls -ln opt",
        )  # fmt: skip
    finally:
        system.ok("vzctl", "stop", ctid, "--fast")


def put(system: System, ctid: int, data: bytes) -> None:
    """Give the container a file of its own, as its users do; its time is the same everywhere."""
    system.ok("vzctl", "start", ctid)
    script = "mkdir -p /opt; cat >/opt/data; chown 33:33 /opt/data; touch -t 202001010000 /opt/data"
    system.ok("vzctl", "exec", ctid, script, stdin=data)
    system.ok("vzctl", "stop", ctid, "--fast")


def is_magic(path: Path) -> bool:
    return path.is_symlink() and os.readlink(path).startswith("////")


def used_kib(path: Path) -> int:
    done = subprocess.run(["du", "-sk", path], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def test_a_private_copy_of_a_template_file_becomes_a_link_to_it(pair: System) -> None:
    pair.ok("vzctl", "start", 101)
    pair.ok("vzctl", "exec", 101, "cp -p /bin/busybox /bin/b && mv /bin/b /bin/busybox")
    pair.ok("vzctl", "stop", 101, "--fast")
    before, size = sums(pair, 101), used_kib(own(pair, 101))
    assert "1 files would be linked" in pair.ok("vzpkg", "link", "-n", 101)
    assert not is_magic(own(pair, 101) / "bin/busybox")
    assert "1 files linked" in pair.ok("vzpkg", "link", 101)
    assert is_magic(own(pair, 101) / "bin/busybox")
    assert used_kib(own(pair, 101)) < size - 1500
    assert sums(pair, 101) == before
    assert "0 files linked" in pair.ok("vzpkg", "link", 101)


def test_files_of_two_containers_are_kept_once_and_seen_unchanged(pair: System) -> None:
    data = os.urandom(300_000)
    for ctid in (101, 102):
        put(pair, ctid, data)
    before = [sums(pair, ctid) for ctid in (101, 102)]
    assert "Total: 2 files would be linked" in pair.ok("vzcache", "-n", "-a")
    assert "Total: 2 files linked" in pair.ok("vzcache", "-a")
    assert is_magic(own(pair, 101) / "opt/data") and is_magic(own(pair, 102) / "opt/data")
    assert [sums(pair, ctid) for ctid in (101, 102)] == before
    pair.ok("vzpkg", "clean")
    assert [sums(pair, ctid) for ctid in (101, 102)] == before
    for ctid in (101, 102):
        pair.ok("vzctl", "destroy", ctid)
    assert list(pair.paths.template.glob("vc/??/*")) != []
    pair.ok("vzpkg", "clean")
    assert list(pair.paths.template.glob("vc/??/*")) == []


def test_writing_to_a_shared_file_changes_one_container_only(pair: System) -> None:
    for ctid in (101, 102):
        put(pair, ctid, b"x" * 100_000)
    pair.ok("vzcache", 101, 102)
    other = sums(pair, 102)
    pair.ok("vzctl", "start", 101)
    pair.ok("vzctl", "exec", 101, "echo more >>/opt/data")
    assert pair.ok("vzctl", "exec", 101, "tail -c 5 /opt/data") == "more\n"
    pair.ok("vzctl", "stop", 101, "--fast")
    assert sums(pair, 102) == other


def test_a_detached_container_has_its_own_copies_again(pair: System) -> None:
    data = os.urandom(100_000)
    for ctid in (101, 102):
        put(pair, ctid, data)
    before = sums(pair, 101)
    pair.ok("vzcache", 101, 102)
    pair.ok("vzcache", "-r", 101)
    assert not is_magic(own(pair, 101) / "opt/data")
    assert is_magic(own(pair, 102) / "opt/data")
    assert (own(pair, 101) / "opt/data").read_bytes() == data
    assert sums(pair, 101) == before


def test_a_killed_command_leaves_nothing_in_the_tree(pair: System) -> None:
    many = "cd /opt; for n in $(seq 400); do head -c 20000 data >f$n; echo $n >>f$n; done"
    for ctid in (101, 102):
        put(pair, ctid, b"z" * 100_000)
        pair.ok("vzctl", "start", ctid)
        pair.ok("vzctl", "exec", ctid, many)
        pair.ok("vzctl", "stop", ctid, "--fast")
    before = {path.name: path.read_bytes() for path in (own(pair, 101) / "opt").iterdir()}
    # Linking and detaching: each is killed in the middle, then done.
    for words in (("-a",), ("-r", 101, 102)):
        for delay_s in (0.25, 0.35, 0.5):
            process = pair.popen("vzcache", *words, stdout=subprocess.DEVNULL)
            time.sleep(delay_s)
            process.kill()
            process.communicate()
            assert {path.name for path in (own(pair, 101) / "opt").iterdir()} == before.keys()
        pair.ok("vzcache", *words)
    assert not is_magic(own(pair, 101) / "opt/data")
    after = {path.name: path.read_bytes() for path in (own(pair, 101) / "opt").iterdir()}
    assert after == before


def test_files_that_differ_in_owner_or_content_stay_apart(pair: System) -> None:
    for ctid in (101, 102):
        put(pair, ctid, b"y" * 100_000)
    os.chown(own(pair, 102) / "opt/data", 0, 0)
    assert "Total: 0 files" in pair.ok("vzcache", "-a")


@pytest.fixture
def running(pair: System, request: pytest.FixtureRequest) -> Iterator[System]:
    """Both containers run and have the same data, some of them in use; the parameter is of their
    configuration.
    """
    data = os.urandom(300_000)
    for ctid in (101, 102):
        with pair.paths.ct_conf(ctid).open("a") as file:
            file.write(getattr(request, "param", ""))
        pair.ok("vzctl", "start", ctid)
        pair.ok(
            "vzctl", "exec", ctid,
            "mkdir /opt; cd /opt; cat >free; cp free read; cp free written; chown 33:33 free",
            stdin=data,
        )  # fmt: skip
    pair.ok(
        "vzctl",
        "exec",
        101,
        "cd /opt; (exec 3<read 4>>written; exec sleep 1000) </dev/null >/dev/null 2>&1 &",
    )
    yield pair
    for ctid in (101, 102):
        pair.ok("vzctl", "stop", ctid, "--fast")


def inside(system: System, ctid: int, script: str) -> str:
    return system.ok("vzctl", "exec", ctid, f"cd /opt; {script}")


def blocks(system: System, ctid: int) -> tuple[int, int]:
    """Return (what the quota says is used, what is), in KiB."""
    words = system.ok("vzquota", "stat", ctid).split()
    used = int(words[words.index("1k-blocks") + 1].rstrip("*"))
    return used, used_kib(own(system, ctid))


@pytest.mark.parametrize(
    "running", ["", 'VZFS_IDS="server"\nVZFS_TRANSPORT="pyfuse3"\n'], indirect=True
)
def test_files_of_running_containers_are_shared_but_for_those_being_written(
    running: System,
) -> None:
    look = "sha256sum *; ls -lni"
    before = [inside(running, ctid, look) for ctid in (101, 102)]
    assert "Total: 5 files would be linked" in running.ok("vzcache", "-n", "-a")
    said = running.ok("vzcache", "-v", "-a")
    assert "CT 101: 2 files linked" in said and "/opt/written: open for writing" in said
    for ctid, name in ((101, "free"), (101, "read"), (102, "free"), (102, "read")):
        assert is_magic(own(running, ctid) / "opt" / name)
    assert not is_magic(own(running, 101) / "opt/written")
    assert [inside(running, ctid, look) for ctid in (101, 102)] == before
    for ctid in (101, 102):
        used, real = blocks(running, ctid)
        assert used == real
    report = json.loads(running.ok("pctl", "sharing", "-j"))
    rows = {row["name"]: row for row in report["containers"]}
    assert [row["magic_links"] for row in rows.values()] == [2, 3]
    assert all(row["rss_bytes"] > row["pss_bytes"] > 0 for row in rows.values())
    assert all(row["saved_bytes"] > 300_000 for row in rows.values())
    assert report["total"]["magic_links"] == 5
    assert "total" in running.ok("pctl", "sharing")


def test_who_reads_a_file_that_became_a_link_sees_what_is_written_later(running: System) -> None:
    running.ok("vzcache", "-a")
    reader = "$(pidof sleep | tr ' ' '\\n' | sort -n | tail -1)"
    inside(running, 101, "echo more >>read; echo other >>free")
    there = inside(running, 101, f"tail -c 5 /proc/{reader}/fd/3; tail -c 5 read; tail -c 6 free")
    assert there == "more\nmore\nother\n"
    assert "more" not in inside(running, 102, "tail -c 5 read; tail -c 6 free")
    used, real = blocks(running, 101)
    assert used == real


def test_the_quota_is_counted_anew_when_an_area_was_changed_by_hand(pair: System) -> None:
    for ctid in (101, 102):
        put(pair, ctid, b"x" * 300_000)
    pair.ok("vzcache", 101, 102)
    private = pair.paths.private(101)
    pair.ok("vzfsutil", "-t", pair.paths.template, private, "--unlink", "--call")
    assert not is_magic(own(pair, 101) / "opt/data")
    pair.ok("vzctl", "start", 101)
    used, real = blocks(pair, 101)
    pair.ok("vzctl", "stop", 101, "--fast")
    assert used == real


def test_a_running_container_is_detached(running: System) -> None:
    before = inside(running, 101, "sha256sum *; ls -lni")
    running.ok("vzcache", 101, 102)
    inside(running, 101, "chmod 600 free")
    assert "2 files would be copied back" in running.ok("vzcache", "-n", "-r", 101)
    running.ok("vzcache", "-r", 101)
    for name in ("free", "read"):
        file = own(running, 101) / "opt" / name
        assert not is_magic(file) and file.stat().st_blocks * 512 >= 300_000
    inside(running, 101, "chmod 644 free")
    assert inside(running, 101, "sha256sum *; ls -lni") == before
    used, real = blocks(running, 101)
    assert used == real


def test_commands_and_file_servers_may_be_killed_under_load(running: System) -> None:
    load = (
        "n=0; while [ ! -e end ]; do n=$((n+1)); cp free w$((n%5)).new; mv w$((n%5)).new w$((n%5));"
        " sleep 0.2; printf '\\n%s\\n' $n >>w$((n%5)); tail -n 1 w$((n%5)) | grep -qx $n || echo $n >>lost; done"
    )
    for ctid in (101, 102):
        inside(running, ctid, f"({load}) </dev/null >/dev/null 2>&1 &")
    before = inside(running, 101, "sha256sum free read written")
    for delay_s in (0.4, 0.5, 0.7):
        process = running.popen("vzcache", "-a", stdout=subprocess.DEVNULL)
        time.sleep(delay_s)
        session = (running.paths.private(101) / "cow" / SESSION).read_text()
        os.kill(int(session.partition("pid=")[2].split()[0]), signal.SIGKILL)
        time.sleep(0.2)
        process.kill()
        process.communicate()
    running.ok("vzcache", "-a")
    assert is_magic(own(running, 101) / "opt/free")
    for ctid in (101, 102):
        inside(running, ctid, "touch end")
        assert inside(running, ctid, "sleep 1; cat lost 2>/dev/null || true") == ""
        running.ok("vzctl", "stop", ctid, "--fast")
        private = running.paths.private(ctid)
        running.ok("vzfsutil", "-t", running.paths.template, private, "--call")
        running.ok("vzctl", "start", ctid)
    assert inside(running, 101, "sha256sum free read written") == before


def test_a_file_whose_attributes_were_changed_keeps_what_it_links_to(pair: System) -> None:
    """A copy of metadata over a shared file needs that file like a link does."""
    data = os.urandom(100_000)
    for ctid in (101, 102):
        put(pair, ctid, data)
    pair.ok("vzcache", 101, 102)
    for ctid in (101, 102):
        pair.ok("vzctl", "start", ctid)
        pair.ok("vzctl", "exec", ctid, "chmod 600 /opt/data")
        pair.ok("vzctl", "stop", ctid, "--fast")
    pair.ok("vzpkg", "clean")
    before = sums(pair, 101)
    pair.ok("vzcache", "-r", 101)
    assert (own(pair, 101) / "opt/data").read_bytes() == data
    assert sums(pair, 101) == before


def test_containers_are_to_be_named(pair: System) -> None:
    pair.fails(1, "vzcache")
