"""chmod, chown, set-id bits (POSIX.1-2017 chmod, chown, write; Linux chmod(2), chown(2))."""

import errno
import os
import stat
from collections.abc import Callable, Iterator

from . import calls
from .frame import ALICE, BOB, CAROL, DEVICE, KINDS, SOLID_KINDS, TYPE_BITS, Scene, case, opened

MODES = (0o000, 0o111, 0o222, 0o444, 0o644, 0o777, 0o1777, 0o2755, 0o2644, 0o4755, 0o6777, 0o7777)
DATA = b"some bytes that stay"


@case(kind=SOLID_KINDS, mode=MODES)
def chmod_sets_every_bit_for_root(t: Scene, kind: str, mode: int) -> Iterator[None]:
    t.make(kind, "x", 0o644)
    yield
    with t.marks(x="ctime"):
        os.chmod("x", mode)
    t.mode("x", mode)
    t.kind("x", kind)


@case(kind=SOLID_KINDS, mode=MODES)
def chmod_sets_every_bit_for_the_owner(t: Scene, kind: str, mode: int) -> Iterator[None]:
    t.make(kind, "x", 0o644, (ALICE, ALICE))
    yield
    with t.user(ALICE), t.marks(x="ctime"):
        os.chmod("x", mode)
    t.mode("x", mode)


@case(
    kind=("regular", "dir", "fifo"),
    mode=(0o2755, 0o2644, 0o6777),
    member=("gid", "supplementary", "no"),
)
def chmod_drops_setgid_for_strangers_to_the_group(
    t: Scene, kind: str, mode: int, member: str
) -> Iterator[None]:
    t.make(kind, "x", 0o600, (ALICE, CAROL))
    yield
    groups = (CAROL,) if member == "supplementary" else (BOB,)
    with t.user(ALICE, CAROL if member == "gid" else ALICE, groups):
        os.chmod("x", mode)
    t.mode("x", mode if member != "no" else mode & ~stat.S_ISGID)


@case(kind=SOLID_KINDS, mode=(0o000, 0o755, 0o7777), group=(ALICE, BOB))
def chmod_by_a_stranger_is_eperm(t: Scene, kind: str, mode: int, group: int) -> Iterator[None]:
    t.make(kind, "x", 0o666, (BOB, group))
    yield
    with t.user(ALICE), t.untouched("x"):
        t.fails(errno.EPERM, os.chmod, "x", mode)


@case(kind=("regular", "dir"), mode=MODES, access=(os.O_RDONLY, os.O_WRONLY))
def fchmod_does_what_chmod_does(t: Scene, kind: str, mode: int, access: int) -> Iterator[None]:
    t.make(kind, "x", 0o644, (ALICE, ALICE))
    yield
    if kind == "dir" and access == os.O_WRONLY:
        t.fails(errno.EISDIR, os.open, "x", access)
        return
    with opened("x", access) as descriptor:
        with t.marks(x="ctime"):
            os.fchmod(descriptor, mode)
        t.mode("x", mode)
        t.equal(stat.S_IMODE(os.fstat(descriptor).st_mode), mode, "fstat mode")
        with t.user(BOB):
            t.fails(errno.EPERM, os.fchmod, descriptor, 0o777)
        t.mode("x", mode)


@case(mode=MODES)
def chmod_keeps_content_and_shows_at_every_link(t: Scene, mode: int) -> Iterator[None]:
    t.write("x", DATA)
    os.link("x", "y")
    yield
    os.chmod("x", mode)
    t.mode("y", mode)
    t.content("y", DATA)
    t.links("x", 2)
    t.equal(os.lstat("x").st_ino, os.lstat("y").st_ino, "inode number")


@case(mode=MODES)
def chmod_through_a_link_changes_the_target(t: Scene, mode: int) -> Iterator[None]:
    t.write("x", DATA)
    os.symlink("x", "s")
    yield
    with t.untouched("s"):
        os.chmod("s", mode)
    t.mode("x", mode)


# chown ---------------------------------------------------------------------------------------------


@case(kind=KINDS, uid=(-1, 0, ALICE), gid=(-1, 0, BOB))
def chown_by_root_sets_what_is_asked(t: Scene, kind: str, uid: int, gid: int) -> Iterator[None]:
    t.make(kind, "x", 0o644, (CAROL, CAROL))
    yield
    with t.marks(x="ctime") if (uid, gid) != (-1, -1) else t.marks():
        os.lchown("x", uid, gid)
    t.owner("x", CAROL if uid == -1 else uid, CAROL if gid == -1 else gid)


@case(kind=SOLID_KINDS, uid=(-1, ALICE), gid=(-1, ALICE, BOB), nofollow=(False, True))
def chown_by_the_owner_reaches_his_groups(
    t: Scene, kind: str, uid: int, gid: int, nofollow: bool
) -> Iterator[None]:
    t.make(kind, "x", 0o644, (ALICE, ALICE))
    yield
    with t.user(ALICE, ALICE, (BOB,)):
        (os.lchown if nofollow else os.chown)("x", uid, gid)
    t.owner("x", ALICE, ALICE if gid == -1 else gid)


