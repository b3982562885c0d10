"""A container's first process: which init its tree has and how that is halted; our own init.

Facts: systemd halts on SIGRTMIN+3 (systemd(1), SIGNALS); sysvinit by telinit(8), or SIGPWR through
its powerfail entries; busybox powers off on SIGUSR2 (busybox init/init.c); OpenRC's init listens on
a fifo that its openrc-shutdown(8) writes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from runtime import mounts, syscalls

#: glibc keeps the first two real-time signals: its SIGRTMIN is the kernel's 34.
_SIGRTMIN = 34
#: How long what is left of a container gets after SIGTERM, when our own init ends it, in seconds.
_GRACE_S = 5.0


class Kind(StrEnum):
    """What runs as process 1."""

    SYSTEMD = "systemd"
    SYSVINIT = "sysvinit"
    BUSYBOX = "busybox"
    OPENRC = "openrc"
    #: An init we know nothing of.
    OTHER = "other"
    #: The tree has none: ours.
    OWN = "own"


@dataclass(frozen=True, slots=True)
class Init:
    """The init of a container."""

    kind: Kind
    #: What is executed; for OWN the command it runs, empty to idle.
    argv: tuple[str, ...] = ()
    #: It knows only the v1 hierarchy named systemd.
    legacy_cgroups: bool = False

    @property
    def halt_signal(self) -> int:
        """The signal that makes it shut the container down."""
        return {
            Kind.SYSTEMD: _SIGRTMIN + 3,
            Kind.SYSVINIT: signal.SIGPWR,
            Kind.BUSYBOX: signal.SIGUSR2,
            Kind.OPENRC: signal.SIGPWR,
            Kind.OTHER: signal.SIGPWR,
            Kind.OWN: signal.SIGTERM,
        }[self.kind]

    @property
    def halt_commands(self) -> tuple[tuple[str, ...], ...]:
        """Programs to run inside instead of the signal, the first that exists."""
        return {
            Kind.SYSVINIT: (("/sbin/telinit", "0"), ("/sbin/init", "0")),
            Kind.OPENRC: (("/sbin/openrc-shutdown", "--poweroff", "now"),),
        }.get(self.kind, ())


_PLACES = (
    "/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/etc/init",
    "/bin/init",
)


def detect(root_fd: int) -> Init:
    """Return the init of the tree at ``root_fd``; links in it are followed inside it only."""
    for place in _PLACES:
        try:
            fd = syscalls.openat2(root_fd, place.lstrip("/"), os.O_PATH, syscalls.RESOLVE_IN_ROOT)
        except OSError:
            continue
        with mounts.closing(fd):
            name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if name == "systemd":
            return Init(Kind.SYSTEMD, (place,), _before_v2(root_fd))
        if name.startswith("busybox"):
            return Init(Kind.BUSYBOX, (place,))
        if name == "openrc-init":
            return Init(Kind.OPENRC, (place,))
        try:
            os.close(syscalls.openat2(root_fd, "etc/inittab", os.O_PATH, syscalls.RESOLVE_IN_ROOT))
        except OSError:
            return Init(Kind.OTHER, (place,))
        return Init(Kind.SYSVINIT, (place,))
    return Init(Kind.OWN)


def _before_v2(root_fd: int) -> bool:
    """Whether the systemd of a tree is older than its library's present name (231, July 2016).

    Version 230 is the first that runs on cgroup v2; systemd-nspawn(1) tells it in the same way.
    """
    libraries = ("usr/lib", "lib", "usr/lib64")
    # Debian's multiarch: usr/lib/x86_64-linux-gnu.
    triples = [
        f"{library}/{name}"
        for library in libraries[:2]
        for name in _names(root_fd, library)
        if "-linux-" in name
    ]
    return not any(
        name.startswith("libsystemd-shared-")
        for place in (*libraries, *triples)
        for name in _names(root_fd, f"{place}/systemd")
    )


def _names(root_fd: int, place: str) -> list[str]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        folder = syscalls.openat2(root_fd, place, flags, syscalls.RESOLVE_IN_ROOT)
    except OSError:
        return []
    with mounts.closing(folder):
        return os.listdir(folder)


_HANDLED = frozenset(
    (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPWR, signal.SIGQUIT,
     signal.SIGUSR1, signal.SIGUSR2)
)  # fmt: skip
_ENDING = frozenset((signal.SIGTERM, signal.SIGPWR, signal.SIGINT))


def serve(argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Be process 1: run ``argv``, pass signals on to it, reap everybody; exit with its status.

    Without ``argv`` idle until told to end. What is left at the end gets SIGTERM and, after a
    grace period, goes down with this process.
    """
    # Blocked signals are never dropped, not even for process 1 (pid_namespaces(7)).
    signal.pthread_sigmask(signal.SIG_SETMASK, _HANDLED)
    main = _spawn(argv, environment) if argv else -1
    status = 0
    while True:
        number = signal.sigwaitinfo(_HANDLED).si_signo
        if number != signal.SIGCHLD:
            if main > 0:
                os.kill(main, signal.SIGTERM if number == signal.SIGPWR else number)
                continue
            if number in _ENDING:
                break
            continue
        ended = _reap()
        if main in ended:
            status = ended[main]
            break
    _end_others()
    os._exit(status)


def _spawn(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start ``argv`` in a session of its own and return its process id.

    posix_spawn(3) copies no page tables: it takes a fraction of a fork's time.
    """
    # It looks for the program in the PATH of this process.
    os.environ.clear()
    os.environ.update(environment)
    try:
        return os.posix_spawnp(
            argv[0], list[str](argv), environment, setsid=True, setsigmask=(), setsigdef=_HANDLED
        )
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, (FileNotFoundError, NotADirectoryError)) else 126)


def _reap() -> dict[int, int]:
    """Return process id → exit status (128+N for signal N) of every child that ended."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = code if code >= 0 else 128 - code


def _end_others() -> None:
    try:
        os.kill(-1, signal.SIGTERM)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline:
        _reap()
        try:
            os.kill(-1, 0)
        except ProcessLookupError:
            return
        signal.sigtimedwait([signal.SIGCHLD], 0.1)
