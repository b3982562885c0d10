"""Path resolution, for every call that takes a path (POSIX.1-2017 4.13, path_resolution(7))."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from . import calls
from .frame import ALICE, BOB, CAROL, FILE_KINDS, KINDS, Scene, case, opened

NAME_MAX, PATH_MAX, LINKS_MAX = 255, 4096, 40


@dataclass(frozen=True)
class Call:
    """A call on one path.

    `wants` is what must be at the path for it to succeed; `follows` tells whether it looks
    through a final symbolic link, `edits` whether it changes the directory the name is in,
    `changes` whether it changes the object itself.
    """

    name: str
    act: Callable[[str], object]
    wants: str = "regular"
    follows: bool = True
    edits: bool = False
    changes: bool = False
    limit: int = PATH_MAX  # bytes of a path the call takes, with the closing zero

    @property
    def writes(self) -> bool:
        """Whether a read-only mount must refuse it."""
        return self.edits or self.changes


def _open(flags: int) -> Callable[[str], object]:
    def open_close(path: str) -> None:
        os.close(os.open(path, flags, 0o644))

    return open_close


def _bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)


def _chdir(path: str) -> None:
    with opened(".", os.O_RDONLY | os.O_DIRECTORY) as here:
        os.chdir(path)
        os.fchdir(here)


def _link_old(path: str) -> None:
    os.link(path, "spare", follow_symlinks=False)


CALLS = (
    Call("open_read", _open(os.O_RDONLY)),
    Call("open_write", _open(os.O_WRONLY), changes=True),
    Call("open_append", _open(os.O_RDWR | os.O_APPEND), changes=True),
    Call("open_truncate", _open(os.O_WRONLY | os.O_TRUNC), changes=True),
    Call("open_create", _open(os.O_WRONLY | os.O_CREAT), "missing", edits=True),
    Call("open_exclusive", _open(os.O_WRONLY | os.O_CREAT | os.O_EXCL), "missing", False, True),
    Call("open_directory", _open(os.O_RDONLY | os.O_DIRECTORY), "dir"),
    Call("open_tmpfile", _open(os.O_RDWR | os.O_TMPFILE), "dir", changes=True),
    Call("open_path", _open(os.O_PATH)),
    Call("open_nofollow", _open(os.O_RDONLY | os.O_NOFOLLOW), follows=False),
    Call("stat", os.stat),
    Call("lstat", os.lstat, follows=False),
    Call("access", lambda p: calls.eaccess(p, os.F_OK)),
    Call("statvfs", os.statvfs),
    Call("chdir", _chdir, "dir"),
    Call("listdir", os.listdir, "dir"),
    Call("readlink", os.readlink, "symlink", False),
    Call("chmod", lambda p: os.chmod(p, 0o600), changes=True),
    Call("chown", lambda p: os.chown(p, os.geteuid(), -1), changes=True),
    Call("lchown", lambda p: os.lchown(p, os.geteuid(), -1), follows=False, changes=True),
    Call("truncate", lambda p: os.truncate(p, 7), changes=True),
    Call("utimensat", lambda p: calls.utimensat(p, (1, 2), (3, 4)), changes=True),
    Call("utimensat_now", lambda p: calls.utimensat(p, None, None), changes=True),
    Call(
        "utimensat_link",
        lambda p: calls.utimensat(p, (1, 2), (3, 4), calls.AT_SYMLINK_NOFOLLOW),
        follows=False,
        changes=True,
    ),
    Call("setxattr", lambda p: os.setxattr(p, "user.a", b"1"), changes=True),
    Call("listxattr", os.listxattr),
    Call("llistxattr", lambda p: os.listxattr(p, follow_symlinks=False), follows=False),
    Call("mkdir", os.mkdir, "missing", False, True),
    Call("mkfifo", os.mkfifo, "missing", False, True),
    Call("mknod_socket", lambda p: os.mknod(p, 0o140644), "missing", False, True),
    Call("mknod_regular", lambda p: os.mknod(p, 0o100644), "missing", False, True),
    Call("bind", _bind, "missing", False, True, limit=108),
    Call("symlink", lambda p: os.symlink("nowhere", p), "missing", False, True),
    Call("rmdir", os.rmdir, "dir", False, True),
    Call("unlink", os.unlink, follows=False, edits=True),
    Call("link_from", _link_old, follows=False, changes=True),
    Call("link_to", lambda p: os.link("spare", p), "missing", False, True),
    Call("rename_from", lambda p: os.rename(p, "spare"), follows=False, edits=True),
    Call("rename_from_dir", lambda p: os.rename(p, "spare"), "dir", False, True),
    Call("rename_to", lambda p: os.rename("spare", p), "missing", False, True),
    Call("rename_over", lambda p: os.rename("spare", p), "regular", False, True),
    Call("exchange_from", lambda p: calls.exchange(p, "spare"), "regular", False, True),
    Call("exchange_to", lambda p: calls.exchange("spare", p), "regular", False, True),
    Call("noreplace_to", lambda p: calls.noreplace("spare", p), "missing", False, True),
)

NEEDS_SPARE = (
    "link_to",
    "rename_to",
    "rename_over",
    "exchange_from",
    "exchange_to",
    "noreplace_to",
)
LONG = tuple(c for c in CALLS if c.limit == PATH_MAX)
FOLLOWING = tuple(c for c in CALLS if c.follows)
EDITING = tuple(c for c in CALLS if c.edits)
CREATING = tuple(c for c in CALLS if c.wants == "missing")
FRESH = tuple(c for c in CREATING if c.name not in ("open_create", "rename_to"))
PRESENT = tuple(c for c in CALLS if c.wants != "missing" and c.name != "rename_over")


def prepare(t: Scene, call: Call, path: str, spare: str = "spare", owner: int = 0) -> None:
    """Put down what the call needs for success, all of it belonging to `owner`."""
    made = []
    if call.wants != "missing":
        t.make(call.wants, path, 0o777)
        made.append(path)
    if call.name in NEEDS_SPARE:
        t.make("regular", spare, 0o777)
        made.append(spare)
    for one in made:
        os.lchown(one, owner, owner)


@case(call=CALLS)
def works_plainly(t: Scene, call: Call) -> Iterator[None]:
    prepare(t, call, "x")
    yield
    call.act("x")
    t.equal(os.path.lexists("x"), call.name not in GONE_AFTER, "presence afterwards")


GONE_AFTER = ("rmdir", "unlink", "rename_from", "rename_from_dir")


@case(call=CALLS)
def works_plainly_for_the_owner(t: Scene, call: Call) -> Iterator[None]:
    os.chmod(".", 0o777)
    prepare(t, call, "x", owner=ALICE)
    yield
    with t.user(ALICE):
        call.act("x")


@case(call=CALLS)
def missing_directory_is_enoent(t: Scene, call: Call) -> Iterator[None]:
    prepare(t, call, "y")
    yield
    t.fails(errno.ENOENT, call.act, "none/y")


@case(call=PRESENT)
def missing_object_is_enoent(t: Scene, call: Call) -> Iterator[None]:
    prepare(t, call, "y")
    yield
    t.fails(errno.ENOENT, call.act, "none")


@case(call=PRESENT)
def object_removed_before_is_enoent(t: Scene, call: Call) -> Iterator[None]:
    prepare(t, call, "x")
    yield
    if call.wants == "dir":
        os.rmdir("x")
    else:
        os.unlink("x")
    t.fails(errno.ENOENT, call.act, "x")


@case(call=tuple(c for c in CREATING if c.name != "bind"), kind=KINDS)
def creating_over_a_removed_name_works(t: Scene, call: Call, kind: str) -> Iterator[None]:
    prepare(t, call, "x")
    t.make(kind, "x")
    yield
    if kind == "dir":
        os.rmdir("x")
    else:
        os.unlink("x")
    call.act("x")
    os.lstat("x")


@case(call=CALLS, kind=("regular", "fifo", "block", "char", "socket", "link"))
def file_as_directory_is_enotdir(t: Scene, call: Call, kind: str) -> Iterator[None]:
    prepare(t, call, "y")
    if kind == "link":
        t.make("regular", "target")
        os.symlink("target", "f")
    else:
        t.make(kind, "f")
    yield
    t.fails(errno.ENOTDIR, call.act, "f/y")


@case(call=CALLS, length=(1, 2, 3))
def loop_of_links_as_directory_is_eloop(t: Scene, call: Call, length: int) -> Iterator[None]:
    prepare(t, call, "y")
    for n in range(length):
        os.symlink(f"loop{(n + 1) % length}", f"loop{n}")
    yield
    t.fails(errno.ELOOP, call.act, "loop0/y")


@case(call=FOLLOWING, length=(1, 2))
def loop_of_links_at_the_end_is_eloop(t: Scene, call: Call, length: int) -> Iterator[None]:
    prepare(t, call, "y")
    for n in range(length):
        os.symlink(f"loop{(n + 1) % length}", f"loop{n}")
    yield
    t.fails(errno.ELOOP, call.act, "loop0")


@case(call=CALLS, count=(LINKS_MAX, LINKS_MAX + 1))
def forty_links_on_the_way_are_the_limit(t: Scene, call: Call, count: int) -> Iterator[None]:
    os.mkdir("d0", 0o777)
    for n in range(1, count + 1):
        os.symlink(f"d{n - 1}", f"d{n}")
    prepare(t, call, "d0/x")
    yield
    if count <= LINKS_MAX:
        call.act(f"d{count}/x")
    else:
        t.fails(errno.ELOOP, call.act, f"d{count}/x")


@case(call=LONG)
def name_of_255_bytes_works(t: Scene, call: Call) -> Iterator[None]:
    name = "n" * NAME_MAX
    prepare(t, call, name)
    yield
    call.act(name)
    t.equal(name in os.listdir("."), call.name not in GONE_AFTER, "listing")


@case(call=LONG, where=("end", "directory"))
def name_of_256_bytes_is_enametoolong(t: Scene, call: Call, where: str) -> Iterator[None]:
    prepare(t, call, "y")
    yield
    name = "n" * (NAME_MAX + 1)
    t.fails(errno.ENAMETOOLONG, call.act, name if where == "end" else f"{name}/y")


@case(call=LONG)
def path_of_4095_bytes_works(t: Scene, call: Call) -> Iterator[None]:
    name = "x" * 255
    prepare(t, call, name)
    yield
    call.act("./" * ((PATH_MAX - 1 - len(name)) // 2) + name)


@case(call=LONG)
def path_of_4096_bytes_is_enametoolong(t: Scene, call: Call) -> Iterator[None]:
    prepare(t, call, "x")
    yield
    t.fails(errno.ENAMETOOLONG, call.act, "." + "/" * (PATH_MAX - 2) + "x")


@case(call=tuple(c for c in CALLS if c.name != "bind"))
def empty_path_is_enoent(t: Scene, call: Call) -> Iterator[None]:
    prepare(t, call, "y")
    yield
    t.fails(errno.ENOENT, call.act, "")


@case(call=CALLS, prefix=("./", ".//", "d/../", "d/./../", "link/../", "./d/..//./"))
def dots_and_slashes_do_not_matter(t: Scene, call: Call, prefix: str) -> Iterator[None]:
    os.mkdir("d")
    os.symlink("d", "link")
    prepare(t, call, "x")
    yield
    call.act(prefix + "x")


@case(call=FOLLOWING)
def a_link_is_followed_at_the_end(t: Scene, call: Call) -> Iterator[None]:
    os.mkdir("d")
    os.symlink("d/x", "link")
    prepare(t, call, "d/x")
    yield
    with t.untouched("link"):
        call.act("link")
    os.lstat("d/x")


@case(call=CALLS)
def a_trailing_slash_demands_a_directory(t: Scene, call: Call) -> Iterator[None]:
    prepare(t, call, "x")
    yield
    if call.wants == "dir" or call.name == "mkdir":
        call.act("x/")
    elif call.name in ("open_create", "open_exclusive"):
        t.fails(errno.EISDIR, call.act, "x/")
    elif call.name in ("rename_to", "noreplace_to"):
        t.fails(errno.ENOTDIR, call.act, "x/")
    elif call.wants in ("missing", "symlink"):
        t.fails(errno.ENOENT, call.act, "x/")
    else:
        t.fails(errno.ENOTDIR, call.act, "x/")


# The class of the caller against a directory: owner of it, bit shift, his gid and other groups.
CLASSES = {
    "owner": ((ALICE, BOB), 6, ALICE, ()),
    "group": ((CAROL, BOB), 3, BOB, ()),
    "supplementary": ((CAROL, BOB), 3, ALICE, (CAROL + 7, BOB)),
    "other": ((CAROL, CAROL), 0, ALICE, (BOB,)),
}


@case(call=CALLS, who=tuple(CLASSES))
def search_permission_is_needed_on_the_way(t: Scene, call: Call, who: str) -> Iterator[None]:
    owner, shift, gid, groups = CLASSES[who]
    os.chmod(".", 0o777)
    os.mkdir("d")
    prepare(t, call, "d/x", owner=ALICE)
    os.chown("d", *owner)
    os.chmod("d", 0o777 & ~(1 << shift))
    yield
    with t.user(ALICE, gid, groups):
        t.fails(errno.EACCES, call.act, "d/x")


@case(call=CALLS, who=tuple(CLASSES))
def search_permission_of_the_own_class_is_enough(t: Scene, call: Call, who: str) -> Iterator[None]:
    owner, shift, gid, groups = CLASSES[who]
    os.chmod(".", 0o777)
    os.mkdir("d")
    prepare(t, call, "d/x", owner=ALICE)
    os.chown("d", *owner)
    os.chmod("d", (3 if call.edits else 1) << shift)
    yield
    with t.user(ALICE, gid, groups):
        call.act("d/x")


@case(call=EDITING, who=tuple(CLASSES))
def write_permission_is_needed_to_edit(t: Scene, call: Call, who: str) -> Iterator[None]:
    owner, shift, gid, groups = CLASSES[who]
    os.chmod(".", 0o777)
    os.mkdir("d")
    prepare(t, call, "d/x", owner=ALICE)
    os.chown("d", *owner)
    os.chmod("d", 0o777 & ~(2 << shift))
    yield
    with t.user(ALICE, gid, groups), t.untouched("d"):
        t.fails(errno.EACCES, call.act, "d/x")


@case(call=tuple(c for c in CALLS if c.writes))
def a_read_only_mount_refuses(t: Scene, call: Call) -> Iterator[None]:
    os.mkdir("d")
    prepare(t, call, "d/x", "d/spare")
    yield
    with read_only("d"):
        os.chdir("d")
        try:
            with t.untouched("."):
                t.fails(errno.EROFS, call.act, "x")
        finally:
            os.chdir("..")


@case(call=tuple(c for c in CALLS if not c.writes))
def a_read_only_mount_lets_read(t: Scene, call: Call) -> Iterator[None]:
    os.mkdir("d")
    prepare(t, call, "d/x", "d/spare")
    yield
    with read_only("d"):
        call.act("d/x")


@contextmanager
def read_only(path: str) -> Iterator[None]:
    """Bind a directory upon itself, read-only."""
    calls.mount(path, path, "", calls.MS_BIND)
    try:
        calls.mount("", path, "", calls.MS_BIND | calls.MS_REMOUNT | calls.MS_RDONLY)
        yield
    finally:
        calls.unmount(path)


@case(call=FRESH, kind=(*KINDS, "loop"))
def what_exists_is_not_created_again(t: Scene, call: Call, kind: str) -> Iterator[None]:
    prepare(t, call, "x")
    if kind == "loop":
        os.symlink("x", "x")
    else:
        t.make(kind, "x")
    yield
    with t.untouched("x", "."):
        t.fails(errno.EADDRINUSE if call.name == "bind" else errno.EEXIST, call.act, "x")


@case(call=tuple(c for c in CALLS if c.wants == "dir" and "rename" not in c.name), kind=FILE_KINDS)
def what_needs_a_directory_refuses_others(t: Scene, call: Call, kind: str) -> Iterator[None]:
    t.make(kind, "x")
    yield
    dangling = kind == "symlink" and call.follows
    with t.untouched("x", "."):
        # open(2): O_DIRECTORY on a link that leads nowhere finds nothing.
        t.fails(errno.ENOENT if dangling else errno.ENOTDIR, call.act, "x")


DIRECTORY_ERRORS = {
    "open_write": errno.EISDIR,
    "open_append": errno.EISDIR,
    "open_truncate": errno.EISDIR,
    "open_create": errno.EISDIR,
    "truncate": errno.EISDIR,
    "unlink": errno.EISDIR,
    "rename_over": errno.EISDIR,
    "link_from": errno.EPERM,
    "readlink": errno.EINVAL,
}


@case(call=tuple(c for c in CALLS if c.name in DIRECTORY_ERRORS), full=(False, True))
def what_needs_a_file_refuses_directories(t: Scene, call: Call, full: bool) -> Iterator[None]:
    os.mkdir("x")
    if full:
        t.make("regular", "x/y")
    if call.name in NEEDS_SPARE:
        t.make("regular", "spare")
    yield
    with t.untouched("x", "."):
        t.fails(DIRECTORY_ERRORS[call.name], call.act, "x")


STRANGE = (
    "space in it",
    "-dash",
    ".hidden",
    "new\nline",
    "tab\t",
    "back\\slash",
    "*?[glob]",
    "\udcff\udcfe",
    "ünï–日本",
    ".wh.x",
    ".wh..wh..opq",
    "\x01\x7f",
    "a" * 254 + "\udcff",
    "...",
    "%s%n",
)


@case(call=tuple(c for c in CREATING if c.name != "bind"), number=tuple(range(len(STRANGE))))
def strange_names_are_kept_to_the_byte(t: Scene, call: Call, number: int) -> Iterator[None]:
    prepare(t, call, "x")
    yield
    call.act(STRANGE[number])
    os.lstat(STRANGE[number])
    t.true(STRANGE[number] in os.listdir("."), "the listing lacks the name")


@case(number=tuple(range(len(STRANGE))), kind=KINDS)
def strange_names_built_before_are_found(t: Scene, number: int, kind: str) -> Iterator[None]:
    t.make(kind, STRANGE[number])
    yield
    t.equal(os.listdir("."), [STRANGE[number]], "listing")
    t.kind(STRANGE[number], kind)
    os.rename(STRANGE[number], "plain")
    t.equal(os.listdir("."), ["plain"], "listing after rename")
