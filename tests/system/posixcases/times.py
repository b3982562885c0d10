"""utimensat, and which times every other call moves (POSIX.1-2017 4.9, utimensat(2))."""

import errno
import os
import time
from collections.abc import Callable, Iterator

from . import calls
from .calls import UTIME_NOW, UTIME_OMIT
from .frame import ALICE, BOB, KINDS, SOLID_KINDS, Scene, case, opened, read, wait_past

DATA = b"timed"
# Seconds and nanoseconds that get lost in one careless representation or another.
MOMENTS = (
    (0, 0),
    (0, 1),
    (1, 999_999_999),
    (1_000_000_000, 123_456_789),
    (2**31 - 1, 5),
    (2**31, 5),
    (2**32, 7),
    (-1, 0),
    (-1, 999_999_999),
    (-(2**31), 0),
    (15_032_385_534, 999_999_999),  # the last full second ext4 holds with 256-byte inodes
)


def _ns(moment: tuple[int, int]) -> int:
    return moment[0] * 1_000_000_000 + moment[1]


def _set(how: str, path: str, atime: tuple[int, int] | None, mtime: tuple[int, int] | None) -> None:
    if how == "descriptor":
        with opened(path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            calls.utimensat(descriptor, atime, mtime)
    else:
        calls.utimensat(path, atime, mtime, calls.AT_SYMLINK_NOFOLLOW if how == "nofollow" else 0)


@case(
    number=tuple(range(len(MOMENTS))),
    how=("path", "nofollow", "descriptor"),
    kind=("regular", "dir"),
)
def times_are_kept_to_the_nanosecond(t: Scene, number: int, how: str, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755)
    yield
    other = MOMENTS[number - 1]
    _set(how, "x", MOMENTS[number], other)
    status = os.lstat("x")
    t.equal(status.st_atime_ns, _ns(MOMENTS[number]), "atime")
    t.equal(status.st_mtime_ns, _ns(other), "mtime")


@case(number=tuple(range(len(MOMENTS))), kind=("regular", "dir", "symlink"))
def times_set_before_are_shown(t: Scene, number: int, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755)
    calls.utimensat("x", MOMENTS[number - 1], MOMENTS[number], calls.AT_SYMLINK_NOFOLLOW)
    yield
    t.equal(os.lstat("x").st_mtime_ns, _ns(MOMENTS[number]), "mtime")
    if kind == "regular":
        os.chmod("x", 0o600)
        t.equal(os.lstat("x").st_mtime_ns, _ns(MOMENTS[number]), "mtime after chmod")
        os.rename("x", "y")
        t.equal(os.lstat("y").st_mtime_ns, _ns(MOMENTS[number]), "mtime after rename")


@case(kind=KINDS)
def utimensat_moves_ctime_and_only_sets_what_it_should(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755)
    yield
    before = os.lstat("x")
    wait_past(before.st_ctime_ns)
    calls.utimensat("x", (5, 6), (7, 8), calls.AT_SYMLINK_NOFOLLOW)
    after = os.lstat("x")
    t.true(after.st_ctime_ns > before.st_ctime_ns, "ctime did not advance")
    t.equal((after.st_atime_ns, after.st_mtime_ns), (5_000_000_006, 7_000_000_008), "times")
    t.equal(oct(after.st_mode), oct(before.st_mode), "mode")


@case(
    atime=((1, 2), (0, UTIME_NOW), (0, UTIME_OMIT)),
    mtime=((3, 4), (0, UTIME_NOW), (0, UTIME_OMIT)),
    how=("path", "nofollow", "descriptor"),
)
def now_and_omit_are_understood(
    t: Scene, atime: tuple[int, int], mtime: tuple[int, int], how: str
) -> Iterator[None]:
    t.write("x", DATA)
    calls.utimensat("x", (100, 200), (300, 400))
    yield
    before = os.lstat("x")
    wait_past(before.st_ctime_ns)
    start = time.time_ns() - 20_000_000  # the coarse clock is some ms behind
    _set(how, "x", atime, mtime)
    after = os.lstat("x")
    for name, asked in (("atime", atime), ("mtime", mtime)):
        got, old = (getattr(s, f"st_{name}_ns") for s in (after, before))
        if asked[1] == UTIME_OMIT:
            t.equal(got, old, name)
        elif asked[1] == UTIME_NOW:
            t.true(start <= got <= time.time_ns(), f"{name} is not now: {got}")
        else:
            t.equal(got, _ns(asked), name)
    both_omitted = atime[1] == mtime[1] == UTIME_OMIT
    t.equal(after.st_ctime_ns > before.st_ctime_ns, not both_omitted, "ctime moved")


@case(how=("path", "nofollow", "descriptor"), nanoseconds=(-1, 1_000_000_000, 2**31))
def senseless_nanoseconds_are_einval(t: Scene, how: str, nanoseconds: int) -> Iterator[None]:
    t.write("x", DATA)
    yield
    with t.untouched("x"):
        t.fails(errno.EINVAL, _set, how, "x", (0, nanoseconds), (0, 0))
        t.fails(errno.EINVAL, _set, how, "x", (0, 0), (0, nanoseconds))


# Caller, mode of the file (owned by ALICE), what he asks for -> allowed, or which error.
NOW, SOME, OMIT = ((0, UTIME_NOW),) * 2, ((1, 2), (3, 4)), ((0, UTIME_OMIT),) * 2
MIXED = ((0, UTIME_NOW), (3, 4))
HALF = ((0, UTIME_NOW), (0, UTIME_OMIT))


@case(
    who=(0, ALICE, BOB),
    mode=(0o000, 0o444, 0o666),
    asked=(NOW, SOME, OMIT, MIXED, HALF, None),
    kind=("regular", "dir"),
)
def setting_times_needs_ownership_and_now_needs_writing(
    t: Scene, who: int, mode: int, asked: tuple[tuple[int, int], tuple[int, int]] | None, kind: str
) -> Iterator[None]:
    t.make(kind, "x", mode, (ALICE, ALICE))
    yield
    act: Callable[[], None] = lambda: calls.utimensat("x", *(asked or (None, None)))  # noqa: E731
    with t.user(who):
        if asked == OMIT or who in (0, ALICE) or (asked in (NOW, None) and mode & 0o002):
            act()
        else:
            code = errno.EACCES if asked in (NOW, None) else errno.EPERM
            with t.untouched("x"):
                t.fails(code, act)


@case(kind=SOLID_KINDS)
def a_link_has_times_of_its_own(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755)
    os.symlink("x", "l")
    yield
    calls.utimensat("l", (11, 12), (13, 14))
    t.equal(os.lstat("x").st_mtime_ns, 13_000_000_014, "mtime of the target")
    t.true(os.lstat("l").st_mtime_ns != 13_000_000_014, "the link was changed")
    calls.utimensat("l", (21, 22), (23, 24), calls.AT_SYMLINK_NOFOLLOW)
    t.equal(os.lstat("l").st_mtime_ns, 23_000_000_024, "mtime of the link")
    t.equal(os.lstat("x").st_mtime_ns, 13_000_000_014, "mtime of the target")


# Which call moves which times ----------------------------------------------------------------------


def _append(path: str) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"more")


