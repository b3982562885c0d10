"""A problem report on a machine: an archive, secrets left out, sent nowhere by itself."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vmm import info, snapshots, status
from vmm.domain import Domain

if TYPE_CHECKING:
    from vmm.machine import Machine

_LOG_BYTES = 1 << 20
_SECRET_SETTINGS = ("vnc-password",)


def write(machine: Machine, out: IO[bytes]) -> None:
    """Write a tar.gz with everything known of ``machine``; raises OSError."""
    with tarfile.open(fileobj=out, mode="w|gz") as archive:
        for name, text in _members(machine):
            data = text.encode("utf-8", "replace")
            member = tarfile.TarInfo(f"report-{machine.label}/{name}")
            member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
            archive.addfile(member, io.BytesIO(data))


def _members(machine: Machine) -> Iterator[tuple[str, str]]:
    record, paths = machine.record, machine.paths
    domain = without_secrets(machine.read_domain())
    state = status.state(paths, record)
    yield "config.xml", domain.xml
    yield "info.json", json.dumps(info.facts(paths, record, domain, state), indent=2)
    have = [snapshots.facts(one) for one in snapshots.listing(record)]
    yield "snapshots.json", json.dumps(have, indent=2)
    places = [paths.run / "libvirt" / "log"]
    if paths.is_default:
        places.append(Path("/var/log/libvirt"))
    for place in places:
        for file in (place / "libvirtd.log", place / "qemu" / f"{record.name}.log"):
            if file.is_file():
                yield file.name, _tail(file)
    if paths.log.is_file():
        lines = _tail(paths.log).splitlines(keepends=True)
        yield "vzctl.log", "".join(line for line in lines if record.name in line)
    for name in ("cpuinfo", "meminfo", "version"):
        yield f"proc-{name}", Path("/proc", name).read_text(errors="replace")


def without_secrets(domain: Domain) -> Domain:
    """Return a copy of a description without passwords."""
    safe = domain.copy()
    for name in _SECRET_SETTINGS:
        if safe.setting(name):
            safe.set_setting(name, "***")
    for graphics in safe.root.iter("graphics"):
        if graphics.get("passwd"):
            graphics.set("passwd", "***")
    return safe


def _tail(file: Path) -> str:
    with open(file, "rb") as source:
        size = source.seek(0, io.SEEK_END)
        source.seek(max(size - _LOG_BYTES, 0))
        return source.read().decode("utf-8", "replace")
