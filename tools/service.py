"""The warm service: a parent with every module loaded, which forks one process per command.

It saves the imports, nothing else: a command does the same things without it. The process for the
next command is forked before that comes, and answers its client itself, so a service that dies
loses nothing; the client may be gone and the command finishes or unwinds on its own. Only root may
connect (peer credentials), and a service whose code has changed on disk answers "stale" once and
ends.

Wire: the client sends MAGIC, the length of the body (4 bytes) and its descriptors 0, 1, 2 and
working directory; then the body, NUL-separated: program, umask, number of arguments, arguments,
environment. The answer is ``G`` and the child's process id, later the exit status (4 bytes each,
little endian); or ``S`` for "stale".
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runtime import nursery, state, syscalls, unixsocket
from runtime.net import keeper
from runtime.paths import Paths
from tools.client import MAGIC, connect

#: Program name → module of ``tools`` that runs it; the names are ``client.SERVED``.
PROGRAMS = {
    "pctl": "pctl",
    "prlctl": "pctl",
    "vzctl": "vzctl",
    "vzpkg": "vzpkg",
}
#: Loaded before the first fork: what a container verb needs. libvirt and pyroute2 come with them.
_PRELOAD = (
    "tools.pctl",
    "tools.vzctl",
    "tools.lifecycle",
    "tools.verbs_container",
    "tools._settings",
    "runtime.container",
    "runtime.exec",
    "runtime.console",
    "runtime.net.live",
    "runtime.supervisor",
    "vzfs.server",
    "pyroute2",
)
IDLE_S = 900.0
_CHECK_S = 30.0
_LARGEST_REQUEST = 8 << 20
_CHANGES = (
    syscalls.IN_MODIFY
    | syscalls.IN_ATTRIB
    | syscalls.IN_CREATE
    | syscalls.IN_DELETE
    | syscalls.IN_MOVED_FROM
    | syscalls.IN_MOVED_TO
)
_PACKAGES = ("runtime", "runtime/net", "vzfs", "templates", "vmm", "tools")


@dataclass(frozen=True, slots=True)
class Request:
    """A command as its client was asked to run it."""

    program: str
    umask: int
    arguments: list[str]
    environment: dict[bytes, bytes]
    #: stdin, stdout, stderr, working directory.
    descriptors: list[int]


class Code:
    """Our code on disk, as it was when this process loaded it."""

    def __init__(self) -> None:
        """Remember what there is now, and look again only when the kernel tells of a change."""
        base = Path(__file__).resolve().parent.parent
        self._places = [base / package for package in _PACKAGES]
        self._watch = -1
        with contextlib.suppress(OSError):  # no more watches for this user: looked at every time
            self._watch = syscalls.inotify_watch(self._places, _CHANGES)
        self._loaded = self._fingerprint()

    def changed(self) -> bool:
        """Whether what this process loaded is not what there is."""
        if self._watch >= 0:
            try:
                os.read(self._watch, 1 << 16)
            except BlockingIOError:
                return False
        return self._fingerprint() != self._loaded

    def _fingerprint(self) -> tuple[int, int]:
        """Return the newest change and the number of files."""
        newest, count = 0, 0
        for place in self._places:
            with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.endswith(".py"):
                        newest = max(newest, entry.stat().st_mtime_ns)
                        count += 1
        return newest, count


def serve(paths: Paths, *, idle_s: float = IDLE_S) -> int:
    """Serve commands for the system at ``paths``; return 0 when idle for ``idle_s``.

    It is not idle as long as a container runs. Returns 0 at once when another service has the
    socket.
    """
    path = paths.socket("service")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    code = Code()
    nursery.begin()
    preload()
    # Children are never waited for here: their clients hear from them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = unixsocket.listen(path)
    try:
        _accept_loop(listener, lock, paths, code, idle_s)
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return 0


def preload() -> None:
    """Import what commands need, then keep the collector away from pages shared with children."""
    for module in _PRELOAD:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    gc.disable()


def _accept_loop(
    listener: socket.socket, lock: int, paths: Paths, code: Code, idle_s: float
) -> None:
    # What a long command must not keep from the next service.
    unneeded = (listener.fileno(), lock)
    path = paths.socket("service")
    inode = path.stat().st_ino
    quiet_since = time.monotonic()
    kept = quiet_since
    listener.settimeout(_CHECK_S)
    spare = Spare(unneeded)
    while time.monotonic() - quiet_since < idle_s:
        if time.monotonic() - kept >= keeper.EVERY_S and keeper.needed(paths):
            # Traffic counters are saved as long as containers have a network.
            kept = quiet_since = time.monotonic()
            if os.fork() == 0:
                listener.close()
                keeper.act(paths)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            # Removed or replaced (a test's root is gone): nobody can reach us any more.
            if not path.exists() or path.stat().st_ino != inode:
                return
            # The nursery shares its memory with every supervisor, those to come too.
            if state.present(paths):
                quiet_since = time.monotonic()
            continue
        quiet_since = time.monotonic()
        with connection:
            if not _serves(connection):
                continue
            if code.changed():
                connection.sendall(b"S\0\0\0\0")
                return
            spare.give(connection)
            spare = Spare(unneeded)


class Spare:
    """The process that will run the next command, forked while there was time for it."""

    def __init__(self, unneeded: Sequence[int]) -> None:
        """Fork it without the ``unneeded`` descriptors; raises OSError."""
        self._unneeded = unneeded
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if self._fork():
                self._sock.close()
                with contextlib.suppress(OSError):
                    _word, fds, _flags, _address = socket.recv_fds(theirs, 1, 1)
                    if fds:
                        theirs.close()
                        _child(socket.socket(fileno=fds[0]))
                os._exit(0)

    def give(self, connection: socket.socket) -> None:
        """Have it run the command of ``connection``; one that was killed is replaced."""
        with self._sock:
            try:
                socket.send_fds(self._sock, [b"C"], [connection.fileno()])
            except BrokenPipeError:
                if self._fork():
                    _child(connection)

    def _fork(self) -> bool:
        """Fork; return whether this is the child."""
        if syscalls.fork():
            return False
        for fd in self._unneeded:
            os.close(fd)
        return True


def _serves(connection: socket.socket) -> bool:
    """Whether the client is root, and has the network and the mounts that are the service's too."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _gid = struct.unpack("iII", credentials)
    try:
        return bool(uid == 0 and _surroundings(pid) == _surroundings(os.getpid()))
    except FileNotFoundError:
        return False


