"""link, symlink, readlink, unlink, rmdir, mkdir and link counts."""

import errno
import os
import stat
from collections.abc import Iterator

from . import calls
from .frame import ALICE, FILE_KINDS, KINDS, SOLID_KINDS, Scene, case, facts, opened

DATA = b"linked"


def _make(t: Scene, kind: str, path: str) -> None:
    if kind == "regular":
        t.write(path, DATA, 0o640, (ALICE, ALICE))
    else:
        t.make(kind, path, 0o640)


@case(kind=FILE_KINDS, place=("x2", "d/x2"))
def a_link_is_the_same_object(t: Scene, kind: str, place: str) -> Iterator[None]:
    os.mkdir("d")
    _make(t, kind, "x")
    yield
    with t.marks(**{"x": "ctime", os.path.dirname(place) or ".": "mtime ctime"}):
        os.link("x", place, follow_symlinks=False)
    t.equal(facts(os.lstat("x")), facts(os.lstat(place)), "attributes")
    t.equal(os.lstat("x").st_ino, os.lstat(place).st_ino, "inode number")
    t.links("x", 2)
    if kind != "symlink":
        os.chmod(place, 0o604)
        os.chown(place, 7, 8)
        calls.utimensat(place, (10, 11), (12, 13))
        t.equal(facts(os.lstat("x")), facts(os.lstat(place)), "attributes after a change")
    os.unlink("x")
    t.links(place, 1)


@case(kind=FILE_KINDS, count=(3, 10))
def link_counts_go_up_and_down(t: Scene, kind: str, count: int) -> Iterator[None]:
    _make(t, kind, "x0")
    yield
    for n in range(1, count):
        os.link(f"x{n - 1}", f"x{n}", follow_symlinks=False)
        t.links("x0", n + 1)
    for n in range(count - 1):
        with t.marks(**{f"x{count - 1}": "ctime"}):
            os.unlink(f"x{n}")
        t.links(f"x{count - 1}", count - n - 1)


@case(kind=FILE_KINDS, count=(2, 5))
def links_built_before_are_one_object(t: Scene, kind: str, count: int) -> Iterator[None]:
    _make(t, kind, "x0")
    os.mkdir("d")
    for n in range(1, count):
        os.link("x0", f"d/x{n}", follow_symlinks=False)
    yield
    names = ["x0", *(f"d/x{n}" for n in range(1, count))]
    t.equal({os.lstat(n).st_ino for n in names}, {os.lstat("x0").st_ino}, "inode numbers")
    for number, name in enumerate(names):
        os.lchown(name, 100 + number, -1)
        for other in names:
            t.equal(os.lstat(other).st_uid, 100 + number, f"owner at {other}")
            t.links(other, count)
    if kind == "regular":
        with opened("d/x1", os.O_WRONLY) as descriptor:
            os.write(descriptor, b"LINKED!")
        for name in names:
            t.content(name, b"LINKED!")
    os.unlink("x0")
    t.links("d/x1", count - 1)
    os.link("d/x1", "x0", follow_symlinks=False)
    t.equal(os.lstat("x0").st_ino, os.lstat("d/x1").st_ino, "inode number")
    t.links("x0", count)


@case(by=("root", "user"))
def folders_cannot_be_linked(t: Scene, by: str) -> Iterator[None]:
    os.chmod(".", 0o777)
    t.folder("d", ALICE)
    yield
    with t.user(0 if by == "root" else ALICE), t.untouched("d", "."):
        t.fails(errno.EPERM, os.link, "d", "e")


@case(kind=SOLID_KINDS)
def linkat_follows_a_link_when_asked(t: Scene, kind: str) -> Iterator[None]:
    _make(t, kind, "x")
    os.symlink("x", "s")
    yield
    calls.linkat("s", "plain")
    t.kind("plain", "symlink")
    t.links("s", 2)
    if kind == "dir":
        t.fails(errno.EPERM, calls.linkat, "s", "followed", calls.AT_SYMLINK_FOLLOW)
    else:
        calls.linkat("s", "followed", calls.AT_SYMLINK_FOLLOW)
        t.equal(os.lstat("followed").st_ino, os.lstat("x").st_ino, "inode number")


