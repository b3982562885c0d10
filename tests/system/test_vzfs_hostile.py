"""What a container does to its file system out of malice or accident hurts nobody else.

Every test prints the resident memory of the server before and after; `BOUND` is what a server
may grow by under any of them, kernel limits of the node table included.
"""

import errno
import fcntl
import os
import resource
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from posixcases import beds, calls
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)

pytestmark = pytest.mark.root

BOUND = 96 << 20
TRANSPORTS = ["vzfs-kernel", "vzfs-pyfuse3"]


@pytest.fixture(params=TRANSPORTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[beds.Vzfs]:
    """A mount with a small template below it; its server must outlive the test and stay small."""
    kind = beds.BEDS[request.param]
    if missing := kind.missing():
        pytest.skip(missing)
    bed = kind(tmp_path / "bed")
    assert isinstance(bed, beds.Vzfs)
    (bed.lower / "etc").mkdir()
    (bed.lower / "etc/passwd").write_bytes(b"template\n" * 500)
    os.link(bed.lower / "etc/passwd", bed.lower / "etc/passwd-")
    bed.mount()
    try:
        before = resident(bed.server)
        yield bed
        after = resident(bed.server)
        print(f"{bed.name}: server {before >> 20} MiB, afterwards {after >> 20} MiB")
        assert after - before < BOUND
        (bed.merged / "alive").write_bytes(b"yes")
        assert (bed.merged / "alive").read_bytes() == b"yes"
        bed.unmount()
    finally:
        bed.abandon()
        shutil.rmtree(tmp_path, ignore_errors=True)


def resident(pid: int) -> int:
    """Return the peak resident memory of a process in bytes (proc_pid_status(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


def test_a_flood_of_files_leaves_the_server_small(subject: beds.Vzfs) -> None:
    folders = 10 if subject.transport == "kernel" else 3
    for folder in range(folders):
        home = subject.merged / f"flood{folder}"
        home.mkdir()
        for number in range(1500):
            os.mknod(home / f"f{number}", stat.S_IFREG | 0o644)
        assert len(os.listdir(home)) == 1500
    for folder in range(folders):
        shutil.rmtree(subject.merged / f"flood{folder}")


def test_removed_folders_are_let_go(subject: beds.Vzfs) -> None:
    for number in range(2500):
        (subject.merged / f"d{number}").mkdir()
        (subject.merged / f"d{number}" / "f").touch()
    for number in range(2500):
        (subject.merged / f"d{number}" / "f").unlink()
        (subject.merged / f"d{number}").rmdir()
    assert len(os.listdir(f"/proc/{subject.server}/fd")) < 1024 + 256


def test_names_looked_up_in_vain_are_not_remembered(subject: beds.Vzfs) -> None:
    before = resident(subject.server)
    for number in range(30_000):
        assert not os.path.lexists(subject.merged / f"etc/nothing-{number}")
    assert resident(subject.server) - before < 16 << 20


def test_very_many_open_files_are_served(subject: beds.Vzfs) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(100_000 if os.environ.get("PYVZ_SLOW") else 8_000, hard - 100)
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held: list[int] = []
    refused = 0
    try:
        for number in range(count):
            try:
                held.append(
                    os.open(subject.merged / f"open{number}", os.O_CREAT | os.O_RDWR, 0o644)
                )
            except OSError as error:
                # A limit is an answer; a hang or a dead server is not.
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                refused += 1
                break
        for number in (0, len(held) // 2, len(held) - 1):
            os.write(held[number], b"still")
            assert os.pread(held[number], 5, 0) == b"still"
        other = subject.merged / "etc/passwd"
        assert other.read_bytes().startswith(b"template")
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    print(f"{len(held)} open files, {refused} refused")
    assert len(held) >= min(count, 4_000)


def test_symlink_loops_and_magic_targets_lead_nowhere(subject: beds.Vzfs) -> None:
    home = subject.merged / "loops"
    home.mkdir()
    for number in range(50):
        os.symlink(f"loop{(number + 1) % 50}", home / f"loop{number}")
    with pytest.raises(OSError, match="Too many levels"):
        os.stat(home / "loop0/x")
    for target in (
        "////etc/passwd",
        "////../../etc/shadow",
        "////",
        "/////x",
        "////./a",
        "////" + "a" * 4000,
    ):
        with pytest.raises(OSError) as caught:
            os.symlink(target, home / "magic")
        assert caught.value.errno == errno.EINVAL, target
        assert not os.path.lexists(home / "magic")
    for target in ("///three", "//two", "x////y"):
        os.symlink(target, home / "plain")
        assert os.readlink(home / "plain") == target
        os.unlink(home / "plain")


def test_trees_deeper_than_any_path_can_be_made_and_removed(subject: beds.Vzfs) -> None:
    depth = 1200
    here = os.open(subject.merged, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=here)
        below = os.open("deeper", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    leaf = os.open("leaf", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=here)
    os.write(leaf, b"bottom")
    os.close(leaf)
    # From the bottom up, as rm -r does when paths get too long.
    os.unlink("leaf", dir_fd=here)
    for _ in range(depth):
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.rmdir("deeper", dir_fd=above)
        os.close(here)
        here = above
    os.close(here)
    assert not (subject.merged / "deeper").exists()


def test_moving_a_folder_deep_below_another_keeps_its_content_reachable(subject: beds.Vzfs) -> None:
    here = subject.merged
    for number in range(30):
        here = here / ("x" * 100)
        here.mkdir()
        if number in (0, 15, 29):
            os.rename(subject.merged / "etc", here / "etc")
            os.rename(here / "etc", subject.merged / "etc")
    os.rename(subject.merged / "etc", here / "etc")
    assert (here / "etc/passwd").read_bytes().startswith(b"template")
    subject.remount()
    assert (here / "etc/passwd").read_bytes().startswith(b"template")


def test_unlinked_files_stay_usable_and_their_space_comes_back(subject: beds.Vzfs) -> None:
    held = []
    for number in range(500):
        path = subject.merged / f"gone{number}"
        held.append(os.open(path, os.O_CREAT | os.O_RDWR, 0o644))
        os.write(held[-1], bytes(4096))
        os.unlink(path)
    held.append(os.open(subject.merged / "etc/passwd", os.O_RDONLY))
    os.unlink(subject.merged / "etc/passwd")
    os.unlink(subject.merged / "etc/passwd-")
    assert os.pread(held[-1], 9, 0) == b"template\n"
    for descriptor in held[:-1]:
        os.pwrite(descriptor, b"still here", 4000)
        assert os.pread(descriptor, 10, 4000) == b"still here"
        assert os.fstat(descriptor).st_nlink == 0
    for descriptor in held:
        os.close(descriptor)
    used = sum(f.stat().st_size for f in subject.upper.rglob("*") if f.is_file())
    assert used == 0, "unlinked files are left in the private area"


def test_giant_attributes_are_refused_or_kept(subject: beds.Vzfs) -> None:
    path = subject.merged / "attributed"
    path.write_bytes(b"")
    kept = 0
    for number in range(2000):
        try:
            os.setxattr(path, f"user.n{number}", os.urandom(1000))
            kept += 1
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.E2BIG, errno.EDQUOT):
                raise
            break
    with pytest.raises(OSError):
        os.setxattr(path, "user.giant", bytes(65536))
    assert len(os.listxattr(path)) == kept


def test_a_flood_from_many_threads_does_not_stop_a_neighbour(
    subject: beds.Vzfs, tmp_path: Path
) -> None:
    neighbour = type(subject)(tmp_path / "neighbour")
    (neighbour.lower / "file").write_bytes(b"neighbour")
    neighbour.mount()
    stop = threading.Event()

    def flood(number: int) -> None:
        n = 0
        while not stop.is_set():
            path = subject.merged / f"t{number}-{n % 50}"
            path.write_bytes(b"x" * 100)
            path.rename(subject.merged / f"u{number}-{n % 50}")
            n += 1

    threads = [threading.Thread(target=flood, args=(n,)) for n in range(4)]
    try:
        alone = _latency(neighbour.merged)
        for thread in threads:
            thread.start()
        beside = _latency(neighbour.merged)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        neighbour.unmount()
        neighbour.abandon()
    print(
        f"a neighbour's operation: {alone * 1e3:.2f} ms alone, {beside * 1e3:.2f} ms beside a flood"
    )
    assert beside < 1.0


def _latency(root: Path) -> float:
    """Return the median time of a small metadata change in seconds."""
    times = []
    for number in range(60):
        start = time.perf_counter()
        (root / f"n{number}").write_bytes(b"")
        os.unlink(root / f"n{number}")
        times.append(time.perf_counter() - start)
    return sorted(times)[30]


def _ioctl(path: Path, number: int) -> None:
    one = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(one, number, bytes(1024))
    finally:
        os.close(one)


ODD: dict[str, Callable[[Path], object]] = {
    "descriptor of the device": lambda p: os.open(p / "null", os.O_RDONLY),
    "a socket": lambda p: socket.socket(socket.AF_UNIX).connect(str(p / "nothing")),
    "an unknown ioctl": lambda p: _ioctl(p, 0x5401),
    "a huge unknown ioctl": lambda p: _ioctl(p, 0xFFFF_7A7A),
    "a rename with odd flags": lambda p: calls.renameat2(str(p / "a"), str(p / "b"), 0xFF),
    "an empty attribute": lambda p: os.setxattr(p, "user.", b""),
    "a name with only dots": lambda p: os.rmdir(p / ".."),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_requests_are_answered_with_an_error(subject: beds.Vzfs, what: str) -> None:
    with pytest.raises(OSError):
        ODD[what](subject.merged)


def test_nothing_reaches_the_host_through_a_link_or_a_moved_folder(subject: beds.Vzfs) -> None:
    # `..` above the mount is the kernel's business; the server must not follow links itself.
    secret = subject.home / "secret"
    secret.write_bytes(b"host")
    os.symlink(str(subject.home), subject.upper / "escape")
    os.setxattr(subject.upper, "trusted.overlay.origin", b"nonsense")
    assert stat.S_ISLNK(os.lstat(subject.merged / "escape").st_mode)
    with pytest.raises(OSError):
        os.rename(subject.merged / "escape/secret", subject.merged / "stolen")
    assert secret.read_bytes() == b"host"
    # A folder which claims in the private area to continue outside the layers.
    os.mkdir(subject.upper / "forged")
    os.setxattr(subject.upper / "forged", "trusted.overlay.redirect", b"/../../../../etc")
    subject.remount()
    try:
        assert "shadow" not in os.listdir(subject.merged / "forged")
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOENT, errno.ESTALE, errno.EINVAL):
            raise
