"""Extended attributes, POSIX ACLs, inode flags (xattr(7), acl(5), ioctl_iflags(2))."""

import errno
import os
import struct
from collections.abc import Callable, Iterator

from . import calls
from .frame import ALICE, BOB, CAROL, KINDS, SOLID_KINDS, Scene, case, opened

NAMES = ("user.a", "trusted.a", "security.a", "user." + "n" * 250, "user.ünï", "user.dots.in.it")
VALUES = (b"", b"v", bytes(range(256)), b"x" * 1500)


@case(name=NAMES, number=tuple(range(len(VALUES))), kind=("regular", "dir"))
def attributes_are_kept_to_the_byte(t: Scene, name: str, number: int, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755)
    os.setxattr("x", "user.before", VALUES[number])
    yield
    value = VALUES[number]
    t.equal(os.getxattr("x", "user.before"), value, "value from before")
    os.setxattr("x", name, value)
    t.equal(os.getxattr("x", name), value, "value")
    t.equal(set(os.listxattr("x")), {"user.before", name}, "list")
    os.setxattr("x", name, b"other")
    t.equal(os.getxattr("x", name), b"other", "replaced value")
    os.removexattr("x", name)
    t.equal(os.listxattr("x"), ["user.before"], "list after removal")
    t.fails(errno.ENODATA, os.getxattr, "x", name)
    t.fails(errno.ENODATA, os.removexattr, "x", name)
    os.removexattr("x", "user.before")
    t.equal(os.listxattr("x"), [], "empty list")


@case(kind=("regular", "dir"), unless=("overlayfs-lower",))
def create_and_replace_flags_are_kept(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755)
    os.setxattr("x", "user.a", b"1")
    yield
    with t.untouched("x"):
        t.fails(errno.EEXIST, os.setxattr, "x", "user.a", b"2", os.XATTR_CREATE)
        t.fails(errno.ENODATA, os.setxattr, "x", "user.b", b"2", os.XATTR_REPLACE)
    os.setxattr("x", "user.a", b"2", os.XATTR_REPLACE)
    os.setxattr("x", "user.b", b"3", os.XATTR_CREATE)
    t.equal((os.getxattr("x", "user.a"), os.getxattr("x", "user.b")), (b"2", b"3"), "values")


@case(kind=KINDS)
def user_attributes_are_for_files_and_folders(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o777)
    yield
    if kind in ("regular", "dir"):
        os.setxattr("x", "user.a", b"1", follow_symlinks=False)
    else:
        t.fails(errno.EPERM, os.setxattr, "x", "user.a", b"1", follow_symlinks=False)
    os.setxattr("x", "trusted.a", b"1", follow_symlinks=False)
    t.equal(os.getxattr("x", "trusted.a", follow_symlinks=False), b"1", "trusted value")


@case(kind=("regular", "dir"))
def trusted_attributes_are_hidden_from_users(t: Scene, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o777, (ALICE, ALICE))
    os.setxattr("x", "trusted.a", b"1")
    os.setxattr("x", "user.a", b"1")
    yield
    with t.user(ALICE):
        t.equal(os.listxattr("x"), ["user.a"], "list")
        t.fails(errno.ENODATA, os.getxattr, "x", "trusted.a")
        t.fails(errno.EPERM, os.setxattr, "x", "trusted.a", b"2")
        t.fails(errno.EPERM, os.removexattr, "x", "trusted.a")


@case(name=("nothing", "strange.a", "user.", ""), call=("set", "get", "remove"))
def senseless_names_are_refused(t: Scene, name: str, call: str) -> Iterator[None]:
    t.write("x", b"")
    yield
    codes = (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE)
    act = {
        "set": lambda: os.setxattr("x", name, b"1"),
        "get": lambda: os.getxattr("x", name),
        "remove": lambda: os.removexattr("x", name),
    }
    t.fails(codes, act[call])
    t.equal(os.listxattr("x"), [], "list")


@case(length=(251, 255, 300))
def long_attribute_names_are_erange(t: Scene, length: int) -> Iterator[None]:
    t.write("x", b"")
    yield
    t.fails(errno.ERANGE, os.setxattr, "x", "user." + "n" * length, b"1")


