"""``pctl list -i``: everything about a container on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools._entries import Entry, addresses, clock, ostemplate

if TYPE_CHECKING:
    from tools._command import Context

#: What each way of serving VZFS costs (docs/vzfs.md, "Transports").
_TRANSPORTS = {
    "kernel+passthrough": "kernel (data at the disk's speed, page cache shared with the template)",
    "kernel": "kernel without passthrough (all data pass the server, no shared page cache)",
    "pyfuse3": "pyfuse3 (portable; slower, no shared page cache)",
}


def facts(context: Context, entry: Entry) -> dict[str, object]:
    """Return the facts on a container, by name; what is not set is left out."""
    config, run = entry.config, entry.status.run
    uptime = entry.uptime_s
    found: dict[str, object] = {
        "id": entry.record.uuid,
        "ctid": entry.ctid,
        "name": entry.record.label,
        "description": config.get("DESCRIPTION"),
        "type": "CT",
        "state": entry.status.word,
        "os_template": ostemplate(entry),
        "distribution": config.get("DISTRIBUTION"),
        "hostname": config.get("HOSTNAME"),
        "ip": addresses(entry),
        "uptime_s": None if uptime is None else round(uptime, 1),
        "home": str(entry.private),
        "root": str(context.paths.area(config["VE_ROOT"])),
        "configuration": str(entry.record.conf),
        "origin_sample": config.get("ORIGIN_SAMPLE"),
        "onboot": config.get("ONBOOT"),
        "disabled": config.get("DISABLED"),
        "transport": _transport(entry) if entry.status.mounted else None,
        "init_pid": run.init.pid if run and entry.status.running and run.init else None,
        "cpuunits": config.get("CPUUNITS"),
        "cpulimit": config.get("CPULIMIT"),
        "cpus": config.get("CPUS"),
        "physpages": config.get("PHYSPAGES"),
        "swappages": config.get("SWAPPAGES"),
        "diskspace": config.get("DISKSPACE"),
        "diskinodes": config.get("DISKINODES"),
        "ioprio": config.get("IOPRIO"),
        "iolimit": config.get("IOLIMIT"),
        "capability": config.get("CAPABILITY"),
        "features": config.get("FEATURES"),
        "netif": config.get("NETIF"),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _transport(entry: Entry) -> str | None:
    from vzfs import server

    try:
        session = server.read_session(entry.private / "cow")
    except OSError:
        return None
    passthrough = session.get("passthrough") == "yes"
    return session.get("transport", "?") + ("+passthrough" if passthrough else "")


def lines(page: dict[str, object]) -> list[str]:
    """Return the page of a container as text."""
    return [f"{_title(name)}: {_text(name, value)}" for name, value in page.items()]


def _title(name: str) -> str:
    words = {"id": "ID", "ctid": "CTID", "ip": "IP", "os_template": "OS template"}
    return words.get(name, name.removesuffix("_s").replace("_", " ").capitalize())


def _text(name: str, value: object) -> str:
    if name == "transport":
        return _TRANSPORTS.get(str(value), str(value))
    if name == "uptime_s":
        return clock(float(str(value)))
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(Path(value)) if isinstance(value, Path) else str(value)
