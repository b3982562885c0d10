"""rename and renameat2 (POSIX.1-2017 rename, Linux rename(2))."""

import errno
import os
from collections.abc import Iterator

from . import calls
from .frame import ALICE, DEVICE, FILE_KINDS, KINDS, Scene, case, facts, opened

DATA = b"content of the one renamed"
OTHER = b"content of the one replaced, which is longer"


def _identity(path: str) -> tuple[object, ...]:
    """What a rename keeps of an object (its change time may move)."""
    return facts(os.lstat(path))[:-1]


def _make(t: Scene, kind: str, path: str, data: bytes = DATA) -> None:
    if kind == "regular":
        t.write(path, data, 0o640, (ALICE, ALICE))
    else:
        t.make(kind, path, 0o640)


def _same_object(t: Scene, path: str, before: os.stat_result) -> None:
    after = os.lstat(path)
    t.equal(after.st_ino, before.st_ino, "inode number")
    t.equal(facts(after)[:-1], facts(before)[:-1], "attributes")


@case(kind=KINDS, place=("same", "into", "out", "across", "deep"))
def a_rename_moves_the_object(t: Scene, kind: str, place: str) -> Iterator[None]:
    os.makedirs("a/b/c")
    os.mkdir("z")
    old, new = {
        "same": ("x", "y"),
        "into": ("x", "a/y"),
        "out": ("a/x", "y"),
        "across": ("a/x", "z/y"),
        "deep": ("a/b/c/x", "z/y"),
    }[place]
    _make(t, kind, old)
    yield
    before = os.lstat(old)
    parents = {os.path.dirname(p) or "." for p in (old, new)}
    with t.marks(**dict.fromkeys(parents, "mtime ctime")):
        os.rename(old, new)
    t.absent(old)
    _same_object(t, new, before)
    if kind == "regular":
        t.content(new, DATA)
    t.true(os.path.basename(new) in os.listdir(os.path.dirname(new) or "."), "not listed")
    t.true(os.path.basename(old) not in os.listdir(os.path.dirname(old) or "."), "still listed")


@case(kind=FILE_KINDS, over=FILE_KINDS)
def a_file_replaces_any_other_file(t: Scene, kind: str, over: str) -> Iterator[None]:
    os.mkdir("d")
    _make(t, kind, "d/x")
    _make(t, over, "y", OTHER)
    os.link("y", "y2", follow_symlinks=False)
    yield
    before = os.lstat("d/x")
    with t.marks(**{".": "mtime ctime", "d": "mtime ctime", "y2": "ctime"}):
        os.rename("d/x", "y")
    t.absent("d/x")
    _same_object(t, "y", before)
    t.kind("y", kind)
    t.kind("y2", over)
    t.links("y2", 1)
    if kind == "regular":
        t.content("y", DATA)
    if over == "regular":
        t.content("y2", OTHER)


@case(kind=FILE_KINDS, full=(False, True))
def a_file_does_not_replace_a_folder(t: Scene, kind: str, full: bool) -> Iterator[None]:
    _make(t, kind, "x")
    os.mkdir("d")
    if full:
        os.mkdir("d/sub")
    yield
    with t.untouched("x", "d", "."):
        t.fails(errno.EISDIR, os.rename, "x", "d")


@case(kind=FILE_KINDS, full=(False, True))
def a_folder_does_not_replace_a_file(t: Scene, kind: str, full: bool) -> Iterator[None]:
    _make(t, kind, "x")
    os.mkdir("d")
    if full:
        os.mkdir("d/sub")
    yield
    with t.untouched("x", "d", "."):
        t.fails(errno.ENOTDIR, os.rename, "d", "x")


@case(kind=KINDS)
def a_folder_replaces_only_an_empty_folder(t: Scene, kind: str) -> Iterator[None]:
    os.mkdir("d")
    t.write("d/in", DATA)
    os.mkdir("full")
    _make(t, kind, "full/x")
    os.mkdir("empty")
    yield
    with t.untouched("d", "full", "."):
        t.fails((errno.ENOTEMPTY, errno.EEXIST), os.rename, "d", "full")
    os.rename("d", "empty")
    t.absent("d")
    t.equal(os.listdir("empty"), ["in"], "content of the moved folder")
    t.content("empty/in", DATA)


@case(kind=KINDS)
def a_folder_emptied_before_is_replaced(t: Scene, kind: str) -> Iterator[None]:
    os.mkdir("d")
    t.write("d/in", DATA)
    os.mkdir("target")
    _make(t, kind, "target/x")
    yield
    (os.rmdir if kind == "dir" else os.unlink)("target/x")
    os.rename("d", "target")
    t.equal(os.listdir("target"), ["in"], "content of the moved folder")


