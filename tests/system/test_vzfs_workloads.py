"""Programs people run, over vzfs: git, tar, sqlite, PostgreSQL.

The normal tier runs small sizes; `-m slow` adds the large ones.
"""

import io
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
from posixcases import beds
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).resolve().parents[2]
TRANSPORTS = ["vzfs-kernel", "vzfs-pyfuse3"]


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


def _pack_made_up(target: Path, files: int) -> int:
    """Pack a tree of the shape of a kernel's sources; return how many objects there are."""
    dice = random.Random(2)
    filler = dice.randbytes(1 << 16)
    folders = [""]
    count = 0
    with tarfile.open(target, "w") as archive:
        for number in range(files):
            if number % 16 == 0:
                entry = tarfile.TarInfo(f"{dice.choice(folders[-200:])}folder{number}/")
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                if entry.name.count("/") < 9:
                    folders.append(entry.name)
                archive.addfile(entry)
                count += 1
            entry = tarfile.TarInfo(f"{folders[-1]}source{number}.c")
            entry.mtime, entry.mode = 1_000_000_000 + number, 0o644 if number % 9 else 0o755
            if number % 400 == 7:
                entry.type, entry.linkname = tarfile.SYMTYPE, f"source{number - 1}.c"
                archive.addfile(entry)
            else:
                entry.size = min(len(filler), int(dice.expovariate(1 / 5000)))
                archive.addfile(entry, io.BytesIO(filler[: entry.size]))
            count += 1
    return count


@pytest.mark.parametrize(
    "files", [0, pytest.param(80_000, marks=pytest.mark.slow)], ids=["small", "as-a-kernel"]
)
def test_a_tree_is_unpacked_compared_and_removed(subject: beds.Vzfs, files: int) -> None:
    archive = subject.home / "tree.tar"
    count = (
        _pack_made_up(archive, files) if files else _pack(Path("/usr/lib/python3"), archive, 1500)
    )
    subject.mount()
    tree = subject.merged / "tree"
    tree.mkdir()
    begin = time.monotonic()
    run("tar", "-xf", archive, "-C", tree)
    unpacked = time.monotonic()
    assert run("tar", "-df", archive, "-C", tree) == ""
    assert sum(1 for _ in tree.rglob("*")) == count
    subject.remount()
    assert run("tar", "-df", archive, "-C", tree) == ""
    removing = time.monotonic()
    run("rm", "-rf", tree)
    removed = time.monotonic()
    assert os.listdir(subject.merged) == []
    subject.unmount()
    assert os.listdir(subject.upper) == []
    print(
        f"{subject.name}: {count} objects unpacked in {unpacked - begin:.1f} s, "
        f"removed in {removed - removing:.1f} s"
    )


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
