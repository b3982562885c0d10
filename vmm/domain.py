"""A machine's description: libvirt's domain XML, with our own settings in its metadata.

The tree itself is the record: what we do not know stays in it. Elements are built by
``lxml.builder.E``; text never is. Source: libvirt.org/formatdomain.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lxml import etree
from lxml.builder import E, ElementMaker

from runtime.errors import BadConfig

#: Our element in <metadata>, and its name space.
NAMESPACE = "urn:pyvz:machine:1"
_OURS = ElementMaker(namespace=NAMESPACE, nsmap={"pyvz": NAMESPACE})
_MACHINE = f"{{{NAMESPACE}}}machine"
_SETTING = f"{{{NAMESPACE}}}setting"
#: A description larger than this is no description.
_LARGEST_BYTES = 4 << 20
_UNITS = {
    "b": 1, "bytes": 1, "kb": 1000, "k": 1024, "kib": 1024, "mb": 10**6, "m": 1 << 20,
    "mib": 1 << 20, "gb": 10**9, "g": 1 << 30, "gib": 1 << 30, "tb": 10**12, "t": 1 << 40,
    "tib": 1 << 40,
}  # fmt: skip

Element = etree._Element


def parse(data: bytes | str, source: str) -> Element:
    """Return the root of foreign XML; raises BadConfig, naming ``source``.

    Entities and external references are refused, not resolved: a bundle may come from anywhere.
    """
    raw = data.encode() if isinstance(data, str) else data
    if len(raw) > _LARGEST_BYTES:
        raise BadConfig(f"{source} is larger than {_LARGEST_BYTES >> 20} MiB")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False,
        remove_blank_text=True, remove_comments=False,
    )  # fmt: skip
    try:
        root = etree.fromstring(raw, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise BadConfig(f"{source} is not valid XML: {error}") from error
    document: Any = etree.ElementTree(root).docinfo
    if document.doctype:
        raise BadConfig(
            f"{source} has a document type declaration", hint="entities are not accepted"
        )
    return root


def text(element: Element) -> str:
    """Return an element as indented XML."""
    etree.indent(element)
    return etree.tostring(element, encoding="unicode", pretty_print=True)


def child(parent: Element, name: str, before: tuple[str, ...] = ()) -> Element:
    """Return the child element ``name``, made (before the first of ``before``) if absent."""
    found = parent.find(name)
    if found is None:
        made: Element = E(name)
        found = made
        for sibling in parent:
            if sibling.tag in before:
                sibling.addprevious(found)
                return found
        parent.append(found)
    return found


def drop(parent: Element, name: str) -> None:
    """Remove every child element ``name``."""
    for found in parent.findall(name):
        parent.remove(found)


def bytes_of(element: Element | None, default_unit: str = "KiB") -> int:
    """Return the size an element states, in bytes; 0 when it is absent."""
    if element is None or not element.text:
        return 0
    return int(element.text) * _UNITS[element.get("unit", default_unit).lower()]


class Domain:
    """The description of one machine."""

    def __init__(self, root: Element) -> None:
        """Wrap the ``<domain>`` element ``root``."""
        self.root = root

    @classmethod
    def parse(cls, data: bytes | str, source: str) -> Domain:
        """Read a description; raises BadConfig."""
        root = parse(data, source)
        if root.tag != "domain":
            raise BadConfig(f"{source} describes no virtual machine (root element: {root.tag})")
        domain = cls(root)
        if not domain.name:
            raise BadConfig(f"{source} names no machine")
        return domain

    @classmethod
    def load(cls, path: Path) -> Domain:
        """Read a description from a file; raises BadConfig."""
        try:
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise BadConfig(f"cannot read {path}: {error.strerror}") from error

    def copy(self) -> Domain:
        """Return an independent copy."""
        return Domain(etree.fromstring(etree.tostring(self.root)))

    @property
    def xml(self) -> str:
        """The description as XML."""
        return text(self.root)

    @property
    def name(self) -> str:
        """The machine's name."""
        return (self.root.findtext("name") or "").strip()

    @name.setter
    def name(self, value: str) -> None:
        self.put("name", value)

    @property
    def uuid(self) -> str:
        """The machine's UUID, or an empty string."""
        return (self.root.findtext("uuid") or "").strip().lower()

    @uuid.setter
    def uuid(self, value: str) -> None:
        self.put("uuid", value)

    @property
    def description(self) -> str:
        """What people wrote about it."""
        return self.root.findtext("description") or ""

    @description.setter
    def description(self, value: str) -> None:
        if value:
            self.put("description", value)
        else:
            drop(self.root, "description")

    @property
    def devices(self) -> Element:
        """The element that holds the devices."""
        return child(self.root, "devices")

    @property
    def memory_bytes(self) -> int:
        """The memory the machine boots with."""
        return bytes_of(self.root.find("memory"))

    @property
    def current_memory_bytes(self) -> int:
        """The memory the balloon leaves it."""
        return bytes_of(self.root.find("currentMemory")) or self.memory_bytes

    @property
    def cpus(self) -> int:
        """How many processors are plugged in."""
        vcpu = self.root.find("vcpu")
        if vcpu is None:
            return 1
        return int(vcpu.get("current") or vcpu.text or 1)

    @property
    def most_cpus(self) -> int:
        """How many could be."""
        return int(self.root.findtext("vcpu") or 1)

    def put(self, name: str, value: str, **attributes: str) -> Element:
        """Give the child element ``name`` a text and attributes, making it if absent."""
        element = child(self.root, name, before=("os", "features", "devices"))
        element.text = value
        for key, word in attributes.items():
            element.set(key, word)
        return element

    # our own settings, in <metadata>
    def setting(self, name: str, default: str = "") -> str:
        """Return a setting of ours."""
        for element in self._ours():
            if element.tag == _SETTING and element.get("name") == name:
                return element.text or ""
        return default

    def set_setting(self, name: str, value: str | None) -> None:
        """Store a setting of ours; None removes it."""
        ours = self.ours()
        for element in ours.findall(_SETTING):
            if element.get("name") == name:
                ours.remove(element)
        if value is not None:
            ours.append(_OURS.setting(value, name=name))

    @property
    def settings(self) -> dict[str, str]:
        """All settings of ours."""
        return {
            element.get("name") or "": element.text or ""
            for element in self._ours()
            if element.tag == _SETTING
        }

    def ours(self) -> Element:
        """Return our element in <metadata>, made if absent."""
        metadata = child(self.root, "metadata", before=("memory", "vcpu", "os", "devices"))
        found = metadata.find(_MACHINE)
        if found is None:
            found = _OURS.machine()
            metadata.append(found)
        return found

    def _ours(self) -> Any:
        found = self.root.find(f"metadata/{_MACHINE}")
        return () if found is None else found
