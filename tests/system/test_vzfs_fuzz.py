"""Random sequences of operations give the same results and trees on vzfs and kernel overlayfs.

`PYVZ_FUZZ_SECONDS` sets how long each transport is tried (default 18 s), `PYVZ_FUZZ_SEED` repeats
a run; the seed is part of every failure. A failing sequence is shrunk to the shortest that fails.
"""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from posixcases import beds, calls
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)
from posixcases.moves import Move, Player
from posixcases.trees import Entry, difference, snapshot, without_links

pytestmark = pytest.mark.root

SECONDS = float(os.environ.get("PYVZ_FUZZ_SECONDS", "18"))
SEED = int(os.environ.get("PYVZ_FUZZ_SEED", "0")) or secrets.randbelow(10**9) + 1
REMOUNT = Move("remount")
PAUSE = Move("pause")

NAMES = ("a", "b", "c")
# Few names, so that moves meet each other; up to three deep.
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
data = st.sampled_from([b"", b"x", b"some bytes", bytes(range(256)) * 33])
offsets = st.sampled_from([0, 1, 4095, 4096, 10_000])
slots = st.integers(0, 2)
attributes = st.sampled_from(["user.a", "trusted.b", "user." + "c" * 100])
targets = st.sampled_from(["a", "b/c", "../a", "nowhere", "."])


def _move(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Move]:
    return st.tuples(*arguments).map(lambda chosen: Move(name, chosen))


BUILDING = (
    _move("create", paths, data),
    _move("mkdir", paths),
    _move("mkdir", paths),
    _move("node", paths, st.sampled_from(["fifo", "socket", "char", "block"])),
    _move("symlink", paths, targets),
    _move("link", paths, paths),
    _move("chmod", paths, st.sampled_from([0o600, 0o755, 0o4711, 0o1777])),
    _move("chown", paths, st.sampled_from([-1, 0, 7]), st.sampled_from([-1, 0, 8])),
    _move("times", paths, st.integers(0, 1000)),
    _move(
        "setxattr", paths, attributes, st.sampled_from([b"", b"v", b"w" * 200]), st.integers(0, 2)
    ),
)
CHANGING = (
    *BUILDING,
    _move("unlink", paths),
    _move("unlink", paths),
    _move("rmdir", paths),
    _move("rename", paths, paths, st.sampled_from([0, 0, 0, 1, 2])),
    _move("rename", paths, paths, st.sampled_from([0, 0, 0, 1, 2])),
    _move("removexattr", paths, attributes),
    _move("truncate", paths, st.sampled_from([0, 1, 5000])),
    _move("write", paths, offsets, data),
    _move("append", paths, data),
    _move(
        "allocate",
        paths,
        st.sampled_from([0, 1, 3, 16, 17]),
        offsets,
        st.sampled_from([1, 4096, 9000]),
    ),
    _move("copy", paths, paths, st.sampled_from([1, 4096]), offsets),
    _move("read", paths),
    _move("listing", paths),
    _move("look", paths),
    _move(
        "open", slots, paths, st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC])
    ),
    _move("shut", slots),
    _move("put", slots, offsets, data),
    _move("get", slots),
    _move("cut", slots, st.sampled_from([0, 3, 6000])),
    _move("change", slots, st.sampled_from([0o600, 0o644])),
    st.just(REMOUNT),
    st.just(PAUSE),
    st.just(PAUSE),
)
layer = st.lists(st.one_of(*BUILDING), max_size=14)
play = st.lists(st.one_of(*CHANGING), max_size=40)


def build(bed: beds.Bed, layers: Sequence[Sequence[Move]]) -> None:
    """Fill the lower layers."""
    for path, moves in zip(bed.lowers, layers, strict=True):
        player = Player(str(path))
        for move in moves:
            player.play(move)


