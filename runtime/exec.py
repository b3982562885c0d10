"""Running a command in a running container: the caller's descriptors, the container's everything else.

One fork: the calling process points its children at the container's pid namespace, the child is
born there (and in its v2 cgroup), joins the rest by the init's pidfd, gives up rights, executes.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from runtime import (
    boot,
    locks,
    mounts,
    namespaces,
    resources_inside,
    rootfs,
    seccomp,
    state,
    syscalls,
)
from runtime.cgroups import Cgroup
from runtime.errors import InvalidOption, NotRunning, SystemFailure
from runtime.net.netfilter import Level
from runtime.paths import Paths
from runtime.state import Phase, RunState

#: Statuses of a shell for what could not be executed (POSIX, 2.8.2).
NOT_FOUND = 127
NOT_EXECUTABLE = 126
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Passed on to the command while it runs.
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    signal.SIGTSTP,
)
#: What neither the command nor what leads to it may find ignored or handled by its caller.
_DEFAULTED = (*_FORWARDED, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGIO)
_LARGEST_PASSWD = 1 << 20
#: Where a script handed over as a memfd is, for its interpreter.
SCRIPT_FD = 3


@dataclass(frozen=True, slots=True)
class Command:
    """What to run inside, and as whom."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] | None = None
    user: str | None = None
    cwd: str | None = None
    #: A terminal of the container's own instead of the caller's descriptors.
    terminal: bool = False
    #: Window size of that terminal (struct winsize).
    size: bytes = b""
    #: A descriptor to keep as SCRIPT_FD.
    script_fd: int = -1
    #: What becomes its descriptors 0, 1, 2 instead of the caller's.
    stdio: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A command that runs inside: its process id on the host, its terminal's master or -1."""

    pid: int
    master: int = -1


class Failed(Exception):
    """The command could not be executed; ``status`` is what a shell would return."""

    def __init__(self, status: int, message: str) -> None:
        """Carry the status and a line for people."""
        self.status = status
        super().__init__(message)


def running(paths: Paths, ctid: int) -> RunState:
    """Return the run state of a running container; raises NotRunning."""
    found = state.load(paths, ctid)
    if found is None or found.init is None or found.phase is not Phase.RUNNING:
        raise NotRunning("Container is not running", hint=f"vzctl start {ctid}")
    if not found.served:
        raise NotRunning(
            "Container is not running: its supervisor and its file server died",
            hint=f"vzctl start {ctid}",
        )
    return found


def _paused(paths: Paths, ctid: int) -> bool:
    """Whether a frozen container stays so: a command that copies it holds its lock meanwhile."""
    holder = locks.holder(paths, ctid)
    return holder is None or holder.startswith(f"process {os.getpid()} ")


def spawn(paths: Paths, ctid: int, command: Command) -> Started:
    """Start ``command`` in container ``ctid`` with the rights that was started with.

    Raises NotRunning, Failed when it cannot be executed, InvalidOption for an unknown user or
    directory, SystemFailure.
    """
    run = running(paths, ctid)
    assert run.init is not None
    capabilities = frozenset(run.extra["capabilities"])
    filter_ = seccomp.program(
        netfilter=run.extra.get("netfilter") != Level.DISABLED,
        clock=run.extra.get("sets_clock", False),
    )
    with ExitStack() as closing:
        try:
            pidfd = os.pidfd_open(run.init.pid)
            closing.callback(os.close, pidfd)
            if not run.init.alive:
                raise ProcessLookupError
            group = Cgroup(paths.tag, ctid)
            if group.is_frozen() and _paused(paths, ctid):
                raise NotRunning("Container is paused", hint=f"pctl resume {ctid}")
            entrance = group.entrance_of(run.init.pid)
            closing.callback(entrance.close)
            limits = resources_inside.carried(run.init.pid)

            def join() -> None:
                entrance.enter()
                resources_inside.take(limits)

            channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            closing.callback(channel.close)
            with theirs:
                namespaces.prepare_entering(pidfd)
                try:
                    pid = namespaces.fork(cgroup_fd=entrance.v2_fd)
                    if pid == 0:
                        channel.close()
                        _child(theirs, pidfd, join, command, capabilities, filter_)
                finally:
                    namespaces.end_entering()
        except (ProcessLookupError, FileNotFoundError) as error:
            raise NotRunning("Container is not running", hint=f"vzctl start {ctid}") from error
        except OSError as error:
            raise SystemFailure(f"cannot enter container {ctid}: {error.strerror}") from error
        return _outcome(channel, pid)


