"""The process beside every mounted or running container: its keeper from start to last clean-up.

States (``state.Phase``), written before they are relied upon:

    mount → MOUNTED ──release──► gone
    start → STARTING ─► RUNNING ─► STOPPING ─► gone, or MOUNTED when told to stay mounted
                 ▲                    │
                 └─────reboot─────────┘

It is the only one that mounts and unmounts, forks the file server and process 1 and waits for
both. A command that dies while it starts a container takes the start with it: the report's pipe
breaks and everything is undone. If the supervisor itself is killed, ``Container.reconcile`` of the
next command undoes what it did.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

from runtime import (
    children,
    control,
    events,
    hooks,
    idmap,
    launch,
    mounts,
    namespaces,
    procview,
    resources,
    resources_inside,
    seccomp,
    state,
    syscalls,
    teardown,
    unixsocket,
)
from runtime.cgroups import Cgroup, Limits
from runtime.consoles import Consoles
from runtime.errors import (
    MountFailed,
    MountPointFailed,
    SystemFailure,
    VzError,
)
from runtime.log import Log
from runtime.plan import Plan, reread
from runtime.reports import CallerGone, Reporter
from runtime.settings_resources import online_cpus
from runtime.state import Phase, Process, RunState
from vzfs import server as vzfs_server

#: A file server or an init that ends more often than this is not started again.
_RESTARTS = 5
_WITHIN_S = 30.0


def preload() -> None:
    """Load and work out what forks need: nothing is imported or compiled after the fork."""
    vzfs_server.preload()
    seccomp.program()
    # Their regular expressions are compiled at the first use: here once, not in every child.
    online_cpus()
    resources.cpu_mhz()


def prepare(plan: Plan, warn: Callable[[str], None]) -> namespaces.IdRange:
    """Make and limit the control groups of ``plan``; return the ids its user namespace gets.

    Raises what limits raise; nothing is left then.
    """
    group = Cgroup(plan.paths.tag, plan.ctid)
    if group.exists():
        group.kill()
        # A group that was killed once is not used again: Linux 6.18 kills what clone3 puts there.
        group.destroy()
    ids = idmap.claim(plan.paths, plan.ctid)
    try:
        group.create(ids.first)
        resources.apply_start(group, plan.config, plan.private, warn)
        resources.balance(plan.paths.tag)
        group.set(Limits(devices=plan.access.rules))
    except VzError:
        group.destroy()
        raise
    return ids


def start(
    plan: Plan,
    *,
    run: bool,
    report_fd: int,
    close_fds: tuple[int, ...],
    warn: Callable[[str], None],
) -> int:
    """Fork the supervisor of ``plan``; return its process id.

    ``run``: start it, not only mount it. It reports over ``report_fd`` (see ``reports``). Raises
    OSError, or what ``prepare`` raises. What can be done before the fork is: each page a supervisor
    writes to is memory that the container costs for as long as it runs.
    """
    preload()
    if plan.wants_network:
        importlib.import_module("runtime.net.attach")
    ids = prepare(plan, warn) if run else None
    group = Cgroup(plan.paths.tag, None)
    group.create()
    entrance = group.entrance()
    try:
        pid = namespaces.fork(cgroup_fd=entrance.v2_fd)
        if pid == 0:
            status = 1
            try:
                os.setsid()
                for fd in close_fds:
                    os.close(fd)
                entrance.enter()
                status = Supervisor(plan, report_fd).main(ids)
            except BaseException:
                Log(plan.paths.log, program="supervisor").write(
                    traceback.format_exc(), ctid=plan.ctid
                )
            finally:
                os._exit(status)
        return pid
    finally:
        entrance.close()


class Supervisor:
    """One container's keeper."""

    def __init__(self, plan: Plan, report_fd: int) -> None:
        """Keep the container of ``plan`` and report to ``report_fd``."""
        self.plan = plan
        self.report = Reporter(report_fd)
        self.log = Log(
            plan.paths.log,
            program="supervisor",
            enabled=plan.config.get("LOGGING", "yes") != "no",
        )
        self.cgroup = Cgroup(plan.paths.tag, plan.ctid)
        self.consoles = Consoles()
        self.fuse_fd = -1
        self.server = 0
        self.init = 0
        self.view_fd = -1
        self.view = 0
        self.view_source: procview.Source
        self.state: RunState
        #: A command is stopping it: no restart; afterwards unmount or not.
        self.stopping = False
        self.stay_mounted = False
        self.released = False
        self._server_ends: list[float] = []
        self._reboots: list[float] = []

    # life

    def main(self, ids: namespaces.IdRange | None) -> int:
        """Start (with ``ids``) or mount, keep and clean up; return this process's exit status."""
        self._settle()
        own = Process.of(os.getpid())
        self.state = RunState(self.plan.ctid, Phase.STARTING, supervisor=own)
        try:
            with ExitStack() as undo:
                self.state.save(self.plan.paths)
                undo.callback(self._forget)
                listener = unixsocket.listen(control.path(self.plan.paths, self.plan.ctid))
                undo.callback(listener.close)
                undo.callback(self._unmount)
                if ids is not None:
                    undo.callback(self._clear_init)
                self._mount()
                if ids is not None:
                    self._start_init(self.plan, ids)
                else:
                    self._await_mount()
                    self._save(phase=Phase.MOUNTED, server=Process.of(self.server))
                self.report.send(ready=True)
                undo.pop_all()
        except VzError as error:
            self.log.write(f"error: {error.message}", ctid=self.plan.ctid)
            with suppress(CallerGone):
                self.report.error(error)
            return 1
        except CallerGone:
            self.log.write("the command died, its start is undone", ctid=self.plan.ctid)
            return 1
        except OSError as error:
            text = f"{error.strerror} ({error.filename})" if error.filename else str(error)
            self.log.write(f"error: {text}", ctid=self.plan.ctid)
            with suppress(CallerGone):
                self.report.error(SystemFailure(f"the container cannot be started: {text}"))
            return 1
        if not self.plan.inherit_stdio:
            self.report.close()
        self._forget_stdio()
        with listener:
            self._loop(listener)
            self._unmount()
        self._forget()
        return 0

    def _settle(self) -> None:
        """Become independent of the command this was forked from."""
        # A collection would visit, and so copy, every page shared with the command.
        gc.freeze()
        syscalls.set_name(f"vz-{self.plan.ctid}")
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(0o022)
        os.chdir("/")
        # The command's lock and connections must not live on in here.
        keep = self.report.fd
        if keep >= 0:
            syscalls.close_range(3, keep - 1) if keep > 3 else None
            syscalls.close_range(keep + 1)
        else:
            syscalls.close_range(3)
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)

    def _forget_stdio(self) -> None:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):
            os.dup2(null, fd, inheritable=True)
        os.close(null)

    def _warn(self, message: str) -> None:
        self.log.write(f"warning: {message}", ctid=self.plan.ctid)
        self.report.warn(message)

    def _save(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]  # field names
        self.state.save(self.plan.paths)

    def _forget(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(control.path(self.plan.paths, self.plan.ctid))
        state.forget(self.plan.paths, self.plan.ctid)

    # the mount

    def _mount(self) -> None:
        plan = self.plan
        hooks.run_on_host(plan.paths, plan.ctid, "premount", plan.private, plan.target)
        try:
            os.makedirs(plan.target.parent, mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(plan.target, 0o700)
        except OSError as error:
            raise MountPointFailed(
                f"cannot make mount point {plan.target}: {error.strerror}"
            ) from error
        try:
            self.fuse_fd = vzfs_server.open_device()
            # Only the container's own view lets setuid bits count; the host's must not.
            vzfs_server.mount(self.fuse_fd, plan.options, plan.target, nosuid=True)
        except OSError as error:
            raise MountFailed(
                f"cannot mount {plan.private} at {plan.target}: {error.strerror}",
                hint="modprobe fuse" if error.errno in (errno.ENODEV, errno.ENOENT) else "",
            ) from error
        self._serve(resume=False)

    def _await_mount(self) -> None:
        """Wait until the file server answers and run the scripts that may use the mount."""
        plan = self.plan
        self._await_server()
        hooks.run_on_host(plan.paths, plan.ctid, "mount", plan.private, plan.target)
        self.report.say("Container is mounted")

    def _serve(self, *, resume: bool) -> None:
        """Fork the file server; ``_await_server`` before anything asks it: the dead do not answer.

        The fork and what the start does besides go on at the same time.
        """
        self._ready_r, ready_w = os.pipe2(os.O_CLOEXEC)

        def serve() -> None:
            fuse_fd, ready_fd = children.FIRST_FD, children.FIRST_FD + 1

            def tell() -> None:
                os.write(ready_fd, b"R")
                os.close(ready_fd)

            vzfs_server.serve(fuse_fd, self.plan.options, resume, ready=tell)

        try:
            self.server = children.fork_server(
                "vzfs", [self.fuse_fd, ready_w], serve, self.log, self.plan.ctid
            )
        finally:
            os.close(ready_w)

    def _await_server(self) -> None:
        answered = os.read(self._ready_r, 1)
        os.close(self._ready_r)
        if not answered:
            raise MountFailed(f"the file server of {self.plan.private} does not start")

    def _unmount(self) -> None:
        """Unmount and end the file server; run the scripts. Idempotent."""
        plan = self.plan
        if mounts.is_mount_point(plan.target):
            with suppress(VzError):
                hooks.run_on_host(plan.paths, plan.ctid, "umount", plan.private, plan.target)
            busy = teardown.unmount(plan.target)
            if busy:
                self.log.write(f"{plan.target} was in use on the host", ctid=plan.ctid)
        if self.fuse_fd >= 0:
            # The last descriptors but the server's: should it hang, the connection ends with it.
            os.close(self.fuse_fd)
            self.fuse_fd = -1
        if self.server:
            teardown.wait_or_kill(self.server)
            self.server = 0
            with suppress(VzError):
                hooks.run_on_host(plan.paths, plan.ctid, "postumount", plan.private, plan.target)

    # process 1

    def _start_init(self, plan: Plan, ids: namespaces.IdRange) -> None:
        self.view_source = procview.Source.starting(plan.paths, plan.ctid)
        namespaces.new_time_for_children()
        self._show_view(plan)
        if self.state.server is None:
            self._await_mount()
        resources.share_server(plan.paths.tag, plan.ctid, self.server)
        chosen = launch.choose_init(plan)
        child = launch.fork(plan, self.cgroup, chosen)
        self.init = pid = child.pid
        files = procview.bindings(plan.paths, plan.ctid).values() if self.view else ()
        self.consoles.replace(launch.bring_up(child, plan, ids, list(files)))
        # Until here a death of this process is undone through the control group alone: the ids of
        # the processes are relied upon from now on.
        self._save(
            phase=Phase.RUNNING,
            server=Process.of(self.server),
            init=Process.of(pid),
            started_s=time.time(),
            extra={
                "halt": int(chosen.halt_signal),
                "halt_commands": [list(words) for words in chosen.halt_commands],
                "init": str(chosen.kind),
                "first_id": ids.first,
            },
        )
        events.emit(plan.paths, plan.ctid, "started", init=str(chosen.kind))

    # its own /proc

    def _show_view(self, plan: Plan) -> None:
        """Mount and serve what it sees of /proc; without that it sees the server's figures."""
        try:
            resources_inside.write_view(plan.paths, plan.config)
            self.view_fd = procview.mount(plan.paths, plan.ctid)
        except OSError as error:
            self._warn(f"/proc inside shows the server: {error.strerror}")
            return
        self._serve_view()

    def _serve_view(self) -> None:
        # Asked here: a child's clock may begin with the container.
        up_s = self.view_source.up_s()
        self.view = children.fork_server(
            "procview",
            [self.view_fd],
            lambda: procview.serve(children.FIRST_FD, self.view_source, up_s),
            self.log,
            self.plan.ctid,
        )

    def _view_ended(self, status: int) -> None:
        """Serve the view again after its server died; its readers only waited."""
        self.view = 0
        if self.view_fd >= 0 and os.waitstatus_to_exitcode(status) != 0:
            self.log.write(
                "what serves /proc inside died and is started again", ctid=self.plan.ctid
            )
            self._serve_view()

    def _hide_view(self) -> None:
        """Unmount the view and end its server; idempotent."""
        procview.unmount(self.plan.paths, self.plan.ctid)
        resources_inside.forget_view(self.plan.paths, self.plan.ctid)
        if self.view_fd >= 0:
            os.close(self.view_fd)
            self.view_fd = -1
        if self.view:
            teardown.wait_or_kill(self.view)
            self.view = 0

    def _clear_init(self) -> None:
        """Remove what belonged to process 1: its processes, network, control groups. Idempotent."""
        with suppress(VzError):
            self.cgroup.thaw()
        self.cgroup.kill()
        if self.init:
            with suppress(ChildProcessError):
                os.waitpid(self.init, 0)
            self.init = 0
        self.consoles.replace([])
        self._hide_view()
        resources.release_server(self.plan.paths.tag, self.plan.ctid, self.server)
        teardown.network(self.plan.paths, self.plan.ctid, self.plan.config)
        self.cgroup.destroy()

    # keeping

    def _loop(self, listener: socket.socket) -> None:
        """Keep the container until it ended and shall not be restarted, or was released."""
        poller = select.poll()
        while (self.init or self.state.phase is Phase.MOUNTED) and not self.released:
            watched = {self._wake_r, listener.fileno(), *self.consoles.descriptors()}
            for fd in watched:
                poller.register(fd, select.POLLIN)
            ready = [fd for fd, _events in poller.poll()]
            for fd in watched:
                poller.unregister(fd)
            for fd in ready:
                if fd == self._wake_r:
                    with suppress(BlockingIOError):
                        os.read(fd, 4096)
                elif fd == listener.fileno():
                    self._answer(listener)
                else:
                    self.consoles.handle(fd)
            self._reap()

    def _answer(self, listener: socket.socket) -> None:
        connection, _address = listener.accept()
        try:
            request = control.read_request(connection)
            if request.get("op") == "stopping":
                self.stopping = True
                self.stay_mounted = request.get("umount") is False
                control.answer(connection, agreed=True)
            elif request.get("op") == "release":
                agreed = self.state.phase is Phase.MOUNTED
                self.released = agreed
                control.answer(connection, agreed=agreed)
            elif request.get("op") == "console":
                number = int(request.get("number", 0))
                master, tail = self.consoles.lend(number, connection)
                control.answer(connection, agreed=master >= 0, fd=master, more=tail)
                if master >= 0:
                    return
            else:
                control.answer(connection, agreed=False)
        except (OSError, ValueError) as error:
            self.log.write(f"a request failed: {error}", ctid=self.plan.ctid, level=1)
        connection.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.server:
                self._server_ended(status)
            elif pid == self.view:
                self._view_ended(status)
            elif pid == self.init:
                self.init = 0
                self._init_ended(os.waitstatus_to_exitcode(status))

    def _server_ended(self, status: int) -> None:
        self.server = 0
        if os.waitstatus_to_exitcode(status) == 0 and self.state.phase is Phase.MOUNTED:
            # Unmounted by hand.
            self.released = True
            return
        now = time.monotonic()
        self._server_ends = [then for then in self._server_ends if now - then < _WITHIN_S] + [now]
        if len(self._server_ends) <= _RESTARTS:
            self.log.write("the file server died and is started again", ctid=self.plan.ctid)
            events.emit(self.plan.paths, self.plan.ctid, "file-server-restarted")
            with suppress(VzError):
                self._serve(resume=True)
                self._await_server()
                resources.share_server(self.plan.paths.tag, self.plan.ctid, self.server)
                self._save(server=Process.of(self.server))
                return
        self.log.write("the file server keeps dying: the container is killed", ctid=self.plan.ctid)
        # Without a server everything inside would hang: end the connection, then the processes.
        os.close(self.fuse_fd)
        self.fuse_fd = -1
        self.stopping = True
        self.released = True
        self.cgroup.kill()

    def _init_ended(self, code: int) -> None:
        """Process 1 is gone, and every other of the container with it: restart or clean up."""
        reboot = code == -signal.SIGHUP
        how = {-signal.SIGHUP: "reboot", -signal.SIGINT: "power-off"}.get(code, f"status {code}")
        self.log.write(f"init ended ({how})", ctid=self.plan.ctid)
        events.emit(self.plan.paths, self.plan.ctid, "stopped", how=how)
        if self.plan.inherit_stdio:
            with suppress(CallerGone):
                self.report.send(exit=code if code >= 0 else 128 - code)
        self._save(phase=Phase.STOPPING, init=None)
        self._clear_init()
        if reboot and not self.stopping and self._may_reboot():
            try:
                self.plan = reread(self.plan)
                self._save(phase=Phase.STARTING)
                self._start_init(self.plan, prepare(self.plan, self._warn))
                return
            except (VzError, OSError) as error:
                self.log.write(f"the restart failed: {error}", ctid=self.plan.ctid)
                self._clear_init()
        if self.stay_mounted:
            self._save(phase=Phase.MOUNTED, started_s=0.0, extra={})
            self.stopping = self.stay_mounted = False

    def _may_reboot(self) -> bool:
        if self.plan.config.get("ALLOWREBOOT", "yes") != "yes":
            return False
        now = time.monotonic()
        self._reboots = [then for then in self._reboots if now - then < _WITHIN_S] + [now]
        return len(self._reboots) <= _RESTARTS
