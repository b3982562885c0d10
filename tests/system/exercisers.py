"""Loads after fsx and fsstress, and what a server must look like while and after they run."""

from __future__ import annotations

import mmap
import os
import random
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from posixcases import calls
from posixcases.moves import Move, Player

from tests.system.quotabed import QuotaBed
from vzfs import syscalls
from vzfs.layers import is_whiteout

#: What a file system that lost its way answers; no user may ever see it.
LOST = frozenset({"EIO", "ESTALE", "EUCLEAN", "EFAULT", "ENOTCONN", "EREMOTEIO"})


class Watch:
    """Looks at the server of a mount from outside: memory, descriptors, files it keeps alive."""

    def __init__(self, bed: QuotaBed) -> None:
        """Note how the server is now, with nothing in use."""
        self.bed = bed
        os.statvfs(bed.mount_point)
        self.descriptors = len(self._descriptors())
        self.idle = self.uss()
        #: After the first look, when whatever grows once has grown.
        self.first = 0
        self.most = 0

    def uss(self) -> int:
        """Return what would be freed if the server ended, in bytes (proc(5), smaps_rollup)."""
        lines = Path(f"/proc/{self.bed.pid}/smaps_rollup").read_text().splitlines()
        own = [line.split()[1] for line in lines if line.startswith(("Private_", "Swap:"))]
        return sum(map(int, own)) << 10

    def _descriptors(self) -> list[str]:
        """Return what the server holds open, but for directories: of those it keeps a number."""
        folder = f"/proc/{self.bed.pid}/fd"
        held = []
        for name in os.listdir(folder):
            status = os.stat(f"{folder}/{name}")
            if not stat.S_ISDIR(status.st_mode) or not status.st_nlink:
                held.append(os.readlink(f"{folder}/{name}"))
        return sorted(held)

    def look(self, allowed: int) -> None:
        """The quota equals a count, of each owner too.

        Since the first look the server may have grown by ``allowed`` bytes.
        """
        now = self.uss()
        self.first = self.first or now
        self.most = max(self.most, now)
        by = self.bed.settled()
        assert by == (0, 0), f"the quota differs from a count by {by} (blocks, inodes)"
        assert self.bed.owners_settled(), "the usage of an owner differs from a count"
        grown = self.most - self.first
        assert grown <= allowed, f"the server grew by {grown >> 10} KiB"

    def all_gone(self, remove: Callable[[], None]) -> None:
        """After ``remove`` nothing of the area is kept: no inode, no descriptor, no charge.

        The kernel keeps an inode as long as a backing id registered for it is not closed. (All
        whiteouts are one inode, which the work area keeps.)
        """
        area = os.open(self.bed.upper, os.O_RDONLY | os.O_DIRECTORY)
        try:
            kept = {
                str(path): syscalls.name_to_handle(
                    area, os.fsencode(path.relative_to(self.bed.upper))
                )
                for path in self.bed.upper.rglob("*")
                if not path.is_symlink() and not is_whiteout(path.lstat())
            }
            remove()
            deadline = time.monotonic() + 10
            while kept and time.monotonic() < deadline:
                kept = {path: one for path, one in kept.items() if _exists(area, one)}
            assert not kept, f"removed objects are kept alive: {sorted(kept)}"
        finally:
            os.close(area)
        # The kernel tells of forgotten names after their removal.
        while len(now := self._descriptors()) > self.descriptors and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(now) <= self.descriptors, f"{self.descriptors} at the start, then {now}"
        assert self.bed.settled() == (0, 0)

    def figures(self) -> str:
        """Return what was seen, for the report of a run."""
        return (
            f"the server's own memory {self.idle >> 10} KiB idle, {self.first >> 10} after a round, "
            f"{self.most >> 10} at the most, {self.uss() >> 10} at the end; "
            f"{len(self._descriptors())} descriptors, {self.descriptors} at the start"
        )