def _outcome(channel: socket.socket, pid: int) -> Started:
    """Wait until the child executes or tells why it cannot."""
    master = -1
    while True:
        word, fds, _flags, _address = socket.recv_fds(channel, 4096, 1)
        if fds:
            master = fds[0]
            os.set_inheritable(master, False)
            continue
        if not word:
            return Started(pid, master)
        if master >= 0:
            os.close(master)
        os.waitpid(pid, 0)
        stage, number, what = json.loads(word)
        if stage == "execute":
            missing = number in (errno.ENOENT, errno.ENOTDIR)
            status = NOT_FOUND if missing else NOT_EXECUTABLE
            raise Failed(status, f"{what}: {os.strerror(number)}")
        if stage == "user":
            raise InvalidOption(f"the container has no user {what!r}")
        if stage == "directory":
            raise InvalidOption(f"the container has no directory {what}: {os.strerror(number)}")
        raise SystemFailure(f"cannot {stage}: {os.strerror(number)}")


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold back the signals that ``wait`` passes on, so that none is lost before there is whom to.

    A signal that came meanwhile is delivered when ``wait`` has its handlers, or at the end of the
    block.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def wait(
    started: Started, *, before: Callable[[], None] | None = None, ignore: Sequence[int] = ()
) -> int:
    """Wait for a command and pass signals on to it; return its status, 128+N for signal N.

    When this process unwinds instead (its own caller is gone), the command gets SIGHUP.
    """

    def forward(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            try:
                os.killpg(started.pid, number)
            except ProcessLookupError:
                # It has not become the leader of its group yet.
                os.kill(started.pid, number)

    old = {}
    with suppress(ValueError):  # not in the main thread: signals are somebody else's
        for number in _FORWARDED:
            if number not in ignore:
                old[number] = signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    try:
        if before is not None:
            before()
        _pid, status = os.waitpid(started.pid, 0)
    except BaseException:
        forward(signal.SIGHUP, None)
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _child(
    channel: socket.socket,
    pidfd: int,
    enter_cgroups: Callable[[], None],
    command: Command,
    capabilities: frozenset[int],
    filter_: bytes,
) -> NoReturn:
    stage, what = "enter the container", ""
    try:
        # Not even the container's root may look into this process before it executes.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in _DEFAULTED:
            if signal.getsignal(number) != signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
        # Its own session: the caller's terminal cannot become its controlling one.
        os.setsid()
        enter_cgroups()
        namespaces.enter(pidfd)
        namespaces.become_root()
        if command.terminal:
            stage = "open a terminal"
            _take_terminal(channel, command.size)
        stage, what = "user", command.user or "root"
        uid, gid, groups, home, shell = _account(command.user)
        stage = "give up rights"
        boot.drop_rights(capabilities, filter_)
        if uid or gid or groups:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        stage, what = "directory", command.cwd or home
        _change_directory(command.cwd, home)
        os.umask(0o022)
        environment = dict(command.environment or {})
        name = command.user or "root"
        defaults = {"PATH": _PATH, "HOME": home, "USER": name, "LOGNAME": name, "SHELL": shell}
        environment = defaults | environment
        stage = "keep descriptors apart"
        if command.stdio is not None:
            for target, fd in enumerate(command.stdio):
                os.dup2(fd, target, inheritable=True)
        _arrange(channel, command.script_fd)
        # The command follows its caller, however that ends; kept over exec (prctl(2)).
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGHUP)
        stage, what = "execute", command.argv[0]
        _execute(command, environment)
    except KeyError:
        _tell(channel, stage, errno.ENOENT, what)
    except OSError as error:
        _tell(channel, stage, error.errno or errno.EINVAL, what)
    os._exit(1)


