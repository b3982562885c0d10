"""Programs people run, over vzfs: git, tar, sqlite, exercisers, PostgreSQL.

The normal tier runs small sizes; `-m slow` adds the large ones (PYVZ_FSX_SECONDS, default 60).
"""

import mmap
import os
import pwd
import random
import shutil
import signal
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from posixcases import beds, calls
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)
from posixcases.moves import Move, Player

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).resolve().parents[2]
TRANSPORTS = ["vzfs-kernel", "vzfs-pyfuse3"]
FSX_SECONDS = float(os.environ.get("PYVZ_FSX_SECONDS", "60"))


@pytest.fixture(params=TRANSPORTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[beds.Vzfs]:
    """A mount over one empty lower layer; tests fill the layer before they call `mount`."""
    kind = beds.BEDS[request.param]
    if missing := kind.missing():
        pytest.skip(missing)
    bed = kind(tmp_path / "bed")
    assert isinstance(bed, beds.Vzfs)
    try:
        yield bed
    finally:
        bed.abandon()
        shutil.rmtree(tmp_path, ignore_errors=True)


def run(*words: str | Path, cwd: Path | None = None, user: str | None = None) -> str:
    """Run a program that must succeed; return what it printed."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C", "GIT_CONFIG_GLOBAL": "/dev/null"}  # fmt: skip
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, user=user, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{words}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return done.stdout


@pytest.mark.parametrize("where", ["upper", "lower"])
def test_git_clones_commits_and_finds_its_repository_sound(subject: beds.Vzfs, where: str) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed: apt-get install git")
    origin = subject.home / "origin"
    _make_repository(origin)
    if where == "lower":
        run("git", "clone", "-q", "--no-hardlinks", origin, subject.lower / "clone")
    subject.mount()
    clone = subject.merged / "clone"
    if where == "upper":
        run("git", "clone", "-q", "--no-hardlinks", origin, clone)
    git = (
        "git",
        "-c",
        "safe.directory=*",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-C",
        clone,
    )
    run(*git, "fsck", "--full", "--strict")
    assert run(*git, "status", "--porcelain") == ""
    (clone / "dir0/file0").write_text("changed\n")
    run(*git, "checkout", "-q", "-b", "side")
    run(*git, "commit", "-q", "-a", "-m", "change")
    run(*git, "mv", "dir1", "moved")
    run(*git, "commit", "-q", "-m", "move")
    run(*git, "repack", "-q", "-a", "-d")
    run(*git, "gc", "-q", "--prune=now")
    run(*git, "checkout", "-q", "HEAD~2")
    subject.remount()
    run(*git, "fsck", "--full", "--strict")
    assert run(*git, "status", "--porcelain") == ""


def _make_repository(path: Path) -> None:
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", path)
    run("git", "init", "-q", path)
    dice = random.Random(1)
    for commit in range(5):
        for number in range(60):
            file = path / f"dir{number % 7}/file{number}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(dice.randbytes(dice.randrange(1, 4000)).hex().encode())
        run(*git, "add", "-A")
        run(*git, "commit", "-q", "-m", f"commit {commit}")


def _pack(source: Path, target: Path, limit: int) -> int:
    """Pack up to `limit` files of a tree; return how many there are."""
    count = 0
    with tarfile.open(target, "w") as archive:
        for path in sorted(source.rglob("*")):
            if count >= limit:
                break
            if path.is_symlink() or path.is_file() or path.is_dir():
                archive.add(path, str(path.relative_to(source)), recursive=False)
                count += 1
    return count


@pytest.mark.parametrize(
    "limit", [1500, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["small", "all"]
)
def test_a_tree_is_unpacked_compared_and_removed(subject: beds.Vzfs, limit: int) -> None:
    archive = subject.home / "tree.tar"
    count = _pack(Path("/usr/lib/python3"), archive, limit)
    subject.mount()
    tree = subject.merged / "tree"
    tree.mkdir()
    run("tar", "-xf", archive, "-C", tree)
    assert run("tar", "-df", archive, "-C", tree) == ""
    assert sum(1 for _ in tree.rglob("*")) == count
    subject.remount()
    assert run("tar", "-df", archive, "-C", tree) == ""
    run("rm", "-rf", tree)
    assert os.listdir(subject.merged) == []
    subject.unmount()
    assert os.listdir(subject.upper) == []


def test_a_tree_of_a_layer_is_copied_up_and_removed(subject: beds.Vzfs) -> None:
    archive = subject.home / "tree.tar"
    _pack(Path("/usr/lib/python3"), archive, 800)
    tree = subject.lower / "tree"
    tree.mkdir()
    run("tar", "-xf", archive, "-C", tree)
    subject.mount()
    seen = subject.merged / "tree"
    assert run("tar", "-df", archive, "-C", seen) == ""
    run("chmod", "-R", "go-w,u+w", seen)
    run("tar", "-xf", archive, "-C", seen)
    assert run("tar", "-df", archive, "-C", seen) == ""
    run("cp", "-a", seen, subject.merged / "copy")
    run("diff", "-r", seen, subject.merged / "copy")
    run("rm", "-rf", seen)
    assert os.listdir(subject.merged) == ["copy"]
    assert run("tar", "-df", archive, "-C", tree) == "", "the layer changed"


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate"])
def test_sqlite_keeps_a_database_used_by_several_processes(subject: beds.Vzfs, mode: str) -> None:
    with sqlite3.connect(subject.lower / "db") as base:
        base.execute("create table t (who integer, n integer)")
        base.executemany("insert into t values (99, ?)", [(n,) for n in range(200)])
    base.close()
    subject.mount()
    path = subject.merged / "db"
    with sqlite3.connect(path) as base:
        assert base.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
    base.close()
    children = []
    for who in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                own = sqlite3.connect(path, timeout=60, isolation_level=None)
                own.execute("pragma synchronous=normal")
                for n in range(60):
                    own.execute("insert into t values (?, ?)", (who, n))
                own.close()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0, 0, 0]
    subject.remount()
    base = sqlite3.connect(path)
    assert base.execute("pragma integrity_check").fetchone()[0] == "ok"
    counted = base.execute("select who, count(*) from t group by who order by who").fetchall()
    assert counted == [(0, 60), (1, 60), (2, 60), (99, 200)]
    base.close()


# An exerciser of one file, after fsx ---------------------------------------------------------------


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
        what = dice.choice(["write", "write", "read", "read", "truncate", "map", "mapread", "punch", "zero", "keep", "allocate", "append", "reopen", "copy", "sync", "chmod"])  # fmt: skip
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
        assert os.fstat(one).st_size == len(model), history
        assert os.stat(path).st_size == len(model), history
    os.close(one)
    assert path.read_bytes() == bytes(model), history
    return acts


@pytest.mark.parametrize(
    "seconds", [3.0, pytest.param(FSX_SECONDS, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_one_file_changed_in_every_way_keeps_its_content(
    subject: beds.Vzfs, seconds: float
) -> None:
    (subject.lower / "shared").write_bytes(random.Random(0).randbytes(300_000))
    subject.mount()
    acts = sum(
        exercise(subject.merged / name, seconds / 2, number, allocate=subject.transport == "kernel")
        for number, name in enumerate(["shared", "own"])
    )
    content = {n: (subject.merged / n).read_bytes() for n in ("shared", "own")}
    subject.remount()
    assert {n: (subject.merged / n).read_bytes() for n in ("shared", "own")} == content
    print(f"{subject.name}: {acts} acts")
    assert acts > 50


# Many processes on one tree, after fsstress --------------------------------------------------------


@pytest.mark.parametrize(
    "seconds", [4.0, pytest.param(FSX_SECONDS, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_processes_fighting_over_one_tree_leave_it_sound(
    subject: beds.Vzfs, seconds: float
) -> None:
    for name in ("a", "b", "c"):
        (subject.lower / name).mkdir()
        for inner in ("a", "b", "c"):
            (subject.lower / name / inner).write_bytes(b"shared")
    subject.mount()
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _fight(subject.merged, number, seconds)
                code = 0
            except BaseException as error:
                with open(subject.home / "fight.log", "a", encoding="utf-8") as log:
                    log.write(f"{error!r}\n")
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
    assert codes == [0] * 4, (subject.home / "fight.log").read_text()
    for top, folders, files in os.walk(subject.merged):
        listed = set(os.listdir(top))
        assert listed == set(folders) | set(files)
        for name in listed:
            os.lstat(os.path.join(top, name))
    before = sorted(str(p) for p in subject.merged.rglob("*"))
    subject.remount()
    assert sorted(str(p) for p in subject.merged.rglob("*")) == before
    shutil.rmtree(subject.merged, ignore_errors=True)
    assert os.listdir(subject.merged) == []


def _fight(root: Path, number: int, seconds: float) -> None:
    dice = random.Random(number)
    player = Player(str(root))
    deadline = time.monotonic() + seconds
    refused = {"EIO", "ESTALE", "EUCLEAN", "EFAULT", "ENOTCONN", "EREMOTEIO"}
    while time.monotonic() < deadline:
        # Both at one depth: moving folders into one another, hours of it would end beyond any path.
        depth = dice.randint(1, 3)
        old, new = ("/".join(dice.choices("abc", k=depth)) for _ in range(2))
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
                Move("append", (old, b"more")),
                Move("truncate", (old, 5)),
                Move("chmod", (old, 0o700)),
                Move("setxattr", (old, "user.a", b"1", 0)),
                Move("listing", (old,)),
                Move("read", (old,)),
                Move("open", (0, old, 0)),
                Move("put", (0, 3, b"held")),
                Move("shut", (0,)),
            ]
        )
        result = player.play(move)
        assert not (isinstance(result, str) and result in refused), f"{move}: {result}"
    player.close()


# A database server ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_postgresql_recovers_from_kill_on_vzfs(subject: beds.Vzfs) -> None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found or not (found[-1] / "pgbench").exists():
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql postgresql-contrib")
    binaries = found[-1]
    try:
        owner = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("no user postgres: apt-get install postgresql")
    for path in (subject.home, *subject.home.parents):
        if path.stat().st_mode & 0o077 == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    subject.mount()
    data = subject.merged / "data"
    data.mkdir()
    os.chown(data, owner.pw_uid, owner.pw_gid)
    run(binaries / "initdb", "-D", data, "-A", "trust", user="postgres")
    server = ("-o", f"-k {data} -c listen_addresses= -c shared_buffers=32MB", "-D", data)
    start = (binaries / "pg_ctl", "-w", "-s", *server, "-l", data / "log", "start")
    bench = (binaries / "pgbench", "-h", data, "-U", "postgres")
    run(*start, user="postgres")
    try:
        run(*bench, "-i", "-s", "2", "-q", "postgres", user="postgres")
        for _ in range(3):
            work = subprocess.Popen(
                [*map(str, bench), "-c", "4", "-T", "20", "postgres"],
                user="postgres", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(3)
            os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
            work.wait()
            time.sleep(1)
            # Where nobody reaps orphans the dead one still looks alive.
            for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                (data / name).unlink(missing_ok=True)
            run(*start, user="postgres")
            ask = (binaries / "psql", "-h", data, "-U", "postgres", "-Atc")
            sums = "select (select sum(abalance) from pgbench_accounts) - (select sum(bbalance) from pgbench_branches)"
            assert run(*ask, sums, user="postgres").strip() == "0"
    finally:
        subprocess.run(
            [binaries / "pg_ctl", "-D", data, "-m", "immediate", "-s", "stop"], user="postgres", check=False
        )  # fmt: skip
