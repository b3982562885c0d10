"""Mounting and serving: what the rest of the system uses of this package.

    fd = server.open_device()
    server.mount(fd, options, target)
    pid = os.fork()
    if pid == 0:
        server.serve(fd, options)      # returns at unmount
        os._exit(0)

Whoever keeps a duplicate of ``fd`` can start another server with ``serve(fd, options,
resume=True)`` after the first was killed. Requests wait meanwhile; nothing that was acknowledged
is lost, since every operation is complete on disk before it is answered. Where the kernel does not
keep what a server had taken (`keeps_requests`), give every server of a mount the same ``hand``.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vzfs import layers, protocol, relinking, renaming, syscalls
from vzfs.inodes import EPOCH_MASK
from vzfs.layers import Stack
from vzfs.operations import Operations
from vzfs.options import SESSION, Options
from vzfs.resend import Hand
from vzfs.resting import Left

_CAP_SYS_ADMIN = 21
__all__ = [
    "Capabilities",
    "Hand",
    "Options",
    "keeps_requests",
    "mount",
    "open_device",
    "preload",
    "probe",
    "serve",
]


@dataclass(frozen=True)
class Capabilities:
    """What the kernel offers a mount made here."""

    #: /dev/fuse can be opened.
    fuse: bool
    #: The kernel can read and write backing files itself.
    passthrough: bool
    #: The mount can be idmapped, mount_setattr(2).
    idmap: bool
    #: Kernel release, for messages.
    kernel: str
    #: One sentence on what is missing and what it costs, "" when nothing is.
    remark: str = ""


def preload() -> None:
    """Import all that `serve` needs, so that it works after fork with nothing more to load."""
    from vzfs import transport_kernel

    transport_kernel.__doc__  # noqa: B018 # the import is what counts


def open_device() -> int:
    """Open /dev/fuse. Raises OSError (ENODEV, ENOENT: no FUSE in this kernel)."""
    return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)


def mount(
    fd: int,
    options: Options,
    target: str | os.PathLike[str],
    *,
    nosuid: bool = False,
    nodev: bool = False,
) -> None:
    """Mount ``fd`` on the directory ``target`` in the present mount namespace.

    setuid bits and device nodes count, as on any file system, unless told otherwise: a container's
    root wants ``nodev`` (there, or on the bind mount it is made of).
    """
    root = os.stat(options.upper)
    if not stat.S_ISDIR(root.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(options.upper))
    data = f"fd={fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,allow_other,default_permissions"
    flags = (syscalls.MS_NOSUID if nosuid else 0) | (syscalls.MS_NODEV if nodev else 0)
    syscalls.mount(options.fsname, target, "fuse.vzfs", flags, data)


def probe() -> Capabilities:
    """Find out what this kernel offers, by its release and our privileges."""
    release = os.uname().release
    try:
        os.close(open_device())
        fuse = True
    except OSError:
        fuse = False
    version = _version(release)
    passthrough = fuse and offers_passthrough()
    remark = ""
    if not fuse:
        remark = "no /dev/fuse: load the fuse module"
    elif not passthrough:
        why = "it needs CAP_SYS_ADMIN" if version >= (6, 9) else f"Linux {release} is before 6.9"
        remark = f"no passthrough ({why}): data pass the server, pages are not shared"
    return Capabilities(fuse, passthrough, fuse and version >= (6, 12), release, remark)


def _version(release: str) -> tuple[int, int]:
    """Return the first two numbers of a kernel release, "6.12-rc1" and "6.1.0-9-amd64" alike."""
    major, minor, *_ = release.partition("-")[0].split(".")
    return int(major), int(minor)


def keeps_requests() -> bool:
    """Tell whether this kernel gives a new server what a killed one had taken, Linux 6.9."""
    return _version(os.uname().release) >= (6, 9)


def offers_passthrough() -> bool:
    """Tell whether this kernel reads backing files itself for a mount of ours.

    Without libraries: a server asks, and every page it touches is memory of its own.
    """
    if _version(os.uname().release) < (6, 9):
        return False
    fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.read(fd, 1 << 14)
    finally:
        os.close(fd)
    effective = status.partition(b"CapEff:")[2].partition(b"\n")[0]
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def prepare(options: Options, *, resume: bool = False, left: Left | None = None) -> Stack:
    """Open the layers and clear what an interrupted server left in the work area.

    A server that rests ``left`` everything open and locked, and nothing to be cleared.
    Raises `layers.Busy` (EBUSY) when the private area is mounted already.
    """
    try:
        os.stat(options.work_area)
    except FileNotFoundError:
        options.work_area.mkdir(mode=0o700, parents=True, exist_ok=True)
    stack = Stack(
        options.lower,
        options.upper,
        options.work_area,
        options.descriptor_limit,
        no_atime=options.no_atime,
        left=left,
    )
    if left is not None:
        return stack
    # Held as long as the server lives: an area has one mount, and nobody repairs it meanwhile.
    # The server of a mount that was just taken down may need a moment to end.
    stack.lock(None if resume else 10)
    sweep(stack)
    relinking.sweep(stack.work, resume=resume)
    if not resume:
        renaming.forget_moves(stack.work)
    _recount(stack, options)
    return stack


def _recount(stack: Stack, options: Options) -> None:
    """Count the names of copied hard links again, if a server died while one was removed."""
    try:
        os.stat(layers.RECOUNT, dir_fd=stack.work)
    except FileNotFoundError:
        return
    from vzfs.check import Area

    area = Area(options, modify=False)
    try:
        for problem in area.check_index():
            if problem.repair is not None:
                problem.repair()
    finally:
        area.close()
    os.unlink(layers.RECOUNT, dir_fd=stack.work)


def sweep(stack: Stack) -> None:
    """Remove unfinished copies; whatever is named # was never visible."""
    for name in os.listdir(layers.proc_fd(stack.temporary) + b"/."):
        if name.startswith(b"#"):
            layers.remove_tree(stack.temporary, name)


