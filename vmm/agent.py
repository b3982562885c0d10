"""The QEMU guest agent inside a machine (qemu-ga-ref(7)): commands, files, passwords, addresses."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import ExecTimeout, PasswordFailed, SystemFailure
from vmm.faults import AgentSilent, translated

if TYPE_CHECKING:
    import libvirt

_ANSWER_S = 5
_CHUNK = 1 << 18
_LONGEST_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Result:
    """How a command inside ended; ``status`` is 128+N when signal N killed it."""

    status: int
    stdout: bytes
    stderr: bytes


class Agent:
    """The agent of one running machine."""

    def __init__(self, domain: libvirt.virDomain, label: str) -> None:
        """Talk to the agent of ``domain``, called ``label`` in messages."""
        self._domain = domain
        self._label = label

    def call(self, command: str, *, timeout_s: int = _ANSWER_S, **arguments: Any) -> Any:
        """Return the agent's answer; raises AgentSilent, SystemFailure."""
        import libvirt_qemu

        query: dict[str, Any] = {"execute": command}
        if arguments:
            query["arguments"] = {key.replace("_", "-"): v for key, v in arguments.items()}
        with translated(f"machine {self._label}, {command}"):
            answer = libvirt_qemu.qemuAgentCommand(self._domain, json.dumps(query), timeout_s, 0)
        return json.loads(answer)["return"]

    def answers(self) -> bool:
        """Whether the agent answers within a second."""
        try:
            self.call("guest-ping", timeout_s=1)
        except AgentSilent:
            return False
        return True

    def wait(self, timeout_s: float) -> None:
        """Wait until the agent answers; raises AgentSilent after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not self.answers():
            if time.monotonic() > deadline:
                raise AgentSilent(
                    f"machine {self._label}: the guest agent does not answer "
                    f"(waited {timeout_s:.0f} s)",
                    hint="install and start qemu-guest-agent in the guest, or wait until it has booted",
                )
            time.sleep(0.05)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        environment: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Result:
        """Run a program inside and return all it wrote (up to some megabytes).

        Raises AgentSilent, ExecTimeout, SystemFailure.
        """
        arguments: dict[str, Any] = {
            "path": argv[0], "arg": list(argv[1:]), "capture_output": True,
        }  # fmt: skip
        if environment:
            arguments["env"] = list(environment)
        if stdin is not None:
            arguments["input_data"] = base64.b64encode(stdin).decode("ascii")
        pid = self.call("guest-exec", **arguments)["pid"]
        return self._collect(pid, timeout_s, lambda: None)

    def stream(
        self,
        script: str,
        *,
        stdin: bytes | None,
        out: Callable[[bytes], None],
        err: Callable[[bytes], None],
        timeout_s: float | None = None,
    ) -> int:
        """Run a shell command inside and pass on its output while it runs; return its status.

        The agent itself only returns output at the end and only some megabytes of it, so the
        command writes to files of the guest, which are read while they grow and then removed.
        Raises AgentSilent, ExecTimeout.
        """
        made = self.run(["/bin/sh", "-c", 'umask 77; mktemp -d "${TMPDIR:-/tmp}/vzexec.XXXXXX"'])
        if made.status != 0:
            raise SystemFailure(
                f"machine {self._label} has no room for a command's output: "
                f"{made.stderr.decode('utf-8', 'replace').strip()}"
            )
        place = made.stdout.decode().strip()
        handles: list[int] = []
        try:
            self.run(["/bin/sh", "-c", ': >"$0/1"; : >"$0/2"', place])
            handles = [self.call("guest-file-open", path=f"{place}/{n}", mode="r") for n in "12"]
            wrapper = 'exec /bin/sh -c "$1" >"$0/1" 2>"$0/2"'
            arguments: dict[str, Any] = {
                "path": "/bin/sh", "arg": ["-c", wrapper, place, script], "capture_output": False,
            }  # fmt: skip
            if stdin is not None:
                arguments["input_data"] = base64.b64encode(stdin).decode("ascii")
            pid = self.call("guest-exec", **arguments)["pid"]

            def pump() -> None:
                for handle, sink in zip(handles, (out, err), strict=True):
                    self._drain(handle, sink)

            return self._collect(pid, timeout_s, pump).status
        finally:
            for handle in handles:
                self.call("guest-file-close", handle=handle)
            self.run(["/bin/rm", "-rf", place])

    def _drain(self, handle: int, sink: Callable[[bytes], None]) -> None:
        while True:
            part = self.call("guest-file-read", handle=handle, count=_CHUNK)
            if part["count"]:
                sink(base64.b64decode(part["buf-b64"]))
            if part["count"] < _CHUNK:
                return

    def _collect(self, pid: int, timeout_s: float | None, pump: Callable[[], None]) -> Result:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.01
        while True:
            answer = self.call("guest-exec-status", pid=pid)
            pump()
            if answer["exited"]:
                status = answer.get("exitcode", 128 + answer.get("signal", 0))
                out = base64.b64decode(answer.get("out-data", ""))
                return Result(status, out, base64.b64decode(answer.get("err-data", "")))
            if deadline is not None and time.monotonic() > deadline:
                raise ExecTimeout(f"the command in machine {self._label} runs on")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def set_password(self, user: str, password: str, *, crypted: bool = False) -> None:
        """Set a user's password; raises PasswordFailed, AgentSilent."""
        encoded = base64.b64encode(password.encode()).decode("ascii")
        try:
            self.call("guest-set-user-password", username=user, password=encoded, crypted=crypted)
        except AgentSilent:
            raise
        except SystemFailure as error:
            raise PasswordFailed(f"cannot set the password of {user}: {error.message}") from error

    def interfaces(self) -> list[dict[str, Any]]:
        """Return the guest's network interfaces with their addresses."""
        found: list[dict[str, Any]] = self.call("guest-network-get-interfaces")
        return found
