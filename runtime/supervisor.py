"""The process beside every mounted or running container: its keeper from start to last clean-up.

It only waits, and keeps what must outlive everything else: the descriptors of the file systems, the
consoles, the children. Every act (``acts``: start, end, unmount) is done by a fork of it which
tells what to keep and ends, so that the memory a start takes is not memory the container costs for
as long as it runs. File servers are forked here too, before anything was done, for the same reason.

    mount → MOUNTED ──release──► gone
    start → STARTING ─► RUNNING ─► STOPPING ─► gone, or MOUNTED when told to stay mounted
                 ▲                    │
                 └─────reboot─────────┘

A command that dies while it starts a container takes the start with it: the report's pipe breaks
and everything is undone. If the supervisor itself is killed, its act dies with it and
``Container.reconcile`` of the next command undoes what was done.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time
import traceback
from contextlib import suppress
from typing import NoReturn

from runtime import (
    acts,
    cgroups,
    children,
    control,
    oom,
    resources,
    seccomp,
    syscalls,
)
from runtime.acts import Act, Kept, Outcome
from runtime.cgroups import Cgroup, Entrance
from runtime.consoles import Consoles
from runtime.fileserver import Ended, FileServer
from runtime.reports import CallerGone, Reporter
from runtime.settings_resources import online_cpus
from runtime.standby import FDS, LONGEST, Standby
from vzfs import server as vzfs_server

#: An init that asks for a reboot more often than this does not get one.
_RESTARTS = 5
_WITHIN_S = 30.0
#: An act that dies is followed by a clean-up; one of those that dies, by another, so many times.
_CLEANUPS = 3


def preload() -> None:
    """Load and work out what forks need: nothing is imported or compiled after the fork."""
    vzfs_server.preload()
    cgroups.hierarchies()
    for netfilter in (True, False):
        seccomp.program(netfilter=netfilter)
    # Their regular expressions are compiled at the first use: here once, not in every child.
    online_cpus()
    resources.cpu_mhz()


def run(orders: socket.socket, entrance: Entrance) -> NoReturn:
    """Be a supervisor in this fresh fork: get ready, take one order, obey it.

    It comes over ``orders``: a packed ``Order``; descriptors: the plan (``plan.pack``), where to
    report (see ``reports``), the standard ones of the caller. Nothing is done when nothing comes.
    ``orders`` closes when the start is over. No other descriptor of this process is kept.
    """
    log = None
    status = 1
    try:
        os.setsid()
        entrance.enter()
        wake = _settle(orders.fileno())
        standby = Standby.fork()
        # Whom the order asks for they have; one of them that dies takes the others with it.
        poller = select.poll()
        poller.register(orders, select.POLLIN)
        poller.register(wake, select.POLLIN)
        if [fd for fd, _event in poller.poll()] == [orders.fileno()]:
            order, fds, _flags, _address = socket.recv_fds(orders, LONGEST, FDS)
            if len(fds) == FDS:
                kept = standby.obey(order, fds)
                log = kept.log
                Supervisor(kept, standby.act, orders, wake).main()
        status = 0
    except BaseException:
        if log is not None:
            log.write(traceback.format_exc())
    finally:
        os._exit(status)


def _settle(orders: int) -> int:
    """Become independent of whoever this was forked from; return where signals are heard."""
    # A collection would visit, and so copy, every page shared with the parent.
    gc.freeze()
    syscalls.set_name("vz-standby")
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd, inheritable=True)
    # A command's lock and connections must not live on in here.
    if orders > 3:
        syscalls.close_range(3, orders - 1)
    syscalls.close_range(orders + 1)
    wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    return wake_r


def ignore_signals() -> None:
    """Let nothing but a kill end the supervisors forked from here on, or this one."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Supervisor:
    """One container's keeper."""

    def __init__(self, kept: Kept, told: socket.socket, orders: socket.socket, wake: int) -> None:
        """Keep what ``kept`` says, whose start is under way and tells over ``told``.

        ``orders`` is to be closed when that is over; ``wake`` becomes readable with each signal.
        """
        self.kept = kept
        self._orders = orders
        self._wake = wake
        self.consoles = Consoles()
        #: Its rules of NETFILTER's level go when this is closed, and its network namespace.
        self._rules_fd = -1
        self._over = False
        #: The act that is done now, and where it tells what to keep.
        self._act: Act | None = Act.START
        self._told = told
        self._listener: socket.socket
        self._cleanups = 0
        #: Children that ended before it was said what they are.
        self._ended: dict[int, int] = {}
        self._init_status: int | None = None
        self._files = FileServer(kept)
        #: Hears of processes killed for want of memory while process 1 runs.
        self._oom: oom.Watch | None = None
        #: Nobody serves the view, since nobody looks at it.
        self._view_rests = False
        self._reboots: list[float] = []

    # life

    def main(self) -> None:
        """Keep it from its start on, and clean up."""
        syscalls.set_name(f"vz-{self.kept.ctid}")
        # Not by MSG_DONTWAIT: recv_fds of Python 3.11 takes flags and passes none on.
        self._told.setblocking(False)
        self._loop()

    # acts

    def _begin(self, act: Act) -> None:
        """Fork the process that does ``act``, and a server of the view that waits for it."""
        kept = self.kept
        self._watch_no_kills()
        self._wake_files()
        if act is not Act.END and kept.run:
            kept.view, kept.view_channel = children.fork("procview", children.serve_view)
        self._told, theirs = children.channel()
        self._told.setblocking(False)
        self._ended.clear()
        with theirs:
            if syscalls.fork() == 0:
                self._told.close()
                acts.do(act, kept, theirs, self._init_status)
        self._act = act
        for channel in (kept.server_channel, kept.view_channel):
            if channel is not None:
                channel.close()
        kept.server_channel = kept.view_channel = None

    def _heed(self) -> None:
        """Keep what the act hands over, and go on when it ends."""
        kept = self.kept
        while self._act is not None:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._told, children.LONGEST, 4)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._act_died()
                return
            word, value = data[:1], data[1:]
            if word == acts.FILES:
                kept.fuse_fd, kept.options = fds[0], value
            elif word == acts.UNMOUNTED:
                self._files.drop()
            elif word == acts.VIEW:
                kept.view_fd, kept.source = fds[0], value
            elif word == acts.LISTENER:
                self._listener = socket.socket(fileno=fds[0])
            elif word == acts.PLAN:
                os.close(kept.plan_fd)
                kept.plan_fd = fds[0]
            elif word == acts.RULES:
                self._rules_fd = fds[0]
            elif word == acts.CONSOLES:
                self.consoles.replace(fds)
            elif word == acts.INIT:
                kept.init = int(value)
                self._init_status = self._ended.pop(kept.init, None)
            elif word == acts.OUTCOME:
                self._act_ended(Outcome(value.decode()))

    def _act_died(self) -> None:
        """Have another act clear what one that was killed half-way left."""
        act, self._act = self._act, None
        self._told.close()
        self._orders.close()
        self._cleanups += 1
        self.kept.log.write(f"the process of its {act} died", ctid=self.kept.ctid)
        if self._cleanups <= _CLEANUPS:
            self._begin(Act.END)
        else:
            self._over = True

    def _act_ended(self, outcome: Outcome) -> None:
        """Go on from where the act has led."""
        act, self._act = self._act, None
        self._told.close()
        kept = self.kept
        if not kept.follow:
            # A command that is waited for ends soon: the next start is not made ready meanwhile.
            self._orders.close()
        if act is Act.END:
            self._drop_view()
            if self._rules_fd >= 0:
                os.close(self._rules_fd)
                self._rules_fd = -1
            self.consoles.replace([])
            kept.init, self._init_status = 0, None
        if outcome is Outcome.GONE:
            self._over = True
        elif outcome is Outcome.AGAIN:
            self._begin(Act.AGAIN)
        else:
            kept.mounted = outcome is Outcome.MOUNTED
            if outcome is Outcome.RUNNING:
                self._oom = oom.Watch(kept.paths.tag, kept.ctid)
            if kept.mounted:
                kept.run = kept.stopping = kept.stay_mounted = False
            if act is Act.START:
                self._let_go()
            self._note_server()

    def _let_go(self) -> None:
        """Tell the command that it is done, and keep nothing of the command's."""
        kept = self.kept
        # Looked for last when the run state was written: from then on it is started.
        with suppress(CallerGone):
            Reporter(kept.report_fd).ready()
        if not kept.follow:
            os.close(kept.report_fd)
            kept.report_fd = -1

    def _end(self, status: int | None) -> None:
        """Take down what there is; here, where nothing is to be kept for afterwards."""
        kept = self.kept
        kept.may_reboot = status is not None and self._may_reboot(status)
        if kept.may_reboot or kept.stay_mounted:
            self._begin(Act.END)
        else:
            self._watch_no_kills()
            self._wake_files()
            acts.end(kept, status)
            self._over = True
            if kept.report_fd >= 0:
                # Nobody waits until this process is taken apart.
                os.close(kept.report_fd)
                kept.report_fd = -1
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

    # keeping

    def _loop(self) -> None:
        """Keep the container until it ended and shall not be restarted, or was released."""
        poller = select.poll()
        while not self._over:
            # Who asks during an act is answered when it is done.
            talk = self._told.fileno() if self._act else self._listener.fileno()
            watched = {self._wake, talk, *self.consoles.descriptors()}
            if self._view_rests:
                watched.add(self.kept.view_fd)
            if self._files.rests:
                watched.add(self.kept.fuse_fd)
            killed = self._oom.descriptors() if self._oom is not None else []
            watched.update(killed)
            for fd in watched:
                poller.register(fd, select.POLLIN)
            ready = poller.poll()
            for fd in watched:
                poller.unregister(fd)
            for fd, found in ready:
                if fd == self._wake:
                    with suppress(BlockingIOError):
                        os.read(fd, 4096)
                elif fd == talk and self._act:
                    self._heed()
                elif fd == talk:
                    self._answer()
                elif self._view_rests and fd == self.kept.view_fd:
                    self._wake_view(found)
                elif fd == self.kept.fuse_fd:
                    self._wake_files()
                elif fd in killed:
                    self._heed_kills()
                else:
                    self.consoles.handle(fd)
            self._reap()
            if self._init_status is not None and self._act is None and not self._over:
                self._end(self._init_status)

    def _answer(self) -> None:
        connection, _address = self._listener.accept()
        kept = self.kept
        try:
            request = control.read_request(connection)
            if request.get("op") == "stopping":
                kept.stopping = True
                kept.stay_mounted = request.get("umount") is False
                control.answer(connection, agreed=True)
            elif request.get("op") == "release":
                agreed = kept.mounted
                control.answer(connection, agreed=agreed)
                if agreed:
                    self._end(None)
            elif request.get("op") == "console":
                number = int(request.get("number", 0))
                master, tail = self.consoles.lend(number, connection)
                control.answer(connection, agreed=master >= 0, fd=master, more=tail)
                if master >= 0:
                    return
            else:
                control.answer(connection, agreed=False)
        except (OSError, ValueError) as error:
            kept.log.write(f"a request failed: {error}", ctid=kept.ctid, level=1)
        connection.close()

    def _reap(self) -> None:
        kept = self.kept
        # What an act told before it ended somebody comes first.
        self._heed()
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if kept.server is not None and pid == kept.server.pid:
                self._server_ended(os.waitstatus_to_exitcode(status))
            elif kept.view is not None and pid == kept.view.pid:
                self._view_ended(os.waitstatus_to_exitcode(status))
            elif pid == kept.init:
                self._init_status = os.waitstatus_to_exitcode(status)
            else:
                self._ended[pid] = os.waitstatus_to_exitcode(status)

    def _watch_no_kills(self) -> None:
        """Tell of the last kill, which may be why an act is due: the control groups go with it."""
        if self._oom is not None:
            self._heed_kills()
            self._oom.close()
            self._oom = None

    def _heed_kills(self) -> None:
        """Tell of processes which the kernel killed for want of memory."""
        found = self._oom.kills() if self._oom is not None else oom.Kills(0)
        if found.count:
            acts.tell_kills(self.kept, found)

    def _may_reboot(self, status: int) -> bool:
        if status != -signal.SIGHUP:
            return False
        now = time.monotonic()
        self._reboots = [then for then in self._reboots if now - then < _WITHIN_S] + [now]
        return len(self._reboots) <= _RESTARTS

    # servers

    def _server_ended(self, code: int) -> None:
        """Go on when the file server ended: it was unmounted, rests, or died."""
        kept = self.kept
        ended = self._files.ended(code)
        if ended is Ended.UNMOUNTED:
            # If not by an act then by hand.
            if kept.mounted and self._act is None:
                self._end(None)
        elif ended is Ended.HOPELESS:
            # Without a server everything inside would hang: end the connection, then the processes.
            self._files.drop()
            kept.stopping = True
            Cgroup(kept.paths.tag, kept.ctid).kill()
            if kept.mounted and self._act is None:
                self._begin(Act.END)
        if self._act is not None:
            # It takes the mount down, or counts on it.
            self._files.wake()
        self._note_server()

    def _wake_files(self) -> None:
        """Have the files served again if the server rests."""
        self._files.wake()
        self._note_server()

    def _note_server(self) -> None:
        """Have the run state say who serves the files, once no act writes it."""
        if self._files.replaced and self._act is None:
            self._files.note()

    def _view_ended(self, code: int) -> None:
        """Have the view served again: at once after a death, else when somebody looks."""
        kept = self.kept
        assert kept.view is not None
        os.close(kept.view.pidfd)
        kept.view = None
        if kept.view_fd < 0 or self._act is Act.END:
            return
        if code == 0:
            self._view_rests = True
            return
        kept.log.write("what serves /proc inside died and is started again", ctid=kept.ctid)
        self._serve_view()

    def _wake_view(self, found: int) -> None:
        """Somebody looks at a view that nobody serves, or it was unmounted (POLLERR)."""
        self._view_rests = False
        if found & select.POLLIN:
            self._serve_view()

    def _serve_view(self) -> None:
        kept = self.kept
        kept.view, channel = children.fork("procview", children.serve_view)
        with channel:
            kept.give(channel, kept.source, [kept.view_fd])

    def _drop_view(self) -> None:
        kept = self.kept
        if kept.view_fd >= 0:
            os.close(kept.view_fd)
            kept.view_fd = -1
            self._view_rests = False
        if kept.view is not None:
            os.close(kept.view.pidfd)
            kept.view = None