def serve(
    fd: int,
    options: Options,
    resume: bool = False,
    *,
    hand: Hand | None = None,
    ready: Callable[[], None] | None = None,
    rest: Callable[[list[int]], bool] | None = None,
    left: list[int] | None = None,
) -> bool:
    """Serve the mount of ``fd`` until it is unmounted; call it in a process of its own.

    ``resume`` takes over from a server that died, with what it left in ``hand``; the portable
    transport cannot. ``ready`` is called when requests are answered. Raises OSError when a layer
    cannot be opened.

    When nothing was asked for ``options.rest_s`` seconds, ``rest`` is called with descriptors: if
    it says that it has them, this returns True. Another server with ``resume`` and these as ``left``
    goes on, unnoticed, when it is started upon the next request: ``fd`` polls as readable then, or
    as in error when it was unmounted.
    """
    os.umask(0)
    gc.disable()
    _raise_descriptor_limit()
    found = Left(options, left) if left else None
    stack = prepare(options, resume=resume, left=found)
    flags, epoch = _agreed(options) if resume else (0, -1)
    chosen = choose_transport(options)
    core = Operations(stack, options, found)
    core.resumed = resume
    core.token = os.urandom(16).hex().encode()
    # Without passthrough a file keeps its id: its pages are cached under it.
    core.table.epoch = (epoch + 1) & EPOCH_MASK if flags & protocol.PASSTHROUGH or not resume else 0
    if options.ledger is not None:
        core.start_accounting(options, resume=resume, left=found)
    if found is not None:
        found.take_up(core)

    def agreed(agreed_flags: int) -> None:
        _write_session(core, agreed_flags, chosen)

    if resume:
        agreed(flags)

    if ready is not None:
        ready()
    if chosen == "pyfuse3":
        from vzfs import transport_pyfuse3

        transport_pyfuse3.serve(fd, core, flags, agreed)
    else:
        from vzfs.transport_kernel import KernelTransport

        transport = KernelTransport(fd, core, flags, hand)
        transport.on_init = agreed
        transport.rest = rest if options.rest_s > 0 else None
        if transport.serve(went_on=found is not None):
            return True
    core.stop_accounting()
    return False


def choose_transport(options: Options) -> str:
    """Return "kernel" or "pyfuse3".

    The own one is quicker, and loses no request, without passthrough as well.
    """
    return "kernel" if options.transport == "auto" else options.transport


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def read_session(work_area: Path) -> dict[str, str]:
    """Return what the server of a mount wrote down: flags, epoch, pid, transport, passthrough, token.

    Raises OSError when there is no such file.
    """
    text = (work_area / SESSION).read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _agreed(options: Options) -> tuple[int, int]:
    """Return what was agreed with the kernel, and the epoch of the former server."""
    try:
        session = read_session(options.work_area)
        return int(session["flags"]), int(session["epoch"])
    except (OSError, ValueError, KeyError) as error:
        print(f"vzfs: no session to resume in {options.work_area}: {error}", file=sys.stderr)
        return protocol.INIT_EXT | protocol.SETXATTR_EXT, os.urandom(1)[0]


def _write_session(core: Operations, flags: int, transport: str) -> None:
    """Write the session down in the work area, for a server which takes over and for reports.

    Without libraries: every page an idle server touches is memory of its own.
    """
    work = core.stack.work
    passthrough = "yes" if flags & protocol.PASSTHROUGH else "no"
    text = (
        f"flags={flags}\nepoch={core.table.epoch}\npid={os.getpid()}\n"
        f"transport={transport}\npassthrough={passthrough}\ntoken={core.token.decode()}\n"
    )
    spare = SESSION + ".new"
    mode = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(spare, mode, 0o600, dir_fd=work)
    os.write(fd, text.encode())
    os.close(fd)
    os.rename(spare, SESSION, src_dir_fd=work, dst_dir_fd=work)