@case(depth=(1, 2, 3), new=("d/x", "d/sub/x", "d/sub"))
def a_folder_does_not_move_below_itself(t: Scene, depth: int, new: str) -> Iterator[None]:
    os.makedirs("/".join(["d", "sub", "sub2"][: depth + 1]))
    os.makedirs("d/sub", exist_ok=True)
    yield
    with t.untouched("d", "d/sub"):
        t.fails(errno.EINVAL, os.rename, "d", new)


@case(new=("d", "d/sub"), full=(False, True))
def a_folder_does_not_replace_its_ancestor(t: Scene, new: str, full: bool) -> Iterator[None]:
    os.makedirs("d/sub/x")
    if full:
        os.mkdir("d/sub/x/y")
    yield
    with t.untouched("d", "d/sub", "d/sub/x"):
        t.fails((errno.ENOTEMPTY, errno.EEXIST), os.rename, "d/sub/x", new)


@case(old=(".", "..", "d/.", "d/.."), side=("old", "new"))
def dot_and_dot_dot_cannot_be_renamed(t: Scene, old: str, side: str) -> Iterator[None]:
    os.mkdir("d")
    os.mkdir("e")
    yield
    codes = (errno.EINVAL, errno.EBUSY, errno.ENOTEMPTY, errno.EEXIST)
    with t.untouched(".", "d", "e"):
        t.fails(codes, os.rename, *((old, "x") if side == "old" else ("e", old)))


@case(kind=KINDS)
def a_rename_onto_itself_does_nothing(t: Scene, kind: str) -> Iterator[None]:
    _make(t, kind, "x")
    yield
    with t.untouched("x", "."):
        os.rename("x", "x")


@case(kind=FILE_KINDS)
def a_rename_onto_another_link_of_it_does_nothing(t: Scene, kind: str) -> Iterator[None]:
    _make(t, kind, "x")
    os.link("x", "y", follow_symlinks=False)
    yield
    with t.untouched("x", "y", "."):
        os.rename("x", "y")
    t.links("x", 2)


@case(kind=FILE_KINDS)
def all_links_follow_a_rename_of_one(t: Scene, kind: str) -> Iterator[None]:
    os.mkdir("d")
    _make(t, kind, "x")
    os.link("x", "y", follow_symlinks=False)
    yield
    os.rename("x", "d/z")
    t.links("y", 2)
    t.equal(os.lstat("y").st_ino, os.lstat("d/z").st_ino, "inode number")
    if kind == "regular":
        with opened("d/z", os.O_WRONLY | os.O_APPEND) as descriptor:
            os.write(descriptor, b"more")
        t.content("y", DATA + b"more")


@case(steps=(1, 2, 5))
def a_moved_folder_keeps_its_whole_tree(t: Scene, steps: int) -> Iterator[None]:
    os.makedirs("d/e/f")
    t.write("d/one", DATA)
    t.write("d/e/two", OTHER)
    os.symlink("one", "d/e/f/link")
    os.mkdir("target")
    yield
    number = os.lstat("d").st_ino
    here = "d"
    for step in range(steps):
        new = f"target/m{step}" if step % 2 == 0 else f"m{step}"
        os.rename(here, new)
        t.absent(here)
        here = new
    t.equal(os.lstat(here).st_ino, number, "inode number")
    tree = sorted(os.path.join(p, n)[len(here) :] for p, ds, fs in os.walk(here) for n in ds + fs)
    t.equal(tree, ["/e", "/e/f", "/e/f/link", "/e/two", "/one"], "tree")
    t.content(f"{here}/one", DATA)
    t.content(f"{here}/e/two", OTHER)
    t.equal(os.readlink(f"{here}/e/f/link"), "one", "link")
    os.mkdir("d")
    t.equal(os.listdir("d"), [], "a new folder at the old name")


@case(inner=("file", "dir"))
def names_inside_a_moved_folder_can_change(t: Scene, inner: str) -> Iterator[None]:
    os.makedirs("d/sub")
    t.write("d/file", DATA)
    t.write("d/sub/deep", OTHER)
    yield
    os.rename("d", "e")
    if inner == "file":
        os.rename("e/file", "e/sub/file")
        os.unlink("e/sub/deep")
        t.equal(sorted(os.listdir("e/sub")), ["file"], "listing")
        t.content("e/sub/file", DATA)
    else:
        os.rename("e/sub", "sub")
        os.rename("e", "sub/e")
        t.equal(sorted(os.listdir("sub")), ["deep", "e"], "listing")
        t.content("sub/e/file", DATA)
        t.content("sub/deep", OTHER)


@case(parent=("same", "other"))
def dot_dot_and_link_counts_follow_a_folder(t: Scene, parent: str) -> Iterator[None]:
    os.makedirs("a/d/sub")
    os.mkdir("b")
    yield
    ino = {name: os.lstat(name).st_ino for name in ("a", "b")}
    t.equal(os.lstat("a/d/..").st_ino, ino["a"], "..")
    new = "a/e" if parent == "same" else "b/e"
    os.rename("a/d", new)
    t.equal(os.lstat(f"{new}/..").st_ino, ino[new[0]], ".. afterwards")


