"""A virtual machine: its life, with the verbs a container has.

The bundle directory holds the description (config.xml), the disks and a suspended state. While
libvirt knows the machine its inactive description is the truth and the bundle a copy, refreshed
after every change; when libvirt lost it (a reboot empties our libvirtd's directories) it is defined
again from the bundle.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import files, journal
from runtime.errors import (
    AlreadyRunning,
    CheckpointFailed,
    DevicesFailed,
    Mounted,
    NotRunning,
    RestoreFailed,
    StartDisabled,
    StopFailed,
    ValidationFailed,
)
from runtime.paths import Paths
from runtime.progress import Progress
from vmm import (
    acceleration,
    account,
    blueprint,
    devices,
    images,
    networks,
    poweroff,
    registry,
    snapshots,
    status,
    undo,
    upkeep,
)
from vmm.agent import Agent
from vmm.connection import Hypervisor
from vmm.domain import Domain
from vmm.faults import translate, translated
from vmm.registry import MachineRecord
from vmm.status import SAVED, State

if TYPE_CHECKING:
    import libvirt

STOP_S = 120.0
_AGENT_S = 2.0


class Machine:
    """One virtual machine."""

    def __init__(
        self, paths: Paths, record: MachineRecord, hypervisor: Hypervisor, progress: Progress
    ) -> None:
        """Represent the machine of ``record``."""
        self.paths = paths
        self.record = record
        self.hypervisor = hypervisor
        self.progress = progress
        self._domain: Domain | None = None

    @property
    def label(self) -> str:
        """What people call it."""
        return self.record.name

    # the description
    def read_domain(self) -> Domain:
        """Return the description which holds for the next start; raises BadConfig."""
        if self._domain is None:
            self._domain = Domain.load(self.record.config)
        return self._domain

    def raw(self) -> libvirt.virDomain:
        """Return libvirt's domain, defined again if libvirt lost it; raises VzError."""
        found = self.hypervisor.find(self.record.uuid)
        if found is None:
            found = self._define(Domain.load(self.record.config))
            snapshots.redefine(self.record, found)
        return found

    def current(self) -> Domain:
        """Return the description as libvirt has it now, for changing; raises VzError."""
        import libvirt

        raw = self.raw()
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        with translated(f"reading machine {self.label}"):
            self._domain = Domain.parse(raw.XMLDesc(flags), f"libvirt's record of {self.label}")
        return self._domain

    def live(self) -> Domain:
        """Return the description of the running machine; raises VzError."""
        with translated(f"reading machine {self.label}"):
            return Domain.parse(self.raw().XMLDesc(0), f"libvirt's record of {self.label}")

    def commit(self, domain: Domain) -> libvirt.virDomain:
        """Make ``domain`` the description for the next start: in libvirt, then in the bundle.

        libvirt judges it first, so that a bad one changes nothing. Raises ValidationFailed.
        """
        networks.fit(domain)
        raw = self._define(domain)
        self.save()
        return raw

    def save(self) -> None:
        """Copy the description libvirt has into the bundle, durably."""
        files.replace(self.record.config, self.current().xml.encode(), mode=0o600)

    def _define(self, domain: Domain) -> libvirt.virDomain:
        import libvirt

        with translated(f"machine {domain.name}", instead=ValidationFailed):
            return self.hypervisor.raw.defineXMLFlags(
                domain.xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE
            )

    # its state
    def state(self) -> State:
        """Return its state now, as libvirt knows it; raises VzError."""
        import libvirt

        raw = self.raw()
        with translated(f"machine {self.label}"):
            number, reason = raw.state()
        word = {
            libvirt.VIR_DOMAIN_RUNNING: "running",
            libvirt.VIR_DOMAIN_BLOCKED: "blocked",
            libvirt.VIR_DOMAIN_PAUSED: "paused",
            libvirt.VIR_DOMAIN_SHUTDOWN: "shutdown",
            libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
            libvirt.VIR_DOMAIN_CRASHED: "crashed",
            libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
        }.get(number, "")
        found = status.WORDS.get(word, State.UNKNOWN)
        if found is State.PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_CRASHED:
            return State.CRASHED
        if found is State.STOPPED and status.saved(self.record):
            return State.SUSPENDED
        return found

    def running(self) -> libvirt.virDomain:
        """Return libvirt's domain of a machine that runs; raises NotRunning."""
        found = self.state()
        if found is not State.RUNNING:
            raise NotRunning(
                f"machine {self.label} is not running (it is {found})",
                hint=f"pctl start {self.label}",
            )
        return self.raw()

    def stopped(self, doing: str) -> libvirt.virDomain:
        """Return libvirt's domain of a machine that does not run; raises AlreadyRunning."""
        found = self.state()
        if found is not State.STOPPED:
            raise AlreadyRunning(
                f"cannot {doing} machine {self.label}: it is {found}",
                hint=f"pctl stop {self.label}",
            )
        return self.raw()

    @property
    def is_template(self) -> bool:
        """Whether it only serves to make others."""
        return self.read_domain().setting("template") == "yes"

    def agent(self) -> Agent:
        """Return the agent of a running machine; raises NotRunning, AgentSilent.

        A libvirtd that has just started (or a machine just resumed) needs a moment to reach it.
        """
        agent = Agent(self.running(), self.label)
        agent.wait(_AGENT_S)
        return agent

    def wait_for_agent(self, timeout_s: float) -> None:
        """Wait until the agent answers; raises NotRunning, AgentSilent."""
        Agent(self.running(), self.label).wait(timeout_s)

    def configure_guest(self, timeout_s: float) -> None:
        """Wait for the agent, then set inside what is stored; raises NotRunning, AgentSilent."""
        from vmm import guestsettings, guesttools

        self.wait_for_agent(timeout_s)
        domain = self.read_domain()
        guestsettings.set_all(self.agent(), domain)
        if guesttools.wants_update(domain):
            guesttools.update(self)

    # the verbs
    def start(self) -> None:
        """Start it, or let it go on if it is paused or suspended.

        Raises AlreadyRunning, StartDisabled (a template), DevicesFailed (an image is missing).
        """
        found = self.state()
        if found is State.PAUSED:
            self.resume()
            return
        if found.active:
            raise AlreadyRunning(f"machine {self.label} is already {found}")
        if self.is_template:
            raise StartDisabled(
                f"{self.label} is a template and cannot be started",
                hint=f"pctl clone {self.label} --name NEW",
            )
        if found is State.SUSPENDED:
            self.resume()
            return
        self._check_unmounted("start")
        self.progress.say("Starting the VM...")
        raw = self._prepare()
        with self._network():
            with translated(f"cannot start machine {self.label}"):
                raw.createWithFlags(0)
        self._connect_usb()
        self.progress.say("The VM has been successfully started.")

    def _connect_usb(self) -> None:
        """Give it the USB devices that are its own, now and as they appear."""
        from vmm import usb

        if usb.assigned(self.read_domain()):
            usb.plug_in(self)
            usb.watch(self.paths)

    def _prepare(self) -> libvirt.virDomain:
        """Bring the description in line with this server; raises DevicesFailed."""
        domain = self.current().copy()
        self.check_dependents("start")
        for device in devices.all_of(domain):
            if isinstance(device, devices.Disk) and device.image:
                _check_image(self.label, device)
        kind = self.hypervisor.acceleration
        acceleration.warn_once(self.paths, self.progress, kind)
        changed = undo.begin(self, domain)
        if domain.root.get("type") in ("kvm", "qemu"):
            changed |= blueprint.set_acceleration(domain, kind)
        account.hand_over(self, domain)
        return self.commit(domain) if changed else self.raw()

    @contextmanager
    def _network(self) -> Iterator[None]:
        """Have the machine's taps in place; they are removed again if the start fails."""
        networks.attach(self.paths, list(networks.wanted(self.read_domain())))
        try:
            yield
        except BaseException:
            networks.detach(self.paths, self.record.uuid)
            raise

    def repair_disks(self) -> None:
        """Check the images of a stopped machine's disks and repair them; raises ImageBroken."""
        self.stopped("repair the disks of")
        for disk in devices.disks(self.current()):
            if disk.image and disk.format == "qcow2":
                images.repair(Path(disk.image))
                self.progress.say(f"The image of {disk.name} is in order.")

    def stop(self, *, fast: bool = False, timeout_s: float = STOP_S) -> None:
        """Stop it by its power button, or at once with ``fast``.

        Raises NotRunning, StopFailed when the guest does not react.
        """
        found = self.state()
        if found is State.SUSPENDED and fast:
            self._forget_suspended()
            self.progress.say("The suspended state has been dropped.")
            undo.ended(self)
            return
        if not found.active:
            raise NotRunning(f"machine {self.label} is not running (it is {found})")
        self.progress.say("Stopping the VM...")
        raw = self.raw()
        if fast or found is State.CRASHED:
            poweroff.destroy(self, raw)
        elif found is State.PAUSED:
            raise StopFailed(
                f"machine {self.label} is paused and cannot react",
                hint="pctl resume it first, or pctl stop --kill",
            )
        else:
            poweroff.press_button(self, raw, timeout_s)
        networks.detach(self.paths, self.record.uuid)
        self.progress.say("The VM has been successfully stopped.")
        undo.ended(self)

    def restart(self, *, fast: bool = False, timeout_s: float = STOP_S) -> None:
        """Stop it if it runs, as ``stop`` does, then start it."""
        if self.state().active:
            self.stop(fast=fast, timeout_s=timeout_s)
        self.start()

    def reset(self) -> None:
        """Press the reset button; raises NotRunning."""
        raw = self.running()
        with translated(f"cannot reset machine {self.label}"):
            raw.reset(0)
        self.progress.say("The VM has been successfully reset.")

    def pause(self) -> None:
        """Stop its processors, all state stays in memory; raises NotRunning."""
        raw = self.running()
        with translated(f"cannot pause machine {self.label}"):
            raw.suspend()
        self.progress.say("The VM has been successfully paused.")

    def suspend(self) -> None:
        """Save its memory in the bundle and stop it; raises NotRunning, CheckpointFailed."""
        found = self.state()
        if found not in (State.RUNNING, State.PAUSED):
            raise NotRunning(f"machine {self.label} is not running (it is {found})")
        self.progress.say("Suspending the VM...")
        target = self.record.home / SAVED
        target.unlink(missing_ok=True)
        try:
            with translated(f"cannot suspend machine {self.label}", instead=CheckpointFailed):
                self.raw().saveFlags(os.fspath(target), None, 0)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        files.fsync_directory(self.record.home)
        networks.detach(self.paths, self.record.uuid)
        self.progress.say("The VM has been successfully suspended.")

    def resume(self) -> None:
        """Let a paused or suspended machine go on; raises NotRunning, RestoreFailed."""
        found = self.state()
        if found is State.PAUSED:
            self._go_on()
        elif found is State.SUSPENDED:
            self.progress.say("Resuming the VM...")
            self._restore()
            self._connect_usb()
        else:
            raise NotRunning(
                f"machine {self.label} is neither paused nor suspended (it is {found})"
            )
        self.progress.say("The VM has been successfully resumed.")

    def _go_on(self) -> None:
        import libvirt

        try:
            self.raw().resume()
        except libvirt.libvirtError as error:
            # A libvirtd that was killed while saving lets the machine go on when it comes back.
            if self.state() is not State.RUNNING:
                raise translate(
                    error, f"cannot resume machine {self.label}", RestoreFailed
                ) from error

    def _restore(self) -> None:
        path = self.record.home / SAVED
        with self._network():
            with translated(f"cannot resume machine {self.label}", instead=RestoreFailed):
                self.hypervisor.raw.restoreFlags(os.fspath(path), None, 0)
        self._forget_suspended()

    def _forget_suspended(self) -> None:
        files.remove(self.record.home / SAVED)

    def delete(self) -> None:
        """Remove the machine with its bundle; raises Mounted when it runs, DevicesFailed."""
        found = self.state()
        if found.active:
            raise Mounted(
                f"machine {self.record.braced} is in the state '{found}' and cannot be deleted",
                hint=f"pctl stop {self.label}",
            )
        self.check_dependents("delete")
        self._check_unmounted("delete")
        self.progress.say("Deleting the VM...")
        # Begun, it is finished by the next command even if this one is killed.
        entry = journal.record(self.paths, self.record.uuid, "delete", home=str(self.record.home))
        upkeep.finish_delete(self.paths, self.record, self.hypervisor)
        entry.clear()
        self.progress.say("The VM has been successfully deleted.")

    def check_dependents(self, doing: str) -> None:
        """Refuse what would change disks that others are based on; raises DevicesFailed."""
        from vmm.cloning import dependents

        users = dependents(self.paths, self.record)
        if users:
            raise DevicesFailed(
                f"cannot {doing} {self.label}: linked clones share disks of {self.label}: "
                f"{', '.join(users)}",
                hint="make their disks independent (prl_disk_tool merge --hdd FILE), or delete them",
            )

    def _check_unmounted(self, doing: str) -> None:
        from vmm.hostmount import check_unmounted

        check_unmounted(self, doing)

    def unregister(self) -> None:
        """Forget the machine but leave its bundle; raises Mounted."""
        if self.state().active:
            raise Mounted(f"machine {self.label} runs", hint=f"pctl stop {self.label}")
        self.save()
        upkeep.undefine(self.raw())
        registry.remove(self.paths, self.record.uuid)
        self.progress.say("The VM has been successfully unregistered.")


def _check_image(label: str, disk: devices.Disk) -> None:
    path = Path(disk.image)
    if not path.exists():
        raise DevicesFailed(
            f"machine {label}: the image of {disk.name} is missing: {path}",
            hint=f"pctl set {label} --device-set {disk.name} --image FILE, or --device-del",
        )
