"""Exercisers after fsx and fsstress on a mount under quota, for as long as one likes.

`-m slow` runs each for PYVZ_FSX_SECONDS on each transport (default 60). Between rounds the quota
must equal a count and the server's memory stay where it was; at the end nothing is left of
what was removed.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from exercisers import Watch, exercise, fight_at_once
from posixcases import beds
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)

from tests.system.quotabed import QuotaBed
from vzfs import quota

pytestmark = pytest.mark.root

SECONDS = float(os.environ.get("PYVZ_FSX_SECONDS", "60"))
#: How long the exercisers run between two looks at the server.
ROUND_S = 60.0
#: What a server may grow by, whatever is done to one file or a handful of names, in bytes.
ALLOWED = 8 << 20
PLENTY = {"block_soft": 1 << 30, "block_hard": 1 << 30, "sub_quotas": 1, "ugid_limit": 50}


@pytest.fixture(params=["vzfs-kernel", "vzfs-pyfuse3"])
def bed(request: pytest.FixtureRequest) -> Iterator[QuotaBed]:
    """An area under quota, not mounted yet, on each transport in turn."""
    kind = beds.BEDS[request.param]
    if missing := kind.missing():
        pytest.skip(missing)
    made = QuotaBed(
        Path(tempfile.mkdtemp(prefix="vzfs-long-")), request.param.removeprefix("vzfs-")
    )
    yield made
    made.close()


def _rounds(seconds: float) -> list[float]:
    """Return the lengths of the rounds of a load of so many seconds: two at least."""
    count = max(2, round(seconds / ROUND_S))
    return [seconds / count] * count


@pytest.mark.parametrize(
    "seconds", [3.0, pytest.param(SECONDS, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_one_file_changed_in_every_way_keeps_its_content(bed: QuotaBed, seconds: float) -> None:
    (bed.lower / "shared").write_bytes(random.Random(0).randbytes(300_000))
    top = bed.mount(**PLENTY)
    allocate = bed.options.transport == "kernel"
    watch = Watch(bed)
    acts = 0
    for number, length in enumerate(_rounds(seconds)):
        for name in ("shared", "own"):
            acts += exercise(top / name, length / 2, number, allocate=allocate)
        watch.look(ALLOWED)
    content = {name: (top / name).read_bytes() for name in ("shared", "own")}
    bed.unmount()
    assert bed.difference() == (0, 0)
    bed.mount()
    assert {name: (top / name).read_bytes() for name in content} == content
    watch.descriptors = Watch(bed).descriptors
    for name in content:
        exercise(top / name, 0.5, 0, allocate=allocate)
    watch.all_gone(lambda: [os.unlink(top / name) for name in content] and None)
    print(f"{bed.options.transport}: {acts} acts; {watch.figures()}")
    assert acts > 50


@pytest.mark.parametrize(
    "seconds", [4.0, pytest.param(SECONDS, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_processes_fighting_over_one_tree_leave_it_sound(bed: QuotaBed, seconds: float) -> None:
    for name in ("a", "b", "c"):
        (bed.lower / name).mkdir()
        for inner in ("a", "b", "c"):
            (bed.lower / name / inner).write_bytes(b"shared")
    top = bed.mount(**PLENTY)
    watch = Watch(bed)
    moves = 0
    for number, length in enumerate(_rounds(seconds)):
        # Every other round the tree has hardly any room.
        full = bool(number % 2)
        room = bed.used_kib() + 40 if full else 1 << 30
        quota.apply_space(bed.file, room, room)
        numbers = range(4 * number, 4 * number + 4)
        moves += fight_at_once(bed, length, numbers, full=full)
        watch.look(ALLOWED)
        assert bed.used_kib() <= room, f"{bed.used_kib()} of {room} KiB"
        _check_listings(top)
    quota.apply_space(bed.file, 1 << 30, 1 << 30)
    before = sorted(str(path) for path in top.rglob("*"))
    bed.unmount()
    assert bed.difference() == (0, 0)
    bed.mount()
    assert sorted(str(path) for path in top.rglob("*")) == before
    watch.descriptors = Watch(bed).descriptors
    moves += fight_at_once(bed, 1, [0])
    watch.all_gone(lambda: [_remove(entry) for entry in top.iterdir()] and None)
    assert os.listdir(top) == []
    print(f"{bed.options.transport}: {moves} moves; {watch.figures()}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _check_listings(top: Path) -> None:
    for place, folders, files in os.walk(top):
        listed = set(os.listdir(place))
        assert listed == set(folders) | set(files)
        for name in listed:
            os.lstat(os.path.join(place, name))