def _write_nothing(path: str) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        os.write(descriptor, b"")


def _open_write(path: str) -> None:
    os.close(os.open(path, os.O_RDWR))


def _open_create(path: str) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _open_truncate(path: str) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_TRUNC))


def _truncate_open(size: int) -> Callable[[str], None]:
    def act(path: str) -> None:
        with opened(path, os.O_RDWR) as descriptor:
            os.ftruncate(descriptor, size)

    return act


def _allocate(mode: int) -> Callable[[str], None]:
    def act(path: str) -> None:
        with opened(path, os.O_RDWR) as descriptor:
            calls.fallocate(descriptor, mode, 0, 4096)

    return act


def _rename_and_back(path: str) -> None:
    os.rename(path, "another")
    os.rename("another", path)


BOTH = "mtime ctime"
ACTS: dict[str, tuple[Callable[[str], object], str]] = {
    "append": (_append, BOTH),
    "write_nothing": (_write_nothing, ""),
    "open_write": (_open_write, ""),
    "open_create_existing": (_open_create, ""),
    "open_truncate": (_open_truncate, BOTH),
    "truncate_shorter": (lambda p: os.truncate(p, 2), BOTH),
    "truncate_longer": (lambda p: os.truncate(p, 9999), BOTH),
    "truncate_same": (lambda p: os.truncate(p, len(DATA)), BOTH),
    "ftruncate_shorter": (_truncate_open(1), BOTH),
    "ftruncate_longer": (_truncate_open(70000), BOTH),
    "fallocate_longer": (_allocate(0), BOTH),
    "punch_hole": (_allocate(calls.FALLOC_KEEP_SIZE | calls.FALLOC_PUNCH_HOLE), BOTH),
    "zero_range": (_allocate(calls.FALLOC_ZERO_RANGE), BOTH),
    "chmod": (lambda p: os.chmod(p, 0o600), "ctime"),
    "chmod_same": (lambda p: os.chmod(p, 0o644), "ctime"),
    "chown": (lambda p: os.chown(p, 5, 6), "ctime"),
    "setxattr": (lambda p: os.setxattr(p, "user.new", b"1"), "ctime"),
    "removexattr": (lambda p: os.removexattr(p, "user.old"), "ctime"),
    "getxattr": (lambda p: os.getxattr(p, "user.old"), ""),
    "listxattr": (os.listxattr, ""),
    "link": (lambda p: os.link(p, "another"), "ctime"),
    "rename": (_rename_and_back, "ctime"),
    "stat": (os.stat, ""),
    "access": (lambda p: os.access(p, os.R_OK), ""),
    "read": (read, ""),
}


