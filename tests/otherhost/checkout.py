"""The checkout on its way into the guest: a tar."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

#: Where the checkout is in the guest.
PLACE = "/srv/pyvz"
#: There, the names of all its files in the order of their bytes, each after ``./`` and with NUL.
LISTED = "/srv/asked/files"


def write(top: Path, target: Path, extra: dict[str, str] | None = None) -> None:
    """Write a tar of the working tree's files (all git does not ignore) as they lie in the guest.

    ``extra`` adds files: absolute path in the guest → text. Last comes their list, ``LISTED``.
    Raises CalledProcessError, OSError.
    """
    listed = subprocess.run(
        ["git", "-C", str(top), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    found = sorted({name for name in listed.split(b"\0") if name})
    names = [name for name in map(os.fsdecode, found) if os.path.lexists(top / name)]

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        return entry

    with tarfile.open(target, "w") as archive:
        for name in names:
            arcname = f"{PLACE}/{name}".lstrip("/")
            archive.add(top / name, arcname, recursive=False, filter=owned)
        listing = {LISTED: "".join(f"./{name}\0" for name in names)}
        for name, text in ((extra or {}) | listing).items():
            entry = owned(tarfile.TarInfo(name.lstrip("/")))
            body = os.fsencode(text)
            entry.size, entry.mode = len(body), 0o644
            archive.addfile(entry, io.BytesIO(body))
