"""The frame of the suite: cases, the scene a case acts in, and the worker that runs them.

A worker is one forked process which switches its credentials inside a case and back; a process
a case would cost more than the case. It reports over a pipe, so a case that hangs the mount is
named and the caller can go on.
"""

import errno
import inspect
import itertools
import json
import os
import select
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

# Ids the cases use; none needs to exist in a password file.
ALICE, BOB, CAROL = 65534, 65533, 65532
KINDS = ("regular", "dir", "fifo", "block", "char", "socket", "symlink")
FILE_KINDS = tuple(k for k in KINDS if k != "dir")
# Kinds that are an object of their own when a path is followed.
SOLID_KINDS = tuple(k for k in KINDS if k != "symlink")
TYPE_BITS = {
    "regular": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "fifo": stat.S_IFIFO,
    "block": stat.S_IFBLK,
    "char": stat.S_IFCHR,
    "socket": stat.S_IFSOCK,
    "symlink": stat.S_IFLNK,
}
CLOCK_REALTIME_COARSE = 5  # linux/time.h
DEVICE = os.makedev(1, 2)
TIMES = ("atime", "mtime", "ctime")


class CaseFailed(AssertionError):
    """A case saw something else than the standard says."""


class CaseSkipped(Exception):
    """The file system or the kernel lacks what a case needs."""


@dataclass(frozen=True)
class Case:
    """One case: a body and the values of its axes."""

    area: str
    name: str
    body: Callable[..., Iterator[None] | None]
    values: Mapping[str, object]
    unless: frozenset[str]


@dataclass(frozen=True)
class Result:
    """What became of one case; `text` is empty when it passed."""

    area: str
    name: str
    outcome: str  # "pass", "fail", "skip"
    text: str = ""
    checks: int = 0
    seconds: float = 0.0


CASES: list[Case] = []
Body = Callable[..., Iterator[None] | None]


def case(*, unless: Iterable[str] = (), **axes: Sequence[object]) -> Callable[[Body], Body]:
    """Register a body once for every combination of its axes.

    `unless` names the file systems on which the case is known not to hold (a documented
    limit of an oracle, never of the file system under test).
    """

    def register(body: Body) -> Body:
        area = body.__module__.rpartition(".")[2]
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            label = ",".join(_label(v) for v in values)
            name = f"{body.__name__}[{label}]" if label else body.__name__
            CASES.append(Case(area, name, body, chosen, frozenset(unless)))
        return body

    return register


