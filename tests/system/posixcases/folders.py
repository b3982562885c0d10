"""Directories read while they change, locks, watches, file system figures."""

import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterator

from . import calls
from .frame import KINDS, TYPE_BITS, Scene, case, opened

COUNTS = (0, 1, 50, 400, 3000)


@case(count=COUNTS, when=("before", "now", "half"))
def every_name_is_listed_once(t: Scene, count: int, when: str) -> Iterator[None]:
    os.mkdir("d")
    before = {"before": count, "now": 0, "half": count // 2}[when]
    for n in range(before):
        os.mknod(f"d/name-{n:05d}", 0o100644)
    yield
    for n in range(before, count):
        os.mknod(f"d/name-{n:05d}", 0o100644)
    names = os.listdir("d")
    t.equal(len(names), count, "number of names")
    t.equal(set(names), {f"name-{n:05d}" for n in range(count)}, "names")


@case(kind=KINDS)
def the_listing_tells_type_and_number(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o644)
    yield
    t.make(kind, "y", 0o644)
    for change in (None, "rename", "chown"):
        if change == "rename":
            os.rename("x", "z")
        elif change == "chown":
            os.lchown("z", 5, 6)
        for entry in os.scandir("."):
            status = os.lstat(entry.name)
            t.equal(entry.inode(), status.st_ino, f"number of {entry.name} after {change}")
            t.equal(status.st_mode & 0o170000, TYPE_BITS[kind], "type by stat")
            t.equal(entry.is_dir(follow_symlinks=False), kind == "dir", "is_dir")
            t.equal(entry.is_symlink(), kind == "symlink", "is_symlink")


@case(count=(10, 1000), deleting=(1, 2, 3))
def removing_while_reading_skips_nothing(t: Scene, count: int, deleting: int) -> Iterator[None]:
    os.mkdir("d")
    for n in range(count // 2):
        os.mknod(f"d/n{n}", 0o100644)
    yield
    for n in range(count // 2, count):
        os.mknod(f"d/n{n}", 0o100644)
    seen = []
    with os.scandir("d") as listing:
        for number, entry in enumerate(listing):
            seen.append(entry.name)
            if number % deleting == 0:
                os.unlink(f"d/{entry.name}")
    t.equal(len(seen), count, "names seen")
    t.equal(len(set(seen)), count, "different names")
    for name in os.listdir("d"):
        os.unlink(f"d/{name}")
    os.rmdir("d")


@case(count=(10, 1000))
def adding_while_reading_repeats_nothing(t: Scene, count: int) -> Iterator[None]:
    os.mkdir("d")
    for n in range(count):
        os.mknod(f"d/n{n}", 0o100644)
    yield
    seen = []
    with os.scandir("d") as listing:
        for number, entry in enumerate(listing):
            seen.append(entry.name)
            if number < 100:
                os.mknod(f"d/new{number}", 0o100644)
    t.equal(len(set(seen)), len(seen), "different names")
    t.true({f"n{n}" for n in range(count)} <= set(seen), "a name was skipped")


@case(count=(0, 5, 1000))
def a_rewound_directory_shows_the_present(t: Scene, count: int) -> Iterator[None]:
    os.mkdir("d")
    for n in range(count):
        os.mknod(f"d/n{n}", 0o100644)
    yield
    with opened("d", os.O_RDONLY | os.O_DIRECTORY) as one:
        t.equal(len(os.listdir(one)), count, "first reading")
        os.mknod("d/new", 0o100644)
        t.true("new" in os.listdir(one), "a new name is missing")
        os.unlink("d/new")
        t.true("new" not in os.listdir(one), "a removed name is listed")


@case(depth=(50, 300))
def trees_deeper_than_a_path_work_by_descriptor(t: Scene, depth: int) -> None:
    name = "n" * 200
    chain = [os.open(".", os.O_RDONLY | os.O_DIRECTORY)]
    for _ in range(depth):
        os.mkdir(name, dir_fd=chain[-1])
        chain.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=chain[-1]))
        if len(chain) > 3:
            os.close(chain.pop(0))
    one = os.open("leaf", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=chain[-1])
    os.write(one, b"deep")
    t.equal(os.pread(one, 10, 0), b"deep", "content")
    os.rename("leaf", "leaf2", src_dir_fd=chain[-1], dst_dir_fd=chain[-1])
    t.equal(os.listdir(chain[-1]), ["leaf2"], "listing")
    os.unlink("leaf2", dir_fd=chain[-1])
    os.close(one)
    for descriptor in chain:
        os.close(descriptor)


# Locks ---------------------------------------------------------------------------------------------


def _other_process(path: str, flags: int, kind: str, how: int) -> bool:
    """Whether another process gets the lock at once."""
    child = os.fork()
    if child == 0:
        with opened(path, flags) as one:
            try:
                (fcntl.flock if kind == "flock" else fcntl.lockf)(one, how | fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(1)
            except OSError:
                os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@case(
    kind=("flock", "posix"),
    mine=(fcntl.LOCK_SH, fcntl.LOCK_EX),
    other=(fcntl.LOCK_SH, fcntl.LOCK_EX),
    name=("x", "y"),
)
def locks_exclude_other_processes(
    t: Scene, kind: str, mine: int, other: int, name: str
) -> Iterator[None]:
    t.write("x", b"data")
    os.link("x", "y")
    yield
    with opened("x", os.O_RDWR) as one:
        lock = fcntl.flock if kind == "flock" else fcntl.lockf
        lock(one, mine | fcntl.LOCK_NB)
        free = mine == other == fcntl.LOCK_SH
        t.equal(_other_process(name, os.O_RDWR, kind, other), free, "lock of another process")
        lock(one, fcntl.LOCK_UN)
        t.true(_other_process(name, os.O_RDWR, kind, other), "lock after unlocking")
        lock(one, mine | fcntl.LOCK_NB)
    t.true(_other_process(name, os.O_RDWR, kind, other), "lock after closing")


@case(start=(0, 10, 1 << 33), apart=(False, True))
def record_locks_cover_their_range(t: Scene, start: int, apart: bool) -> Iterator[None]:
    t.write("x", b"data")
    yield
    with opened("x", os.O_RDWR) as one:
        fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
        child = os.fork()
        if child == 0:
            with opened("x", os.O_RDWR) as two:
                try:
                    at = start + 10 if apart else start + 9
                    fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, at)
                except OSError:
                    os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        t.equal(status, 0 if apart else 1, "result of the other process")


@case(access=(os.O_RDONLY, os.O_WRONLY))
def record_locks_need_the_access(t: Scene, access: int) -> Iterator[None]:
    t.write("x", b"data")
    yield
    with opened("x", access) as one:
        wrong, right = (
            (fcntl.LOCK_EX, fcntl.LOCK_SH)
            if access == os.O_RDONLY
            else (fcntl.LOCK_SH, fcntl.LOCK_EX)
        )
        t.fails(errno.EBADF, fcntl.lockf, one, wrong | fcntl.LOCK_NB)
        fcntl.lockf(one, right | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)


@case()
def a_lock_holds_over_the_first_write(t: Scene) -> Iterator[None]:
    t.write("x", b"data")
    yield
    with opened("x", os.O_RDONLY) as one:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with opened("x", os.O_WRONLY) as two:
            os.write(two, b"new")
        t.true(not _other_process("x", os.O_RDWR, "flock", fcntl.LOCK_EX), "the lock is lost")


@case(kind=("flock", "ofd"))
def locks_of_two_descriptors_exclude_each_other(t: Scene, kind: str) -> Iterator[None]:
    t.write("x", b"data")
    yield
    with opened("x", os.O_RDWR) as one, opened("x", os.O_RDWR) as two:
        if kind == "flock":
            fcntl.flock(one, fcntl.LOCK_EX)
            t.fails(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            record = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
            fcntl.fcntl(one, 37, record)  # F_OFD_SETLK of linux/fcntl.h
            t.fails(errno.EAGAIN, fcntl.fcntl, two, 37, record)


# Watches -------------------------------------------------------------------------------------------

IN_MODIFY, IN_ATTRIB, IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO = (
    2,
    4,
    0x100,
    0x200,
    0x40,
    0x80,
)


@case(act=("create", "modify", "delete", "attrib", "move"))
def a_watch_tells_what_happens(t: Scene, act: str) -> Iterator[None]:
    os.mkdir("d")
    t.write("d/x", b"data")
    yield
    with calls.watch("d") as watcher:
        expected = {
            "create": IN_CREATE,
            "modify": IN_MODIFY,
            "delete": IN_DELETE,
            "attrib": IN_ATTRIB,
            "move": IN_MOVED_FROM | IN_MOVED_TO,
        }[act]
        if act == "create":
            os.mknod("d/new", 0o100644)
        elif act == "modify":
            with opened("d/x", os.O_WRONLY) as one:
                os.write(one, b"new")
        elif act == "delete":
            os.unlink("d/x")
        elif act == "attrib":
            os.chmod("d/x", 0o600)
        else:
            os.rename("d/x", "d/y")
        seen = 0
        while select.select([watcher], [], [], 0.2 if seen & expected != expected else 0)[0]:
            data = os.read(watcher, 65536)
            while data:
                _, mask, _, length = struct.unpack_from("iIII", data)
                seen |= mask
                data = data[16 + length :]
        t.equal(oct(seen & expected), oct(expected), "events")


@case()
def statvfs_tells_sensible_figures(t: Scene) -> None:
    figures = os.statvfs(".")
    t.equal(figures.f_namemax, 255, "longest name")
    t.true(figures.f_bsize in (512, 1024, 2048, 4096, 131072), f"block size {figures.f_bsize}")
    t.true(0 < figures.f_bavail <= figures.f_bfree <= figures.f_blocks, "blocks")
    t.true(0 < figures.f_favail <= figures.f_ffree <= figures.f_files, "inodes")
    with opened(".", os.O_RDONLY) as one:
        t.equal(os.fstatvfs(one).f_namemax, 255, "longest name by descriptor")


@case(kind=KINDS)
def numbers_stay_with_their_objects(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o644)
    t.make(kind, "y", 0o644)
    yield
    number, other = os.lstat("x").st_ino, os.lstat("y").st_ino
    t.true(number != other, "two objects share a number")
    t.equal(os.lstat("x").st_dev, os.lstat(".").st_dev, "device")
    os.lchown("x", 5, 5)
    t.equal(os.lstat("x").st_ino, number, "number after chown")
    if kind == "regular":
        with opened("x", os.O_WRONLY) as one:
            os.write(one, b"data")
            t.equal(os.fstat(one).st_ino, number, "number by descriptor")
        t.equal(os.lstat("x").st_ino, number, "number after writing")
    os.rename("x", "z")
    t.equal(os.lstat("z").st_ino, number, "number after rename")
    t.equal(os.lstat("y").st_ino, other, "number of the other")
