"""open and creation: flags against every kind of file (POSIX.1-2017 open, Linux open(2))."""

import errno
import os
import socket
import stat
from collections.abc import Iterator

from .frame import ALICE, BOB, FILE_KINDS, KINDS, Scene, case, opened, read

DATA = b"to be opened"
ACCESS = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR}


def _make(t: Scene, kind: str, path: str) -> None:
    if kind == "regular":
        t.write(path, DATA)
    else:
        t.make(kind, path, 0o755)


@case(
    access=tuple(ACCESS),
    create=(False, True),
    trunc=(False, True),
    append=(False, True),
    excl=(False, True),
)
def open_of_an_existing_file(
    t: Scene, access: str, create: bool, trunc: bool, append: bool, excl: bool
) -> Iterator[None]:
    t.write("x", DATA)
    yield
    flags = ACCESS[access]
    flags |= os.O_CREAT if create else 0
    flags |= os.O_TRUNC if trunc else 0
    flags |= os.O_APPEND if append else 0
    flags |= os.O_EXCL if excl else 0
    if create and excl:
        with t.untouched("x", "."):
            t.fails(errno.EEXIST, os.open, "x", flags)
        return
    with t.marks(**{"x": "mtime ctime" if trunc else "", ".": ""}), opened("x", flags) as one:
        t.equal(os.fstat(one).st_size, 0 if trunc else len(DATA), "size")
    with opened("x", flags) as one:
        if access == "read":
            t.fails(errno.EBADF, os.write, one, b"x")
            t.fails(errno.EINVAL, os.ftruncate, one, 0)
        else:
            os.write(one, b"X")
            start = b"" if trunc else DATA
            wanted = start + b"X" if append else b"X" + start[1:]
            t.content("x", wanted)
            if access == "write":
                t.fails(errno.EBADF, os.read, one, 1)


@case(
    access=tuple(ACCESS), trunc=(False, True), excl=(False, True), mode=(0o000, 0o444, 0o600, 0o755)
)
def open_of_a_missing_file(t: Scene, access: str, trunc: bool, excl: bool, mode: int) -> None:
    flags = ACCESS[access] | (os.O_TRUNC if trunc else 0) | (os.O_EXCL if excl else 0)
    t.fails(errno.ENOENT, os.open, "x", flags)
    os.chmod(".", 0o777)
    # The mode given does not bind the descriptor that creates the file.
    with (
        t.user(ALICE),
        t.marks(**{".": "mtime ctime"}),
        opened("x", flags | os.O_CREAT, mode) as one,
    ):
        t.mode("x", mode)
        t.equal(os.fstat(one).st_size, 0, "size")
        if access != "read":
            os.write(one, DATA)
    t.owner("x", ALICE, ALICE)
    t.links("x", 1)
    t.content("x", b"" if access == "read" else DATA)


@case(kind=KINDS, access=tuple(ACCESS))
def exclusive_creation_refuses_whatever_is_there(
    t: Scene, kind: str, access: str
) -> Iterator[None]:
    _make(t, kind, "x")
    yield
    with t.untouched("x", "."):
        t.fails(errno.EEXIST, os.open, "x", ACCESS[access] | os.O_CREAT | os.O_EXCL)


