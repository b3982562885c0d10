"""apt-get installs fifty packages into a Debian tree below vzfs, and dpkg finds all of it sound.

The packages are downloaded by the apt of this machine (a Debian 12) and installed without network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _templates
import pytest
from conftest import System
from posixcases import beds, calls
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)

from tests.system.quotabed import QuotaBed
from vzfs.options import Options

pytestmark = [pytest.mark.root, pytest.mark.slow]

WANTED = (
    "acl", "attr", "bash-completion", "bc", "bind9-dnsutils", "bzip2", "cron", "curl", "dc",
    "ethtool", "file", "gdisk", "gettext-base", "git", "groff-base", "hdparm", "htop",
    "iputils-ping", "jq", "less", "logrotate", "lsof", "man-db", "mtr-tiny", "nano",
    "netcat-openbsd", "openssh-client", "parted", "patch", "pciutils", "psmisc", "python3",
    "quota", "rsync", "screen", "sqlite3", "strace", "sudo", "tcpdump", "time", "tmux",
    "traceroute", "tree", "unzip", "usbutils", "vim-tiny", "wget", "whois", "xz-utils", "zip",
)  # fmt: skip
DEVICES = {"null": 0x103, "zero": 0x105, "full": 0x107, "random": 0x108, "urandom": 0x109, "tty": 0x500}  # fmt: skip
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "DEBIAN_FRONTEND": "noninteractive",
}


@pytest.fixture(scope="module")
def base(shared_system: System) -> Path:
    """The tree of the Debian template."""
    name = _templates.debian(shared_system)
    return _templates.tree(shared_system, name)


@pytest.fixture(scope="module")
def packages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the packages, and all that they need beside the tree."""
    if shutil.which("apt-get") is None or 'VERSION_ID="12"' not in _release():
        pytest.skip("packages for a Debian 12 are downloaded by the apt-get of a Debian 12")
    home = tmp_path_factory.mktemp("packages")
    status = f"Dir::State::status={base}/var/lib/dpkg/status"
    words = ["apt-get", "-s", "-o", status, "--no-install-recommends", "install", *WANTED]
    plan = subprocess.run(words, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    names = [line.split()[1] for line in plan.stdout.splitlines() if line.startswith("Inst ")]
    words = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *names]
    subprocess.run(words, cwd=home, capture_output=True, check=True, env=ENVIRONMENT)
    yield home
    shutil.rmtree(home)


def _release() -> str:
    return Path("/etc/os-release").read_text()


@contextmanager
def devices(root: Path) -> Iterator[None]:
    """Have /proc and /dev in a tree."""
    calls.mount("proc", str(root / "proc"), "proc", 0, "")
    calls.mount("tmpfs", str(root / "dev"), "tmpfs", 0, "mode=755")
    try:
        for name, number in DEVICES.items():
            os.mknod(root / "dev" / name, 0o20666, os.makedev(number >> 8, number & 0xFF))
        yield
    finally:
        calls.unmount(str(root / "dev"))
        calls.unmount(str(root / "proc"))


def install(root: Path, packages: Path) -> float:
    """Install all packages into the tree at ``root``; return how many seconds that took."""
    inside = root / "var/tmp/packages"
    shutil.copytree(packages, inside)
    with devices(root):
        (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (root / "usr/sbin/policy-rc.d").chmod(0o755)
        debs = [f"./{path.name}" for path in sorted(inside.iterdir())]
        words = ["apt-get", "-q", "-y", "--no-install-recommends", "-o", "APT::Sandbox::User=root"]
        begin = time.monotonic()
        run(root, "sh", "-c", f"cd /var/tmp/packages && {' '.join([*words, 'install', *debs])}")
        took_s = time.monotonic() - begin
    shutil.rmtree(inside)
    return took_s


def run(root: Path, *words: str) -> str:
    """Run a program in the tree, without network; return what it printed."""
    inside = ["unshare", "--net", "--ipc", "--uts", "chroot", str(root), *words]
    done = subprocess.run(inside, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def check(root: Path, packages: Path) -> None:
    """Every package is installed, and every file of every package is what it should be."""
    with devices(root):
        _check(root, packages)


def _check(root: Path, packages: Path) -> None:
    lines = run(root, "dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n").splitlines()
    assert not [line for line in lines if not line.startswith("ii ")]
    installed = {line.split()[1] for line in lines}
    assert {path.name.split("_")[0] for path in packages.iterdir()} <= installed
    assert run(root, "dpkg", "--audit") == ""
    # What the template itself leaves out (documentation) is missing from the tree as well.
    assert not [
        line for line in run(root, "dpkg", "--verify").splitlines() if "missing" not in line
    ]
    assert run(root, "git", "--version").startswith("git version")
    assert run(root, "python3", "-c", "import sqlite3, ssl; print(6 * 7)") == "42\n"


def names(root: Path) -> set[str]:
    """Return every name in a tree."""
    found = subprocess.run(
        ["find", ".", "-xdev", "-printf", "%P %y %m %U %G\n"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(found.stdout.splitlines())


@pytest.mark.parametrize("name", ["vzfs-kernel", "vzfs-pyfuse3"])
def test_apt_installs_fifty_packages(name: str, base: Path, packages: Path) -> None:
    if missing := beds.BEDS[name].missing():
        pytest.skip(missing)
    count = len(list(packages.iterdir()))
    assert count >= 50
    transport = name.removeprefix("vzfs-")
    bed = QuotaBed(Path(tempfile.mkdtemp(prefix="vzfs-apt-")), transport)
    peer = beds.Overlayfs(bed.top / "peer")
    bed.options = Options(
        lower=(base,), upper=bed.upper, work=bed.work, transport=transport, ledger=bed.file
    )
    peer.lowers = (base,)
    try:
        top = bed.mount(block_soft=4 << 20, block_hard=4 << 20, sub_quotas=1, ugid_limit=100)
        took_s = install(top, packages)
        check(top, packages)
        assert bed.settled() == (0, 0)
        assert bed.owners_settled()
        bed.unmount()
        assert bed.difference() == (0, 0)
        bed.mount()
        check(top, packages)
        with peer.mounted():
            peer_s = install(peer.merged, packages)
            check(peer.merged, packages)
            assert names(top) == names(peer.merged)
        print(
            f"{name}: {count} packages in {took_s:.1f} s, on overlayfs {peer_s:.1f} s, {bed.used_kib()} KiB"
        )
    finally:
        peer.abandon()
        bed.close()