@case(size=(65537, 100_000))
def too_large_values_are_refused(t: Scene, size: int) -> Iterator[None]:
    t.write("x", b"")
    yield
    t.fails((errno.E2BIG, errno.ENOSPC), os.setxattr, "x", "user.a", b"x" * size)
    t.equal(os.listxattr("x"), [], "list")


@case(sticky=(False, True), who=(ALICE, BOB))
def user_attributes_of_sticky_folders_are_the_owners(
    t: Scene, sticky: bool, who: int
) -> Iterator[None]:
    t.make("dir", "d", 0o1777 if sticky else 0o777, (ALICE, ALICE))
    yield
    with t.user(who):
        if sticky and who != ALICE:
            t.fails(errno.EPERM, os.setxattr, "d", "user.a", b"1")
        else:
            os.setxattr("d", "user.a", b"1")


@case(count=(10, 50))
def many_attributes_are_listed(t: Scene, count: int) -> Iterator[None]:
    t.write("x", b"data")
    for number in range(count // 2):
        os.setxattr("x", f"user.n{number}", b"v%d" % number)
    yield
    for number in range(count // 2, count):
        os.setxattr("x", f"user.n{number}", b"v%d" % number)
    t.equal(set(os.listxattr("x")), {f"user.n{n}" for n in range(count)}, "list")
    for number in range(count):
        t.equal(os.getxattr("x", f"user.n{number}"), b"v%d" % number, f"value {number}")
    t.content("x", b"data")


@case(
    name=(
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.origin",
        "trusted.overlay.metacopy",
    ),
    call=("set", "get"),
)
def the_own_bookkeeping_is_out_of_reach(t: Scene, name: str, call: str) -> Iterator[None]:
    os.mkdir("d")
    t.write("d/x", b"data")
    yield
    os.chmod("d/x", 0o600)
    t.true(not any("overlay" in n for p in ("d", "d/x") for n in os.listxattr(p)), "listed")
    if call == "get":
        t.fails((errno.EOPNOTSUPP, errno.ENODATA), os.getxattr, "d/x", name)
    elif os.statvfs(".") and t.file_system != "ext4":
        # Nested overlays may store theirs; ours must neither believe nor lose them.
        try:
            os.setxattr("d", name, b"y")
        except OSError as error:
            t.true(error.errno in (errno.EPERM, errno.EOPNOTSUPP), f"{error}")
    t.equal(os.listdir("d"), ["x"], "listing")
    t.content("d/x", b"data")


# POSIX ACLs: version 2 of linux/posix_acl_xattr.h, entries (tag, permissions, id).
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NONE = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Pack an access control list."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


def _named(user: int, mask: int, other: int = 0) -> bytes:
    return acl(
        (USER_OBJ, 6, NONE),
        (USER, user, BOB),
        (GROUP_OBJ, 0, NONE),
        (GROUP, 4, CAROL),
        (MASK, mask, NONE),
        (OTHER, other, NONE),
    )


@case(permissions=tuple(range(8)), mask=(0, 4, 6, 7), when=("before", "now"))
def a_named_user_gets_what_acl_and_mask_allow(
    t: Scene, permissions: int, mask: int, when: str
) -> Iterator[None]:
    t.write("x", b"data", 0o600, (ALICE, ALICE))
    if when == "before":
        os.setxattr("x", ACCESS, _named(permissions, mask))
    yield
    if when == "now":
        os.setxattr("x", ACCESS, _named(permissions, mask))
    t.mode("x", 0o600 | mask << 3)
    effective = permissions & mask
    with t.user(BOB):
        for flags, needed in ((os.O_RDONLY, 4), (os.O_WRONLY, 2), (os.O_RDWR, 6)):
            if effective & needed == needed:
                os.close(os.open("x", flags))
            else:
                t.fails(errno.EACCES, os.open, "x", flags)
    with t.user(CAROL + 100, CAROL):
        if mask & 4:
            os.close(os.open("x", os.O_RDONLY))
        else:
            t.fails(errno.EACCES, os.open, "x", os.O_RDONLY)
    with t.user(CAROL + 100):
        t.fails(errno.EACCES, os.open, "x", os.O_RDONLY)


@case(mode=(0o640, 0o600, 0o660, 0o777))
def chmod_sets_the_mask_of_an_acl(t: Scene, mode: int) -> Iterator[None]:
    t.write("x", b"data", 0o600, (ALICE, ALICE))
    os.setxattr("x", ACCESS, _named(6, 6))
    yield
    os.chmod("x", mode)
    t.mode("x", mode)
    stored = os.getxattr("x", ACCESS)
    t.true(struct.pack("<HHI", MASK, mode >> 3 & 7, NONE) in stored, "the mask does not follow")
    t.true(struct.pack("<HHI", USER, 6, BOB) in stored, "the named entry changed")
    with t.user(BOB):
        if mode & 0o040:
            os.close(os.open("x", os.O_RDONLY))
        else:
            t.fails(errno.EACCES, os.open, "x", os.O_RDONLY)


@case(kind=("regular", "dir", "fifo"), umask=(0, 0o077))
def a_default_acl_is_handed_down(t: Scene, kind: str, umask: int) -> Iterator[None]:
    os.mkdir("d")
    os.setxattr("d", DEFAULT, _named(6, 6))
    yield
    os.umask(umask)  # acl(5): the umask does not count where a default ACL is
    if kind == "regular":
        os.close(os.open("d/x", os.O_CREAT | os.O_WRONLY, 0o666))
    elif kind == "dir":
        os.mkdir("d/x", 0o777)
    else:
        os.mkfifo("d/x", 0o666)
    t.mode("d/x", 0o660)
    stored = os.getxattr("d/x", ACCESS)
    t.true(struct.pack("<HHI", USER, 6, BOB) in stored, "no named entry")
    if kind == "dir":
        t.equal(os.getxattr("d/x", DEFAULT), os.getxattr("d", DEFAULT), "default ACL")
    else:
        t.fails((errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES), os.getxattr, "d/x", DEFAULT)


@case(
    value=(
        b"",
        b"\x02\0\0\0",
        b"\x01\0\0\0" + bytes(8),
        acl((USER_OBJ, 7, NONE))[:-1],
        acl((USER_OBJ, 7, NONE)),
        acl((99, 7, NONE)),
    )
)
def broken_acls_are_refused(t: Scene, value: bytes) -> Iterator[None]:
    t.write("x", b"", 0o640)
    yield
    try:
        os.setxattr("x", ACCESS, value)
    except OSError as error:
        t.true(error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODATA), f"{error}")
    t.mode("x", 0o640)


@case()
def an_acl_equal_to_the_mode_is_only_the_mode(t: Scene) -> Iterator[None]:
    t.write("x", b"", 0o600)
    yield
    os.setxattr("x", ACCESS, acl((USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 1, NONE)))
    t.mode("x", 0o751)


@case(who=(ALICE, BOB), kind=("regular", "dir"))
def only_the_owner_sets_acls(t: Scene, who: int, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o777, (ALICE, ALICE))
    yield
    with t.user(who):
        if who == ALICE:
            os.setxattr("x", ACCESS, _named(4, 4))
        else:
            t.fails(errno.EPERM, os.setxattr, "x", ACCESS, _named(4, 4))


@case()
def default_acls_are_for_folders(t: Scene) -> Iterator[None]:
    t.write("x", b"")
    yield
    t.fails(errno.EACCES, os.setxattr, "x", DEFAULT, _named(4, 4))


# Inode flags ---------------------------------------------------------------------------------------

IMMUTABLE, APPEND, NODUMP = calls.FS_IMMUTABLE_FL, calls.FS_APPEND_FL, calls.FS_NODUMP_FL


def _try_flags(t: Scene, path: str, flags: int) -> None:
    try:
        calls.set_flags(path, calls.get_flags(path) | flags)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            t.skip("no inode flags here")
        raise


def _clear_flags(path: str) -> None:
    calls.set_flags(path, calls.get_flags(path) & ~(IMMUTABLE | APPEND))


@case(flag=(NODUMP, IMMUTABLE, APPEND), kind=("regular", "dir"))
def flags_are_kept(t: Scene, flag: int, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755)
    yield
    _try_flags(t, "x", flag)
    try:
        t.true(calls.get_flags("x") & flag, "the flag does not show")
    finally:
        calls.set_flags("x", calls.get_flags("x") & ~flag)
    t.true(not calls.get_flags("x") & flag, "the flag does not go")


IMMUTABLE_REFUSES = {
    "open_write": lambda: os.open("x", os.O_WRONLY),
    "open_append": lambda: os.open("x", os.O_WRONLY | os.O_APPEND),
    "open_truncate": lambda: os.open("x", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda: os.truncate("x", 0),
    "chmod": lambda: os.chmod("x", 0o600),
    "chown": lambda: os.chown("x", 1, 1),
    "utimes": lambda: os.utime("x", ns=(1, 2)),
    "unlink": lambda: os.unlink("x"),
    "rename": lambda: os.rename("x", "y"),
    "replace": lambda: os.rename("z", "x"),
    "exchange": lambda: calls.exchange("z", "x"),
    "link": lambda: os.link("x", "y"),
    "setxattr": lambda: os.setxattr("x", "user.b", b"1"),
    "removexattr": lambda: os.removexattr("x", "user.a"),
}
APPEND_LETS = ("open_append",)


@case(act=tuple(IMMUTABLE_REFUSES), flag=(IMMUTABLE, APPEND))
def flags_hold_against_root(t: Scene, act: str, flag: int) -> Iterator[None]:
    t.write("x", b"data")
    t.write("z", b"other")
    os.setxattr("x", "user.a", b"1")
    yield
    _try_flags(t, "x", flag)
    try:
        call = IMMUTABLE_REFUSES[act]
        if flag == APPEND and act in APPEND_LETS:
            with opened("x", os.O_WRONLY | os.O_APPEND) as one:
                os.write(one, b"+")
            t.content("x", b"data+")
        else:
            with t.untouched("x", "z"):
                t.fails(errno.EPERM, call)
            t.content("x", b"data")
    finally:
        _clear_flags("x")
    os.chmod("x", 0o600)


@case(act=("create", "unlink", "rename_in", "rename_out", "mkdir"), flag=(IMMUTABLE, APPEND))
def flags_of_a_folder_hold_for_its_names(t: Scene, act: str, flag: int) -> Iterator[None]:
    os.mkdir("d")
    t.write("d/x", b"data")
    t.write("z", b"other")
    yield
    _try_flags(t, "d", flag)
    try:
        acts: dict[str, Callable[[], object]] = {
            "create": lambda: os.close(os.open("d/new", os.O_CREAT | os.O_WRONLY)),
            "unlink": lambda: os.unlink("d/x"),
            "rename_in": lambda: os.rename("z", "d/z"),
            "rename_out": lambda: os.rename("d/x", "y"),
            "mkdir": lambda: os.mkdir("d/sub"),
        }
        act_of = acts[act]
        if flag == APPEND and act in ("create", "rename_in", "mkdir"):
            act_of()
        else:
            t.fails((errno.EPERM, errno.EACCES), act_of)
    finally:
        _clear_flags("d")


@case(flag=(IMMUTABLE, APPEND), kind=SOLID_KINDS[:2])
def flags_need_privilege(t: Scene, flag: int, kind: str) -> Iterator[None]:
    t.make(kind, "x", 0o755, (ALICE, ALICE))
    yield
    with t.user(ALICE):
        t.fails((errno.EPERM, errno.ENOTTY), _set_raw, "x", flag)


def _set_raw(path: str, flag: int) -> None:
    calls.set_flags(path, calls.get_flags(path) | flag)


@case(flags=(0x80000000, 0x40000000 | NODUMP))
def unknown_flags_are_refused(t: Scene, flags: int) -> Iterator[None]:
    t.write("x", b"data")
    yield
    t.fails((errno.EOPNOTSUPP, errno.EINVAL), calls.set_flags, "x", flags)
    os.unlink("x")  # not immutable, then
