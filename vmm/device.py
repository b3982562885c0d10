"""What every device of a machine is: an element of its description with a name of ours.

A device wraps its libvirt element, so that attributes we do not know survive. Its name (hdd0,
net1) is kept as a user alias ("ua-hdd0", libvirt.org/formatdomain.html#devices).
"""

from __future__ import annotations

import re
from typing import ClassVar

from vmm.domain import Element, child

_ALIAS = "ua-"
_NAME = re.compile(r"([a-z]+)([0-9]+)")


class Device:
    """One device of a machine."""

    kind: ClassVar[str] = ""
    #: Whether libvirt and QEMU can plug it into a running machine.
    hot: ClassVar[bool] = False

    def __init__(self, element: Element) -> None:
        """Wrap ``element``."""
        self.element = element

    @property
    def name(self) -> str:
        """What the product calls it, or an empty string when nobody named it yet."""
        alias = self.element.find("alias")
        word = alias.get("name", "") if alias is not None else ""
        return word.removeprefix(_ALIAS) if word.startswith(_ALIAS) else ""

    @name.setter
    def name(self, value: str) -> None:
        child(self.element, "alias").set("name", _ALIAS + value)

    @property
    def number(self) -> int:
        """The number in its name."""
        match = _NAME.fullmatch(self.name)
        return int(match[2]) if match else 0

    @property
    def connected(self) -> bool:
        """Whether it is connected (a cable, a medium)."""
        return True

    def details(self) -> str:
        """Return what ``list -i`` prints behind the name."""
        return ""

    def line(self) -> str:
        """Return the line of ``list -i``."""
        words = [self.name, "(+)", self.details()]
        if not self.connected:
            words.append("state=disconnected")
        return " ".join(word for word in words if word)

    def facts(self) -> dict[str, object]:
        """Return what ``list -i --json`` prints."""
        return {"name": self.name, "kind": self.kind, "connected": self.connected}
