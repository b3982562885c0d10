"""The file server may die at any moment: what was acknowledged stays, what was not is whole.

The tests play the supervisor: they hold a duplicate of the /dev/fuse descriptor and fork another
server when one was killed.
"""

import errno
import mmap
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from posixcases import beds, calls
from posixcases.beds import supervised
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)
from posixcases.trees import Entry, difference, snapshot

pytestmark = pytest.mark.root

BIG = 3 << 20
STEPS = (
    "open", "mkdir", "mknod", "symlink", "link", "rename", "unlink", "rmdir", "setxattr",
    "removexattr", "chmod", "fchmod", "chown", "fchown", "lchown", "utime", "truncate", "ftruncate",
    "write", "writev", "pwrite", "copy_file_range", "sendfile", "fsync", "fdatasync",
)  # fmt: skip
OWN_STEPS = ("rename", "link_followed", "fallocate", "ficlone", "set_flags", "write_out")


class Fuse:
    """Makes a server kill itself before the n-th step that changes something, once armed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shared = mmap.mmap(-1, 16)  # [0] armed; [8:16] steps counted

    def prepare(self) -> None:
        """Wrap, in the server's process, whatever can change the disk or answer a request."""
        from vzfs import syscalls

        for module, names in ((os, STEPS), (syscalls, OWN_STEPS)):
            for name in names:
                setattr(module, name, self._wrap(getattr(module, name)))

    def _wrap(self, call: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kw: object) -> object:
            if self.shared[0]:
                count = int.from_bytes(self.shared[8:16], "little") + 1
                self.shared[8:16] = count.to_bytes(8, "little")
                if count == self.limit:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kw)

        return step


@dataclass(frozen=True)
class Act:
    """Something a user does, and the error that says it was done before."""

    name: str
    act: Callable[[Path], object]
    done: int = 0
    #: What a power cut may leave, too, as if the user had done this.
    half: Callable[[Path], object] | None = None


def _write(path: Path, data: bytes, offset: int) -> None:
    one = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(one, data, offset)
    finally:
        os.close(one)


ACTS = (
    Act("chmod", lambda r: os.chmod(r / "d/big", 0o600)),
    Act("write", lambda r: _write(r / "d/big", b"NEW", 5)),
    Act("truncate", lambda r: os.truncate(r / "d/big", 7)),
    Act("write-small", lambda r: _write(r / "d/sub/deep", b"NEW", 5)),
    Act("truncate-small", lambda r: os.truncate(r / "d/sub/deep", 2)),
    Act("write-linked", lambda r: _write(r / "d/one", b"NEW", 5)),
    Act("unlink-linked", lambda r: os.unlink(r / "d/one"), errno.ENOENT),
    Act("unlink", lambda r: os.unlink(r / "d/big"), errno.ENOENT),
    Act("rmdir", lambda r: os.rmdir(r / "empty"), errno.ENOENT),
    Act("mkdir", lambda r: os.mkdir(r / "d/new"), errno.EEXIST),
    Act("link", lambda r: os.link(r / "d/big", r / "e/big2"), errno.EEXIST),
    Act("rename", lambda r: os.rename(r / "d/big", r / "e/moved"), errno.ENOENT),
    Act("rename-over", lambda r: os.rename(r / "d/big", r / "d/one"), errno.ENOENT),
    Act("rename-folder", lambda r: os.rename(r / "d", r / "e/d"), errno.ENOENT),
    Act("rename-folder-over", lambda r: os.rename(r / "d", r / "empty"), errno.ENOENT),
    Act("exchange", lambda r: calls.exchange(str(r / "d/big"), str(r / "e/two"))),
    Act("exchange-folders", lambda r: calls.exchange(str(r / "d"), str(r / "empty"))),
    Act(
        "rename-whiteout",  # overlayfs refuses it
        lambda r: calls.renameat2(str(r / "d/big"), str(r / "e/m"), calls.RENAME_WHITEOUT),
        half=lambda r: os.rename(r / "d/big", r / "e/m"),
    ),
    Act("create", lambda r: os.close(os.open(r / "d/n", os.O_CREAT | os.O_EXCL)), errno.EEXIST),
    Act("symlink", lambda r: os.symlink("x", r / "d/link"), errno.EEXIST),
    Act("chown", lambda r: os.chown(r / "d/big", 7, 8)),
    Act("setxattr", lambda r: os.setxattr(r / "d/big", "user.a", b"b")),
)


