"""Applies what a container is called to a running one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime import locks, registry

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.container import Container


def apply_name(ct: Container, before: Config, after: Config) -> None:
    """Let the container's new name lead to it, the old one no longer; raises NameFailed."""
    name = after.get("NAME") or None
    with locks.registry(ct.paths):
        if name is not None:
            registry.claim_name(ct.paths, ct.ctid, name)
        registry.release_names(ct.paths, ct.ctid, keep=name)


def apply_hostname(ct: Container, before: Config, after: Config) -> None:
    """Set the host name of a running container, in its UTS namespace and its files."""
    hostname = after.get("HOSTNAME")
    if hostname:
        ct.set_hostname(hostname)
