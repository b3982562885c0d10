"""A small real Linux guest built in seconds from Debian packages: for tests and first steps.

The cloud kernel and the QEMU guest agent are downloaded by apt and unpacked, never installed; with
busybox they make one initramfs. What is built is kept per kernel version in the template area.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime.errors import NoKernelSupport, TemplateMissing
from runtime.paths import Paths
from runtime.progress import Progress
from vmm.cpio import Archive

NAME = "golden"
#: Loaded in this order, with what they depend on; those a kernel has built in are skipped.
_MODULES = (
    "virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_balloon", "virtio_rng",
    "virtio_scsi", "virtio_mem", "button", "evdev", "sd_mod", "sr_mod", "ata_piix", "ahci",
    "isofs", "ext4", "crc32c_generic", "overlay",
)  # fmt: skip
_NEEDED = re.compile(r"boot/vmlinuz-|lib/modules/.*\.ko(\.xz)?$|usr/sbin/qemu-ga$")
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}

_INIT = r"""#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /run /tmp /var/run; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /tmp
while read -r m; do insmod "/mod/$m.ko" 2>/dev/null; done </modules.order
mdev -s; hostname golden; ip link set lo up
for i in /sys/class/net/eth*; do [ -e "$i" ] && ip link set "${i##*/}" up; done
[ -e /sys/class/net/eth0 ] && udhcpc -i eth0 -n -q -t 3 -T 1 -s /bin/udhcpc.sh >/dev/null 2>&1 &
acpid -d -f >/dev/null 2>&1 &
for b in /dev/vda1 /dev/vda /dev/sda1 /dev/sda; do
  [ -b $b ] && mkdir -p /mnt && mount -t ext4 $b /mnt 2>/dev/null && break
done
for p in /sys/class/virtio-ports/*; do
  [ "$(cat $p/name 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
  qemu-ga -m virtio-serial -p /dev/${p##*/} -t /run -d -f /run/qga.pid
done
echo "golden guest ready after $(cut -d' ' -f1 /proc/uptime) s"
while :; do setsid sh -c 'exec sh -l </dev/ttyS0 >/dev/ttyS0 2>&1'; sleep 1; done
"""
_DHCP = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
[ -z "$router" ] || ip route add default via $router
[ -z "$dns" ] || for d in $dns; do echo "nameserver $d"; done >/etc/resolv.conf
"""
_SHUTDOWN = """#!/bin/sh
sync; umount /mnt 2>/dev/null
case " $* " in *" -r "*) reboot -f;; *) poweroff -f;; esac
"""
# The agent calls chpasswd, which the static busybox of Debian lacks; it has mkpasswd.
_CHPASSWD = r"""#!/bin/sh
IFS= read -r line; user=${line%%:*}; word=${line#*:}
grep -q "^$user:" /etc/shadow || { echo "chpasswd: no user $user" >&2; exit 1; }
[ "$1" = -e ] || word=$(printf %s "$word" | mkpasswd -m sha512)
awk -F: -v OFS=: -v u="$user" -v w="$word" '$1==u{$2=w}{print}' /etc/shadow >/etc/shadow.new &&
  chmod 600 /etc/shadow.new && mv /etc/shadow.new /etc/shadow
"""


@dataclass(frozen=True, slots=True)
class GoldenGuest:
    """What a machine boots: a kernel, an initramfs, and the kernel's command line."""

    kernel: Path
    initrd: Path
    release: str

    @property
    def command_line(self) -> str:
        """The kernel's parameters: a serial console, and a reboot on panic."""
        return "console=ttyS0 quiet panic=-1"


def area(paths: Paths) -> Path:
    """Return where built guests are kept."""
    return paths.template / "machines" / NAME


def find(paths: Paths) -> GoldenGuest | None:
    """Return the newest guest already built by this version of the recipe, or None."""
    return max(_built(area(paths)), key=lambda guest: guest.release, default=None)


def ensure(paths: Paths, progress: Progress) -> GoldenGuest:
    """Return the guest, building it first where there is none; raises TemplateMissing."""
    return find(paths) or build(paths, progress)


def build(paths: Paths, progress: Progress) -> GoldenGuest:
    """Download what is needed and build the guest (seconds); raises TemplateMissing, OSError."""
    where = area(paths)
    where.mkdir(parents=True, exist_ok=True)
    files.sweep_temporaries(where)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=where) as scratch:
        work = Path(scratch)
        progress.say("Downloading the kernel and the guest agent")
        packages = _download(work)
        tree = work / "tree"
        for package in packages:
            _unpack(package, tree)
        release = next((tree / "lib/modules").iterdir()).name
        progress.say(f"Building a guest with kernel {release}")
        initrd = gzip.compress(_initramfs(tree, release), 1, mtime=0)
        target = where / f"{release}-{_recipe()}"
        if not target.exists():
            with files.new_directory(target) as directory:
                shutil.copyfile(tree / f"boot/vmlinuz-{release}", directory / "vmlinuz")
                (directory / "initrd").write_bytes(initrd)
    built = find(paths)
    assert built is not None
    return built


