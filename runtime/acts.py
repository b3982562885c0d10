"""What a supervisor does, each act in a fork of it that tells what to keep and ends.

START mounts and, for a container that is to run, brings process 1 up; AGAIN does the latter for a
container that reboots; END takes down what there is. The outcome is the last thing told; an act
that ends without one was killed, and END clears what it left.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

from runtime import (
    children,
    events,
    features,
    hooks,
    idmap,
    launch,
    mounts,
    namespaces,
    oom,
    plan,
    procview,
    registry,
    resources,
    resources_inside,
    state,
    syscalls,
    teardown,
    unixsocket,
)
from runtime import control as control_module
from runtime.cgroups import Cgroup, Limits
from runtime.children import Given, Server
from runtime.errors import MountFailed, MountPointFailed, SystemFailure, VzError
from runtime.log import Log
from runtime.net import netfilter
from runtime.reports import CallerGone, Reporter
from runtime.state import Phase, Process, RunState
from vzfs import server as vzfs_server
from vzfs.server import Hand

if TYPE_CHECKING:
    from runtime.paths import Paths

#: What an act tells its supervisor: a letter, a value, descriptors.
FILES = b"F"  # the file system's options; its connection
UNMOUNTED = b"U"  # whatever becomes of the file server now, it is not started again
VIEW = b"V"  # the source of its own /proc; its connection
PLAN = b"P"  # a new plan
LISTENER = b"L"  # where commands ask
INIT = b"I"  # the id of process 1
CONSOLES = b"C"  # their masters
RULES = b"N"  # what NETFILTER's level lasts as long as
OUTCOME = b"="


class Act(StrEnum):
    """What is done at a time."""

    START = "start"
    AGAIN = "restart"
    END = "end"


class Outcome(StrEnum):
    """What an act led to."""

    RUNNING = "running"
    MOUNTED = "mounted"
    #: It asked for a reboot and shall have one.
    AGAIN = "again"
    GONE = "gone"


@dataclass(slots=True)
class Kept:
    """What a supervisor keeps, and every act inherits."""

    paths: Paths
    ctid: int
    #: It runs or is to run, not only to be mounted.
    run: bool
    #: Process 1 has the command's descriptors, and the command hears how it ended.
    follow: bool
    logging: bool
    #: A memory file: see ``plan.pack``.
    plan_fd: int
    report_fd: int
    supervisor: int
    fuse_fd: int = -1
    options: bytes = b""
    server: Server | None = None
    #: Where the supervisor hears from it.
    server_says: socket.socket | None = None
    #: What all its file servers share, where the kernel does not keep their requests.
    hand: Hand | None = None
    view_fd: int = -1
    source: bytes = b""
    view: Server | None = None
    init: int = 0
    #: Where a server that was forked with the act waits to be told what to serve.
    server_channel: socket.socket | None = None
    view_channel: socket.socket | None = None
    mounted: bool = False
    #: A command is stopping it: no restart; afterwards unmount or not.
    stopping: bool = False
    stay_mounted: bool = False
    may_reboot: bool = False

    @property
    def log(self) -> Log:
        """The system's log, if this container writes to it."""
        return Log(self.paths.log, program="supervisor", enabled=self.logging)

    def give(
        self, sock: socket.socket, what: bytes, fds: list[int], *, resumed: bool = False
    ) -> None:
        """Tell a waiting server what to serve, with its connection and what another one left."""
        Given(self.log, self.ctid, resumed, what).send(sock, fds)


def do(act: Act, kept: Kept, told: socket.socket, status: int | None) -> NoReturn:
    """Do ``act`` in this fork of the supervisor and end; ``status`` is how process 1 ended."""
    code = 1
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == kept.supervisor:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            actor = _Actor(kept, told)
            outcome = actor.end(status) if act is Act.END else actor.start(again=act is Act.AGAIN)
            told.send(OUTCOME + outcome.encode())
            code = 0
    except BaseException:
        kept.log.write(traceback.format_exc(), ctid=kept.ctid)
    finally:
        os._exit(code)


def end(kept: Kept, status: int | None) -> None:
    """Take down what there is, in the supervisor itself, which ends then too."""
    _Actor(kept, None).end(status)