@case(act=tuple(ACTS))
def a_call_moves_exactly_its_times(t: Scene, act: str) -> Iterator[None]:
    t.write("x", DATA)
    os.setxattr("x", "user.old", b"1")
    yield
    call, moved = ACTS[act]
    if act == "rename":
        # Whether the ctime of the file moves is left open; its mtime must not.
        before = os.lstat("x")
        call("x")
        t.equal(os.lstat("x").st_mtime_ns, before.st_mtime_ns, "mtime")
        return
    with t.marks(x=moved):
        call("x")


@case(act=("append", "open_truncate", "truncate_longer", "ftruncate_shorter", "chmod", "setxattr"))
def a_failed_call_moves_nothing(t: Scene, act: str) -> Iterator[None]:
    t.write("x", DATA, 0o444, (ALICE, ALICE))
    yield
    with t.user(BOB), t.untouched("x", "."):
        t.fails((errno.EACCES, errno.EPERM), ACTS[act][0], "x")


@case(size=(4096, 4095, 4097, 1, 0))
def a_write_to_a_shared_mapping_moves_times_by_msync(t: Scene, size: int) -> Iterator[None]:
    import mmap

    t.write("x", b"m" * 8192)
    yield
    before = os.lstat("x")
    wait_past(before.st_ctime_ns)
    with opened("x", os.O_RDWR) as descriptor, mmap.mmap(descriptor, 8192) as memory:
        memory[size] = 77
        memory.flush()
    after = os.lstat("x")
    t.true(after.st_mtime_ns > before.st_mtime_ns, "mtime did not advance")
    t.equal(read("x")[size], 77, "content")


@case(kind=("regular", "dir"))
def birth_time_does_not_move(t: Scene, kind: str) -> None:
    t.make(kind, "x", 0o755)
    born = calls.birth_time("x")
    if born is None:
        t.skip("no birth times here")
    wait_past(os.lstat("x").st_ctime_ns)
    os.chmod("x", 0o700)
    calls.utimensat("x", (1, 2), (3, 4))
    os.rename("x", "y")
    t.equal(calls.birth_time("y"), born, "birth time")