def _recipe() -> str:
    """Return what tells builds of different recipes apart."""
    text = repr((_INIT, _DHCP, _SHUTDOWN, _CHPASSWD, _MODULES))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _built(where: Path) -> Iterator[GoldenGuest]:
    suffix = f"-{_recipe()}"
    try:
        names = os.listdir(where)
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(suffix):
            place = where / name
            yield GoldenGuest(place / "vmlinuz", place / "initrd", name.removesuffix(suffix))


def _apt(argv: Sequence[str], directory: Path) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            argv, cwd=directory, env=environment, capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise TemplateMissing(
            "the golden guest is built from Debian packages, and this server has no apt",
            hint="create the machine with -d linux and an installation medium instead",
        ) from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise TemplateMissing(f"{argv[0]}: {lines[-1]}", hint="apt-get update") from error
    return done.stdout


def _download(directory: Path) -> list[Path]:
    machine = platform.machine()
    architecture = _ARCHITECTURE.get(machine)
    if architecture is None:
        raise NoKernelSupport(f"no golden guest is known for {machine}")
    depends = _apt(["apt-cache", "depends", f"linux-image-cloud-{architecture}"], directory)
    match = re.search(r"Depends: (linux-image-\S+)", depends)
    if match is None:
        raise TemplateMissing(
            f"apt knows no linux-image-cloud-{architecture}", hint="apt-get update"
        )
    # apt's sandbox user must be able to write here, else it warns on every download.
    os.chmod(directory, 0o755)
    _apt(["apt-get", "download", "-q", match[1], "qemu-guest-agent"], directory)
    return sorted(directory.glob("*.deb"))


def _unpack(package: Path, tree: Path) -> None:
    """Write the files the guest needs from ``package`` below ``tree``: kernel, modules, agent."""
    from debian.debfile import DebFile

    with DebFile(os.fspath(package)) as deb, deb.data.tgz() as archive:
        for member in archive:
            name = os.path.normpath(member.name)
            content = archive.extractfile(member) if _NEEDED.match(name) else None
            if content is not None:
                target = tree / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())


def _initramfs(tree: Path, release: str) -> bytes:
    archive = Archive()
    for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "var/run", "etc"):
        archive.directory(name)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise TemplateMissing("busybox is missing", hint="apt-get install busybox-static")
    archive.file("bin/busybox", Path(busybox), 0o755)
    for applet in _output([busybox, "--list"]).split():
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    archive.character_device("dev/console", 5, 1)
    archive.data("init", _INIT.encode(), 0o755)
    archive.data("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.data("etc/group", b"root:x:0:\n")
    archive.data("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o600)
    archive.data("etc/os-release", b'ID=golden\nNAME="pyvz golden guest"\n')
    archive.data("bin/udhcpc.sh", _DHCP.encode(), 0o755)
    archive.data("sbin/shutdown", _SHUTDOWN.encode(), 0o755)
    archive.data("etc/acpi/PWRF/00000080", b"#!/bin/sh\nexec /sbin/shutdown -h now\n", 0o755)
    archive.link("sbin/hwclock", "../bin/busybox")
    archive.data("usr/sbin/chpasswd", _CHPASSWD.encode(), 0o755)
    agent = tree / "usr/sbin/qemu-ga"
    archive.file("usr/sbin/qemu-ga", agent, 0o755)
    for library in re.findall(r"(/(?:usr/)?lib\S+)", _output(["ldd", os.fspath(agent)])):
        archive.file(library, Path(library), 0o755)
    order = list(_module_order(tree / "lib/modules" / release))
    for name, content in order:
        archive.data(f"mod/{name}.ko", content)
    archive.data("modules.order", "".join(f"{name}\n" for name, _ in order).encode())
    return archive.pack()


def _output(argv: Sequence[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def _module_order(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the modules to load, what they depend on first.

    The unpacked package has no modules.dep; each module names its dependencies in .modinfo.
    """
    import lzma

    place = {
        re.sub(r"\.ko(\.xz)?$", "", path.name).replace("-", "_"): path
        for path in directory.rglob("*.ko*")
    }
    seen: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        name = name.replace("-", "_")
        path = place.get(name)
        if path is None or name in seen:
            return
        seen.add(name)
        raw = path.read_bytes()
        if path.suffix == ".xz":
            raw = lzma.decompress(raw)
        match = re.search(rb"\0depends=([^\0]*)\0", raw)
        for needed in match[1].decode().split(",") if match and match[1] else ():
            yield from visit(needed)
        yield name, raw

    for wanted in _MODULES:
        yield from visit(wanted)
