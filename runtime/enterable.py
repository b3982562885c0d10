"""A container that runs: what can be done inside it, and what is known of it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from runtime import control, mounts, privatearea
from runtime import exec as exec_module
from runtime import status as status_module
from runtime.cgroups import Cgroup
from runtime.errors import EnvironmentFailed, InvalidOption, SystemFailure
from runtime.exec import Command
from runtime.progress import Progress, Silent
from runtime.state import RunState
from runtime.status import Status

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.paths import Paths
    from runtime.registry import Record

_SHELLS = ("/bin/bash", "/bin/sh")


class Enterable:
    """A container, as long as nobody changes whether it runs."""

    def __init__(
        self, paths: Paths, record: Record, config: Config, *, progress: Progress | None = None
    ) -> None:
        """Stand for the container of ``record`` with its effective ``config``; nothing is done.

        Raises PrivateUnset, RootUnset.
        """
        self.paths = paths
        self.record = record
        self.config = config
        self.progress: Progress = progress or Silent()
        self.private = privatearea.location(paths, config)
        self.target = privatearea.mount_point(paths, config)

    @property
    def ctid(self) -> int:
        """The container's id."""
        return self.record.ctid

    @property
    def cgroup(self) -> Cgroup:
        """Its control groups."""
        return Cgroup(self.paths.tag, self.ctid)

    # what it is

    def status(self) -> Status:
        """Return whether it exists, is mounted, runs, is suspended."""
        return status_module.status(self.paths, self.ctid, self.private)

    def run_state(self) -> RunState:
        """Return the state of the running container; raises NotRunning."""
        return exec_module.running(self.paths, self.ctid)

    @property
    def init_pid(self) -> int:
        """The host's id of its process 1; raises NotRunning."""
        run = self.run_state()
        assert run.init is not None
        return run.init.pid

    def pids(self) -> list[int]:
        """Return the host's ids of its processes."""
        return self.cgroup.pids()

    def exec(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
    ) -> int:
        """Run ``argv`` inside on the caller's descriptors 0, 1, 2; return its status.

        127: not found, 126: not executable, 128+N: ended by signal N. Signals this process gets
        are passed on. Raises NotRunning, InvalidOption (user, directory), SystemFailure.
        """
        variables = dict(environment or {})
        if os.isatty(0) and "TERM" in os.environ:
            variables.setdefault("TERM", os.environ["TERM"])
        command = Command(tuple(argv), variables, user, cwd)
        return self._run_command(command)

    def _run_command(self, command: Command) -> int:
        with exec_module.held_signals():
            try:
                started = self._spawn(command)
            except exec_module.Failed as error:
                print(error, file=sys.stderr)
                return error.status
            return exec_module.wait(started)

    def _spawn(self, command: Command) -> exec_module.Started:
        return exec_module.spawn(self.paths, self.ctid, command)

    def output(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> bytes:
        """Run ``argv`` inside and return what it writes on its standard output.

        Its input is ``stdin``, its errors go nowhere. Raises exec.Failed when it cannot be
        executed, NotRunning, SystemFailure; what takes longer than ``timeout_s`` is killed.
        """
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        source = os.memfd_create("stdin", os.MFD_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
        try:
            command = Command(tuple(argv), stdio=(source, out_w, null))
            started = self._spawn(command)
        except BaseException:
            os.close(out_r)
            raise
        finally:
            for fd in (out_w, source, null):
                os.close(fd)
        data = bytearray()
        deadline = time.monotonic() + timeout_s
        with mounts.closing(out_r):
            poller = select.poll()
            poller.register(out_r, select.POLLIN)
            while poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                piece = os.read(out_r, 65536)
                if not piece:
                    break
                data += piece
            else:
                with suppress(ProcessLookupError):
                    os.killpg(started.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(started.pid, 0)
        return bytes(data)

    def enter(self, argv: Sequence[str] | None = None) -> int:
        """Open a login shell (or ``argv``) on a terminal of the container's own; return its status.

        The caller's terminal is relayed to it. A caller whose input is none has the shell read that
        input as it is, to its end. Raises NotRunning, SystemFailure.
        """
        from runtime import console

        terminal = os.isatty(0)
        variables = {"TERM": os.environ.get("TERM", "linux")} if terminal else {}
        size = console.current_size(0)
        candidates = [tuple(argv)] if argv else [(shell, "-l") for shell in _SHELLS]
        failure: exec_module.Failed | None = None
        for words in candidates:
            command = Command(words, variables, terminal=terminal, size=size)
            try:
                started = self._spawn(command)
                break
            except exec_module.Failed as error:
                failure = error
        else:
            assert failure is not None
            print(failure, file=sys.stderr)
            return failure.status
        if not terminal:
            return exec_module.wait(started)
        relay = console.Relay(started.master)
        try:
            # Keys make signals inside; those sent to this process are passed on as they are.
            return exec_module.wait(started, before=relay.run)
        finally:
            os.close(started.master)

    def console(self, number: int = 2) -> int:
        """Attach the caller's terminal to console ``number`` until Esc . is typed; return 0.

        Raises NotRunning, InvalidOption when there is no such console or somebody has it.
        """
        from runtime import console

        self.run_state()
        try:
            taken = control.take_console(self.paths, self.ctid, number)
        except OSError as error:
            raise SystemFailure(f"the supervisor does not answer: {error.strerror}") from error
        if taken is None:
            raise InvalidOption(
                f"console {number} is in use or does not exist", hint="there are consoles 1 and 2"
            )
        connection, master, tail = taken
        with connection, mounts.closing(master):
            os.set_blocking(master, True)
            console.say("Attached; Esc . leaves.")
            os.write(1, tail)
            console.Relay(master, leave_with_escape=True).run()
        console.say("")
        return 0

    def run_text(self, text: bytes, environment: Mapping[str, str] | None = None) -> int:
        """Run a script's ``text`` in the running container; return its status."""
        fd = os.memfd_create("script", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with mounts.closing(fd):
            os.write(fd, text)
            os.fchmod(fd, 0o555)
            words: tuple[str, ...] = (f"/proc/self/fd/{exec_module.SCRIPT_FD}",)
            if not text.startswith(b"#!"):
                words = ("/bin/sh", *words)
            return self._run_command(Command(words, dict(environment or {}), script_fd=fd))

    def set_hostname(self, hostname: str) -> None:
        """Set the host name of the running container, in the kernel and in /etc/hostname."""
        script = b'hostname "$1" && if [ -d /etc ]; then printf "%s\\n" "$1" >/etc/hostname; fi\n'
        try:
            self.output(["/bin/sh", "-c", script.decode(), "sh", hostname])
        except exec_module.Failed as error:
            raise EnvironmentFailed(f"the host name cannot be set: {error}") from error