def _surroundings(pid: int) -> list[tuple[int, int]]:
    """Return which network and mount namespaces a process is in (namespaces(7))."""
    found = (os.stat(f"/proc/{pid}/ns/{name}") for name in ("net", "mnt"))
    return [(status.st_dev, status.st_ino) for status in found]


def read_request(connection: socket.socket) -> Request:
    """Read one request; raises ValueError or OSError when it is not one."""
    connection.settimeout(10.0)
    head, descriptors, _flags, _address = socket.recv_fds(connection, len(MAGIC) + 4, 4)
    if head[: len(MAGIC)] != MAGIC or len(descriptors) != 4:
        raise ValueError("not a request of ours")
    length = int.from_bytes(head[len(MAGIC) :], "little")
    if length > _LARGEST_REQUEST:
        raise ValueError("the request is too large")
    body = bytearray()
    while len(body) < length:
        piece = connection.recv(min(length - len(body), 1 << 16))
        if not piece:
            raise ValueError("the request ends early")
        body += piece
    words = bytes(body).split(b"\0")
    count = int(words[2])
    environment = dict(word.partition(b"=")[::2] for word in words[3 + count :] if word)
    return Request(
        words[0].decode(),
        int(words[1]),
        [os.fsdecode(word) for word in words[3 : 3 + count]],
        environment,
        descriptors,
    )


def _child(connection: socket.socket) -> NoReturn:
    """Run one command in this fresh process and report its status to the client."""
    status = 3
    try:
        request = read_request(connection)
        connection.settimeout(None)
        if request.program not in PROGRAMS:
            connection.sendall(b"S\0\0\0\0")
            os._exit(0)
        _become(request)
        connection.sendall(b"G" + os.getpid().to_bytes(4, "little"))
        _unwind_with_client(connection)
        module = importlib.import_module(f"tools.{PROGRAMS[request.program]}")
        sys.argv = [request.program, *request.arguments]
        status = module.main(request.arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 3
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        _stop_unwinding(connection)
        with contextlib.suppress(OSError):
            connection.sendall((status & 0xFF).to_bytes(4, "little"))
        os._exit(status & 0xFF)


def _become(request: Request) -> None:
    os.setsid()
    for target, fd in enumerate(request.descriptors[:3]):
        os.dup2(fd, target, inheritable=True)
    os.fchdir(request.descriptors[3])
    for fd in request.descriptors:
        if fd > 2:
            os.close(fd)
    os.umask(request.umask)
    os.environb.clear()
    os.environb.update(request.environment)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False, errors="surrogateescape")
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)


def _unwind_with_client(connection: socket.socket) -> None:
    """Let the command unwind (as from SIGHUP) when its client dies: the socket then signals."""

    def gone(_number: int, _frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            if connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"":
                sys.exit(129)

    signal.signal(signal.SIGIO, gone)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)


def _stop_unwinding(connection: socket.socket) -> None:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        flags = fcntl.fcntl(connection, fcntl.F_GETFL)
        fcntl.fcntl(connection, fcntl.F_SETFL, flags & ~os.O_ASYNC)


def start_if_wanted(program: str, arguments: Sequence[str]) -> None:
    """Start the service for the next command, if this one changed something and none runs."""
    module = importlib.import_module(f"tools.{PROGRAMS.get(program, 'pctl')}")
    words = [word for word in arguments if not word.startswith("-")]
    changing = {verb.name for verb in module.PROGRAM.verbs if verb.changes}
    if not words or not changing.intersection(words[:2]):
        return
    from tools.client import system_root

    root = system_root(list(arguments), dict(os.environb))
    probe = connect(root)
    if probe is not None:
        probe.close()
        return
    start(Paths.from_environment(root))


def start(paths: Paths) -> None:
    """Start a service for the system at ``paths`` in the background, detached from the caller."""
    paths.run.mkdir(parents=True, exist_ok=True)
    if (pid := os.fork()) == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                null = os.open(os.devnull, os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(null, fd)
                os.closerange(3, 1 << 10)
                os.chdir("/")
                command = [sys.executable, "-m", "tools.service", str(paths.root)]
                os.execve(sys.executable, command, _environment())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _environment() -> dict[str, str]:
    base = str(Path(__file__).resolve().parent.parent)
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": base}


def stop(paths: Paths) -> None:
    """End the service of the system at ``paths``; one that does not run is success."""
    try:
        connection = unixsocket.connect(paths.socket("service"))
    except OSError:
        return
    with connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    os.kill(struct.unpack("iII", credentials)[0], signal.SIGTERM)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stop"]:
        stop(Paths.from_environment(*sys.argv[2:3]))
    else:
        sys.exit(serve(Paths.from_environment(*sys.argv[1:2])))