@case(kind=KINDS, ids=((BOB, -1), (-1, CAROL), (0, -1), (-1, 0), (BOB, BOB), (ALICE, CAROL)))
def chown_by_the_owner_goes_no_further(t: Scene, kind: str, ids: tuple[int, int]) -> Iterator[None]:
    t.make(kind, "x", 0o644, (ALICE, ALICE))
    yield
    with t.user(ALICE, ALICE, (BOB,)), t.untouched("x"):
        t.fails(errno.EPERM, os.lchown, "x", *ids)


@case(kind=KINDS, ids=((ALICE, -1), (-1, ALICE), (ALICE, ALICE), (BOB, ALICE)))
def chown_by_a_stranger_is_eperm(t: Scene, kind: str, ids: tuple[int, int]) -> Iterator[None]:
    t.make(kind, "x", 0o666, (BOB, BOB))
    yield
    with t.user(ALICE), t.untouched("x"):
        t.fails(errno.EPERM, os.lchown, "x", *ids)


@case(kind=KINDS)
def chown_follows_links_and_lchown_does_not(t: Scene, kind: str) -> Iterator[None]:
    target = "t" if kind != "symlink" else "t2"
    t.make(kind if kind != "symlink" else "regular", target)
    os.symlink(target, "s")
    yield
    with t.untouched("s"):
        os.chown("s", ALICE, BOB)
    t.owner(target, ALICE, BOB)
    with t.untouched(target):
        os.lchown("s", BOB, CAROL)
    t.owner("s", BOB, CAROL)


@case(
    kind=("regular",),
    mode=(0o4755, 0o2755, 0o6755, 0o2745, 0o4644, 0o6777),
    by=("root", "owner"),
    how=("chown", "lchown", "fchown"),
)
def chown_clears_set_id_bits(t: Scene, kind: str, mode: int, by: str, how: str) -> Iterator[None]:
    t.make(kind, "x", mode, (ALICE, ALICE))
    yield
    with t.user(0 if by == "root" else ALICE, None, (BOB,)), opened("x", os.O_RDONLY) as descriptor:
        if how == "fchown":
            os.fchown(descriptor, -1, BOB)
        else:
            getattr(os, how)("x", -1, BOB)
    # chown(2): without group execute the setgid bit meant mandatory locking and stays, unless
    # the caller is neither privileged nor in the file's new group.
    t.mode("x", mode & ~0o4000 & ~(0o2000 if mode & 0o010 else 0))
    t.owner("x", ALICE, BOB)


@case(mode=(0o6777, 0o2755, 0o7777), by=("root", "owner"))
def chown_keeps_the_bits_of_a_folder(t: Scene, mode: int, by: str) -> Iterator[None]:
    t.make("dir", "x", mode, (ALICE, ALICE))
    yield
    with t.user(0 if by == "root" else ALICE, None, (BOB,)):
        os.chown("x", -1, BOB)
    t.mode("x", mode)


@case(how=("chown", "lchown", "fchown"), by=("root", "owner"))
def chown_to_nobody_new_moves_ctime_or_not_but_nothing_else(
    t: Scene, how: str, by: str
) -> Iterator[None]:
    t.write("x", DATA, 0o6755, (ALICE, ALICE))
    yield
    before = os.lstat("x")
    with t.user(0 if by == "root" else ALICE), opened("x", os.O_RDONLY) as descriptor:
        if how == "fchown":
            os.fchown(descriptor, -1, -1)
        else:
            getattr(os, how)("x", -1, -1)
    after = os.lstat("x")
    t.equal((after.st_uid, after.st_gid, after.st_mtime_ns), (ALICE, ALICE, before.st_mtime_ns))
    t.content("x", DATA)


@case(ids=((0, 0), (2**31, 2**31 - 1), (2**32 - 2, 2**32 - 2), (65536, 70000)))
def large_ids_are_kept(t: Scene, ids: tuple[int, int]) -> Iterator[None]:
    t.write("x", DATA)
    yield
    os.chown("x", *ids)
    t.owner("x", *ids)


# What a write does to set-id bits ------------------------------------------------------------------

WRITERS: dict[str, Callable[[str], object]] = {}


def _writer(act: Callable[[str], object]) -> Callable[[str], object]:
    WRITERS[act.__name__] = act
    return act


@_writer
def write_bytes(path: str) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        os.write(descriptor, b"x")


@_writer
def append_bytes(path: str) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"x")


@_writer
def pwrite_bytes(path: str) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"x", 5000)


@_writer
def truncate_path(path: str) -> None:
    os.truncate(path, 3)


@_writer
def truncate_descriptor(path: str) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        os.ftruncate(descriptor, 3)


@_writer
def truncate_at_open(path: str) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass


@_writer
def allocate(path: str) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        calls.fallocate(descriptor, 0, 0, 8192)


