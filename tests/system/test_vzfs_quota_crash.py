"""Disk quotas and death: killed servers, crashed machines, interrupted commands."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.quotabed import QuotaBed, fill
from vzfs import quota, quotastate
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import W_BOOT, W_SCANNED

pytestmark = pytest.mark.root


@pytest.fixture
def bed() -> Iterator[QuotaBed]:
    """Return an area, not mounted yet."""
    made = QuotaBed(Path(tempfile.mkdtemp(prefix="vzfs-quota-")))
    yield made
    made.close()


def _scanned(bed: QuotaBed) -> int:
    with QuotaFile.open(bed.file) as file:
        return file.live[W_SCANNED]


def test_a_killed_server_at_rest_loses_nothing_and_needs_no_scan(bed: QuotaBed) -> None:
    top = bed.mount(sub_quotas=1, ugid_limit=10)
    (top / "f").write_bytes(b"x" * 1_000_000)
    bed.settled()
    with QuotaFile.open(bed.file) as file:
        file.live[W_SCANNED] = 0
    bed.kill()
    bed.serve(resume=True)
    (top / "g").write_bytes(b"x" * 1_000_000)
    assert bed.settled() == (0, 0)
    assert bed.owners_settled()
    assert _scanned(bed) == 0


def test_what_is_written_while_no_server_lives_is_charged(bed: QuotaBed) -> None:
    top = bed.mount()
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "for i in range(2000): os.pwrite(fd, b'x' * 4096, i * 8192)\n"
        "os.write(1, b'd'); sys.stdin.read()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-I", "-c", script, top / "f"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdin is not None and writer.stdout is not None
    for _ in range(5):
        time.sleep(0.02)
        bed.kill()
        time.sleep(0.02)
        bed.serve(resume=True)
    assert writer.stdout.read(1) == b"d"
    assert bed.settled() == (0, 0)
    writer.stdin.close()
    writer.stdout.close()
    writer.wait(10)
    assert bed.settled() == (0, 0)


def test_servers_killed_in_a_storm_leave_right_figures(bed: QuotaBed) -> None:
    top = bed.mount(sub_quotas=1, ugid_limit=10)

    def storm() -> None:
        for words in (
            ["cp", "-a", "/usr/share/doc/bash", "/usr/lib/python3.11/json", top],
            ["rm", "-rf", top / "json"],
        ):
            subprocess.run(words, check=False, capture_output=True)

    for number in range(10):
        thread = threading.Thread(target=storm)
        thread.start()
        time.sleep(0.005 + 0.004 * number)
        bed.kill()
        bed.serve(resume=True)
        thread.join(30)
        assert not thread.is_alive()
        blocks, inodes = bed.settled(0.5)
        # A file which the dead server had open for the kernel is on the disk until the unmount.
        assert blocks >= 0 and inodes >= 0
    bed.unmount()
    assert bed.difference() == (0, 0)
    assert not bed.state().dirty


def test_the_limit_holds_after_a_restart(bed: QuotaBed) -> None:
    top = bed.mount(block_soft=20_000, block_hard=20_000)
    assert fill(top / "f", 65536, 100)[0] == 0
    bed.kill()
    bed.serve(resume=True)
    assert fill(top / "g", 65536, 1000)[0] == errno.EDQUOT
    assert bed.settled() == (0, 0)
    assert bed.used_kib() <= 20_000


def test_the_limit_binds_who_opened_a_file_under_a_server_that_died(bed: QuotaBed) -> None:
    top = bed.mount(block_soft=20_000, block_hard=20_000)
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "os.write(fd, b'x' * 4096)\n"
        "os.write(1, b'o'); sys.stdin.read(1)\n"
        "try:\n"
        "    while True: os.write(fd, b'x' * 65536)\n"
        "except OSError as error: print(error.errno)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-I", "-c", script, top / "f"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdin is not None and writer.stdout is not None
    assert writer.stdout.read(1) == b"o"
    bed.kill()
    bed.serve(resume=True)
    out, _ = writer.communicate(b"g", timeout=60)
    assert int(out) == errno.EDQUOT
    assert bed.settled() == (0, 0)
    assert bed.used_kib() <= 20_000


def test_a_clean_stop_leaves_a_clean_file_and_no_scan_at_the_next_start(bed: QuotaBed) -> None:
    top = bed.mount(block_soft=20_000, block_hard=20_000)
    (top / "f").write_bytes(b"x" * 1_000_000)
    bed.unmount()
    state = quotastate.snapshot(bed.file)
    assert not state.dirty and not state.running
    assert bed.difference() == (0, 0)
    with QuotaFile.open(bed.file) as file:
        file.live[W_SCANNED] = 0
        file.seal()
    bed.mount()
    assert _scanned(bed) == 0
    assert bed.state().running


def test_after_a_crash_of_the_machine_the_area_is_scanned(bed: QuotaBed) -> None:
    top = bed.mount(sub_quotas=1, ugid_limit=10)
    (top / "f").write_bytes(b"x" * 1_000_000)
    bed.settled()
    bed.kill()
    # What the page cache held is lost, and the machine has another boot id.
    with QuotaFile.open(bed.file) as file:
        file.live[W_BOOT] ^= 1
        file.live[7] = 123
    bed.close_mount()
    assert quotastate.snapshot(bed.file).dirty
    bed.mount()
    assert bed.difference() == (0, 0)
    assert bed.owners_settled()


def test_a_change_survives_the_death_of_the_server_that_had_not_read_it(bed: QuotaBed) -> None:
    top = bed.mount(block_soft=20_000, block_hard=20_000)
    quota.apply_space(bed.file, 1000, 1000)
    bed.kill()
    bed.serve(resume=True)
    assert fill(top / "f", 65536, 100)[0] == errno.EDQUOT


def test_ten_thousand_files_are_scanned_within_a_second(bed: QuotaBed) -> None:
    for number in range(100):
        directory = bed.upper / f"d{number}"
        directory.mkdir()
        for name in range(100):
            os.close(os.open(directory / str(name), os.O_CREAT | os.O_WRONLY))
    bed.mount()
    took_us = bed.state().scan_us
    assert bed.state().usage.inodes == 10_101
    assert took_us < 1_000_000