def report_failure(kept: Kept, error: OSError) -> None:
    """Tell the command and the log that a start failed for want of something of the system."""
    text = f"{error.strerror} ({error.filename})" if error.filename else str(error)
    kept.log.write(f"error: {text}", ctid=kept.ctid)
    with suppress(CallerGone):
        Reporter(kept.report_fd).error(SystemFailure(f"the container cannot be started: {text}"))


def tell_kills(kept: Kept, kills: oom.Kills) -> None:
    """Tell the log and who follows the events that a container had too little memory."""
    facts: dict[str, object] = {}
    with suppress(VzError):
        if name := registry.record(kept.paths, kept.ctid).name:
            facts["name"] = name
    facts["killed"] = kills.count
    whom = ""
    if kills.victims:
        facts["processes"] = list(kills.victims)
        whom = f": {', '.join(kills.victims)}"
    about = f"container {facts['name']} is" if "name" in facts else "it is"
    kept.log.write(
        f"{about} out of memory, processes killed by the kernel: {kills.count}{whom}",
        ctid=kept.ctid,
    )
    events.emit(kept.paths, kept.ctid, "out-of-memory", **facts)


def prepare(wanted: plan.Plan, warn: Callable[[str], None]) -> namespaces.IdRange | None:
    """Make and limit the control groups of a plan; return the ids its user namespace gets.

    None: it has no such namespace. Raises what limits raise; nothing is left then.
    """
    group = Cgroup(wanted.paths.tag, wanted.ctid)
    if group.exists():
        group.kill()
        # A group that was killed once is not used again: Linux 6.18 kills what clone3 puts there.
        group.destroy()
    ids = None if wanted.view.privileged else idmap.claim(wanted.paths, wanted.ctid)
    try:
        group.create(ids.first if ids is not None else 0)
        resources.apply_start(group, wanted.config, wanted.private, warn)
        resources.balance(wanted.paths.tag)
        group.set(Limits(devices=wanted.access.rules))
    except VzError:
        group.destroy()
        raise
    return ids