def compare(
    kind: type[beds.Bed], home: Path, layers: Sequence[Sequence[Move]], moves: Sequence[Move]
) -> None:
    """Play the same on the subject and on overlayfs; raise AssertionError where they differ."""
    subject, oracle = (
        kind(home / "subject", len(layers)),
        beds.Overlayfs(home / "oracle", len(layers)),
    )
    for bed in (subject, oracle):
        build(bed, layers)
    try:
        with oracle.mounted(), subject.mounted():
            players = [Player(str(bed.merged)) for bed in (subject, oracle)]
            for number, move in enumerate(moves):
                if move.name in kind.refuses:
                    continue
                if move == PAUSE:
                    subject.pause()
                    continue
                if move == REMOUNT:
                    for player in players:
                        player.close()
                    for bed in (subject, oracle):
                        bed.remount()
                    continue
                got, wanted = (player.play(move) for player in players)
                assert got == wanted, (
                    f"move {number} {move}: {got!r:.200}, overlayfs: {wanted!r:.200}"
                )
            wanted_tree = snapshot(oracle.merged)
            assert not (d := difference(snapshot(subject.merged), wanted_tree)), "\n".join(d)
            for player in players:
                player.close()
            subject.remount()
            assert not (d := difference(snapshot(subject.merged), wanted_tree)), (
                "after a remount:\n" + "\n".join(d)
            )
        if any((subject.work / "index").glob("*")):
            return  # copies of lower files with several names are found through our own index
        by_overlayfs = subject_under_overlayfs(subject)
        d = difference(without_links(by_overlayfs), without_links(wanted_tree))
        assert not d, "the private area under overlayfs:\n" + "\n".join(d)
    finally:
        subject.abandon()
        oracle.abandon()


def subject_under_overlayfs(subject: beds.Bed) -> dict[str, Entry]:
    """Return the tree which kernel overlayfs makes of a private area."""
    reader = beds.Overlayfs(subject.home / "reader", 0)
    lower = ":".join(map(str, (subject.upper, *subject.lowers)))
    options = "redirect_dir=follow,metacopy=on,index=off"
    calls.mount("overlay", str(reader.merged), "overlay", 0, f"lowerdir={lower},{options}")
    try:
        return snapshot(reader.merged)
    finally:
        calls.unmount(str(reader.merged))


def fuzz(kind: type[beds.Bed], seconds: float, batch: int = 40) -> int:
    """Try random plays for a time, a batch a seed; return how many were tried."""
    deadline = time.monotonic() + seconds
    first = SEED
    tried = 0
    while time.monotonic() < deadline:
        try:
            tried += _batch(kind, first, batch)
        except AssertionError as error:
            raise AssertionError(f"PYVZ_FUZZ_SEED={first}: {error}") from error
        first += 1
    return tried


def _batch(kind: type[beds.Bed], number: int, examples: int) -> int:
    tried = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(layer, min_size=1, max_size=2), play)
    def differ(layers: list[list[Move]], moves: list[Move]) -> None:
        nonlocal tried
        tried += 1
        home = Path(tempfile.mkdtemp(prefix="pyvz-fuzz-"))
        try:
            compare(kind, home, layers, moves)
        finally:
            shutil.rmtree(home, ignore_errors=True)

    differ()
    return tried


@pytest.mark.parametrize("bed", ["vzfs-kernel", "vzfs-resting", "vzfs-pyfuse3"])
def test_random_operations_give_what_overlayfs_gives(bed: str) -> None:
    kind = beds.BEDS[bed]
    if missing := kind.missing():
        pytest.skip(missing)
    tried = fuzz(kind, SECONDS)
    print(f"{bed}: {tried} sequences, seed {SEED}")
    assert tried > 20


def test_the_comparison_notices_a_wrong_file_system() -> None:
    # The tree below is what overlayfs would never show; a comparison that passes it is blind.
    class Broken(beds.Overlayfs):
        def mount(self) -> None:
            super().mount()
            for name in NAMES:
                path = self.merged / name
                if path.is_file() and not path.is_symlink():
                    os.truncate(path, path.stat().st_size + 1)

    with pytest.raises(AssertionError, match=r"instead of|overlayfs:"):
        fuzz(Broken, 20)
