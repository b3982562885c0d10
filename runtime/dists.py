"""Distribution scripts: how each distribution is told its address, name, passwords (guide §9.11).

``NAME.conf`` in ``/etc/vz/dists``, else among those that come with the product, has a line
``ACTION=script`` for each action; scripts lie in ``scripts/`` beside it and get their parameters
by environment. NAME is the container's DISTRIBUTION, else made from its OSTEMPLATE:
``debian-12``, then ``debian``, at last ``default``. Scripts run in the container, with the file
``functions`` before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.config import ConfigFile
from runtime.errors import ActionScriptFailed, NoDistribution, NoDistributionScript
from runtime.paths import Paths

if TYPE_CHECKING:
    from runtime.container import Container

#: What comes with the product.
SHIPPED = Path(__file__).resolve().parent.parent / "templates" / "dists"
_ARCH = re.compile(r"-(x86_64|x86|aarch64|ia64|any)(-.*)?$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Action(StrEnum):
    """What a distribution's script may do."""

    ADD_IP = "ADD_IP"
    DEL_IP = "DEL_IP"
    SET_HOSTNAME = "SET_HOSTNAME"
    SET_DNS = "SET_DNS"
    SET_USERPASS = "SET_USERPASS"
    SET_UGID_QUOTA = "SET_UGID_QUOTA"
    POST_CREATE = "POST_CREATE"
    POST_MIGRATE = "POST_MIGRATE"
    NETIF_ADD = "NETIF_ADD"
    NETIF_DEL = "NETIF_DEL"
    SET_CONSOLE = "SET_CONSOLE"
    GET_V2PMIGRATE_EXCLUDES = "GET_V2PMIGRATE_EXCLUDES"


def candidates(config: Mapping[str, str]) -> Iterator[str]:
    """Yield the names a container's distribution may have, the best first."""
    given = config.get("DISTRIBUTION") or ""
    template = _ARCH.sub("", (config.get("OSTEMPLATE") or "").lstrip("."))
    for full in (given, template):
        if _NAME.fullmatch(full):
            words = full.split("-")
            for count in range(len(words), 0, -1):
                yield "-".join(words[:count])
    yield "default"


def configuration(paths: Paths, config: Mapping[str, str]) -> Path:
    """Return the file that says which scripts a container's distribution has.

    Raises NoDistribution.
    """
    for name in candidates(config):
        for directory in (paths.dists, SHIPPED):
            file = directory / f"{name}.conf"
            if file.is_file():
                return file
    raise NoDistribution("not even default.conf is there", hint=f"restore {SHIPPED}")


def script(paths: Paths, config: Mapping[str, str], action: Action) -> bytes:
    """Return the text that does ``action``: the common functions, then the script.

    Raises NoDistribution, NoDistributionScript, OSError.
    """
    file = configuration(paths, config)
    name = ConfigFile.read(file).get(action)
    if not name:
        raise NoDistributionScript(f"{file} has no script for {action}")
    if "/" in name:
        raise NoDistributionScript(f"{file}: {action} must be a name in scripts/, not {name!r}")
    text = _read(paths, name)
    if text is None:
        raise NoDistributionScript(f"{file} names script {name}, which is not there")
    return b"#!/bin/sh\n" + (_read(paths, "functions") or b"") + b"\n" + text


def _read(paths: Paths, name: str) -> bytes | None:
    for directory in (paths.dists, SHIPPED):
        try:
            return (directory / "scripts" / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
    return None


def run(ct: Container, action: Action, environment: Mapping[str, str]) -> str:
    """Do ``action`` in the running container and return what its script printed.

    Raises NoDistribution, NoDistributionScript, ActionScriptFailed, NotRunning.
    """
    from runtime import inside

    text = script(ct.paths, ct.config, action)
    done = inside.run_script(ct, text, environment=environment)
    if done.status:
        last = done.output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise ActionScriptFailed(
            f"the script for {action} ended with {done.status}: {last[0]}",
            hint=f"the distribution is {configuration(ct.paths, ct.config).stem}",
        )
    return done.output
