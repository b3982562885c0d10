"""The checkout on its way into the guest: a tar that lies bare on a disk of its own."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

#: Where the checkout is in the guest.
PLACE = "/srv/pyvz"


def write(top: Path, target: Path, extra: dict[str, str] | None = None) -> None:
    """Write a tar of the working tree's files (all git does not ignore) as they lie in the guest.

    ``extra`` adds files: absolute path in the guest → text. Raises CalledProcessError, OSError.
    """
    listed = subprocess.run(
        ["git", "-C", str(top), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    names = sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        return entry

    with tarfile.open(target, "w") as archive:
        for name in names:
            if os.path.lexists(top / name):
                arcname = f"{PLACE}/{name}".lstrip("/")
                archive.add(top / name, arcname, recursive=False, filter=owned)
        for name, text in (extra or {}).items():
            entry = owned(tarfile.TarInfo(name.lstrip("/")))
            body = text.encode()
            entry.size, entry.mode = len(body), 0o644
            archive.addfile(entry, io.BytesIO(body))