@case()
def linkat_names_a_descriptor(t: Scene) -> Iterator[None]:
    t.write("x", DATA)
    yield
    with opened("x", os.O_RDONLY) as descriptor:
        calls.linkat("", "y", calls.AT_EMPTY_PATH, descriptor)
        t.links("x", 2)
        os.unlink("x")
        os.unlink("y")
        t.fails(errno.ENOENT, calls.linkat, "", "z", calls.AT_EMPTY_PATH, descriptor)


@case(flag=(0, os.O_EXCL))
def a_temporary_file_gets_a_name_or_not(t: Scene, flag: int) -> None:
    with opened(".", os.O_TMPFILE | os.O_RDWR | flag, 0o640) as descriptor:
        t.equal(os.fstat(descriptor).st_nlink, 0, "link count")
        os.write(descriptor, DATA)
        t.equal(os.listdir("."), [], "listing")
        if flag:
            t.fails(errno.ENOENT, calls.linkat, "", "x", calls.AT_EMPTY_PATH, descriptor)
        else:
            calls.linkat("", "x", calls.AT_EMPTY_PATH, descriptor)
            t.equal(os.fstat(descriptor).st_nlink, 1, "link count")
            t.content("x", DATA)
            t.mode("x", 0o640)
            os.write(descriptor, DATA)
            t.content("x", DATA * 2)


@case(read_first=(False, True), change=("write", "truncate", "append", "chmod"))
def a_file_lives_on_under_its_other_name(t: Scene, read_first: bool, change: str) -> Iterator[None]:
    t.write("x", DATA * 1000)
    yield
    if read_first:
        t.content("x", DATA * 1000)
    os.link("x", "y")
    os.unlink("x")
    if change == "truncate":
        os.truncate("y", 3)
    elif change == "chmod":
        os.chmod("y", 0o600)
    with opened("y", os.O_WRONLY | (os.O_APPEND if change == "append" else 0)) as one:
        os.write(one, b"NEW")
    start = {"write": b"", "truncate": b"", "append": DATA * 1000, "chmod": b""}[change]
    rest = b"" if change == "truncate" else (DATA * 1000)[3:] if change != "append" else b""
    t.content("y", start + b"NEW" + rest)


# Symbolic links ------------------------------------------------------------------------------------

TARGETS = (
    "x",
    "../up",
    "/abs/olute",
    "a//b",
    "///three",
    "with space",
    "\udcff",
    "a" * 4095,
    ".",
    "l",
)


@case(number=tuple(range(len(TARGETS))), when=("before", "now"))
def a_symlink_keeps_its_target_to_the_byte(t: Scene, number: int, when: str) -> Iterator[None]:
    target = TARGETS[number]
    if when == "before":
        os.symlink(target, "l")
    yield
    if when == "now":
        with t.marks(**{".": "mtime ctime"}):
            os.symlink(target, "l")
    t.equal(os.readlink("l"), target, "target")
    status = os.lstat("l")
    t.equal(status.st_size, len(os.fsencode(target)), "size")
    t.equal(oct(status.st_mode), oct(stat.S_IFLNK | 0o777), "mode")


@case()
def a_symlink_target_has_limits(t: Scene) -> None:
    t.fails(errno.ENAMETOOLONG, os.symlink, "a" * 4096, "l")
    t.fails(errno.ENOENT, os.symlink, "", "l")
    t.equal(os.listdir("."), [], "listing")


@case(kind=SOLID_KINDS)
def readlink_wants_a_symlink(t: Scene, kind: str) -> Iterator[None]:
    _make(t, kind, "x")
    yield
    t.fails(errno.EINVAL, os.readlink, "x")


@case(kind=KINDS)
def a_dangling_link_is_found_only_as_a_link(t: Scene, kind: str) -> Iterator[None]:
    os.symlink("x", "l")
    yield
    t.fails(errno.ENOENT, os.stat, "l")
    os.lstat("l")
    t.make(kind, "x")
    t.equal(os.path.exists("l"), kind != "symlink", "found through the link")
    (os.rmdir if kind == "dir" else os.unlink)("x")
    t.fails(errno.ENOENT, os.stat, "l")


@case()
def open_creates_through_a_dangling_link(t: Scene) -> Iterator[None]:
    os.mkdir("d")
    os.symlink("d/x", "l")
    yield
    t.fails(errno.EEXIST, os.open, "l", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open("l", os.O_CREAT | os.O_WRONLY, 0o600))
    t.kind("d/x", "regular")
    t.kind("l", "symlink")