@case(kind=(*FILE_KINDS, "dir"), access=tuple(ACCESS))
def nofollow_refuses_links_only(t: Scene, kind: str, access: str) -> Iterator[None]:
    _make(t, kind, "x")
    os.symlink("x", "l")
    yield
    t.fails(errno.ELOOP, os.open, "l", ACCESS[access] | os.O_NOFOLLOW | os.O_NONBLOCK)
    t.fails(errno.ENOTDIR, os.open, "l", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    with opened("l", os.O_PATH | os.O_NOFOLLOW) as one:
        t.equal(stat.S_IFMT(os.fstat(one).st_mode), stat.S_IFLNK, "type behind O_PATH")
    if kind == "regular":
        with opened("x", ACCESS[access] | os.O_NOFOLLOW) as one:
            t.equal(os.fstat(one).st_size, len(DATA), "size")


@case(
    flags=(
        os.O_WRONLY,
        os.O_RDWR,
        os.O_RDONLY | os.O_TRUNC,
        os.O_CREAT,
        os.O_WRONLY | os.O_TRUNC | os.O_CREAT,
    )
)
def folders_are_not_opened_for_writing(t: Scene, flags: int) -> Iterator[None]:
    os.mkdir("d")
    yield
    with t.untouched("d", "."):
        t.fails(errno.EISDIR, os.open, "d", flags)


@case(reader=(False, True), flags=(os.O_WRONLY, os.O_RDWR, os.O_RDONLY))
def fifos_open_without_waiting_as_fifo7_says(t: Scene, reader: bool, flags: int) -> Iterator[None]:
    t.make("fifo", "f", 0o600)
    yield
    peer = os.open("f", os.O_RDONLY | os.O_NONBLOCK) if reader else -1
    try:
        if flags == os.O_WRONLY and not reader:
            t.fails(errno.ENXIO, os.open, "f", flags | os.O_NONBLOCK)
            return
        with opened("f", flags | os.O_NONBLOCK) as one:
            if reader and flags != os.O_RDONLY:
                os.write(one, b"through")
                t.equal(os.read(peer, 10), b"through", "bytes through the fifo")
    finally:
        if peer >= 0:
            os.close(peer)


@case(via=("same", "link", "renamed"))
def a_fifo_joins_two_processes(t: Scene, via: str) -> Iterator[None]:
    t.make("fifo", "f", 0o600)
    yield
    name = "f"
    if via == "link":
        os.link("f", "g")
        name = "g"
    child = os.fork()
    if child == 0:
        with opened(name, os.O_WRONLY) as one:
            os.write(one, b"hello")
        os._exit(0)
    with opened("f", os.O_RDONLY) as one:
        if via == "renamed":
            os.rename("f", "elsewhere")
        t.equal(os.read(one, 10), b"hello", "bytes through the fifo")
        t.equal(os.read(one, 10), b"", "end of file")
    os.waitpid(child, 0)


@case(flags=(os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
def sockets_and_empty_devices_are_not_opened(t: Scene, flags: int) -> Iterator[None]:
    t.make("socket", "s", 0o600)
    os.mknod("c", stat.S_IFCHR | 0o600, os.makedev(4095, 77))
    yield
    t.fails(errno.ENXIO, os.open, "s", flags)
    t.fails((errno.ENXIO, errno.ENODEV), os.open, "c", flags)


@case()
def a_device_node_opens_its_device(t: Scene) -> Iterator[None]:
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    yield
    with opened("null", os.O_RDWR) as one:
        t.equal(os.read(one, 10), b"", "read from null")
        t.equal(os.write(one, b"gone"), 4, "written to null")
    with opened("zero", os.O_RDONLY) as one:
        t.equal(os.read(one, 10), bytes(10), "read from zero")


@case(when=("before", "now"), move=(False, True))
def a_socket_is_reached_by_its_name(t: Scene, when: str, move: bool) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        t.fails(errno.ENOENT, client.connect, "s")
        server.bind("s")
        t.kind("s", "socket")
        t.fails(errno.ECONNREFUSED, client.connect, "s")
        server.listen()
        name = "s"
        if move:
            os.rename("s", "s2")
            name = "s2"
        os.chmod(name, 0o600 if when == "before" else 0o666)
        with t.user(BOB):
            if when == "before":
                t.fails(errno.EACCES, client.connect, name)
            else:
                client.connect(name)
        t.true(name in os.listdir("."), "not listed")


@case(how=("write", "truncate", "append"))
def a_running_program_is_busy_for_writers(t: Scene, how: str) -> Iterator[None]:
    t.write("x", read("/bin/sleep"), 0o755)
    yield
    child = os.fork()
    if child == 0:
        os.execv("./x", ["x", "30"])
    try:
        _until_running(child)
        flags = {
            "write": os.O_WRONLY,
            "append": os.O_RDWR | os.O_APPEND,
            "truncate": os.O_WRONLY | os.O_TRUNC,
        }
        with t.untouched("x"):
            t.fails(errno.ETXTBSY, os.open, "x", flags[how])
            if how == "truncate":
                t.fails(errno.ETXTBSY, os.truncate, "x", 0)
        # Another name for the same program is just as busy; unlink and chmod are not stopped.
        os.link("x", "y")
        t.fails(errno.ETXTBSY, os.open, "y", os.O_WRONLY)
        os.chmod("y", 0o700)
        os.unlink("y")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    os.close(os.open("x", os.O_WRONLY))


def _until_running(child: int) -> None:
    import time

    for _ in range(2000):
        with open(f"/proc/{child}/cmdline", "rb") as file:
            if file.read().startswith(b"x\0"):
                return
        time.sleep(0.001)


@case(how=("program", "script"))
def a_file_open_for_writing_does_not_run(t: Scene, how: str) -> Iterator[None]:
    t.write("x", read("/bin/true") if how == "program" else b"#!/bin/true\n", 0o755)
    yield
    with opened("x", os.O_WRONLY):
        t.equal(_run("./x"), errno.ETXTBSY, "result of execve")
    t.equal(_run("./x"), 0, "result of execve")


def _run(path: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.execv(path, [path])
        except OSError as error:
            os._exit(error.errno or 255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@case(count=(2, 20))
def descriptors_of_one_file_share_its_content(t: Scene, count: int) -> Iterator[None]:
    t.write("x", DATA)
    yield
    many = [os.open("x", os.O_RDWR) for _ in range(count)]
    try:
        for number, one in enumerate(many):
            os.pwrite(one, bytes([65 + number]), number)
        for one in many:
            t.equal(os.pread(one, count, 0), bytes(range(65, 65 + count)), "content")
            t.equal(os.fstat(one).st_ino, os.stat("x").st_ino, "inode number")
    finally:
        for one in many:
            os.close(one)


@case(first=("read", "write"), unless=("overlayfs-lower",))
def a_reader_sees_what_a_later_writer_writes(t: Scene, first: str) -> Iterator[None]:
    # Kernel overlayfs keeps such a reader on the lower file ("non-standard behavior" a).
    t.write("x", DATA)
    yield
    with opened("x", ACCESS[first] if first == "read" else os.O_RDWR) as early:
        with opened("x", os.O_WRONLY) as late:
            os.write(late, b"NEW")
        t.equal(os.pread(early, 3, 0), b"NEW", "content behind the early descriptor")
        t.equal(os.fstat(early).st_ino, os.stat("x").st_ino, "inode number")


@case(change=("chmod", "chown", "utimes", "xattr", "link", "rename"))
def a_reader_sees_changed_attributes(t: Scene, change: str) -> Iterator[None]:
    t.write("x", DATA)
    yield
    with opened("x", os.O_RDONLY) as early:
        name = "x"
        if change == "chmod":
            os.chmod("x", 0o600)
        elif change == "chown":
            os.chown("x", 5, 6)
        elif change == "utimes":
            os.utime("x", ns=(1, 2))
        elif change == "xattr":
            os.setxattr("x", "user.a", b"b")
        elif change == "link":
            os.link("x", "y")
        else:
            os.rename("x", "z")
            name = "z"
        seen, true = os.fstat(early), os.stat(name)
        for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_nlink", "st_ino", "st_dev"):
            t.equal(getattr(seen, field), getattr(true, field), field)
        t.equal(os.listxattr(early), os.listxattr(name), "attributes")
        t.equal(os.pread(early, 100, 0), DATA, "content")


@case(change=("fchmod", "fchown", "futimens", "fsetxattr"))
def a_read_only_descriptor_can_change_attributes(t: Scene, change: str) -> Iterator[None]:
    t.write("x", DATA)
    os.link("x", "y")
    yield
    with opened("x", os.O_RDONLY) as one:
        if change == "fchmod":
            os.fchmod(one, 0o600)
        elif change == "fchown":
            os.fchown(one, 5, 6)
        elif change == "futimens":
            os.utime(one, ns=(1, 2))
        else:
            os.setxattr(one, "user.a", b"b")
        seen, true, other = os.fstat(one), os.stat("x"), os.stat("y")
        for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_nlink", "st_ino"):
            t.equal(getattr(seen, field), getattr(true, field), field)
            t.equal(getattr(seen, field), getattr(other, field), field)
        t.equal(os.listxattr("y"), os.listxattr(one), "attributes")
        t.equal(os.pread(one, 100, 0), DATA, "content")
    t.content("x", DATA)
