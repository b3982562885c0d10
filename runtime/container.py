"""A container: what can be done with one. Every method is synchronous and raises VzError.

Whoever changes a container holds its lock (``locks.environment``) and has called ``reconcile``;
entering a running one needs neither. Who does what when: see ``supervisor``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from runtime import (
    control,
    hooks,
    mounts,
    nursery,
    procview,
    reports,
    resources_inside,
    state,
    suspension,
    syscalls,
    teardown,
)
from runtime import (
    exec as exec_module,
)
from runtime import (
    plan as plans,
)
from runtime.enterable import Enterable
from runtime.errors import (
    ActionScriptFailed,
    AlreadyRunning,
    EnvironmentFailed,
    NotMounted,
    NotRunning,
    StartWaitFailed,
    StopFailed,
    SystemFailure,
    UmountFailed,
    VzError,
)
from runtime.state import Phase, RunState

#: How long a supervisor may take to clean up after a stop before it is taken for stuck, in seconds.
_CLEANUP_S = 20.0
_WAIT_S = 120.0


class Container(Enterable):
    """One container of a system, from its start to its end."""

    # crash safety

    def reconcile(self) -> None:
        """Undo what dead processes of ours left behind; call it with the container's lock held.

        Since the lock is ours, a supervisor that is still starting lost its command and is ended;
        one that is stopping is waited for. Raises VzError only when something cannot be undone.
        """
        run = state.load(self.paths, self.ctid)
        if run is None:
            if self.cgroup.exists() or mounts.is_mount_point(self.target):
                self._clear(None)
            return
        if run.supervisor is not None and run.supervisor.alive:
            if run.phase is Phase.STOPPING:
                teardown.wait_for_end(run.supervisor, _CLEANUP_S)
            elif run.phase is not Phase.STARTING:
                return
        if run.init is not None and run.init.alive and run.phase is Phase.RUNNING:
            self.progress.warn("the container's supervisor died: its processes are ended")
        else:
            self.progress.detail("cleaning up after a supervisor that died")
        self._clear(run)

    def _clear(self, run: RunState | None) -> None:
        """Undo everything a supervisor did, in its order; idempotent."""
        if run is not None:
            teardown.end_process(run.supervisor)
            teardown.end_process(run.worker)
        group = self.cgroup
        with suppress(VzError, OSError):
            group.thaw()
        # Unserved requests would keep the container's processes from dying: the connection first.
        if run is not None:
            teardown.end_process(run.server)
        group.kill()
        procview.unmount(self.paths, self.ctid)
        resources_inside.forget_view(self.paths, self.ctid)
        teardown.network(self.paths, self.ctid, self.config)
        teardown.unmount(self.target)
        group.destroy()
        with suppress(FileNotFoundError):
            os.unlink(control.path(self.paths, self.ctid))
        state.forget(self.paths, self.ctid)

    # life

    def start(
        self,
        *,
        wait: bool = False,
        wait_timeout_s: float = _WAIT_S,
        init: Sequence[str] | None = None,
    ) -> None:
        """Start it; with ``wait`` return when its services are up.

        ``init``: a command to run under our own process 1 instead of the tree's init. Raises
        AlreadyRunning, StartWaitFailed, or what is wrong with its configuration and private area;
        nothing is left then.
        """
        current = self.status()
        if current.running:
            raise AlreadyRunning("Container is already running")
        plan = plans.make(self.paths, self.record, self.config)
        if init is not None:
            plan = plan.with_init(init)
        for warning in plan.warnings:
            self.progress.warn(warning)
        if current.mounted:
            self.umount()
        if suspension.forget(self.private):
            self.progress.warn("it was suspended: its dump is dropped, it starts anew")
        self.progress.say("Starting container...")
        self._launch(plan, run=True)
        if init is None:
            self._tell_network()
        self._run_start_scripts()
        self.progress.say("Container start in progress...")
        if wait:
            self._wait_started(wait_timeout_s)

    def _tell_network(self) -> None:
        """Let the guest's own files agree with its network, which is up already."""
        if not any(self.config.get(key) for key in ("IP_ADDRESS", "NETIF", "NAMESERVER")):
            return
        from runtime.net import guestcfg

        try:
            guestcfg.at_start(self, self.config)
        except VzError as error:
            self.progress.warn(error.message)

    def run(self, argv: Sequence[str]) -> int:
        """Start it with our own process 1 running ``argv`` on the caller's descriptors, and wait.

        Returns the command's status, 128+N for signal N; the container is stopped then. Raises as
        ``start``.
        """
        if self.status().running:
            raise AlreadyRunning("Container is already running")
        plan = plans.make(self.paths, self.record, self.config).running(argv)
        if self.status().mounted:
            self.umount()
        status = -1
        for line in self._launch(plan, run=True, follow=True):
            status = line.get("exit", status)
        if status < 0:
            raise EnvironmentFailed("the container's supervisor died")
        return status

    def mount(self) -> None:
        """Mount its private area at VE_ROOT; mounted already is success. Raises MountFailed."""
        if self.status().mounted:
            self.progress.say("Container is already mounted")
            return
        self._launch(plans.make(self.paths, self.record, self.config), run=False)

    def _launch(self, plan: plans.Plan, *, run: bool, follow: bool = False) -> list[dict[str, Any]]:
        """Fork the supervisor and wait for its report; return the lines after the first.

        Not with ``follow``, which waits until the supervisor ends.
        """
        report_r, report_w = os.pipe2(os.O_CLOEXEC)
        order = plans.Order(
            self.paths, self.ctid, run, follow, self.config.get("LOGGING", "yes") != "no"
        )
        try:
            with mounts.closing(plans.pack(plan)) as plan_fd, mounts.closing(report_w):
                nursery.fork(order, plan_fd, report_w, network=plan.wants_network)
        except OSError as error:
            os.close(report_r)
            raise SystemFailure(f"cannot start a supervisor: {error.strerror}") from error
        ready = False
        lines: list[dict[str, Any]] = []
        # After an error the pipe ends when the supervisor does, which has undone everything then.
        for line in reports.follow(report_r, self.progress):
            lines.append(line)
            ready = ready or "ready" in line
            if ready and not follow:
                return lines
        if not ready:
            self._clear(state.load(self.paths, self.ctid))
            raise EnvironmentFailed("the container's supervisor died while it was started")
        return lines

    def _wait_started(self, timeout_s: float) -> None:
        """Wait until its init says that services are up; raises StartWaitFailed."""
        deadline = time.monotonic() + timeout_s
        kind = self.run_state().extra.get("init")
        while time.monotonic() < deadline:
            try:
                if kind == "systemd":
                    done = self._started_by_systemd(deadline)
                elif kind == "sysvinit":
                    # "N 2" from runlevel(8) once the default level is reached.
                    out = self.output(["/sbin/runlevel"])
                    done = out.split()[-1:] not in ([], [b"unknown"])
                else:
                    done = True
            except exec_module.Failed:
                done = True
            except NotRunning:
                break
            if done:
                self.progress.say("Container started")
                return
            time.sleep(0.1)
        raise StartWaitFailed("Container wait failed", hint="its services did not come up in time")

    def _started_by_systemd(self, deadline: float) -> bool:
        out = self.output(
            ["/bin/systemctl", "is-system-running", "--wait"],
            timeout_s=max(1.0, deadline - time.monotonic()),
        )
        return out.strip() in (b"running", b"degraded")

    def stop(
        self, *, fast: bool = False, umount: bool = True, timeout_s: float | None = None
    ) -> None:
        """Halt it by its init's own signal; kill it after ``timeout_s`` (STOP_TIMEOUT) or at once.

        With ``umount`` False it stays mounted. Raises NotRunning, StopFailed.
        """
        run = state.load(self.paths, self.ctid)
        if run is None or run.init is None or run.phase is Phase.MOUNTED:
            raise NotRunning("Container is not running")
        if timeout_s is None:
            timeout_s = float(self.config.get("STOP_TIMEOUT", "120"))
        self.progress.say("Stopping container ...")
        with suppress(OSError):
            # Without an answer the supervisor is stuck or gone: ``_clear`` below does its work.
            control.ask(self.paths, self.ctid, "stopping", umount=umount)
        group = self.cgroup
        with suppress(VzError):
            group.thaw()
        ended = False
        if not fast:
            self._run_stop_scripts()
            ended = self._halt(run, timeout_s)
        if not ended:
            self.progress.say("Killing container ...")
            try:
                group.kill()
            except SystemFailure as error:
                raise StopFailed(error.message) from error
        self._await_cleanup(run, umount=umount)
        self.progress.say("Container was stopped")
        if umount:
            self.progress.say("Container is unmounted")

    def _run_start_scripts(self) -> None:
        """Run the container's own ``start`` script inside; raises ActionScriptFailed, stopped."""
        for script in hooks.scripts(self.paths, self.ctid, "start", self.private):
            code = self.run_text(script.read_bytes(), hooks.variables(self.paths, self.ctid))
            if code:
                self.stop(fast=True)
                raise ActionScriptFailed(f"{script} returned {code}")

    def _run_stop_scripts(self) -> None:
        for script in hooks.scripts(self.paths, self.ctid, "stop", self.private):
            with suppress(VzError):
                code = self.run_text(script.read_bytes(), hooks.variables(self.paths, self.ctid))
                if code:
                    self.progress.warn(f"{script} returned {code}")

    def _halt(self, run: RunState, timeout_s: float) -> bool:
        """Ask init to shut down; return whether it ended in time."""
        assert run.init is not None
        deadline = time.monotonic() + timeout_s
        for words in run.extra.get("halt_commands", ()):
            try:
                self.output(words, timeout_s=timeout_s)
            except (exec_module.Failed, VzError):
                continue
            break
        else:
            self._signal_init(run, int(run.extra.get("halt", signal.SIGPWR)))
        return teardown.wait_for_end(run.init, deadline - time.monotonic())

    def _signal_init(self, run: RunState, number: int) -> None:
        assert run.init is not None
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(run.init.pid)
            with mounts.closing(pidfd):
                if run.init.alive:
                    syscalls.pidfd_send_signal(pidfd, number)

    def _await_cleanup(self, run: RunState, *, umount: bool) -> None:
        """Wait until the supervisor has cleaned up, or do it in its place."""
        deadline = time.monotonic() + _CLEANUP_S
        if run.supervisor is None or not run.supervisor.alive:
            self._clear(state.load(self.paths, self.ctid))
            return
        if not umount:
            while time.monotonic() < deadline:
                now = state.load(self.paths, self.ctid)
                if now is None or now.phase is Phase.MOUNTED:
                    return
                time.sleep(0.01)
        elif teardown.wait_for_end(run.supervisor, _CLEANUP_S):
            if state.load(self.paths, self.ctid) is not None:
                self._clear(run)
            return
        self.progress.warn("the container's supervisor is stuck and is replaced")
        self._clear(state.load(self.paths, self.ctid))

    def restart(self, *, fast: bool = False, wait: bool = False) -> None:
        """Stop it if it runs, then start it."""
        if self.status().running:
            self.stop(fast=fast)
        self.start(wait=wait)

    def kill(self) -> None:
        """Kill every process of it now; raises NotRunning, StopFailed."""
        self.stop(fast=True)

    def umount(self) -> None:
        """Unmount it; raises NotMounted, AlreadyRunning, UmountFailed when the host uses it."""
        current = self.status()
        if current.running:
            raise AlreadyRunning("Container is running, stop it first", hint="vzctl stop")
        run = current.run
        if not current.mounted or run is None:
            raise NotMounted("Container is not mounted")
        users = _users_of(self.target)
        if users:
            raise UmountFailed(
                f"{self.target} is in use by process {', '.join(map(str, users[:5]))}",
                hint="leave the directory or end those processes",
            )
        with suppress(OSError):
            control.ask(self.paths, self.ctid, "release")
        if run.supervisor is None or not teardown.wait_for_end(run.supervisor, _CLEANUP_S):
            self._clear(run)
        self.progress.say("Container is unmounted")

    def freeze(self) -> None:
        """Stop its processes where they are; raises NotRunning, NoKernelSupport."""
        self.run_state()
        self.cgroup.freeze()

    def thaw(self) -> None:
        """Let frozen processes go on; raises NotRunning, NoKernelSupport."""
        self.run_state()
        self.cgroup.thaw()

    def runscript(self, text: bytes) -> int:
        """Run a script's ``text`` inside; return its status.

        A container that does not run is started for it without its init, and stopped again.
        """
        if self.status().running:
            return self.run_text(text)
        self.start(init=())
        try:
            return self.run_text(text)
        finally:
            self.stop(fast=True)


def _users_of(target: os.PathLike[str]) -> list[int]:
    """Return the host processes which have their directory or root below a mount."""
    place = os.fspath(target)
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            for link in ("cwd", "root"):
                with suppress(OSError):
                    where = os.readlink(f"/proc/{name}/{link}")
                    if where == place or where.startswith(f"{place}/"):
                        found.append(int(name))
                        break
    return found