def _exists(area: int, handle: syscalls.Handle) -> bool:
    try:
        os.close(syscalls.open_by_handle(area, handle, os.O_PATH))
    except OSError:
        return False
    return True


# One file, after fsx


def exercise(
    path: Path, seconds: float, number: int, limit: int = 400_000, *, allocate: bool = True
) -> int:
    """Change one file in every way at random and compare it with a model; return how many acts."""
    dice = random.Random(number)
    model = bytearray(path.read_bytes() if path.exists() else b"")
    one = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    history: list[str] = []
    deadline = time.monotonic() + seconds
    acts = 0

    def fill(start: int, data: bytes) -> None:
        if start > len(model):
            model.extend(bytes(start - len(model)))
        model[start : start + len(data)] = data

    while time.monotonic() < deadline:
        acts += 1
        start, length = dice.randrange(limit), dice.randrange(1, 70_000)
        data = dice.randbytes(length)
        what = dice.choice(["write", "write", "read", "read", "truncate", "map", "mapread", "punch", "zero", "keep", "allocate", "append", "reopen", "copy", "sync", "chmod", "direct", "seek"])  # fmt: skip
        if not allocate and what in ("punch", "zero", "keep", "allocate"):
            continue  # the portable transport has no fallocate
        history = [*history[-30:], f"{what} {start} {length}"]
        if what == "write":
            os.pwrite(one, data, start)
            fill(start, data)
        elif what == "read":
            assert os.pread(one, length, start) == bytes(model[start : start + length]), history
        elif what == "truncate":
            os.ftruncate(one, start)
            model = model[:start].ljust(start, b"\0")
        elif what in ("map", "mapread") and start < len(model):
            with mmap.mmap(one, len(model)) as memory:
                assert memory[start : start + length] == bytes(model[start : start + length]), (
                    history
                )
                if what == "map":
                    piece = data[: len(model) - start]
                    memory[start : start + len(piece)] = piece
                    fill(start, piece)
        elif what == "punch":
            calls.fallocate(one, 3, start, length)
            fill(start, bytes(max(0, min(length, len(model) - start)))) if start < len(
                model
            ) else None
        elif what == "zero":
            calls.fallocate(one, 16, start, length)
            fill(start, bytes(length))
        elif what == "keep":
            calls.fallocate(one, 1, start, length)
        elif what == "allocate":
            calls.fallocate(one, 0, start, length)
            model.extend(bytes(max(0, start + length - len(model))))
        elif what == "append" and len(model) < 2 * limit:
            other = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(other, data[:1000])
            os.close(other)
            model += data[:1000]
        elif what == "reopen":
            os.close(one)
            one = os.open(path, dice.choice([os.O_RDWR, os.O_RDWR | os.O_SYNC]))
        elif what == "copy" and len(model) > length:
            target = len(model)
            left = length
            while left:
                done = os.copy_file_range(one, one, left, length - left, target + length - left)
                left -= done
            model += model[:length]
            if len(model) > 2 * limit:
                os.ftruncate(one, limit)
                del model[limit:]
        elif what == "sync":
            os.fsync(one)
        elif what == "chmod":
            os.chmod(path, dice.choice([0o600, 0o644]))
        elif what == "direct":
            at = start // 4096 * 4096
            fill(at, _write_direct(path, at, data))
        elif what == "seek" and start < len(model):
            _check_holes(one, model, start)
        assert os.fstat(one).st_size == len(model), history
        assert os.stat(path).st_size == len(model), history
    os.close(one)
    assert path.read_bytes() == bytes(model), history
    return acts


def _write_direct(path: Path, at: int, data: bytes) -> bytes:
    """Write up to 16 KiB past the page cache; return what was written."""
    with mmap.mmap(-1, 16384) as memory:  # O_DIRECT wants aligned memory
        piece = data[:16384].ljust(16384, b"d")
        memory[:] = piece
        one = os.open(path, os.O_WRONLY | os.O_DIRECT)
        try:
            return piece[: os.pwritev(one, [memory], at)]
        finally:
            os.close(one)


