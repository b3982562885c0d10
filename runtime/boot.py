"""The way of a container's first process from its birth in new namespaces to its init.

It runs in a fork of the supervisor: everything it calls is imported already, it takes no lock and
tells failures over its channel: ``E`` and JSON of the stage, the errno, the path.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from runtime import caps, init, mounts, namespaces, procview, rootfs, syscalls

if TYPE_CHECKING:
    from runtime.cgroups import Entrance
    from runtime.plan import Plan

GO = b"G"
CONSOLES = b"C"
EXECUTE = b"X"
FAILED = b"E"


def first_process(
    channel: socket.socket, entrance: Entrance, plan: Plan, filter_: bytes
) -> NoReturn:
    """Become the init of ``plan``; never returns.

    Protocol: ``G`` and the init to execute, with the detached mounts of the tree, of bind mounts,
    of device nodes and of the container's own /proc files (ids are mapped now) →
    ``C`` with the consoles' masters → ``X`` (network is there) → end of file when init executes.
    """
    stage = "joining its control groups"
    try:
        _default_signals()
        entrance.enter()
        stage = "making its namespaces"
        word, fds, _flags, _address = socket.recv_fds(channel, 1 << 16, 64)
        if not word.startswith(GO):
            os._exit(1)
        chosen: init.Init = pickle.loads(word[len(GO) :])
        root, *others = fds
        binds, others = others[: len(plan.view.binds)], others[len(plan.view.binds) :]
        nodes, files = others[: len(plan.view.own_nodes)], others[len(plan.view.own_nodes) :]
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        # Reached as the host's root, which owns the way there: the container's may not search it.
        with mounts.closing(os.open(plan.target, os.O_PATH | os.O_DIRECTORY)) as target:
            namespaces.become_root()
            stage = "mounting its tree"
            syscalls.move_mount(root, target)
        consoles = rootfs.build(root, plan.view, binds, nodes, legacy_cgroups=chosen.legacy_cgroups)
        procview.attach(root, dict(zip(procview.TARGETS.values(), files, strict=False)))
        mounts.pivot(root)
        stage = "configuring its namespaces"
        syscalls.sethostname(plan.hostname)
        if plan.hostname_given:
            _write_hostname(plan.hostname)
        namespaces.loopback_up()
        socket.send_fds(channel, [CONSOLES], [console.master for console in consoles])
        if channel.recv(1) != EXECUTE:
            os._exit(1)
        stage = "limiting itself"
        _limit(plan)
        stage = "giving up rights"
        os.umask(0o022)
        os.setsid()
        if consoles and not plan.inherit_stdio:
            peer = rootfs.peer(consoles[0].master)
            for fd in (0, 1, 2):
                os.dup2(peer, fd, inheritable=True)
        drop_rights(plan.capabilities, filter_)
        stage = f"executing {chosen.argv[0] if chosen.argv else 'its init'}"
        _keep_only(channel)
        if chosen.kind is init.Kind.OWN:
            syscalls.set_name("init")
            os.close(3)
            init.serve(chosen.argv, plan.environment)
        os.execve(chosen.argv[0], list(chosen.argv), dict(plan.environment))
    except OSError as error:
        report = json.dumps([stage, error.errno, str(error.filename or "")]).encode()
        _send_last(channel, report)
        os._exit(1)


def _write_hostname(name: str) -> None:
    """Let /etc/hostname say ``name``; a system without one, or whose owner locked it, stays."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(OSError):
        # The file of a template stays shared where it says so already.
        with open(os.open("/etc/hostname", os.O_RDONLY | flags), "rb") as old:
            if old.read(256).strip() == name.encode():
                return
    with suppress(OSError):
        fd = os.open("/etc/hostname", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o644)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(f"{name}\n")


def _limit(plan: Plan) -> None:
    """Set what processes carry themselves: resource limits, shared memory of the namespace."""
    for which, value in plan.inside.rlimits.items():
        hard = resource.getrlimit(which)[1]
        # Nobody inside may have more than this process may give (without CAP_SYS_RESOURCE).
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (least, least))
    if plan.inside.shared_pages is not None:
        # Older kernels let only the initial namespace change it: the default stays then.
        with (
            suppress(PermissionError),
            open("/proc/sys/kernel/shmall", "w", encoding="ascii") as file,
        ):
            file.write(str(plan.inside.shared_pages))


def drop_rights(capabilities: frozenset[int], filter_: bytes) -> None:
    """Give up for good what no process of a container has; raises OSError.

    The order matters: without CAP_SYS_ADMIN a filter needs no_new_privs, which would break sudo.
    """
    # Until exec, /proc/PID/exe is the host's interpreter: nobody inside may follow it, not even
    # for reading (ptrace(2), "dumpable").
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.join_new_keyring()
    caps.limit_bounding(capabilities)
    syscalls.load_seccomp(filter_)
    caps.limit_own(capabilities)


def _default_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (
        signal.SIGCHLD,
        signal.SIGPIPE,
        signal.SIGXFSZ,
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _keep_only(channel: socket.socket) -> None:
    """Leave descriptors 0, 1, 2 and the channel, as 3, which closes when init executes."""
    fd = channel.detach()
    if fd != 3:
        os.dup2(fd, 3, inheritable=False)
    syscalls.close_range(4)


def _send_last(channel: socket.socket, report: bytes) -> None:
    try:
        if channel.fileno() >= 0:
            channel.send(FAILED + report)
        else:
            with socket.socket(fileno=3) as kept:
                kept.send(FAILED + report)
    except OSError:
        pass
