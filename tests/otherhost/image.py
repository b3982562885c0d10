"""The guest's disk: Debian 12 from packages, with what tools/bootstrap puts on a server for tests.

No network is needed later: the virtual environment is made here as well. Nothing is mounted and
no block device is used; mke2fs(8) fills the file system.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from runtime.paths import Paths
from templates import dpkg, sources
from tests.otherhost import checkout

TOP = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).resolve().parent / "inside"
_UNIT = "pyvz-tests.service"
#: What the unit runs: it takes the orders.
_SCRIPT = "pyvz-orders"
#: What a server has beside the packages of priority "important" and those of tools/bootstrap.
PACKAGES = (
    *("linux-image-amd64", "initramfs-tools", "systemd-sysv", "systemd-timesyncd", "dbus", "udev"),
    *("ca-certificates", "python3", "python3-venv", "zstd"),
)
#: Files which decide what is in the image, from the top of the checkout: those of the stamp which
#: tools/bootstrap leaves, else it would want the network in the guest.
_INPUTS = ("tools/bootstrap", "tools/launchers.py", "pyproject.toml")
#: The file system's size; the file is sparse.
_DISK_BYTES = 12 << 30
_NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=yes\n"
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


@dataclass(frozen=True, slots=True)
class Image:
    """A finished image: a directory with the disk and what QEMU boots it with."""

    place: Path

    @property
    def staying(self) -> Path:
        """Where the ports of a guest are that stays between runs."""
        return self.place / "staying"

    @property
    def disk(self) -> Path:
        """The raw disk, one ext4 file system without partitions; never written to."""
        return self.place / "disk.raw"

    @property
    def kernel(self) -> Path:
        """The guest's kernel."""
        return self.place / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The guest's initial file system."""
        return self.place / "initrd.img"


def cache_dir(environment: dict[str, str] | None = None) -> Path:
    """Return where images and results are kept: VZ_TEST_OTHER_HOST, else below ~/.cache."""
    env = dict(os.environ) if environment is None else environment
    if named := env.get("VZ_TEST_OTHER_HOST"):
        return Path(named).absolute()
    base = env.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pyvz" / "otherhost"


def key(top: Path = TOP) -> str:
    """Return the name of the image this checkout needs: a digest of all that decides about it."""
    digest = hashlib.sha256()
    for part in (*PACKAGES, _NETWORK, str(_DISK_BYTES), *_repositories(top)):
        digest.update(part.encode() + b"\0")
    files = [top / name for name in _INPUTS]
    for file in [*files, INSIDE / _UNIT, INSIDE / _SCRIPT, Path(__file__)]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _repositories(top: Path) -> list[str]:
    recipe = top / "templates/recipes.d/debian-12/os/default/repositories"
    return [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.strip()]


def ensure(cache: Path, *, rebuild: bool = False) -> Image:
    """Return the image for this checkout, built first where there is none; others are removed.

    Raises CalledProcessError, NoRepository and OSError; an unfinished image is never used.
    """
    images = cache / "images"
    images.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        for left in images.glob(".*"):
            shutil.rmtree(left)
        image = Image(images / key())
        if rebuild or not image.place.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix=".", dir=images))
            try:
                _build(scratch)
                shutil.rmtree(image.place, ignore_errors=True)
                scratch.rename(image.place)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        for other in images.iterdir():
            if other != image.place:
                shutil.rmtree(other)
    return image


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of this name; without ``wait``, False where somebody else holds it."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _build(place: Path) -> None:
    """Make disk, kernel and initrd in ``place``."""
    tree = place / "tree"
    listed = place / "sources.list"
    entries = sources.apt_sources(Paths(Path("/")), _repositories(TOP), "debian")
    listed.write_text("".join(f"{entry.line}\n" for entry in entries), encoding="utf-8")
    log = place / "log"
    print(f"building a Debian 12 guest in {place.parent}: some minutes", file=sys.stderr)
    argv = [
        *dpkg.confined(),
        *("mmdebstrap", "--mode=root", "--variant=important", "--format=directory"),
        *("--skip=output/dev", "--architectures=amd64", f"--include={','.join(PACKAGES)}"),
        *('--aptopt=APT::Sandbox::User "root"', '--aptopt=Acquire::Retries "2"'),
        *(f"--customize-hook={line}" for line in _hooks(place)),
        *(dpkg.suite_of(entries), str(tree), str(listed)),
    ]
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    with open(log, "wb") as file:
        try:
            subprocess.run(argv, env=pip | _ENVIRONMENT, stdout=file, stderr=file, check=True)
        except subprocess.CalledProcessError:
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
            raise
    for name, target in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd.img")):
        newest = max((tree / "boot").glob(name), key=lambda path: path.stat().st_mtime)
        shutil.copyfile(newest, place / target)
    with open(place / "disk.raw", "wb") as disk:
        disk.truncate(_DISK_BYTES)
    command = ["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", str(tree), str(disk.name)]
    subprocess.run(command, env=_ENVIRONMENT, check=True)
    shutil.rmtree(tree)


def _hooks(place: Path) -> list[str]:
    """Return what mmdebstrap runs in the finished tree (``$1``), in order."""
    archive = place / "checkout.tar"
    checkout.write(TOP, archive)
    network = place / "ether.network"
    network.write_text(_NETWORK)
    # The certificates and package index of this server hold for pip in the tree as well.
    borrowed = [path for path in ("/etc/pip.conf",) if os.path.exists(path)]
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    return [
        f"tar-in {quote(str(archive))} /",
        *(f"copy-in {path} {os.path.dirname(path)}" for path in borrowed),
        f"copy-in {bundle} {os.path.dirname(bundle)}" if os.path.exists(bundle) else ":",
        f'chroot "$1" {checkout.PLACE}/tools/bootstrap test',
        *(f'rm -f "$1"{path}' for path in borrowed),
        'chroot "$1" update-ca-certificates --fresh',
        f"copy-in {quote(str(network))} /etc/systemd/network",
        f"copy-in {quote(str(INSIDE / _UNIT))} /etc/systemd/system",
        f"copy-in {quote(str(INSIDE / _SCRIPT))} /usr/local/sbin",
        f'chroot "$1" systemctl enable systemd-networkd {_UNIT}',
        'chroot "$1" systemctl disable apt-daily.timer apt-daily-upgrade.timer',
        'chroot "$1" passwd -d root',
        'echo server > "$1/etc/hostname"; rm -f "$1/etc/resolv.conf"',
        'printf "127.0.0.1 localhost\\n127.0.1.1 server\\n" > "$1/etc/hosts"',
        'printf "LABEL=root / ext4 defaults 0 1\\n" > "$1/etc/fstab"',
        'chroot "$1" apt-get clean',
    ]