# unlink, rmdir, mkdir ------------------------------------------------------------------------------


@case(kind=FILE_KINDS)
def unlink_removes_the_name(t: Scene, kind: str) -> Iterator[None]:
    _make(t, kind, "x")
    os.link("x", "y", follow_symlinks=False)
    yield
    with t.marks(**{".": "mtime ctime", "y": "ctime"}):
        os.unlink("x")
    t.absent("x")
    t.equal(os.listdir("."), ["y"], "listing")
    t.links("y", 1)
    os.unlink("y")
    t.equal(os.listdir("."), [], "listing")
    t.fails(errno.ENOENT, os.unlink, "x")


@case(kind=KINDS, again=KINDS)
def a_removed_name_is_free_for_anything(t: Scene, kind: str, again: str) -> Iterator[None]:
    _make(t, kind, "x")
    if kind == "dir":
        t.write("x/in", DATA)
    yield
    for _ in range(2):
        if kind == "dir":
            if os.listdir("x"):
                os.unlink("x/in")
            os.rmdir("x")
        else:
            os.unlink("x")
        t.absent("x")
        t.make(again, "x", 0o600)
        t.kind("x", again)
        t.owner("x", 0, 0)
        if again == "dir":
            t.equal(os.listdir("x"), [], "listing of the new folder")
            t.equal(os.lstat("x").st_nlink, 2, "links of the new folder")
        else:
            t.equal(os.lstat("x").st_nlink, 1, "links of the new file")
        t.equal(os.listxattr("x", follow_symlinks=False), [], "attributes of the new file")
        kind = again


@case(by=("root", "user"))
def unlink_of_a_folder_is_refused(t: Scene, by: str) -> Iterator[None]:
    os.chmod(".", 0o777)
    t.folder("d", ALICE)
    yield
    with t.user(0 if by == "root" else ALICE), t.untouched("d", "."):
        t.fails(errno.EISDIR, os.unlink, "d")