def _check_holes(one: int, model: bytearray, start: int) -> None:
    """What lseek(2) calls a hole reads as zeros, and it finds data where there are some."""
    hole = os.lseek(one, start, os.SEEK_HOLE)
    assert start <= hole <= len(model)
    try:
        data = os.lseek(one, hole, os.SEEK_DATA)
    except OSError:
        data = len(model)
    assert not any(model[hole:data]), f"data in the hole {hole} to {data}"


# Many processes on one tree, after fsstress


def fight_at_once(
    bed: QuotaBed, seconds: float, numbers: Iterable[int], *, full: bool = False
) -> int:
    """Have a process for each number change one tree; return how many moves they made.

    With ``full`` a move may be refused for want of room. Raises AssertionError with what was
    wrong.
    """
    errors = bed.top / "errors"
    near, far = os.pipe()
    children = []
    for number in numbers:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                # Without a server the mount must die, and not wait for one.
                os.close(bed.fd)
                moves = _fight(bed.mount_point, number, seconds, full)
                os.write(far, b"%12d" % moves)
                code = 0
            except BaseException as error:
                with open(errors, "a", encoding="utf-8") as log:
                    log.write(f"{number}: {error!r}\n")
            finally:
                os._exit(code)
        children.append(child)
    os.close(far)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    with open(near, "rb") as pipe:
        counts = pipe.read().split()
    assert not any(codes), errors.read_text()
    return sum(map(int, counts))


def _fight(root: Path, number: int, seconds: float, full: bool) -> int:
    dice = random.Random(number)
    player = Player(str(root))
    deadline = time.monotonic() + seconds
    refused = LOST if full else LOST | {"EDQUOT", "ENOSPC"}
    moves = 0
    while time.monotonic() < deadline:
        # Both at one depth: moving folders into one another, hours of it would end beyond any path.
        depth = dice.randint(1, 3)
        old, new = ("/".join(dice.choices("abc", k=depth)) for _ in range(2))
        offset = dice.choice([0, 1, 4096, 70_000])
        move = dice.choice(
            [
                Move("create", (old, dice.randbytes(dice.choice([0, 100, 9000])))),
                Move("mkdir", (old,)),
                Move("rename", (old, new, dice.choice([0, 0, 1, 2]))),
                Move("rename", (old, new, 0)),
                Move("unlink", (old,)),
                Move("rmdir", (old,)),
                Move("link", (old, new)),
                Move("symlink", (old, new)),
                Move("node", (old, dice.choice(["fifo", "socket", "char"]))),
                Move("append", (old, b"more")),
                Move("write", (old, offset, dice.randbytes(6000))),
                Move("truncate", (old, dice.choice([0, 5, 100_000]))),
                Move("allocate", (old, dice.choice([0, 1, 3, 16]), offset, 9000)),
                Move("copy", (old, new, 4096, offset)),
                Move("chmod", (old, 0o700)),
                Move("chown", (old, dice.choice([0, 7]), dice.choice([0, 8]))),
                Move("setxattr", (old, "user.a", dice.randbytes(dice.choice([1, 3000])), 0)),
                Move("removexattr", (old, "user.a")),
                Move("listing", (old,)),
                Move("read", (old,)),
                Move("open", (0, old, 0)),
                Move("open", (1, old, os.O_CREAT)),
                Move("put", (0, 3, b"held")),
                Move("put", (1, offset, dice.randbytes(20_000))),
                Move("cut", (1, 6000)),
                Move("change", (0, 0o600)),
                Move("shut", (0,)),
            ]
        )
        result = player.play(move)
        assert not (isinstance(result, str) and result in refused), f"{move}: {result}"
        moves += 1
    player.close()
    return moves
