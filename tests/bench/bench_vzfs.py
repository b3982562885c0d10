"""VZFS against ext4, kernel overlayfs and fuse-overlayfs: metadata, data, copy-up, exec.

.venv/bin/python tests/bench/bench_vzfs.py [--quick] [--disk] [--only WORD] > result.json

Every row runs on all file systems in turn within a round, so that ratios hold on a noisy machine.
Rows whose name ends in " cold" begin with dropped dentries and inodes of the mount (a remount).
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP), str(TOP / "tests/system")]

from posixcases import beds, calls  # noqa: E402  (needs the path above)

from tests.bench._harness import emit, installed, scratch  # noqa: E402

BASE = "overlayfs"
#: Size of the file that holds a disk, most of it never written.
DISK = 24 << 30


class WithQuota(beds.Vzfs):
    """The default transport with a quota far from its limit."""

    name = "vzfs-quota"


class NearLimit(beds.Vzfs):
    """The same with every write counted one by one."""

    name = "vzfs-near"


@dataclass
class Row:
    """One measured thing: `prepare` runs unmeasured before each round."""

    name: str
    act: Callable[[Path], object]
    prepare: Callable[[beds.Bed], object] = lambda bed: None
    per: int = 1
    peers: tuple[str, ...] = ()
    slow: bool = False
    seconds: dict[str, list[float]] = field(default_factory=dict)


# What is measured ----------------------------------------------------------------------------------


def stat_all(root: Path) -> None:
    """lstat every name below a directory by path."""
    for name in NAMES:
        os.lstat(f"{root}/{name}")


def find(root: Path) -> None:
    """Walk like find(1)."""
    pending = [f"{root}/tree"]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def find_stat(root: Path) -> None:
    """Walk like ls -lR: every entry with its attributes."""
    pending = [f"{root}/tree"]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


COUNT = 1000


def create(root: Path) -> None:
    """Create small files."""
    for number in range(COUNT):
        one = os.open(f"{root}/new/f{number}", os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(one, b"x" * 100)
        os.close(one)


def unlink(root: Path) -> None:
    """Remove small files."""
    for number in range(COUNT):
        os.unlink(f"{root}/new/f{number}")


def rename(root: Path) -> None:
    """Rename small files within a folder."""
    for number in range(COUNT):
        os.rename(f"{root}/new/f{number}", f"{root}/new/g{number}")


def mkdir(root: Path) -> None:
    """Make and remove folders."""
    for number in range(COUNT):
        os.mkdir(f"{root}/new/d{number}")
    for number in range(COUNT):
        os.rmdir(f"{root}/new/d{number}")


def open_close(root: Path) -> None:
    """Open and close one file."""
    for _ in range(COUNT):
        os.close(os.open(f"{root}/small", os.O_RDONLY))


def readdir(root: Path) -> None:
    """List a folder of ten thousand names."""
    assert len(os.listdir(f"{root}/many")) == 10_000


def readdir_stat(root: Path) -> None:
    """List a folder of ten thousand names with attributes."""
    with os.scandir(f"{root}/many") as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)


def untar(root: Path) -> None:
    """Unpack a tree."""
    subprocess.run(["tar", "-xf", ARCHIVE, "-C", f"{root}/new"], check=True)


def remove_tree(root: Path) -> None:
    """Remove the tree unpacked before."""
    subprocess.run(["rm", "-rf", f"{root}/new"], check=True)
    os.mkdir(f"{root}/new")


SIZE = 64 << 20
BUFFER = bytearray(1 << 20)


def read_sequential(root: Path) -> None:
    """Read a cached file of the layer in pieces of 1 MiB."""
    one = os.open(f"{root}/big", os.O_RDONLY)
    while os.readv(one, [BUFFER]):
        pass
    os.close(one)


def read_random(root: Path) -> None:
    """Read 4 KiB at 4,000 places."""
    one = os.open(f"{root}/big", os.O_RDONLY)
    dice = random.Random(1)
    for _ in range(4000):
        os.pread(one, 4096, dice.randrange(SIZE // 4096) * 4096)
    os.close(one)


def write_sequential(root: Path) -> None:
    """Overwrite a private file in pieces of 1 MiB."""
    one = os.open(f"{root}/own", os.O_WRONLY)
    for number in range(SIZE >> 20):
        os.pwrite(one, BUFFER, number << 20)
    os.close(one)


def write_random(root: Path) -> None:
    """Overwrite 4 KiB at 4,000 places."""
    one = os.open(f"{root}/own", os.O_WRONLY)
    dice = random.Random(1)
    piece = bytes(4096)
    for _ in range(4000):
        os.pwrite(one, piece, dice.randrange(SIZE // 4096) * 4096)
    os.close(one)


def append_small(root: Path) -> None:
    """Write 4,000 new blocks at the end of a file."""
    one = os.open(f"{root}/new/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    piece = bytes(4096)
    for _ in range(4000):
        os.write(one, piece)
    os.close(one)
    os.unlink(f"{root}/new/log")


def map_read(root: Path) -> None:
    """Touch every page of a mapping."""
    one = os.open(f"{root}/big", os.O_RDONLY)
    with mmap.mmap(one, SIZE, prot=mmap.PROT_READ) as memory:
        total = 0
        for offset in range(0, SIZE, 4096):
            total += memory[offset]
    os.close(one)


def execute(root: Path) -> None:
    """Run a program of the layer a hundred times."""
    for _ in range(100):
        os.waitpid(os.posix_spawn(f"{root}/true", ["true"], {}), 0)


def _copy_up(size: int) -> tuple[Callable[[Path], None], Callable[[beds.Bed], None]]:
    name = f"copy{size}"

    def act(root: Path) -> None:
        one = os.open(f"{root}/{name}", os.O_WRONLY)
        os.pwrite(one, b"x", 0)
        os.close(one)

    def prepare(bed: beds.Bed) -> None:
        if not bed.has_lower:
            return
        bed.unmount()
        (bed.upper / name).unlink(missing_ok=True)
        bed.mount()
        os.stat(bed.merged / "small")  # the server is up

    return act, prepare


def fresh(bed: beds.Bed) -> None:
    """Forget what the kernel knows of a mount."""
    if bed.has_lower:
        bed.remount()
    else:
        subprocess.run(["sh", "-c", "echo 2 > /proc/sys/vm/drop_caches"], check=False)


def filled(bed: beds.Bed) -> None:
    """Have the small files there."""
    for name in os.listdir(bed.merged / "new"):
        os.unlink(bed.merged / "new" / name)
    create(bed.merged)


def emptied(bed: beds.Bed) -> None:
    """Have the folder for new files empty."""
    shutil.rmtree(bed.merged / "new")
    (bed.merged / "new").mkdir()


def rows(quick: bool) -> list[Row]:
    """Return everything to measure."""
    made = [
        Row("stat storm warm", stat_all, per=len(NAMES)),
        Row("stat storm cold", stat_all, fresh, per=len(NAMES)),
        Row("find warm", find),
        Row("find cold", find, fresh),
        Row("find with stat warm", find_stat),
        Row("find with stat cold", find_stat, fresh),
        Row("create 100 B", create, emptied, per=COUNT),
        Row("unlink", unlink, filled, per=COUNT),
        Row("rename", rename, filled, per=COUNT),
        Row("mkdir rmdir", mkdir, emptied, per=COUNT),
        Row("open close", open_close, per=COUNT),
        Row("readdir 10k", readdir),
        Row("readdir 10k with stat cold", readdir_stat, fresh),
        Row("untar", untar, emptied),
        Row("rm -rf", remove_tree, lambda bed: (emptied(bed), untar(bed.merged))),
        Row("read 1 MiB", read_sequential, per=SIZE >> 20),
        Row("read 4 KiB random", read_random, per=4000),
        Row("write 1 MiB", write_sequential, per=SIZE >> 20),
        Row("write 4 KiB random", write_random, per=4000),
        Row("append 4 KiB", append_small, per=4000),
        Row("mmap read", map_read),
        Row("exec", execute, per=100),
    ]
    sizes = [4096, 1 << 20, 64 << 20] + ([] if quick else [1 << 30])
    for size in sizes:
        act, prepare = _copy_up(size)
        made.append(Row(f"copy-up {size >> 10} KiB", act, prepare))
    return made


NAMES: list[str] = []
ARCHIVE = ""


def build(lower: Path, quick: bool) -> None:
    """Fill a layer: a Debian tree, many names, big files."""
    tree = lower / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-xf", ARCHIVE, "-C", tree], check=True)
    (lower / "many").mkdir()
    for number in range(10_000):
        os.mknod(lower / f"many/n{number}", 0o100644)
    (lower / "small").write_bytes(b"x" * 100)
    (lower / "new").mkdir()
    data = os.urandom(1 << 20)
    for name, size in (
        ("big", SIZE),
        ("own", SIZE),
        *((f"copy{s}", s) for s in (4096, 1 << 20, 64 << 20, *(() if quick else (1 << 30,)))),
    ):
        with open(lower / name, "wb") as file:
            for _ in range(max(1, size >> 20)):
                file.write(data[: min(size, 1 << 20)])
    shutil.copy2("/bin/true", lower / "true")


@contextmanager
def laid_out(place: Path, names: list[str], quick: bool) -> Iterator[list[beds.Bed]]:
    """Mount every file system over one layer of equal content."""
    known: dict[str, type[beds.Bed]] = {
        **beds.BEDS,
        "vzfs-quota": WithQuota,
        "vzfs-near": NearLimit,
    }
    made: list[beds.Bed] = []
    with ExitStack() as stack:
        for name in names:
            kind = known[name]
            if missing := kind.missing():
                print(f"{name}: {missing}", file=sys.stderr)
                continue
            bed = kind(place / name)
            if isinstance(bed, WithQuota | NearLimit):
                bed.settings = {"ledger": make_quota(bed, near=isinstance(bed, NearLimit))}
            build(bed.lower if bed.has_lower else bed.merged, quick)
            bed.mount()
            stack.callback(bed.abandon)
            # The private file of the write rows exists before they run.
            one = os.open(bed.merged / "own", os.O_WRONLY)
            os.pwrite(one, b"x", 0)
            os.close(one)
            made.append(bed)
        yield made


def make_quota(bed: beds.Vzfs, *, near: bool) -> Path:
    """Create a quota file for a private area; limits in KiB."""
    path = bed.home / "quota"
    limit = 4_000_000 if not near else 400_000
    subprocess.run(
        [
            TOP / ".venv/bin/vzquota", "init", "1", "-c", path, "-p", bed.home,
            "-b", str(limit), "-B", str(limit), "-e", "0", "-i", "1000000", "-I", "1000000", "-n", "0",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return path


@contextmanager
def disk(place: Path) -> Iterator[Path]:
    """Mount an ext4 with a journal, which a file in ``place`` holds.

    Without one ext4 does not reuse an inode for some seconds, and looks at all of these whenever
    it makes one (recently_deleted in fs/ext4/ialloc.c): what a row costs is then what others
    removed before it.
    """
    image, root = place / "disk.img", place / "disk"
    with open(image, "wb") as file:
        file.truncate(DISK)
    root.mkdir()
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-E", lazy, image], check=True)
    subprocess.run(["mount", "-o", "loop", image, root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


def measure(row: Row, made: list[beds.Bed], rounds: int) -> None:
    """Run a row on each file system in turn; the first round is not counted."""
    for number in range(rounds + 1):
        for bed in made:
            try:
                row.prepare(bed)
                begin = time.perf_counter()
                row.act(bed.merged)
                spent = time.perf_counter() - begin
            except (OSError, subprocess.SubprocessError, AssertionError) as error:
                print(f"{row.name} on {bed.name}: {error}", file=sys.stderr)
                continue
            if number:
                row.seconds.setdefault(bed.name, []).append(spent)


def table(row: Row) -> dict[str, object]:
    """Return (and print on stderr) microseconds a piece and ratios."""
    best = {name: min(times) / row.per * 1e6 for name, times in row.seconds.items()}
    result: dict[str, object] = {}
    cells = []
    for name, value in best.items():
        ratios = {
            peer: round(value / best[peer], 3)
            for peer in ("ext4", BASE, "fuse-overlayfs")
            if peer in best
        }
        median = statistics.median(row.seconds[name]) / row.per * 1e6
        result[name] = {
            "min_us": round(value, 2),
            "median_us": round(median, 2),
            "ratio_to": ratios,
        }
        cells.append(f"{name} {value:.1f} µs (×{ratios.get(BASE, '?')})")
    print(f"{row.name:<28} {'  '.join(cells)}", file=sys.stderr)
    return {"what": row.name, "base": BASE, "rows": result}


def main() -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="measured rounds of each (default 5, quick 2)")
    parser.add_argument("--quick", action="store_true", help="few rounds, no file above 64 MiB")
    parser.add_argument("--only", default="", metavar="WORD", help="rows with this in their name")
    parser.add_argument(
        "--beds",
        default="ext4,overlayfs,fuse-overlayfs,vzfs-kernel,vzfs-quota",
        help="file systems, separated by commas (also vzfs-pyfuse3, vzfs-near)",
    )
    parser.add_argument(
        "--disk", action="store_true", help="on an ext4 with a journal, in a file, made for the run"
    )
    args = parser.parse_args()
    rounds = args.rounds or (2 if args.quick else 5)
    names = [
        n for n in args.beds.split(",") if n != "fuse-overlayfs" or installed("fuse-overlayfs")
    ]
    global ARCHIVE
    with calls.own_mounts(), scratch() as outside, ExitStack() as stack:
        place = stack.enter_context(disk(outside)) if args.disk else outside
        ARCHIVE = str(place / "tree.tar")
        source = "/usr/lib/python3" if args.quick else "/usr/share/doc"
        subprocess.run(["tar", "-cf", ARCHIVE, "-C", source, "."], check=True)
        listed = subprocess.run(["tar", "-tf", ARCHIVE], capture_output=True, text=True, check=True)
        NAMES[:] = [f"tree/{line}" for line in listed.stdout.splitlines()]
        with laid_out(place, names, args.quick) as made:
            chosen = [row for row in rows(args.quick) if args.only in row.name]
            results = []
            for row in chosen:
                measure(row, made, rounds)
                results.append(table(row))
        emit(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
