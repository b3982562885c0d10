"""Who may do what: access bits, directories, the sticky bit (POSIX.1-2017 4.5, unlink, rename)."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import calls
from .frame import ALICE, BOB, CAROL, FILE_KINDS, KINDS, SOLID_KINDS, Scene, case, opened

# How the caller, always ALICE, stands to an object: its owner and group, the shift of the class
# that decides, the caller's gid and his other groups.
STANDINGS = {
    "owner": ((ALICE, BOB), 6, ALICE, ()),
    "owner-in-group": ((ALICE, ALICE), 6, ALICE, ()),
    "group": ((CAROL, BOB), 3, BOB, ()),
    "supplementary": ((CAROL, BOB), 3, ALICE, (1, 2, 3, BOB)),
    "other": ((CAROL, CAROL), 0, ALICE, (BOB,)),
}
BITS = tuple(range(8))
READ, WRITE, EXECUTE = 4, 2, 1


@dataclass(frozen=True)
class Try:
    """An attempt on an object and the permission bits it takes."""

    name: str
    act: Callable[[str], object]
    takes: int


def _open(flags: int) -> Callable[[str], object]:
    def open_close(path: str) -> None:
        os.close(os.open(path, flags))

    return open_close


def _visit(path: str) -> None:
    with opened(".", os.O_RDONLY | os.O_DIRECTORY) as here:
        os.chdir(path)
        os.fchdir(here)


FILE_TRIES = (
    Try("read", _open(os.O_RDONLY), READ),
    Try("write", _open(os.O_WRONLY), WRITE),
    Try("read_write", _open(os.O_RDWR), READ | WRITE),
    Try("read_truncate", _open(os.O_RDONLY | os.O_TRUNC), READ | WRITE),
    Try("write_truncate", _open(os.O_WRONLY | os.O_TRUNC), WRITE),
    Try("append", _open(os.O_WRONLY | os.O_APPEND), WRITE),
    Try("create_existing", _open(os.O_WRONLY | os.O_CREAT), WRITE),
    Try("truncate", lambda p: os.truncate(p, 0), WRITE),
    Try("path_only", _open(os.O_PATH), 0),
    Try("stat", os.stat, 0),
    Try("access_read", lambda p: calls.eaccess(p, os.R_OK), READ),
    Try("access_write", lambda p: calls.eaccess(p, os.W_OK), WRITE),
    Try("access_execute", lambda p: calls.eaccess(p, os.X_OK), EXECUTE),
    Try("access_all", lambda p: calls.eaccess(p, os.R_OK | os.W_OK | os.X_OK), 7),
    Try("getxattr", lambda p: os.getxattr(p, "user.note"), READ),
    Try("setxattr", lambda p: os.setxattr(p, "user.note", b"new"), WRITE),
    Try("removexattr", lambda p: os.removexattr(p, "user.note"), WRITE),
)
FIFO_TRIES = (
    Try("read", _open(os.O_RDONLY | os.O_NONBLOCK), READ),
    Try("read_write", _open(os.O_RDWR | os.O_NONBLOCK), READ | WRITE),
)
FOLDER_TRIES = (
    Try("list", os.listdir, READ),
    Try("open_path", _open(os.O_PATH | os.O_DIRECTORY), 0),
    Try("search", lambda p: os.stat(f"{p}/in"), EXECUTE),
    Try("read_inside", lambda p: os.close(os.open(f"{p}/in", os.O_RDONLY)), EXECUTE),
    Try("create", lambda p: os.close(os.open(f"{p}/new", os.O_CREAT | os.O_WRONLY)), 3),
    Try("mkdir", lambda p: os.mkdir(f"{p}/new"), 3),
    Try("symlink", lambda p: os.symlink("x", f"{p}/new"), 3),
    Try("mkfifo", lambda p: os.mkfifo(f"{p}/new"), 3),
    Try("unlink", lambda p: os.unlink(f"{p}/in"), 3),
    Try("rmdir", lambda p: os.rmdir(f"{p}/sub"), 3),
    Try("rename_inside", lambda p: os.rename(f"{p}/in", f"{p}/out"), 3),
    Try("rename_out", lambda p: os.rename(f"{p}/in", "out"), 3),
    Try("rename_in", lambda p: os.rename("mine", f"{p}/new"), 3),
    Try("exchange", lambda p: calls.exchange("mine", f"{p}/in"), 3),
    Try("link_in", lambda p: os.link("mine", f"{p}/new"), 3),
    Try("link_out", lambda p: os.link(f"{p}/in", "out"), EXECUTE),
    Try("tmpfile", lambda p: os.close(os.open(p, os.O_TMPFILE | os.O_RDWR)), 3),
    Try("chdir", _visit, EXECUTE),
)


def _mode(bits: int, shift: int) -> int:
    """Give the deciding class these bits and every other class the opposite ones."""
    others = ~bits & 7
    return sum((bits if s == shift else others) << s for s in (6, 3, 0))


def _judge(t: Scene, one: Try, bits: int, path: str) -> None:
    if bits & one.takes == one.takes:
        one.act(path)
    else:
        with t.untouched(path):
            t.fails(errno.EACCES, one.act, path)


@case(one=FILE_TRIES, who=tuple(STANDINGS), bits=BITS)
def file_access_is_decided_by_one_class(t: Scene, one: Try, who: str, bits: int) -> Iterator[None]:
    owner, shift, gid, groups = STANDINGS[who]
    t.write("x", b"data")
    os.setxattr("x", "user.note", b"old")
    os.chown("x", *owner)
    os.chmod("x", _mode(bits, shift))
    yield
    with t.user(ALICE, gid, groups):
        _judge(t, one, bits, "x")


@case(one=FIFO_TRIES, who=tuple(STANDINGS), bits=BITS)
def fifo_access_is_decided_by_one_class(t: Scene, one: Try, who: str, bits: int) -> Iterator[None]:
    owner, shift, gid, groups = STANDINGS[who]
    t.make("fifo", "x", _mode(bits, shift), owner)
    yield
    with t.user(ALICE, gid, groups):
        _judge(t, one, bits, "x")


@case(one=FOLDER_TRIES, who=tuple(STANDINGS), bits=BITS)
def folder_access_is_decided_by_one_class(
    t: Scene, one: Try, who: str, bits: int
) -> Iterator[None]:
    owner, shift, gid, groups = STANDINGS[who]
    os.chmod(".", 0o777)
    os.mkdir("x")
    t.write("x/in", b"data", 0o666, (ALICE, ALICE))
    os.mkdir("x/sub")
    t.write("mine", b"data", 0o666, (ALICE, ALICE))
    os.chown("x", *owner)
    os.chmod("x", _mode(bits, shift))
    yield
    with t.user(ALICE, gid, groups):
        _judge(t, one, bits, "x")


@case(one=(*FILE_TRIES[:8], *FILE_TRIES[10:12]), kind=("plain", "odd"))
def root_reads_and_writes_without_permission(t: Scene, one: Try, kind: str) -> Iterator[None]:
    t.write("x", b"data", 0 if kind == "plain" else 0o111, (CAROL, CAROL))
    os.chmod("x", 0)
    yield
    one.act("x")


@case(one=FOLDER_TRIES)
def root_searches_and_edits_without_permission(t: Scene, one: Try) -> Iterator[None]:
    os.mkdir("x")
    t.write("x/in", b"data")
    os.mkdir("x/sub")
    t.write("mine", b"data")
    os.chmod("x", 0)
    yield
    one.act("x")


@case(mode=(0o000, 0o666, 0o001, 0o010, 0o100), kind=("regular", "dir"))
def root_executes_only_what_somebody_may(t: Scene, mode: int, kind: str) -> Iterator[None]:
    t.make(kind, "x", mode)
    yield
    if mode & 0o111 or kind == "dir":
        os.access("x", os.X_OK)
        calls.eaccess("x", os.X_OK)
    else:
        t.fails(errno.EACCES, calls.eaccess, "x", os.X_OK)


@case(mode=(0o755, 0o555, 0o711, 0o500, 0o055, 0o644), who=("owner", "other"))
def execve_follows_the_execute_bits(t: Scene, mode: int, who: str) -> Iterator[None]:
    t.write("x", b"#!/bin/true\n", 0o755, (ALICE, ALICE))
    os.chmod("x", mode)
    yield
    uid, shift = (ALICE, 6) if who == "owner" else (BOB, 0)
    # A script needs reading too, by its interpreter; execve itself only looks at x.
    status = _execute(uid, "./x")
    t.equal(status == 126, not mode >> shift & EXECUTE, "refused by execve")


def _execute(uid: int, path: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.execv(path, [path])
        except PermissionError:
            os._exit(126)
        finally:
            os._exit(125)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@case(real=(0, ALICE), bits=BITS)
def access_asks_for_the_real_ids(t: Scene, real: int, bits: int) -> Iterator[None]:
    t.write("x", b"", 0o777, (ALICE, ALICE))
    os.chmod("x", bits << 6)
    yield
    os.setresuid(real, 0, 0)
    try:
        for bit in (READ, WRITE):
            allowed = os.access("x", bit)
            t.equal(allowed, real == 0 or bool(bits & bit), f"access {bit}")
    finally:
        os.setresuid(0, 0, 0)


# Sticky directories ------------------------------------------------------------------------------

REMOVALS = ("unlink", "rename_away", "rename_over", "rename_inside", "exchange")


@case(
    kind=KINDS,
    removal=REMOVALS,
    folder_owner=(ALICE, BOB, 0),
    file_owner=(ALICE, BOB, 0),
    sticky=(True, False),
)
def sticky_folders_protect_what_others_own(
    t: Scene, kind: str, removal: str, folder_owner: int, file_owner: int, sticky: bool
) -> Iterator[None]:
    os.chmod(".", 0o777)
    t.make("dir", "s", 0o1777 if sticky else 0o777, (folder_owner, folder_owner))
    t.make(kind, "s/x", 0o666 if kind != "dir" else 0o777, (file_owner, file_owner))
    t.make("dir" if kind == "dir" else "regular", "mine", 0o777, (ALICE, ALICE))
    yield
    act: Callable[..., object] = os.rename
    paths: tuple[str, ...] = ("s/x", "away" if removal == "rename_away" else "s/y")
    if removal == "unlink":
        act, paths = (os.rmdir if kind == "dir" else os.unlink), ("s/x",)
    elif removal in ("rename_over", "exchange"):
        act, paths = (os.rename if removal == "rename_over" else calls.exchange), ("mine", "s/x")
    allowed = not sticky or ALICE in (folder_owner, file_owner)
    with t.user(ALICE):
        if allowed:
            act(*paths)
            return
        with t.untouched("s", "s/x", "mine"):
            t.fails((errno.EPERM, errno.EACCES), act, *paths)
    act(*paths)  # root always may


@case(moved_owner=(ALICE, BOB), folder_owner=(ALICE, BOB))
def moving_a_folder_needs_write_permission_on_it(
    t: Scene, moved_owner: int, folder_owner: int
) -> Iterator[None]:
    # Its ".." changes, rename(2) EACCES.
    os.chmod(".", 0o777)
    t.folder("from", folder_owner, 0o777)
    t.folder("to", ALICE, 0o777)
    t.folder("from/d", moved_owner, 0o755)
    yield
    with t.user(ALICE):
        os.rename("from/d", "from/e")
        if moved_owner == ALICE:
            os.rename("from/e", "to/d")
        else:
            t.fails(errno.EACCES, os.rename, "from/e", "to/d")


@case(mode=(0o755, 0o777, 0o1777, 0o2777), uid=(ALICE, BOB))
def new_files_belong_to_the_caller(t: Scene, mode: int, uid: int) -> Iterator[None]:
    t.folder("d", uid, mode)
    os.chown("d", uid, CAROL)
    os.chmod("d", mode)
    yield
    group = CAROL if mode & stat.S_ISGID else uid
    with t.user(uid):
        for kind in SOLID_KINDS:
            if kind not in ("block", "char"):
                t.make(kind, f"d/{kind}", 0o600)
        os.symlink("x", "d/symlink")
    for kind in (*SOLID_KINDS, "symlink"):
        if kind not in ("block", "char"):
            t.owner(f"d/{kind}", uid, group)
    # POSIX leaves the bit of a new directory open; Linux hands it down.
    with t.user(uid):
        os.mkdir("d/sub", 0o755)
    t.mode("d/sub", 0o755 | (mode & stat.S_ISGID))


@case(kind=FILE_KINDS)
def hard_links_need_what_protected_hardlinks_demands(t: Scene, kind: str) -> Iterator[None]:
    os.chmod(".", 0o777)
    t.make(kind, "x", 0o666, (BOB, BOB))
    yield
    with open("/proc/sys/fs/protected_hardlinks", encoding="ascii") as file:
        protected = file.read().strip() == "1"
    with t.user(ALICE):
        # proc(5): only regular files the caller may read and write can be linked by strangers.
        if protected and kind != "regular":
            t.fails(errno.EPERM, os.link, "x", "y", follow_symlinks=False)
        else:
            os.link("x", "y", follow_symlinks=False)
