"""The two ways to end a machine: its power button, and at once."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from runtime.errors import StopFailed
from vmm.faults import translated

if TYPE_CHECKING:
    import libvirt

    from vmm.machine import Machine

_POLL_S = 0.05
#: A guest that is still booting ignores the power button: it is pressed again this often.
_PRESS_AGAIN_S = 5.0


def destroy(machine: Machine, raw: libvirt.virDomain) -> None:
    """End it at once; that it ended by itself is success. Raises StopFailed."""
    import libvirt

    try:
        raw.destroyFlags(0)
    except libvirt.libvirtError:
        # It may have ended by itself in between.
        if raw.isActive():
            with translated(f"machine {machine.label}", instead=StopFailed):
                raw.destroyFlags(0)


def press_button(machine: Machine, raw: libvirt.virDomain, timeout_s: float) -> None:
    """Press its power button until it ends; raises StopFailed after ``timeout_s``."""
    import libvirt

    deadline = time.monotonic() + timeout_s
    pressed_s = float("-inf")
    while raw.isActive():
        now = time.monotonic()
        if now > deadline:
            raise StopFailed(
                f"machine {machine.label} did not stop within {timeout_s:.0f} seconds",
                hint=f"pctl stop {machine.label} --kill",
            )
        if now - pressed_s > _PRESS_AGAIN_S:
            # A guest without power management may still have an agent.
            again = pressed_s > 0
            pressed_s = now
            # The machine may end between our question and the button.
            with suppress(libvirt.libvirtError):
                raw.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
            if again:
                with suppress(libvirt.libvirtError):
                    raw.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        time.sleep(_POLL_S)