def _build(root: Path) -> None:
    for name in ("d", "e", "empty", "d/sub"):
        (root / name).mkdir(mode=0o755)
    (root / "d/big").write_bytes(bytes(range(256)) * (BIG // 256))
    (root / "d/one").write_bytes(b"one of two names")
    (root / "d/sub/deep").write_bytes(b"deep")
    os.link(root / "d/one", root / "e/two")
    for path in (root / "d/big", root / "d/one"):
        os.utime(path, ns=(1000, 2000))


def _tree_after(place: Path, act: Callable[[Path], object] | None) -> dict[str, Entry]:
    place.mkdir()
    _build(place)
    if act is not None:
        act(place)
    return snapshot(place)


@pytest.mark.parametrize("act", ACTS, ids=lambda a: a.name)
@pytest.mark.parametrize(
    ("after", "bed"),
    [("replaced", "vzfs-kernel"), ("replaced", "vzfs-plain"), ("rebooted", "vzfs-kernel")],
    ids=["replaced", "replaced-plain", "rebooted"],
)
def test_death_at_every_step_leaves_old_or_new(home: Path, act: Act, after: str, bed: str) -> None:
    old, new, half = (
        _tree_after(home / name, done)
        for name, done in (("old", None), ("new", act.act), ("half", act.half))
    )
    deaths = 0
    for limit in range(1, 400):
        subject = supervised(bed, home / f"step{limit}")
        _build(subject.lower)
        died = _die_at(subject, act, limit, after, (old, new, half))
        assert not difference(snapshot(subject.lower), old), f"step {limit}: the layer changed"
        shutil.rmtree(subject.home, ignore_errors=True)
        if not died:
            break
        deaths += 1
    print(f"{act.name}: {deaths} steps")
    assert 2 <= deaths < 399


def _die_at(
    subject: beds.Vzfs,
    act: Act,
    limit: int,
    after: str,
    trees: tuple[dict[str, Entry], ...],
) -> bool:
    """Let the server die before its `limit`-th step of an act; return whether it got that far.

    The first two of `trees` are those before and after the act; a power cut may leave any.
    """
    old, new = trees[:2]
    fuse = Fuse(limit)
    where = f"death before step {limit}"
    subject.attach()
    try:
        subject.serve(prepare=fuse.prepare)
        os.stat(subject.merged / "d/big")
        fuse.shared[0] = 1
        user = os.fork()
        if user == 0:
            subject.let_go()
            code = 0
            try:
                act.act(subject.merged)
            except OSError as error:
                code = error.errno or 255
            finally:
                os._exit(code)
        died, code = _until_over(subject, user, replace=after == "replaced")
        # The close of a file is answered after its user is gone.
        time.sleep(0.005)
        fuse.shared[0] = 0
        if not died and subject.died():
            died = True
            if after == "replaced":
                subject.serve(resume=True)
        if after == "rebooted" and died:
            subject.abandon()
            subject.mount()
        elif not died:
            assert code == 0, f"without a death: {errno.errorcode.get(code, code)}"
        got = snapshot(subject.merged)
        if not died or (after == "replaced"):
            assert code in (0, act.done), f"{where}: {errno.errorcode.get(code, code)}"
            assert not (d := difference(got, new)), f"{where}: {d}"
        else:
            assert got in trees, f"{where}: {difference(got, old)} / {difference(got, new)}"
        subject.remount()
        assert snapshot(subject.merged) == got, f"{where}: another tree after a remount"
    finally:
        subject.abandon()
    _consistent(subject)
    return died


def _until_over(subject: beds.Vzfs, user: int, replace: bool) -> tuple[bool, int]:
    """Wait for the user; a dead server is replaced, or the mount is given up."""
    died = False
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid, status = os.waitpid(user, os.WNOHANG)
        if pid:
            return died, os.waitstatus_to_exitcode(status)
        if subject.server >= 0 and subject.died():
            died = True
            if replace:
                subject.serve(resume=True)
            else:
                subject.let_go()
        time.sleep(0.001)
    os.kill(user, signal.SIGKILL)
    subject.abandon()
    os.waitpid(user, 0)
    raise AssertionError("the user of the mount hangs")


def _consistent(subject: beds.Vzfs) -> None:
    """The checker must find nothing; unfinished copies are gone after the next mount."""
    left = [n for n in os.listdir(subject.work / "work") if n.startswith("#")]
    assert not left, f"unfinished copies: {left}"


# The power fails -----------------------------------------------------------------------------------

COPIED = (100, 4096, 65536, 1 << 20, 3 << 20)
ROUNDS = 8


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A journaling file system of its own which commits every second, and writes data late."""
    if missing := [tool for tool in ("mkfs.ext4", "losetup") if not shutil.which(tool)]:
        pytest.skip(f"no {missing[0]} (apt install e2fsprogs mount)")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(192 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop,commit=1", image, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_power_cut_leaves_whole_files(disk: Path, tmp_path: Path) -> None:
    subject = beds.Vzfs(disk / "bed")
    contents = {
        f"f{number}": bytes([65 + number % 26]) * COPIED[number % len(COPIED)]
        for number in range(ROUNDS * len(COPIED))
    }
    for name, data in contents.items():
        (subject.lower / name).write_bytes(data)
    os.sync()
    snapshots = []
    with subject.mounted():
        for number, name in enumerate(contents):
            os.close(os.open(subject.merged / name, os.O_WRONLY))
            if number == len(contents) // 2:
                snapshots.append(_as_on_disk(tmp_path, 1))
        time.sleep(2.2)  # the journal was committed, data nobody waited for were not written
        snapshots.append(_as_on_disk(tmp_path, 2))
    changed = [_whole_copies(tmp_path, image, contents) for image in snapshots]
    assert changed[-1] == len(contents)


def _as_on_disk(place: Path, number: int) -> Path:
    """Return a copy of the disk of this moment, as a power cut would leave it."""
    return Path(shutil.copyfile(place / "image", place / f"image{number}"))


def _whole_copies(place: Path, image: Path, contents: dict[str, bytes]) -> int:
    """Return how many files were changed; each must be whole, or not there yet."""
    found = place / "found"
    found.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, found], check=True)
    changed = 0
    try:
        for name, data in contents.items():
            copy = found / "bed/upper" / name
            if copy.exists() and "trusted.overlay.metacopy" not in os.listxattr(copy):
                assert copy.read_bytes() == data, f"{name} of {len(data)} bytes is not whole"
                changed += 1
    finally:
        subprocess.run(["umount", found], check=True)
    return changed
