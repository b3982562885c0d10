"""A change of a machine: all of it is checked and accepted by libvirt, or nothing is changed.

The description for the next start is edited first and judged by libvirt; then the running machine
is changed where that is possible. If a step on the running machine fails, the old description is
put back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from vmm import devices
from vmm.agent import Agent
from vmm.domain import Domain, Element, text
from vmm.faults import translated
from vmm.status import State

if TYPE_CHECKING:
    import libvirt

    from vmm.machine import Machine


class Change:
    """What one command changes."""

    def __init__(self, machine: Machine, *, crypted: bool = False) -> None:
        """Begin a change of ``machine``; ``crypted``: passwords are hashes. Raises VzError."""
        self.machine = machine
        self.crypted = crypted
        self.domain: Domain = machine.current().copy()
        self.state = machine.state()
        self._before = machine.current().copy()
        self._hot: list[tuple[str, Callable[[], None], Callable[[], None] | None]] = []
        self._undo: list[Callable[[], None]] = []
        self._last: list[Callable[[], None]] = []
        self._later: list[str] = []
        self._judges: list[Callable[[Change], None]] = []
        self._said: list[str] = []

    @property
    def running(self) -> bool:
        """Whether the machine runs, so that its hardware can be changed live."""
        return self.state in (State.RUNNING, State.PAUSED)

    @property
    def raw(self) -> libvirt.virDomain:
        """libvirt's domain."""
        return self.machine.raw()

    @property
    def agent(self) -> Agent:
        """The agent inside; raises NotRunning."""
        return self.machine.agent()

    def hot(
        self, what: str, action: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> None:
        """Do ``action`` on the running machine once the description is accepted.

        ``undo`` takes it back if a later step fails.
        """
        if self.running:
            self._hot.append((what, action, undo))

    def inside(self, what: str, action: Callable[[Agent], None]) -> None:
        """Do ``action`` by the guest agent, or refuse at once: raises NotRunning."""
        agent = self.machine.agent()
        self._hot.append((what, lambda: action(agent), None))

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do ``action`` last, whether the machine runs or not, if everything before went well."""
        self._last.append(action)

    def check(self, judge: Callable[[Change], None]) -> None:
        """Let ``judge`` look at the description, once, when all settings are in it."""
        if judge not in self._judges:
            self._judges.append(judge)

    def later(self, what: str) -> None:
        """Note that ``what`` holds from the next start on."""
        if self.state is not State.STOPPED and what not in self._later:
            self._later.append(what)

    def has_tap(self, name: str) -> bool:
        """Whether the machine had the tap ``name`` before this change."""
        return any(adapter.host_device == name for adapter in devices.adapters(self._before))

    def say(self, message: str) -> None:
        """Say ``message`` if everything goes well."""
        self._said.append(message)

    def on_failure(self, action: Callable[[], None]) -> None:
        """Do ``action`` if the change fails: removes what was made for it."""
        self._undo.append(action)

    def attach(self, element: Element) -> None:
        """Plug a device into the running machine."""
        import libvirt

        live = libvirt.VIR_DOMAIN_AFFECT_LIVE
        self.hot(
            "plug in",
            lambda: self.raw.attachDeviceFlags(text(element), live),
            lambda: self.raw.detachDeviceFlags(text(element), live),
        )

    def update(self, element: Element) -> None:
        """Change a device of the running machine."""
        import libvirt

        self.hot(
            "change",
            lambda: self.raw.updateDeviceFlags(text(element), libvirt.VIR_DOMAIN_AFFECT_LIVE),
        )

    def apply(self) -> None:
        """Do it; raises VzError, and the old description holds again then."""
        try:
            for judge in self._judges:
                judge(self)
            self.machine.commit(self.domain)
            try:
                self._change_running()
            except BaseException:
                self.machine.commit(self._before)
                raise
        except BaseException:
            self.give_up()
            raise
        for last in self._last:
            last()
        for message in self._said:
            self.machine.progress.say(message)
        if self._later:
            names = ", ".join(self._later)
            self.machine.progress.warn(f"{names}: holds after the machine's next start")

    def _change_running(self) -> None:
        import libvirt

        done: list[Callable[[], None]] = []
        try:
            for what, action, undo in self._hot:
                with translated(f"machine {self.machine.label}, {what}"):
                    action()
                if undo is not None:
                    done.append(undo)
        except BaseException:
            for undo in reversed(done):
                # The first failure is what is told; the machine may be gone altogether.
                with suppress(libvirt.libvirtError):
                    undo()
            raise

    def give_up(self) -> None:
        """Remove what was made for a change that is not done."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