@case(kind=KINDS)
def a_file_open_while_replaced_lives_on(t: Scene, kind: str) -> Iterator[None]:
    t.write("x", DATA)
    t.write("y", OTHER)
    yield
    with opened("y", os.O_RDWR) as old:
        os.rename("x", "y")
        t.equal(os.pread(old, 100, 0), OTHER, "content behind the descriptor")
        os.pwrite(old, b"!", 0)
        t.equal(os.pread(old, 3, 0), b"!" + OTHER[1:3], "written content")
        t.equal(os.fstat(old).st_nlink, 0, "link count")
        t.content("y", DATA)


@case()
def a_file_open_while_moved_stays_the_file(t: Scene) -> Iterator[None]:
    t.write("x", DATA)
    os.mkdir("d")
    yield
    with opened("x", os.O_RDWR) as one:
        os.rename("x", "d/y")
        os.pwrite(one, b"!", 0)
        t.content("d/y", b"!" + DATA[1:])
        t.equal(os.fstat(one).st_ino, os.lstat("d/y").st_ino, "inode number")


# renameat2 -----------------------------------------------------------------------------------------


@case(kind=KINDS, other=KINDS, place=("same", "across"))
def exchange_swaps_any_two_objects(t: Scene, kind: str, other: str, place: str) -> Iterator[None]:
    os.makedirs("d")
    y = "y" if place == "same" else "d/y"
    _make(t, kind, "x")
    _make(t, other, y, OTHER)
    yield
    first, second = os.lstat("x"), os.lstat(y)
    with t.marks(**dict.fromkeys({".", os.path.dirname(y) or "."}, "mtime ctime")):
        calls.exchange("x", y)
    _same_object(t, y, first)
    _same_object(t, "x", second)
    if kind == "regular":
        t.content(y, DATA)
    if other == "regular":
        t.content("x", OTHER)


@case(side=("x", "y"))
def exchange_needs_both(t: Scene, side: str) -> Iterator[None]:
    t.write(side, DATA)
    yield
    with t.untouched(side, "."):
        t.fails(errno.ENOENT, calls.exchange, "x", "y")


@case(old=("d", "d/e"), new=("d/e/f", "d/e/f/g"))
def exchange_refuses_loops(t: Scene, old: str, new: str) -> Iterator[None]:
    os.makedirs("d/e/f/g")
    yield
    # One inside the other: EINVAL one way round, ENOTEMPTY the other.
    t.fails((errno.EINVAL, errno.ENOTEMPTY), calls.exchange, old, new)
    t.fails((errno.EINVAL, errno.ENOTEMPTY), calls.exchange, new, old)


@case()
def exchanged_full_folders_keep_their_trees(t: Scene) -> Iterator[None]:
    os.makedirs("a/in")
    os.mkdir("b")
    t.write("a/in/one", DATA)
    t.write("b/two", OTHER)
    yield
    calls.exchange("a", "b")
    t.content("b/in/one", DATA)
    t.content("a/two", OTHER)
    t.equal((os.listdir("a"), os.listdir("b")), (["two"], ["in"]), "listings")
    calls.exchange("a", "b")
    t.content("a/in/one", DATA)


@case(kind=KINDS, over=KINDS)
def noreplace_never_replaces(t: Scene, kind: str, over: str) -> Iterator[None]:
    _make(t, kind, "x")
    _make(t, over, "y")
    yield
    with t.untouched("x", "y", "."):
        t.fails(errno.EEXIST, calls.noreplace, "x", "y")
    (os.rmdir if over == "dir" else os.unlink)("y")
    before = os.lstat("x")
    calls.noreplace("x", "y")
    _same_object(t, "y", before)
    t.absent("x")


@case(
    flags=(
        calls.RENAME_EXCHANGE | calls.RENAME_NOREPLACE,
        calls.RENAME_EXCHANGE | calls.RENAME_WHITEOUT,
        64,
        1 << 31,
    )
)
def senseless_flags_are_einval(t: Scene, flags: int) -> Iterator[None]:
    t.write("x", DATA)
    t.write("y", DATA)
    yield
    with t.untouched("x", "y"):
        t.fails(errno.EINVAL, calls.renameat2, "x", "y", flags)


@case(kind=KINDS)
def a_moved_object_keeps_its_extended_attributes(t: Scene, kind: str) -> Iterator[None]:
    _make(t, kind, "x")
    os.setxattr("x", "trusted.note", b"value", follow_symlinks=False)
    yield
    os.rename("x", "y")
    t.equal(os.getxattr("y", "trusted.note", follow_symlinks=False), b"value", "attribute")


@case()
def a_device_keeps_its_number(t: Scene) -> Iterator[None]:
    t.make("char", "x")
    t.make("block", "y")
    yield
    for name in "xy":
        os.rename(name, f"{name}2")
        t.equal(os.lstat(f"{name}2").st_rdev, DEVICE, "device number")