@case(kind=KINDS)
def rmdir_wants_an_empty_folder(t: Scene, kind: str) -> Iterator[None]:
    os.mkdir("d")
    _make(t, kind, "d/x")
    yield
    with t.untouched("d", "d/x", "."):
        t.fails((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, "d")
    (os.rmdir if kind == "dir" else os.unlink)("d/x")
    with t.marks(**{".": "mtime ctime"}):
        os.rmdir("d")
    t.absent("d")


@case(path=("d/.", "d/..", "d/../.", "."))
def rmdir_of_dots_is_refused(t: Scene, path: str) -> Iterator[None]:
    os.makedirs("d/e")
    yield
    codes = {"d/.": errno.EINVAL, ".": errno.EINVAL, "d/../.": errno.EINVAL}
    t.fails(codes.get(path, errno.ENOTEMPTY), os.rmdir, path)


@case(call=("rmdir", "rename_from", "rename_over", "unlink"))
def a_mount_point_is_busy(t: Scene, call: str) -> Iterator[None]:
    os.mkdir("d")
    os.mkdir("e")
    yield
    calls.mount("none", "d", "tmpfs")
    try:
        if call == "rmdir":
            t.fails(errno.EBUSY, os.rmdir, "d")
        elif call == "rename_from":
            t.fails(errno.EBUSY, os.rename, "d", "f")
        elif call == "rename_over":
            t.fails(errno.EBUSY, os.rename, "e", "d")
        else:
            t.fails(errno.EISDIR, os.unlink, "d")
        t.fails(errno.EXDEV, os.rename, "e", "d/e")
        t.fails(errno.EXDEV, os.link, "e", "d/e")
    finally:
        calls.unmount("d")
    os.rmdir("d")


@case(mode=(0o755, 0o700, 0o1777, 0o000, 0o555))
def mkdir_makes_an_empty_folder(t: Scene, mode: int) -> None:
    with t.marks(**{".": "mtime ctime"}):
        os.mkdir("d", mode)
    t.mode("d", mode)
    t.kind("d", "dir")
    t.equal(os.listdir("d"), [], "listing")


@case(kind=("regular", "fifo", "char", "block", "socket"), mode=(0o644, 0o000, 0o4755, 0o1777))
def mknod_makes_what_is_asked(t: Scene, kind: str, mode: int) -> None:
    with t.marks(**{".": "mtime ctime"}):
        t.make(kind, "x", mode)
    t.kind("x", kind)
    t.mode("x", mode)
    t.links("x", 1)


@case(kind=("char", "block"), number=((1, 3), (8, 1), (255, 255), (4095, 1048575)))
def device_numbers_are_kept(t: Scene, kind: str, number: tuple[int, int]) -> Iterator[None]:
    bits = stat.S_IFCHR if kind == "char" else stat.S_IFBLK
    os.mknod("before", bits | 0o600, os.makedev(*number))
    yield
    os.mknod("now", bits | 0o600, os.makedev(*number))
    os.chmod("before", 0o640)
    for name in ("before", "now"):
        status = os.lstat(name)
        t.equal((os.major(status.st_rdev), os.minor(status.st_rdev)), number, "device number")


@case(kind=("char", "block"))
def devices_need_privilege(t: Scene, kind: str) -> None:
    os.chmod(".", 0o777)
    with t.user(ALICE):
        t.fails(errno.EPERM, t.make, kind, "x")
        t.make("fifo", "f", 0o600)
        t.make("socket", "s", 0o600)


@case(count=(1, 3))
def folder_link_counts_count_folders_or_stay_one(t: Scene, count: int) -> Iterator[None]:
    os.mkdir("d")
    yield
    # POSIX leaves st_nlink of directories open; find(1) trusts it only when it is 2 or more.
    for n in range(count):
        os.mkdir(f"d/{n}")
        t.true(os.lstat("d").st_nlink in (1, 3 + n), f"link count {os.lstat('d').st_nlink}")
    for n in range(count):
        os.rmdir(f"d/{n}")
        t.true(os.lstat("d").st_nlink in (1, 1 + count - n), f"link count {os.lstat('d').st_nlink}")


@case()
def new_folders_count_their_folders(t: Scene) -> None:
    os.makedirs("a/d/sub")
    os.mkdir("b")
    for name, count in (("a", 3), ("b", 2), ("a/d", 3)):
        t.links(name, count)
    os.rename("a/d", "b/d")
    for name, count in (("a", 2), ("b", 3), ("b/d", 3)):
        t.links(name, count)
    os.mkdir("a/e")
    calls.exchange("a/e", "b/d")
    for name, count in (("a", 3), ("b", 3), ("a/e", 3), ("b/d", 2)):
        t.links(name, count)
    os.rmdir("b/d")
    t.links("b", 2)


# Overlayfs shows the link count of the lower file for what it never copied up.
@case(links=(1, 2), kind=("regular", "fifo"), unless=("overlayfs-lower",))
def an_unlinked_open_file_works_until_closed(t: Scene, links: int, kind: str) -> Iterator[None]:
    _make(t, kind, "x")
    if links == 2:
        os.link("x", "y")
    yield
    with opened("x", os.O_RDWR | os.O_NONBLOCK) as one:
        with t.user(0):
            os.unlink("x")
        t.equal(os.fstat(one).st_nlink, links - 1, "link count")
        os.fchmod(one, 0o600)
        os.fchown(one, 5, 6)
        calls.utimensat(one, (1, 2), (3, 4))
        status = os.fstat(one)
        t.equal(
            (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns),
            (0o600, 5, 6, 3_000_000_004),
            "attributes",
        )
        if kind == "regular":
            os.pwrite(one, b"LINK", 0)
            t.equal(os.pread(one, 100, 0), b"LINKed", "content")
            os.ftruncate(one, 100_000)
            t.equal(os.fstat(one).st_size, 100_000, "size")
            os.setxattr(one, "user.a", b"b")
            t.equal(os.getxattr(one, "user.a"), b"b", "attribute")


@case(unless=("overlayfs-lower",))
def a_removed_folder_still_open_is_empty_and_closed_to_new_names(t: Scene) -> Iterator[None]:
    os.makedirs("d/e")
    yield
    with opened("d/e", os.O_RDONLY | os.O_DIRECTORY) as one:
        os.rmdir("d/e")
        t.equal(os.listdir(one), [], "listing")
        t.fails(errno.ENOENT, os.mkdir, "new", dir_fd=one)
        t.fails(errno.ENOENT, os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=one)
        t.fails(errno.ENOENT, os.symlink, "a", "new", dir_fd=one)
        t.fails(errno.ENOENT, os.stat, "new", dir_fd=one)
        t.true(os.fstat(one).st_nlink in (0, 1), "link count of a removed folder")