class _Actor:
    """The process that does one act."""

    def __init__(self, kept: Kept, told: socket.socket | None) -> None:
        self.kept = kept
        self.told = told
        self.plan = plan.unpack(kept.plan_fd)
        self.report = Reporter(kept.report_fd)
        self.cgroup = Cgroup(kept.paths.tag, kept.ctid)
        self.state: RunState

    # acts

    def start(self, *, again: bool) -> Outcome:
        """Mount it, or not ``again``, and bring process 1 up where that is wanted."""
        kept = self.kept
        former = state.load(kept.paths, kept.ctid) if again else None
        self.state = RunState(
            kept.ctid,
            Phase.STARTING,
            supervisor=Process.of(kept.supervisor),
            server=former.server if former is not None else None,
            worker=Process.of(os.getpid()),
        )
        try:
            with ExitStack() as undo:
                self.state.save(kept.paths)
                undo.callback(self._forget)
                self.report.heed()
                if not again:
                    place = control_module.path(kept.paths, kept.ctid)
                    with unixsocket.listen(place) as listener:
                        self._tell(LISTENER, fds=[listener.fileno()])
                else:
                    self.plan = plan.reread(self.plan)
                    self._tell(PLAN, fds=[plan.pack(self.plan)])
                undo.callback(self._unmount)
                if kept.run:
                    undo.callback(self._clear_init)
                    ids = prepare(self.plan, self._warn)
                if not again:
                    self._mount()
                if kept.run:
                    self._start_init(ids)
                else:
                    self._await_mount()
                    assert kept.server is not None
                    self.report.heed()
                    self._save(phase=Phase.MOUNTED, server=Process.of(kept.server.pid), worker=None)
                undo.pop_all()
                return Outcome.RUNNING if kept.run else Outcome.MOUNTED
        except VzError as error:
            kept.log.write(f"error: {error.message}", ctid=kept.ctid)
            with suppress(CallerGone):
                self.report.error(error)
        except CallerGone:
            kept.log.write("the command died, its start is undone", ctid=kept.ctid)
        except OSError as error:
            report_failure(kept, error)
        return Outcome.GONE

    def end(self, status: int | None) -> Outcome:
        """Take down what there is; ``status`` is how process 1 ended, if it ran and did."""
        kept = self.kept
        self.state = state.load(kept.paths, kept.ctid) or RunState(
            kept.ctid, Phase.STOPPING, supervisor=Process.of(kept.supervisor)
        )
        if kept.run:
            if status is not None:
                self._tell_end(status)
            self._save(phase=Phase.STOPPING, init=None, worker=Process.of(os.getpid()))
            self._kill()
            allowed = self.plan.config.get("ALLOWREBOOT", "yes") == "yes"
            reboots = kept.may_reboot and allowed and not kept.stopping
            if not reboots and not kept.stay_mounted:
                # The servers end while the rest is cleared.
                self._detach()
            self._clear()
            if reboots:
                return Outcome.AGAIN
            if kept.stay_mounted:
                self._save(phase=Phase.MOUNTED, started_s=0.0, extra={}, worker=None)
                return Outcome.MOUNTED
        self._unmount()
        self._forget()
        return Outcome.GONE

    def _tell_end(self, status: int) -> None:
        kept = self.kept
        signals = {-signal.SIGHUP: "reboot", -signal.SIGINT: "power-off"}
        how = signals.get(status, f"status {status}")
        kept.log.write(f"init ended ({how})", ctid=kept.ctid)
        events.emit(kept.paths, kept.ctid, "stopped", how=how)
        if kept.follow:
            with suppress(CallerGone):
                self.report.send(exit=status if status >= 0 else 128 - status)

    # saying

    def _tell(self, word: bytes, value: bytes = b"", fds: list[int] | None = None) -> None:
        """Give the supervisor, if this is not itself, what outlives this act."""
        if self.told is not None:
            socket.send_fds(self.told, [word + value], fds or [])

    def _warn(self, message: str) -> None:
        self.kept.log.write(f"warning: {message}", ctid=self.kept.ctid)
        self.report.warn(message)

    def _save(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]  # field names
        self.state.save(self.kept.paths)

    def _forget(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(control_module.path(self.kept.paths, self.kept.ctid))
        state.forget(self.kept.paths, self.kept.ctid)

    # the mount

    def _mount(self) -> None:
        kept, wanted = self.kept, self.plan
        hooks.run_on_host(wanted.paths, wanted.ctid, "premount", wanted.private, wanted.target)
        try:
            os.makedirs(wanted.target.parent, mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(wanted.target, 0o700)
        except OSError as error:
            raise MountPointFailed(
                f"cannot make mount point {wanted.target}: {error.strerror}"
            ) from error
        try:
            kept.fuse_fd = vzfs_server.open_device()
            # Only the container's own view lets setuid bits count; the host's must not.
            vzfs_server.mount(kept.fuse_fd, wanted.options, wanted.target, nosuid=True)
        except OSError as error:
            raise MountFailed(
                f"cannot mount {wanted.private} at {wanted.target}: {error.strerror}",
                hint="modprobe fuse" if error.errno in (errno.ENODEV, errno.ENOENT) else "",
            ) from error
        options = pickle.dumps(wanted.options)
        self._tell(FILES, options, [kept.fuse_fd])
        assert kept.server_channel is not None
        kept.give(kept.server_channel, options, [kept.fuse_fd])

    def _await_mount(self) -> None:
        """Wait until the file server answers and run the scripts that may use the mount."""
        wanted = self.plan
        assert self.kept.server_channel is not None
        if children.await_ready(self.kept.server_channel):
            hooks.run_on_host(wanted.paths, wanted.ctid, "mount", wanted.private, wanted.target)
            self.report.say("Container is mounted")
            return
        raise MountFailed(f"the file server of {wanted.private} does not start")

    def _unmount(self) -> None:
        """Unmount and wait for the file server's end; run the scripts. Idempotent."""
        kept, wanted = self.kept, self.plan
        self._detach()
        if kept.server is not None:
            # It lives on where somebody's mount namespace was copied from the host's: it is killed.
            teardown.wait_or_kill(kept.server.pidfd)
            with suppress(VzError):
                hooks.run_on_host(
                    wanted.paths, wanted.ctid, "postumount", wanted.private, wanted.target
                )

    def _detach(self) -> None:
        """Unmount, upon which the file server ends. Idempotent."""
        kept, wanted = self.kept, self.plan
        if mounts.is_mount_point(wanted.target):
            with suppress(VzError):
                hooks.run_on_host(
                    wanted.paths, wanted.ctid, "umount", wanted.private, wanted.target
                )
            busy = teardown.unmount(wanted.target)
            if busy:
                kept.log.write(f"{wanted.target} was in use on the host", ctid=kept.ctid)
        self._tell(UNMOUNTED)
        if kept.fuse_fd >= 0:
            os.close(kept.fuse_fd)
            kept.fuse_fd = -1
        if kept.server_channel is not None:
            kept.server_channel.close()

    # process 1

    def _start_init(self, ids: namespaces.IdRange | None) -> None:
        kept, wanted = self.kept, self.plan
        self._show_view()
        if features.enabled(wanted.config, "time"):
            namespaces.new_time_for_children()
        # The file server gets ready meanwhile.
        child = launch.fork(wanted, self.cgroup)
        self._tell(INIT, str(child.pid).encode())
        if self.state.server is None:
            self._await_mount()
        assert kept.server is not None
        resources.share_server(kept.paths.tag, kept.ctid, kept.server.pid)
        chosen = launch.choose_init(wanted)
        if chosen.legacy_cgroups and not self.cgroup.has_legacy:
            self._warn(
                "its systemd is older than cgroup v2 and this server has no hierarchy for it:"
                " mount -t cgroup -o none,name=systemd systemd /sys/fs/cgroup/systemd"
            )
        level = self._filter_packets(child.pid)
        shown = kept.view_fd >= 0
        files = procview.bindings(kept.paths, kept.ctid).values() if shown else ()
        self._tell(CONSOLES, fds=launch.bring_up(child, wanted, ids, list(files), chosen))
        self.report.heed()
        # Until here a death of this process is undone through the control group alone: the ids of
        # the processes are relied upon from now on.
        self._save(
            phase=Phase.RUNNING,
            server=Process.of(kept.server.pid),
            init=Process.of(child.pid),
            worker=None,
            started_s=time.time(),
            extra={
                "halt": int(chosen.halt_signal),
                "halt_commands": [list(words) for words in chosen.halt_commands],
                "init": str(chosen.kind),
                "first_id": ids.first if ids is not None else 0,
                "sets_clock": wanted.sets_clock,
                "netfilter": str(level),
                "capabilities": sorted(wanted.capabilities),
            },
        )
        events.emit(kept.paths, kept.ctid, "started", init=str(chosen.kind))

    def _filter_packets(self, pid: int) -> netfilter.Level:
        """Have NETFILTER's level in the container's network before anything runs there."""
        level = netfilter.level(self.plan.config)
        fd = netfilter.hold(pid, level)
        if fd >= 0:
            self._tell(RULES, fds=[fd])
            os.close(fd)
        return level

    def _show_view(self) -> None:
        """Mount what it sees of /proc and have it served; without, it sees the server's figures."""
        kept = self.kept
        try:
            resources_inside.write_view(kept.paths, self.plan.config)
            kept.view_fd = procview.mount(kept.paths, kept.ctid)
        except OSError as error:
            self._warn(f"/proc inside shows the server: {error.strerror}")
            return
        own_clocks = features.enabled(self.plan.config, "time")
        begin = procview.Source.starting if own_clocks else procview.Source.since_boot
        source = pickle.dumps(begin(kept.paths, kept.ctid))
        self._tell(VIEW, source, [kept.view_fd])
        assert kept.view_channel is not None
        kept.give(kept.view_channel, source, [kept.view_fd])

    def _clear_init(self) -> None:
        """Remove what belonged to process 1: its processes, network, control groups. Idempotent."""
        self._kill()
        self._clear()

    def _kill(self) -> None:
        with suppress(VzError):
            self.cgroup.thaw()
        self.cgroup.kill()

    def _clear(self) -> None:
        """Remove what its processes, which are gone, had."""
        kept = self.kept
        procview.unmount(kept.paths, kept.ctid)
        resources_inside.forget_view(kept.paths, kept.ctid)
        if kept.view_channel is not None:
            kept.view_channel.close()
        if kept.server is not None:
            resources.release_server(kept.paths.tag, kept.ctid, kept.server.pid)
        teardown.network(kept.paths, kept.ctid, self.plan.config)
        self.cgroup.destroy()
        if kept.view is not None:
            teardown.wait_or_kill(kept.view.pidfd)