@_writer
def splice_in(path: str) -> None:
    with opened("source", os.O_RDONLY) as source, opened(path, os.O_WRONLY) as target:
        os.sendfile(target, source, 0, 4)


@_writer
def copy_range(path: str) -> None:
    with opened("source", os.O_RDONLY) as source, opened(path, os.O_WRONLY) as target:
        os.copy_file_range(source, target, 4)


SET_ID_MODES = (0o4777, 0o2777, 0o6777, 0o4767, 0o2767, 0o6766)


@case(writer=tuple(WRITERS), mode=SET_ID_MODES, uid=(ALICE, BOB))
def writing_clears_set_id_bits(t: Scene, writer: str, mode: int, uid: int) -> Iterator[None]:
    t.write("x", DATA, 0o777, (ALICE, ALICE))
    os.chmod("x", mode)
    t.write("source", DATA, 0o666)
    yield
    with t.user(uid):
        WRITERS[writer]("x")
    # A stranger to the group loses setgid even without group execute (setattr_should_drop_sgid).
    keeps_group = not mode & 0o010 and uid == ALICE
    t.mode("x", mode & ~0o4000 & ~(0 if keeps_group else 0o2000))


@case(writer=("write_bytes", "append_bytes", "pwrite_bytes"), mode=SET_ID_MODES)
def writing_as_root_keeps_set_id_bits(t: Scene, writer: str, mode: int) -> Iterator[None]:
    t.write("x", DATA, 0o777, (ALICE, ALICE))
    os.chmod("x", mode)
    yield
    WRITERS[writer]("x")  # CAP_FSETID
    t.mode("x", mode)


@case(writer=tuple(WRITERS), uid=(0, ALICE))
def writing_drops_file_capabilities(t: Scene, writer: str, uid: int) -> Iterator[None]:
    t.write("x", DATA, 0o777, (ALICE, ALICE))
    # vfs_cap_data of linux/capability.h: revision 2, cap_net_raw permitted.
    os.setxattr(
        "x", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    )
    t.write("source", DATA, 0o666)
    yield
    with t.user(uid):
        WRITERS[writer]("x")
    t.equal(os.listxattr("x"), [], "capabilities(7): attributes after a write")


LATE_WRITES: dict[str, Callable[[int], object]] = {
    "write": lambda descriptor: os.write(descriptor, b"x"),
    "allocate": lambda descriptor: calls.fallocate(descriptor, 0, 0, 8192),
    "truncate": lambda descriptor: os.ftruncate(descriptor, 3),
}


@case(writer=tuple(LATE_WRITES), mode=SET_ID_MODES, uid=(ALICE, BOB))
def writing_clears_bits_set_after_the_open(
    t: Scene, writer: str, mode: int, uid: int
) -> Iterator[None]:
    t.write("x", DATA, 0o777, (ALICE, ALICE))
    yield
    with opened("x", os.O_RDWR) as descriptor:
        with t.user(uid):
            os.write(descriptor, b"x")
            os.write(descriptor, b"x")
        os.chmod("x", mode)
        with t.user(uid):
            LATE_WRITES[writer](descriptor)
    keeps_group = not mode & 0o010 and uid == ALICE
    t.mode("x", mode & ~0o4000 & ~(0 if keeps_group else 0o2000))


@case(writer=tuple(LATE_WRITES))
def writing_drops_capabilities_set_after_the_open(t: Scene, writer: str) -> Iterator[None]:
    t.write("x", DATA, 0o777, (ALICE, ALICE))
    yield
    with opened("x", os.O_RDWR) as descriptor:
        with t.user(ALICE):
            os.write(descriptor, b"x")
            os.write(descriptor, b"x")
        value = bytes.fromhex("0100000200200000000000000000000000000000")
        os.setxattr("x", "security.capability", value)
        with t.user(ALICE):
            LATE_WRITES[writer](descriptor)
    t.equal(os.listxattr("x"), [], "capabilities(7): attributes after a write")


@case(uid=(0, ALICE))
def chown_drops_file_capabilities(t: Scene, uid: int) -> Iterator[None]:
    t.write("x", DATA, 0o777, (ALICE, ALICE))
    os.setxattr(
        "x", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    )
    yield
    with t.user(uid):
        os.chown("x", -1, ALICE)
    t.equal(os.listxattr("x"), [], "attributes after chown")


@case(umask=(0, 0o022, 0o077, 0o777, 0o137), mode=(0o777, 0o666, 0o7777), kind=SOLID_KINDS)
def the_umask_takes_bits_away(t: Scene, umask: int, mode: int, kind: str) -> None:
    os.umask(umask)
    if kind == "regular":
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, mode))
    elif kind == "dir":
        os.mkdir("x", mode)
    else:
        os.mknod("x", TYPE_BITS[kind] | mode, DEVICE if kind in ("block", "char") else 0)
    if kind == "dir":
        mode &= 0o1777  # mkdir(2): only permission and sticky bits count
    t.mode("x", mode & ~umask)