def _label(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value > 7:
        return oct(value)
    if isinstance(value, tuple):
        return "/".join(_label(v) for v in value)
    text = str(getattr(value, "name", None) or getattr(value, "__name__", None) or value)
    return text if len(text) <= 24 else f"{text[:20]}…{len(text)}"


class Scene:
    """What a case works with: its own directory (the current one), as root, umask 0."""

    def __init__(self, file_system: str, layer: str) -> None:
        self.file_system = file_system
        self.layer = layer
        self.checks = 0

    # Judging ---------------------------------------------------------------------------------

    def fails(
        self, code: int | tuple[int, ...], call: Callable[..., object], *args: object, **kw: object
    ) -> None:
        """The call must raise OSError with this errno (or one of these)."""
        self.checks += 1
        codes = (code,) if isinstance(code, int) else code
        wanted = " or ".join(errno.errorcode[c] for c in codes)
        try:
            got = call(*args, **kw)
        except OSError as error:
            if error.errno not in codes:
                name = errno.errorcode.get(error.errno or 0, str(error.errno))
                raise CaseFailed(f"{_spell(call, args)}: {name} instead of {wanted}") from None
            return
        if isinstance(got, int) and "open" in getattr(call, "__name__", ""):
            os.close(got)
        raise CaseFailed(f"{_spell(call, args)}: succeeded instead of {wanted}")

    def equal(self, got: object, wanted: object, what: str = "value") -> None:
        """Two values must be equal."""
        self.checks += 1
        if got != wanted:
            raise CaseFailed(f"{what}: {_show(got)} instead of {_show(wanted)}")

    def true(self, value: object, what: str) -> None:
        """A statement must hold."""
        self.checks += 1
        if not value:
            raise CaseFailed(what)

    def absent(self, path: str) -> None:
        """Nothing may be found under the name."""
        self.fails(errno.ENOENT, os.lstat, path)

    def mode(self, path: str, wanted: int) -> None:
        """The permission bits, including set-id and sticky ones, must be these."""
        self.equal(oct(stat.S_IMODE(os.lstat(path).st_mode)), oct(wanted), f"mode of {path[:40]}")

    def owner(self, path: str, uid: int, gid: int) -> None:
        """Owner and group must be these."""
        status = os.lstat(path)
        self.equal((status.st_uid, status.st_gid), (uid, gid), f"owner of {path[:40]}")

    def kind(self, path: str, wanted: str) -> None:
        """The type of the file must be this."""
        bits = stat.S_IFMT(os.lstat(path).st_mode)
        self.equal(oct(bits), oct(TYPE_BITS[wanted]), f"type of {path[:40]}")

    def links(self, path: str, wanted: int) -> None:
        """The link count must be this."""
        self.equal(os.lstat(path).st_nlink, wanted, f"link count of {path[:40]}")

    def content(self, path: str, wanted: bytes) -> None:
        """The whole content must be this."""
        self.equal(read(path), wanted, f"content of {path[:40]}")

    @contextmanager
    def marks(self, **wanted: str) -> Iterator[None]:
        """Within the block exactly the named times of each path move forward.

        `marks(file="mtime ctime", dir="")`: a path named with nothing must keep every time.
        A path with characters an identifier lacks is given through `marks(**{path: ...})`.
        """
        before = {path: os.lstat(path) for path in wanted}
        wait_past(max((s.st_ctime_ns for s in before.values()), default=0))
        yield
        for path, names in wanted.items():
            self.moved(path, before[path], names.split())

    def moved(self, path: str, before: os.stat_result, names: Sequence[str]) -> None:
        """Compare times with an earlier stat: those named went forward, the others stayed."""
        after = os.lstat(path)
        for name in TIMES:
            old, new = (getattr(s, f"st_{name}_ns") for s in (before, after))
            self.checks += 1
            if name in names and not new > old:
                raise CaseFailed(f"{name} of {path[:40]} did not advance ({old} -> {new})")
            # Reading a directory or link during the act may refresh atime (relatime); a copy-up
            # is a new inode on disk, whose change time nobody can set.
            free = name == "atime" or (name == "ctime" and self.layer == "lower")
            if name not in names and not free and new != old:
                raise CaseFailed(f"{name} of {path[:40]} moved ({old} -> {new})")

    @contextmanager
    def untouched(self, *paths: str) -> Iterator[None]:
        """Within the block no attribute of the paths may change, access time excepted."""
        before = {path: os.lstat(path) for path in paths}
        wait_past(max((s.st_ctime_ns for s in before.values()), default=0))
        yield
        for path, old in before.items():
            self.equal(facts(os.lstat(path)), facts(old), f"attributes of {path[:40]}")

    # Acting ----------------------------------------------------------------------------------

    @contextmanager
    def user(self, uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Iterator[None]:
        """Act as another user; every capability is out of force inside."""
        os.setgroups(list(groups))
        group = uid if gid is None else gid
        os.setresgid(group, group, 0)
        os.setresuid(uid, uid, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            os.setgroups([])

    def make(
        self, kind: str, path: str, mode: int = 0o644, owner: tuple[int, int] | None = None
    ) -> None:
        """Create a file of a kind with exactly this mode and owner."""
        if kind == "regular":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        elif kind == "dir":
            os.mkdir(path, mode)
        elif kind == "symlink":
            os.symlink("nowhere", path)
        else:
            os.mknod(path, TYPE_BITS[kind] | mode, DEVICE if kind in ("block", "char") else 0)
        if owner:
            os.lchown(path, *owner)
        if kind != "symlink":
            os.chmod(path, mode)

    def write(
        self, path: str, data: bytes, mode: int = 0o644, owner: tuple[int, int] | None = None
    ) -> None:
        """Create a regular file with content."""
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        os.write(descriptor, data)
        os.close(descriptor)
        if owner:
            os.chown(path, *owner)
            os.chmod(path, mode)

    def folder(self, path: str, owner: int = 0, mode: int = 0o755) -> str:
        """Create a directory belonging to a user and return its name."""
        self.make("dir", path, mode, (owner, owner))
        return path

    def skip(self, reason: str) -> None:
        """Give the case up: something it needs is not there."""
        raise CaseSkipped(reason)


def facts(status: os.stat_result) -> tuple[object, ...]:
    """Every attribute of a file that only an act upon it may change."""
    return (
        oct(status.st_mode),
        status.st_uid,
        status.st_gid,
        # Link counts of directories: POSIX leaves them open, and a merged one shows 1.
        status.st_nlink if not stat.S_ISDIR(status.st_mode) else None,
        status.st_size if not stat.S_ISDIR(status.st_mode) else None,
        status.st_rdev,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def read(path: str) -> bytes:
    """Return the whole content of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


@contextmanager
def opened(path: str, flags: int, mode: int = 0o777) -> Iterator[int]:
    """Open a path for the duration of a block."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def wait_past(moment_ns: int) -> None:
    """Return once the coarse clock, which stamps files, is past a moment (some ms at most)."""
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= moment_ns:
        time.sleep(0.0005)


def _spell(call: Callable[..., object], args: tuple[object, ...]) -> str:
    shown = ", ".join(_show(a) for a in args)
    return f"{getattr(call, '__name__', call)}({shown})"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}…({len(text)} characters)"


# The worker ------------------------------------------------------------------------------------


def run(
    cases: Sequence[Case],
    file_system: str,
    layer: str,
    below: Path,
    mounted: Path,
    between: Callable[[], None],
    patience_s: float = 60.0,
) -> list[Result]:
    """Run cases in one forked worker and return a result for each.

    The trees are built in `below`; then `between` runs once in the caller (it mounts); then the
    cases act in `mounted`. A worker silent for `patience_s` is killed, and the case it was in
    fails together with all not yet run.
    """
    results_r, results_w = os.pipe()
    go_r, go_w = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(results_r)
            os.close(go_w)
            _work(cases, file_system, layer, below, mounted, results_w, go_r)
        finally:
            os._exit(0)
    os.close(results_w)
    os.close(go_r)
    try:
        with os.fdopen(results_r, "rb", buffering=0) as pipe:
            return _collect(cases, pipe.fileno(), go_w, between, patience_s)
    finally:
        os.close(go_w)
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(child, 0)


def _collect(
    cases: Sequence[Case], pipe: int, go: int, between: Callable[[], None], patience_s: float
) -> list[Result]:
    results: list[Result] = []
    current = -1
    buffer = b""
    while len(results) < len(cases):
        ready, _, _ = select.select([pipe], [], [], patience_s)
        data = os.read(pipe, 65536) if ready else b""
        if not data:
            reason = "the worker died" if ready else f"the worker hung for {patience_s:.0f} s"
            done = len(results)
            where = cases[max(current, 0)].name
            results += [
                Result(c.area, c.name, "fail", f"{reason} in {where}") for c in cases[done:]
            ]
            break
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message is None:
                continue
            if message == "built":
                between()
                os.write(go, b"g")
            elif isinstance(message, int):
                current = message
            else:
                results.append(Result(**message))
    return results


def _work(
    cases: Sequence[Case],
    file_system: str,
    layer: str,
    below: Path,
    mounted: Path,
    out: int,
    go: int,
) -> None:
    os.umask(0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def say(message: object) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    acts: list[tuple[Scene, Iterator[None] | None, str]] = []
    for number, one in enumerate(cases):
        home = below / f"{number:05d}"
        home.mkdir(mode=0o755)
        os.chdir(home)
        scene = Scene(file_system, layer)
        acts.append((scene, *_begin(one, scene)))
        say(None)  # thousands of trees take an emulated server longer than the patience
    os.chdir("/")
    say("built")
    os.read(go, 1)
    for number, (one, (scene, act, trouble)) in enumerate(zip(cases, acts, strict=True)):
        say(number)
        started = time.monotonic()
        outcome, text = ("fail", trouble) if trouble else ("pass", "")
        if file_system in one.unless or f"{file_system}-{layer}" in one.unless:
            outcome, text = "skip", f"not on {file_system}"
        elif not trouble:
            outcome, text = _act(one, scene, act, mounted / f"{number:05d}")
        result = Result(one.area, one.name, outcome, text, scene.checks, time.monotonic() - started)
        say(asdict(result))


def _begin(one: Case, scene: Scene) -> tuple[Iterator[None] | None, str]:
    if not inspect.isgeneratorfunction(one.body):
        return None, ""
    act = one.body(scene, **one.values)
    try:
        next(act)
    except Exception:
        return None, f"while building the tree: {traceback.format_exc(limit=-3)}"
    return act, ""


def _act(one: Case, scene: Scene, act: Iterator[None] | None, home: Path) -> tuple[str, str]:
    """Run the second half of a case; put credentials and directory right whatever it did."""
    try:
        os.chdir(home)
        if act is None:
            one.body(scene, **one.values)
        else:
            for _ in act:
                raise CaseFailed("a case yields once")
    except CaseSkipped as skipped:
        return "skip", str(skipped)
    except CaseFailed as failed:
        return "fail", f"{failed} ({_place()})"
    except Exception:
        return "fail", traceback.format_exc(limit=-3)
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups([])
        os.umask(0)
        os.chdir("/")
    return "pass", ""


def _place() -> str:
    """Return file:line of the innermost frame of the current exception outside this module."""
    frames = traceback.extract_tb(_current().__traceback__)
    for entry in reversed(frames):
        if not entry.filename.endswith("frame.py") and "contextlib" not in entry.filename:
            return f"{os.path.basename(entry.filename)}:{entry.lineno}"
    return "?"


def _current() -> BaseException:
    error = sys.exc_info()[1]
    assert error is not None
    return error
