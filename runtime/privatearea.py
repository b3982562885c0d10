"""A container's private area on disk: what must be there, and which layers it stands on.

Layout: ``root/`` the files of its own, ``cow/`` the work area of VZFS beside it,
``templates/layers`` the layers below, one path a line relative to the template area, top-most
first, ``scripts/``, ``dump/``; ``VERSION`` names the format.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import (
    InvalidValue,
    PrivateBroken,
    PrivateMissing,
    PrivateUnset,
    RootUnset,
    TemplateMissing,
    TemplateUnset,
    VzError,
)
from runtime.features import enabled, switches

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.paths import Paths
    from vzfs.options import Options

#: The longest time before a file server rests, in seconds.
_LONGEST_REST_S = 1e6


def location(paths: Paths, config: Config) -> Path:
    """Return the private area a configuration names; raises PrivateUnset."""
    return _place(paths, config, "VE_PRIVATE", PrivateUnset)


def mount_point(paths: Paths, config: Config) -> Path:
    """Return VE_ROOT, where the server sees the tree; raises RootUnset."""
    return _place(paths, config, "VE_ROOT", RootUnset)


def _place(paths: Paths, config: Config, key: str, unset: type[VzError]) -> Path:
    """Return a directory a configuration names, never the server's root: it would be removed."""
    place = Path(os.path.normpath(paths.area(config[key].strip())))
    if place == paths.root:
        raise unset(f"{key} is not set", hint=f"remove the line {key}= to have the usual place")
    return place


def layers(private: Path, template_area: Path) -> tuple[Path, ...]:
    """Return the layers below a private area, top-most first.

    Raises PrivateMissing, PrivateBroken when it is damaged, TemplateMissing when a layer is gone.
    """
    if not private.is_dir():
        raise PrivateMissing(
            f"private area {private} does not exist", hint="restore it, or destroy the container"
        )
    listing = private / "templates/layers"
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PrivateBroken(f"cannot read {listing}: {error}") from error
    if not (private / "root").is_dir():
        raise PrivateBroken(f"private area {private} has no directory 'root'")
    found = []
    for line in filter(None, (line.strip() for line in lines)):
        if line.startswith("/") or ".." in line.split("/"):
            raise PrivateBroken(f"{listing}: not a path below the template area: {line!r}")
        layer = template_area / line
        if not layer.is_dir():
            raise TemplateMissing(
                f"the template layer {layer} is gone",
                hint="restore the template area, or create the cache again",
            )
        found.append(layer)
    return tuple(found)


def options(paths: Paths, ctid: int, config: Config) -> Options:
    """Return how VZFS mounts the container, with its quota ready to be counted.

    Raises as ``layers`` does, and QuotaInitFailed.
    """
    from runtime import resources_disk
    from vzfs.options import Options

    private = location(paths, config)
    area = _place(paths, config, "TEMPLATE", TemplateUnset)
    ledger = resources_disk.prepare(paths, ctid, config, private)
    return Options(
        lower=layers(private, area),
        upper=private / "root",
        work=private / "cow",
        transport=config.get("VZFS_TRANSPORT") or "auto",
        template_area=area,
        magic_links=switches(config.get("CAPABILITY")).get("sys_rawio", False),
        ledger=ledger,
        no_atime=config.get("NOATIME", "").lower() == "yes",
        first_id=_first_id(paths, ctid, config),
        fsname=f"vzfs:{ctid}",
        rest_s=_rest(config),
    )


def _rest(config: Config) -> float:
    """Return after how many seconds a file server rests, VZFS_REST; 0: never."""
    word = config.get("VZFS_REST") or "0"
    try:
        found = float(word)
    except ValueError:
        found = -1.0
    if not 0 <= found < _LONGEST_REST_S:
        raise InvalidValue(
            f"VZFS_REST is {word!r}: not a number of seconds",
            hint="10 is usual; 0 lets file servers never rest",
        )
    return found


def _first_id(paths: Paths, ctid: int, config: Config) -> int:
    """Return by how much the file server must shift ids: 0 where mounts can be idmapped.

    VZFS_IDS=server asks for it anywhere. A privileged container has the server's ids.
    """
    from vzfs import server

    if enabled(config, "privileged"):
        return 0
    if config.get("VZFS_IDS") != "server" and server.probe().idmap:
        return 0
    from runtime import idmap

    return idmap.claim(paths, ctid).first
