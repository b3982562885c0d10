"""What ``pctl list`` knows of a machine: read from its bundle and libvirt's state files alone.

No libvirt is asked, so a dead one spoils no line. The description is only parsed when a column
needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from tools._listing import Value

if TYPE_CHECKING:
    from tools._command import Context
    from vmm.domain import Domain
    from vmm.registry import MachineRecord
    from vmm.status import State


class MachineEntry:
    """One machine in a list."""

    def __init__(self, context: Context, record: MachineRecord) -> None:
        """Describe the machine of ``record``."""
        self.context = context
        self.record = record

    @functools.cached_property
    def _process(self) -> tuple[State, int | None]:
        from vmm import status

        return status.process(self.context.paths, self.record)

    @property
    def state(self) -> State:
        """Its state now."""
        return self._process[0]

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.state.value == "running"

    @property
    def label(self) -> str:
        """What people call it."""
        return self.record.name

    @functools.cached_property
    def domain(self) -> Domain | None:
        """Its description; None when it cannot be read."""
        from runtime.errors import BadConfig
        from vmm.domain import Domain

        try:
            return Domain.load(self.record.config)
        except BadConfig as error:
            self.context.progress(self.record.name).warn(error.message)
            return None

    @property
    def is_template(self) -> bool:
        """Whether it only serves to make others; needs no parser."""
        try:
            text = self.record.config.read_bytes()
        except OSError:
            return False
        return b'name="template">yes<' in text or b"name='template'>yes<" in text

    def setting(self, name: str) -> Value:
        """Return a setting of the product's."""
        return (self.domain.setting(name) or None) if self.domain is not None else None

    def value(self, field: str) -> Value:
        """Return the value of a field of ``pctl list``; None where machines have none."""
        found = _FIELDS.get(field)
        return found(self) if found is not None else None

    def uptime_s(self) -> Value:
        """Return since how many seconds it runs."""
        from vmm import status, uptime

        pid = self._process[1]
        if pid is None or self.domain is None:
            return status.uptime_s(pid) if pid is not None else None
        return uptime.seconds(self.domain, pid)

    def adapters(self, part: str) -> Value:
        """Return one property of every adapter."""
        from vmm import devices

        if self.domain is None:
            return None
        return [str(getattr(adapter, part)) for adapter in devices.adapters(self.domain)] or None

    def addresses(self) -> Value:
        """Return the configured addresses, without their prefixes."""
        from vmm import devices

        if self.domain is None:
            return None
        words = []
        for adapter in devices.adapters(self.domain):
            words += self.domain.setting(f"{adapter.name}.ips").split()
        return [word.partition("/")[0] for word in words] or None

    def flags(self) -> Value:
        """Return what is special about how it runs."""
        from vmm import firmware, undo

        if self.domain is None:
            return None
        words = {
            "template": self.is_template,
            "kvm": self.domain.root.get("type") == "kvm",
            "efi": firmware.is_efi(self.domain),
            "undo": undo.mode(self.domain) != "off",
        }
        return [word for word, holds in words.items() if holds] or None

    def page(self) -> tuple[dict[str, object], list[str]]:
        """Return everything known of a machine that can be read, as facts and as text."""
        from vmm import devices, hardware, info

        assert self.domain is not None
        paths = self.context.paths
        found = info.facts(paths, self.record, self.domain, self.state)
        shown = [hardware.describe(paths, self.domain, d) for d in devices.all_of(self.domain)]
        return found, info.lines(found, shown)


_FIELDS: dict[str, Callable[[MachineEntry], Value]] = {
    "uuid": lambda e: e.record.braced,
    "home": lambda e: str(e.record.home),
    "location": lambda e: str(e.record.home),
    "type": lambda e: "VM",
    "name": lambda e: e.record.name,
    "status": lambda e: e.state.value,
    "dist": lambda e: e.setting("distribution"),
    "owner": lambda e: e.setting("host-admin") or "root",
    "system-flags": lambda e: e.flags(),
    "description": lambda e: (e.domain.description or None) if e.domain is not None else None,
    "ip": lambda e: e.addresses(),
    "ip_configured": lambda e: e.addresses(),
    "hostname": lambda e: e.setting("hostname"),
    "netif": lambda e: e.adapters("name"),
    "mac": lambda e: e.adapters("mac"),
    "iolimit": lambda e: int(str(e.setting("iolimit") or 0)),
    "uptime": lambda e: e.uptime_s(),
}


def machine_entries(context: Context) -> list[MachineEntry]:
    """Return every machine."""
    from vmm import registry

    return [MachineEntry(context, record) for record in registry.records(context.paths)]