def _tell(channel: socket.socket, stage: str, number: int, what: str) -> None:
    message = json.dumps([stage, number, what[:1000]]).encode()
    with suppress(OSError):
        if channel.fileno() >= 0:
            channel.send(message)
        else:
            os.write(_CHANNEL_FD, message)


_CHANNEL_FD = SCRIPT_FD + 1


def _arrange(channel: socket.socket, script_fd: int) -> None:
    """Leave 0, 1, 2, the script and the channel (which closes on exec); nothing else survives."""
    fd = channel.detach()
    # Out of the way first: each may be where the other shall go.
    spare = os.dup(fd) if fd == SCRIPT_FD else fd
    script = os.dup(script_fd) if script_fd == _CHANNEL_FD else script_fd
    if script >= 0 and script != SCRIPT_FD:
        os.dup2(script, SCRIPT_FD)
    if script >= 0:
        os.set_inheritable(SCRIPT_FD, True)
    if spare != _CHANNEL_FD:
        os.dup2(spare, _CHANNEL_FD, inheritable=False)
    os.set_inheritable(_CHANNEL_FD, False)
    if script < 0:
        with suppress(OSError):
            os.close(SCRIPT_FD)
    syscalls.close_range(_CHANNEL_FD + 1)


def _execute(command: Command, environment: dict[str, str]) -> None:
    argv = list(command.argv)
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # A script without "#!": for the shell, as execvp(3) does.
        os.execve("/bin/sh", ["/bin/sh", *argv], environment)


def _take_terminal(channel: socket.socket, size: bytes) -> None:
    """Make a terminal in the container's own devpts this session's, its master the caller's."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with mounts.closing(os.open("/dev/pts", flags)) as pts:
        console = rootfs.open_terminal(pts)
    peer = rootfs.peer(console.master)
    if size:
        rootfs.set_size(console.master, size)
    rootfs.control(peer)
    for fd in (0, 1, 2):
        os.dup2(peer, fd, inheritable=True)
    socket.send_fds(channel, [b"T"], [console.master])
    os.close(console.master)
    if peer > 2:
        os.close(peer)


def _change_directory(wanted: str | None, home: str) -> None:
    if wanted is not None:
        os.chdir(wanted)
    else:
        try:
            os.chdir(home)
        except OSError:
            os.chdir("/")
    # A directory outside the root would show here (CVE-2024-21626).
    if not os.getcwd().startswith("/"):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _account(user: str | None) -> tuple[int, int, list[int], str, str]:
    """Return uid, gid, groups, home and shell of a name or number in the container's files.

    Raises KeyError. Without a user it is root, whatever the files say.
    """
    if user is None:
        return 0, 0, [], "/root", "/bin/sh"
    for fields in _lines("/etc/passwd", 7):
        if user in (fields[0], fields[2]):
            uid, gid = int(fields[2]), int(fields[3])
            groups = [
                int(group[2])
                for group in _lines("/etc/group", 4)
                if fields[0] in group[3].split(",") and group[2].isdecimal()
            ]
            return uid, gid, groups, fields[5] or "/", fields[6] or "/bin/sh"
    if user.isdecimal() and int(user) < 65536:
        return int(user), int(user), [], "/", "/bin/sh"
    raise KeyError(user)


def _lines(path: str, count: int) -> list[list[str]]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with mounts.closing(fd):
        text = os.read(fd, _LARGEST_PASSWD).decode("utf-8", "surrogateescape")
    split = (line.split(":") for line in text.splitlines())
    return [fields for fields in split if len(fields) >= count and fields[2].isdecimal()]


def winsize(rows: int, columns: int) -> bytes:
    """Return a struct winsize."""
    return struct.pack("HHHH", rows, columns, 0, 0)
