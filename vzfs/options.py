"""What a mount is made of, as one record that survives a trip through JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

#: In the work area: what a server agreed on with the kernel, for the next one.
SESSION = "session"


@dataclass(frozen=True)
class Options:
    """The description of one mount.

    ``lower`` are the layers, top-most first; ``upper`` the private layer; ``work`` the area for
    unfinished copies and the index of hard links, on the same file system as ``upper`` (default:
    ``cow`` beside it).
    """

    lower: tuple[Path, ...]
    upper: Path
    work: Path | None = None
    #: "auto", "kernel" or "pyfuse3".
    transport: str = "auto"
    #: Let the kernel read and write backing files itself where it can.
    passthrough: bool = True
    #: Where the targets of magic links are; None means that there are none.
    template_area: Path | None = None
    #: Users of the mount may create magic links.
    magic_links: bool = False
    #: File the disk quota is kept in; None means no quota.
    ledger: Path | None = None
    #: Host id of the container's id 0, where the kernel cannot shift ids itself; 0: ids as on disk.
    first_id: int = 0
    #: Shown as the source of the mount.
    fsname: str = "vzfs"
    #: How long the kernel may trust names and attributes, in seconds.
    timeout_s: float = 3600.0
    #: Reading a private file leaves its access time alone.
    no_atime: bool = False
    #: fdatasync the data of a copy before it takes the place of the shared file.
    sync_copies: bool = True
    #: How long nothing is asked for before the server rests, in seconds, where somebody starts it
    #: again; 0: it never rests.
    rest_s: float = 0.0
    #: Nodes the server remembers before it asks the kernel to let go of unused ones.
    node_limit: int = 100_000
    #: Directories held open.
    descriptor_limit: int = 1024

    @property
    def work_area(self) -> Path:
        """Return the work area."""
        return self.work if self.work is not None else self.upper.parent / "cow"

    def to_json(self) -> str:
        """Return the record as JSON."""
        values = asdict(self)
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = str(value)
            elif isinstance(value, tuple):
                values[name] = [str(item) for item in value]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Options:
        """Return the record `to_json` wrote; unknown fields are an error (TypeError)."""
        values = json.loads(text)
        for field in fields(cls):
            value = values.get(field.name)
            if field.name == "lower":
                values["lower"] = tuple(Path(item) for item in value)
            elif "Path" in str(field.type) and value is not None:
                values[field.name] = Path(value)
        return cls(**values)
