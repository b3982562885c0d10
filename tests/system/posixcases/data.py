"""Content: read, write, truncate, fallocate, holes, copies (POSIX and Linux pages)."""

import errno
import mmap
import os
import resource
from collections.abc import Iterator

from . import calls
from .frame import ALICE, BOB, SOLID_KINDS, Scene, case, opened, read

BLOCK = 4096
# Sizes around pages, the FUSE request sizes and a file of several requests.
SIZES = (0, 1, 4095, 4096, 4097, 65536, 131071, 131073, 1048577)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes which differ at every offset a mistake is likely to shift by."""
    cycle = bytes((n * 7 + seed + (n >> 8)) & 0xFF for n in range(4099))
    return (cycle * (size // 4099 + 1))[:size]


@case(size=SIZES, chunk=(1 << 20, 4096, 777))
def what_was_written_is_read(t: Scene, size: int, chunk: int) -> Iterator[None]:
    t.write("before", pattern(size))
    yield
    t.content("before", pattern(size))
    content = pattern(size)
    with opened("now", os.O_CREAT | os.O_WRONLY) as one:
        for start in range(0, size, chunk):
            os.write(one, content[start : start + chunk])
    t.content("now", pattern(size))
    t.equal(os.stat("now").st_size, size, "size")


@case(size=SIZES, offset=(0, 1, 4095, 4096, 5000, 200000), length=(1, 4096, 10000))
def pwrite_changes_only_its_range(t: Scene, size: int, offset: int, length: int) -> Iterator[None]:
    t.write("x", pattern(size))
    yield
    wanted = bytearray(pattern(size).ljust(offset + length, b"\0"))
    wanted[offset : offset + length] = pattern(length, 9)
    with opened("x", os.O_RDWR) as one:
        t.equal(os.pwrite(one, pattern(length, 9), offset), length, "bytes written")
        t.equal(os.fstat(one).st_size, len(wanted), "size")
        t.equal(os.pread(one, len(wanted) + 10, 0), bytes(wanted), "content")
    t.content("x", bytes(wanted))


@case(size=SIZES, new=(0, 1, 4095, 4097, 131072, 3_000_000), how=("path", "descriptor", "append"))
def truncation_cuts_or_fills_with_zeros(t: Scene, size: int, new: int, how: str) -> Iterator[None]:
    t.write("x", pattern(size))
    yield
    if how == "path":
        os.truncate("x", new)
    else:
        flags = os.O_RDWR if how == "descriptor" else os.O_WRONLY | os.O_APPEND
        with opened("x", flags) as one:
            os.ftruncate(one, new)
            t.equal(os.fstat(one).st_size, new, "size by descriptor")
    t.content("x", pattern(size)[:new].ljust(new, b"\0"))
    os.truncate("x", size + 10)
    t.content("x", pattern(size)[: min(new, size)].ljust(size + 10, b"\0"))


@case(size=(1, 5000, 100_000))
def bytes_cut_off_never_come_back(t: Scene, size: int) -> Iterator[None]:
    t.write("x", pattern(size))
    yield
    with opened("x", os.O_RDWR) as one:
        os.ftruncate(one, size // 2)
        os.ftruncate(one, size * 2)
        os.pwrite(one, b"end", size * 2)
        wanted = pattern(size)[: size // 2].ljust(size * 2, b"\0") + b"end"
        t.equal(os.pread(one, size * 2 + 10, 0), wanted, "content")


@case(kind=SOLID_KINDS)
def truncate_wants_a_regular_file(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o644)
    yield
    if kind == "regular":
        os.truncate("x", 5)
        t.fails(errno.EINVAL, os.truncate, "x", -1)
    else:
        t.fails(errno.EISDIR if kind == "dir" else errno.EINVAL, os.truncate, "x", 5)


@case(call=("truncate", "ftruncate", "pwrite", "fallocate"))
def the_file_size_limit_is_efbig(t: Scene, call: str) -> Iterator[None]:
    t.write("x", b"start")
    yield
    limit = 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with opened("x", os.O_RDWR) as one:
            if call == "truncate":
                t.fails(errno.EFBIG, os.truncate, "x", limit + 1)
            elif call == "ftruncate":
                t.fails(errno.EFBIG, os.ftruncate, one, limit + 1)
            elif call == "pwrite":
                t.fails(errno.EFBIG, os.pwrite, one, b"x", limit)
                t.equal(os.pwrite(one, b"x" * 100, limit - 10), 10, "bytes up to the limit")
            else:
                t.fails(errno.EFBIG, calls.fallocate, one, 0, 0, limit + 1)
            os.ftruncate(one, limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@case(size=(2**31 - 1, 2**31 + 5, 2**32 + 7, 2**40))
def large_sparse_files_have_large_sizes(t: Scene, size: int) -> Iterator[None]:
    t.write("x", b"start")
    yield
    with opened("x", os.O_RDWR) as one:
        os.pwrite(one, b"end", size)
        t.equal(os.fstat(one).st_size, size + 3, "size")
        t.equal(os.pread(one, 10, size), b"end", "content at the end")
        t.equal(os.pread(one, 10, size - 20), bytes(10), "content of the hole")
        t.true(os.fstat(one).st_blocks < 100, "the hole takes blocks")


@case(writers=(2, 5))
def appends_never_overwrite_each_other(t: Scene, writers: int) -> Iterator[None]:
    t.write("x", b"")
    yield
    many = [os.open("x", os.O_WRONLY | os.O_APPEND) for _ in range(writers)]
    for round_ in range(20):
        for number, one in enumerate(many):
            os.write(one, bytes([65 + number]) * (round_ + 1))
    for one in many:
        os.close(one)
    wanted = b"".join(bytes([65 + n]) * (r + 1) for r in range(20) for n in range(writers))
    t.content("x", wanted)


@case(processes=(2, 4))
def appends_of_processes_are_whole(t: Scene, processes: int) -> Iterator[None]:
    t.write("x", b"")
    yield
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            with opened("x", os.O_WRONLY | os.O_APPEND) as one:
                for _ in range(50):
                    os.write(one, bytes([65 + number]) * 99 + b"\n")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    lines = read("x").splitlines()
    t.equal(len(lines), 50 * processes, "lines")
    t.true(all(len(set(line)) == 1 and len(line) == 99 for line in lines), "torn lines")


# Holes ---------------------------------------------------------------------------------------------


@case(when=("before", "now"), hole=(4096, 65536, 1 << 20))
def seek_finds_data_and_holes(t: Scene, when: str, hole: int) -> Iterator[None]:
    def build() -> None:
        with opened("x", os.O_CREAT | os.O_RDWR, 0o644) as one:
            os.pwrite(one, pattern(BLOCK), hole)
            os.pwrite(one, pattern(BLOCK), 3 * hole)
            os.ftruncate(one, 4 * hole + 100 * BLOCK)

    if when == "before":
        build()
    yield
    if when == "now":
        build()
    end = 4 * hole + 100 * BLOCK
    if t.layer == "lower" and when == "before":
        # A copy may have fewer holes than its origin, but must not call data a hole.
        with opened("x", os.O_RDWR) as one:
            for start in (hole, 3 * hole):
                t.equal(os.lseek(one, start, os.SEEK_DATA), start, "data at data")
                t.true(os.lseek(one, start, os.SEEK_HOLE) >= start + BLOCK, "data is a hole")
        return
    with opened("x", os.O_RDWR) as one:
        # A file system may report less holes than there are, never data as a hole.
        t.equal(os.lseek(one, hole, os.SEEK_DATA), hole, "data at data")
        first = os.lseek(one, 0, os.SEEK_DATA)
        t.equal(first, hole, "first data")
        t.equal(os.lseek(one, hole, os.SEEK_HOLE), hole + BLOCK, "hole after data")
        t.equal(os.lseek(one, hole + BLOCK, os.SEEK_DATA), 3 * hole, "second data")
        t.equal(os.lseek(one, 0, os.SEEK_HOLE), 0, "hole at the start")
        t.fails(errno.ENXIO, os.lseek, one, 3 * hole + BLOCK, os.SEEK_DATA)
        t.fails(errno.ENXIO, os.lseek, one, end, os.SEEK_HOLE)
        t.equal(os.lseek(one, 3 * hole + BLOCK, os.SEEK_HOLE), 3 * hole + BLOCK, "last hole")


@case(attribute=("chmod", "write"))
def holes_survive_a_change_of_the_file(t: Scene, attribute: str) -> Iterator[None]:
    with opened("x", os.O_CREAT | os.O_RDWR, 0o644) as one:
        os.pwrite(one, b"end", 64 << 20)
    yield
    if attribute == "chmod":
        os.chmod("x", 0o600)
    else:
        with opened("x", os.O_WRONLY) as one:
            os.pwrite(one, b"E", 64 << 20)
    t.true(os.stat("x").st_blocks < 1000, f"{os.stat('x').st_blocks} blocks for a hole")
    t.equal(os.stat("x").st_size, (64 << 20) + 3, "size")


# fallocate -----------------------------------------------------------------------------------------

KEEP, PUNCH, ZERO = calls.FALLOC_KEEP_SIZE, calls.FALLOC_PUNCH_HOLE, calls.FALLOC_ZERO_RANGE
COLLAPSE, INSERT = calls.FALLOC_COLLAPSE_RANGE, calls.FALLOC_INSERT_RANGE
ALLOCATIONS = {
    "plain": 0,
    "keep": KEEP,
    "punch": PUNCH | KEEP,
    "zero": ZERO,
    "zero_keep": ZERO | KEEP,
    "collapse": COLLAPSE,
    "insert": INSERT,
}


def _shifts_ranges() -> bool:
    """Whether ranges can be inserted and removed here at all."""
    with opened("probe", os.O_CREAT | os.O_RDWR) as one:
        os.write(one, bytes(3 * BLOCK))
        try:
            calls.fallocate(one, COLLAPSE, 0, BLOCK)
        except OSError as error:
            return error.errno != errno.EOPNOTSUPP
        return True


@case(
    how=tuple(ALLOCATIONS),
    offset=(0, 4096, 8192, 100),
    length=(4096, 8192, 50),
    size=(0, 5, 16384, 20000),
)
def fallocate_does_what_its_mode_says(
    t: Scene, how: str, offset: int, length: int, size: int
) -> Iterator[None]:
    t.write("x", pattern(size))
    yield
    old, end = pattern(size), offset + length
    wanted: bytes | int
    aligned = offset % BLOCK == 0 and length % BLOCK == 0
    if how == "plain":
        wanted = old.ljust(end, b"\0")
    elif how == "keep":
        wanted = old
    elif how in ("punch", "zero_keep", "zero"):
        zeroed = old[:offset] + bytes(max(0, min(end, size) - offset)) + old[end:]
        wanted = zeroed.ljust(end, b"\0") if how == "zero" else zeroed
    elif not aligned or (how == "collapse" and end >= size) or (how == "insert" and offset >= size):
        wanted = errno.EINVAL
    elif how == "collapse":
        wanted = old[:offset] + old[end:]
    else:
        wanted = old[:offset] + bytes(length) + old[offset:]
    with opened("x", os.O_RDWR) as one:
        if how in ("collapse", "insert") and not _shifts_ranges():
            # fuse_file_fallocate() of the kernel refuses these modes before it asks anybody.
            t.fails(errno.EOPNOTSUPP, calls.fallocate, one, ALLOCATIONS[how], offset, length)
            wanted = old
        elif isinstance(wanted, int):
            t.fails(wanted, calls.fallocate, one, ALLOCATIONS[how], offset, length)
            wanted = old
        else:
            calls.fallocate(one, ALLOCATIONS[how], offset, length)
        t.equal(os.fstat(one).st_size, len(wanted), "size")
    t.content("x", wanted)


@case(access=(os.O_RDONLY, os.O_WRONLY), how=("plain", "punch"))
def fallocate_needs_a_writer_and_a_sense(t: Scene, access: int, how: str) -> Iterator[None]:
    t.write("x", pattern(100))
    yield
    mode = ALLOCATIONS[how]
    with opened("x", access) as one, t.untouched("x"):
        if access == os.O_RDONLY:
            t.fails(errno.EBADF, calls.fallocate, one, mode, 0, 10)
        else:
            t.fails(errno.EINVAL, calls.fallocate, one, mode, -1, 10)
            t.fails(errno.EINVAL, calls.fallocate, one, mode, 0, 0)
            t.fails(errno.EINVAL, calls.fallocate, one, mode, 0, -5)
            t.fails((errno.EOPNOTSUPP, errno.EINVAL), calls.fallocate, one, PUNCH, 0, 10)


@case(kind=("dir", "fifo"))
def fallocate_of_other_kinds_is_refused(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755)
    yield
    flags = os.O_RDONLY if kind == "dir" else os.O_RDWR | os.O_NONBLOCK
    with opened("x", flags) as one:
        code = errno.EBADF if kind == "dir" else errno.ESPIPE
        t.fails(code, calls.fallocate, one, 0, 0, 10)


@case(offset=(0, 100, 4096), length=(1, 5000))
def posix_fallocate_makes_room(t: Scene, offset: int, length: int) -> Iterator[None]:
    t.write("x", b"abc")
    yield
    with opened("x", os.O_RDWR) as one:
        os.posix_fallocate(one, offset, length)
        t.equal(os.fstat(one).st_size, max(3, offset + length), "size")
        t.true(os.fstat(one).st_blocks * 512 >= length, "no blocks were allocated")
    t.equal(read("x")[:3], b"abc", "content")


# Other ways to move bytes --------------------------------------------------------------------------


@case(size=(0, 100, 4096, 300_000), offset=(0, 10), when=("upper", "mixed"))
def copy_file_range_copies(t: Scene, size: int, offset: int, when: str) -> Iterator[None]:
    t.write("source", pattern(size))
    if when == "mixed":
        t.write("target", b"old" * 10)
    yield
    with opened("source", os.O_RDONLY) as a, opened("target", os.O_CREAT | os.O_RDWR) as b:
        left, at = size, offset
        while left and (count := os.copy_file_range(a, b, left, size - left, at)):
            left, at = left - count, at + count
        t.equal(left, 0, "bytes not copied")
    old = b"old" * 10 if when == "mixed" else b""
    wanted = bytearray(old.ljust(offset + size if size else len(old), b"\0"))
    if size:
        wanted[offset : offset + size] = pattern(size)
    t.content("target", bytes(wanted))


@case(length=(10, 4096))
def copy_file_range_within_a_file(t: Scene, length: int) -> Iterator[None]:
    t.write("x", pattern(20000))
    yield
    with opened("x", os.O_RDWR) as one:
        t.fails(errno.EINVAL, os.copy_file_range, one, one, length, 0, length // 2)
        t.equal(os.copy_file_range(one, one, length, 0, 10000), length, "bytes copied")
        t.equal(os.pread(one, length, 10000), pattern(20000)[:length], "content")


@case(access=("read", "append"))
def copy_file_range_checks_the_target(t: Scene, access: str) -> Iterator[None]:
    t.write("x", pattern(100))
    t.write("y", pattern(100))
    yield
    flags = os.O_RDONLY if access == "read" else os.O_WRONLY | os.O_APPEND
    with opened("x", os.O_RDONLY) as a, opened("y", flags) as b, t.untouched("y"):
        t.fails(errno.EBADF, os.copy_file_range, a, b, 10)


@case(size=(100, 70_000, 300_000))
def sendfile_and_splice_carry_bytes(t: Scene, size: int) -> Iterator[None]:
    t.write("source", pattern(size))
    t.write("target", b"")
    yield
    with opened("source", os.O_RDONLY) as a, opened("target", os.O_WRONLY) as b:
        at = 0
        while at < size and (count := os.sendfile(b, a, at, size - at)):
            at += count
    t.content("target", pattern(size))
    near, far = os.pipe()
    with opened("source", os.O_RDONLY) as a, opened("again", os.O_CREAT | os.O_WRONLY) as b:
        at = 0
        while at < size and (count := os.splice(a, far, min(65536, size - at))):
            moved = 0
            while moved < count:
                moved += os.splice(near, b, count - moved)
            at += count
    os.close(near)
    os.close(far)
    t.content("again", pattern(size))


@case(size=(4096, 12288), when=("read", "write", "both"))
def direct_io_reads_and_writes_blocks(t: Scene, size: int, when: str) -> Iterator[None]:
    t.write("x", pattern(size))
    yield
    with mmap.mmap(-1, size) as memory:
        if when in ("write", "both"):
            memory[:] = pattern(size, 5)
            with opened("x", os.O_WRONLY | os.O_DIRECT) as one:
                t.equal(os.pwritev(one, [memory], 0), size, "bytes written")
        wanted = pattern(size, 0 if when == "read" else 5)
        if when in ("read", "both"):
            with opened("x", os.O_RDONLY | os.O_DIRECT) as one:
                t.equal(os.preadv(one, [memory], 0), size, "bytes read")
                t.equal(memory[:], wanted, "content read directly")
        t.content("x", wanted)


@case(vector=((1, 2, 3), (4096, 1, 4096), (0, 5, 0)))
def vectors_are_written_and_read_in_order(t: Scene, vector: tuple[int, ...]) -> Iterator[None]:
    t.write("x", b"")
    yield
    parts = [pattern(n, i) for i, n in enumerate(vector)]
    with opened("x", os.O_RDWR) as one:
        t.equal(os.writev(one, parts), sum(vector), "bytes written")
        into = [bytearray(n) for n in vector]
        t.equal(os.preadv(one, into, 0), sum(vector), "bytes read")
        t.equal([bytes(p) for p in into], parts, "content")


@case(call=("fsync", "fdatasync", "syncfs", "dirsync"))
def synchronising_succeeds(t: Scene, call: str) -> Iterator[None]:
    t.write("x", pattern(100))
    yield
    with opened("x", os.O_RDWR) as one, opened(".", os.O_RDONLY | os.O_DIRECTORY) as folder:
        os.write(one, b"new")
        if call == "dirsync":
            os.fsync(folder)
        elif call == "syncfs":
            calls.syncfs(one)
        else:
            getattr(os, call)(one)
    t.equal(read("x")[:3], b"new", "content")


@case(flag=(os.O_SYNC, os.O_DSYNC, os.O_NOATIME), who=("root", "owner", "stranger"))
def sync_and_noatime_flags_are_taken(t: Scene, flag: int, who: str) -> Iterator[None]:
    t.write("x", pattern(100), 0o666, (ALICE, ALICE))
    yield
    with t.user({"root": 0, "owner": ALICE, "stranger": BOB}[who]):
        if flag == os.O_NOATIME and who == "stranger":
            t.fails(errno.EPERM, os.open, "x", os.O_RDWR | flag)
        else:
            with opened("x", os.O_RDWR | flag) as one:
                os.pwrite(one, b"z", 0)


@case()
def blocks_follow_the_content(t: Scene) -> None:
    with opened("x", os.O_CREAT | os.O_RDWR) as one:
        os.write(one, pattern(100_000))
        os.fsync(one)
        t.true(os.fstat(one).st_blocks * 512 >= 100_000, "too few blocks")
        os.ftruncate(one, 0)
        os.fsync(one)
        t.true(os.fstat(one).st_blocks * 512 < 50_000, "blocks kept after truncation")
