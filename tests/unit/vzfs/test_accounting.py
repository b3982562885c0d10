"""Charges: what changes behind the server's back is charged in the end, whoever dies."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from vzfs import quotastate, syscalls
from vzfs.accounting import Accounting
from vzfs.ledger import Ledger
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import F_UGID, Limits
from vzfs.quotascan import scan


class Served:
    """An area served without a mount: the test makes the changes, and the calls."""

    def __init__(self, top: Path) -> None:
        self.area = top / "area"
        self.path = top / "quota.1"
        self.area.mkdir()
        self.fds: list[int] = []
        limits = Limits(sub_quotas=1, ugid_limit=10)
        QuotaFile.create(self.path, str(self.area), limits).close()
        self.start()

    def start(self, *, resume: bool = False) -> None:
        """Become the server."""
        self.ledger = Ledger.attach(self.path, resume=resume)
        self.accounting = Accounting(self.ledger, str(self.area))

    def kill(self) -> None:
        """Die as by SIGKILL."""
        self.ledger.commit()
        self.ledger.file.close()

    def create(self, name: str) -> int:
        """Make a file as the server does; return a descriptor open for writing."""
        fd = self._directory()
        self.accounting.watch(os.fstat(fd), fd)
        self.ledger.reserve(0, 0, 0, 1)
        fd = os.open(self.area / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        st = os.fstat(fd)
        self.accounting.created(0, 0, 0, st.st_blocks)
        self.accounting.opened(st, fd)
        self.ledger.commit()
        return fd

    def _directory(self) -> int:
        fd = os.open(self.area, os.O_RDONLY)
        self.fds.append(fd)
        return fd

    def close(self, fd: int) -> None:
        """Close it as the server does."""
        st = os.fstat(fd)
        os.close(fd)
        self.accounting.closed(st)
        self.ledger.commit()

    def agrees(self) -> bool:
        """Whether the recorded usage is what a scan finds."""
        usage, found = self.ledger.file.usage(), scan(self.area)
        return (usage.blocks, usage.inodes) == (found.blocks, found.inodes)

    def exact(self) -> bool:
        """Whether a command looking at the running quota gets what a scan finds."""
        state, found = quotastate.snapshot(self.path), scan(self.area)
        users = {row.ident: row.usage.blocks for row in state.records if row.kind == 0}
        assert users == {ident: blocks for ident, (blocks, _) in found.users.items()}
        return (state.usage.blocks, state.usage.inodes) == (found.blocks, found.inodes)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Return a served area."""
    made = Served(tmp_path)
    assert made.ledger.file.flags & F_UGID
    yield made
    for fd in made.fds:
        os.close(fd)
    made.fds.clear()
    made.ledger.file.close()


def test_what_an_open_writer_wrote_is_seen_at_once_and_charged_at_close(served: Served) -> None:
    fd = served.create("f")
    os.write(fd, b"x" * 1_000_000)
    assert served.exact() and not served.agrees()
    served.close(fd)
    assert served.agrees()


def test_a_directory_that_grew_is_charged_at_the_next_look(served: Served) -> None:
    for number in range(300):
        served.close(served.create(f"a-name-that-takes-room-{number:0100}"))
    assert served.exact()
    served.accounting.flush()
    assert served.agrees()


def test_growth_while_no_server_lives_is_charged_by_the_next_one(served: Served) -> None:
    fd = served.create("f")
    served.kill()
    os.write(fd, b"x" * 1_000_000)
    served.start(resume=True)
    assert served.exact()
    served.accounting.flush()
    assert served.agrees()
    served.close(fd)


def test_a_writer_of_a_dead_server_stays_watched_after_another_closed(served: Served) -> None:
    fd = served.create("f")
    served.kill()
    served.start(resume=True)
    again = os.open(served.area / "f", os.O_WRONLY)
    served.accounting.opened(os.fstat(again), again)
    served.close(again)
    os.write(fd, b"x" * 100_000)
    served.accounting.flush()
    assert served.agrees()
    os.close(fd)


def test_an_orphan_is_charged_until_it_is_evicted(served: Served) -> None:
    before = served.ledger.file.usage()
    fd = served.create("f")
    os.write(fd, b"x" * 100_000)
    st = os.stat(served.area / "f")
    os.unlink(served.area / "f")
    served.accounting.orphaned(st, fd)
    served.accounting.settle(served.accounting.charges[st.st_ino], st.st_blocks)
    assert served.ledger.file.usage().blocks >= before.blocks + 192
    assert served.ledger.file.usage().inodes == before.inodes + 1
    os.close(fd)
    served.accounting.closed(st)
    assert not served.agrees()
    served.accounting.evicted(st.st_ino)
    assert served.agrees()


def test_a_file_found_before_its_removal_is_charged_while_it_is_open(served: Served) -> None:
    found = served.create("f")
    served.close(found_again := os.dup(found))
    before = os.fstat(found)
    os.unlink(served.area / "f")
    served.accounting.removed(before)
    served.accounting.changed(os.fstat(found), before.st_blocks)
    served.accounting.chown(os.fstat(found), 7, 7)
    assert served.agrees()
    os.write(found, b"x" * 70_000)
    st = os.fstat(found)
    assert served.accounting.opened(st).orphan
    usage = served.ledger.file.usage()
    assert (usage.blocks, usage.inodes) == (scan(served.area).blocks + st.st_blocks, 2)
    served.close(found)
    served.accounting.evicted(st.st_ino)
    served.ledger.commit()
    assert served.agrees()
    assert found_again >= 0


def test_an_orphan_of_a_dead_server_is_given_back_when_it_is_gone(served: Served) -> None:
    fd = served.create("f")
    os.write(fd, b"x" * 100_000)
    st = os.fstat(fd)
    os.unlink(served.area / "f")
    served.accounting.orphaned(st, fd)
    served.accounting.settle(served.accounting.charges[st.st_ino], st.st_blocks)
    served.kill()
    served.start(resume=True)
    served.accounting.flush()
    assert served.ledger.file.usage().inodes == scan(served.area).inodes + 1
    os.close(fd)
    served.accounting.flush()
    assert served.agrees()


def test_an_inode_number_used_again_is_not_taken_for_what_a_dead_server_had_open(
    served: Served,
) -> None:
    fd = served.create("f")
    st = os.fstat(fd)
    os.unlink(served.area / "f")
    served.accounting.orphaned(st, fd)
    served.kill()
    served.start(resume=True)
    os.close(fd)
    # A new file may get its number before anybody looks; `create` tells of it.
    before = served.ledger.file.usage().inodes
    served.accounting.born(st.st_ino)
    assert served.ledger.file.usage().inodes == before - 1
    assert st.st_ino not in served.accounting.charges
    assert served.agrees()


def test_a_container_that_starts_after_its_server_died_is_scanned(served: Served) -> None:
    fd = served.create("f")
    served.kill()
    os.write(fd, b"x" * 100_000)
    os.close(fd)
    served.start()
    assert served.agrees()


def test_removal_gives_back_what_was_charged_not_what_is_there(served: Served) -> None:
    fd = served.create("f")
    os.write(fd, b"x" * 100_000)
    st = os.fstat(fd)
    os.close(fd)
    os.unlink(served.area / "f")
    served.accounting.removed(st)
    assert served.agrees()


def test_chown_moves_what_was_charged(served: Served) -> None:
    fd = served.create("f")
    os.write(fd, b"x" * 100_000)
    st = os.fstat(fd)
    served.accounting.chown(st, 5, 6)
    os.fchown(fd, 5, 6)
    assert served.exact()
    served.close(fd)
    assert served.exact() and served.agrees()


def test_a_change_by_the_server_counts_once_while_a_writer_has_it_open(served: Served) -> None:
    fd = served.create("f")
    os.write(fd, b"x" * 100_000)
    before = os.fstat(fd).st_blocks
    os.ftruncate(fd, 0)
    served.accounting.changed(os.fstat(fd), before)
    assert served.agrees()
    served.close(fd)
    assert served.agrees()


def test_more_open_writers_than_a_chunk_holds_find_room(served: Served) -> None:
    fds = [served.create(f"f{number}") for number in range(1000)]
    assert len(served.ledger.file.chunks) == 3  # two of charges, one of records
    assert served.exact()
    for fd in fds:
        served.close(fd)
    served.accounting.flush()
    assert served.agrees()


def test_finishing_leaves_exact_usage_and_no_charge(served: Served) -> None:
    fd = served.create("f")
    os.write(fd, b"x" * 500_000)
    os.close(fd)
    served.accounting.finish()
    served.ledger.detach()
    state, found = quotastate.snapshot(served.path), scan(served.area)
    assert (state.usage.blocks, state.usage.inodes) == (found.blocks, found.inodes)
    assert not state.dirty
    with QuotaFile.open(served.path) as file:
        assert not any(words[at] for words, at in file.charge_places())


def test_extents_that_are_rearranged_after_the_last_close_are_charged(served: Served) -> None:
    rearranged = 0
    for seed in range(150):
        fd = served.create(f"f{seed}")
        _scatter(fd, random.Random(seed))
        path = served.area / f"f{seed}"
        served.close(fd)
        before = path.stat().st_blocks
        if seed % 2:
            # The disk takes its time; somebody looks after that.
            _write_out(path)
            rearranged += path.stat().st_blocks != before
            assert served.exact(), seed
    served.accounting.finish()
    for seed in range(150):
        _write_out(served.area / f"f{seed}")
    assert served.agrees()
    if _file_system(served.area) == "ext4":
        assert rearranged


def _file_system(path: Path) -> str:
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as mounts:
        fields = next(line.split() for line in mounts if line.split()[2] == wanted)
    return fields[fields.index("-") + 1]


def _scatter(fd: int, dice: random.Random) -> None:
    """Write, allocate and free here and there, so that a file has many extents for a while."""
    for _ in range(dice.randrange(3, 25)):
        offset = dice.choice([0, 1, 4096, 70_000])
        act = dice.randrange(4)
        if act == 0:
            os.ftruncate(fd, dice.choice([0, 5, 100_000]))
        elif act == 1:
            syscalls.fallocate(fd, dice.choice([0, 1, 3, 16]), offset, 9000)
        else:
            os.pwrite(fd, b"x" * dice.choice([6000, 20_000]), offset)
        if dice.random() < 0.2:
            syscalls.write_out(fd)


def _write_out(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    syscalls.write_out(fd)
    os.close(fd)
