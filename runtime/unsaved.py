"""Settings of a running container that its configuration does not have: ``set`` without ``--save``.

Kept in the run directory for as long as its process 1 lives, so that the next ``set`` starts from
what is in force: what was given without ``--save`` can be taken away without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from runtime import files, state

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.paths import Paths

#: Key → value; None: the key is unset.
Values = Mapping[str, str | None]


def read(paths: Paths, ctid: int) -> dict[str, str | None]:
    """Return the unsaved settings in force; none for a container that does not run."""
    with suppress(OSError, ValueError):
        kept = json.loads(_file(paths, ctid).read_bytes())
        if kept["of"] == _life(paths, ctid) is not None:
            return dict(kept["values"])
    return {}


def kept_of(paths: Paths) -> frozenset[int]:
    """Return the ids of the containers for which something unsaved is kept, in force or stale."""
    try:
        names = os.listdir(paths.run / "unsaved")
    except OSError:
        return frozenset()
    stems = (name.removesuffix(".json") for name in names)
    return frozenset(int(stem) for stem in stems if stem.isdecimal())


def write(paths: Paths, ctid: int, values: Values) -> None:
    """Keep ``values`` as all that is unsaved of a running container; raises OSError."""
    target = _file(paths, ctid)
    if not values:
        with suppress(FileNotFoundError):
            os.unlink(target)
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {"of": _life(paths, ctid), "values": dict(values)}
    files.replace(target, json.dumps(content).encode(), mode=0o600, durable=False)


def _file(paths: Paths, ctid: int) -> Path:
    return paths.run / "unsaved" / f"{ctid}.json"


def _life(paths: Paths, ctid: int) -> list[int] | None:
    """Return what names the present life of a container: its process 1."""
    run = state.load(paths, ctid)
    return (
        [run.init.pid, run.init.start_ticks] if run is not None and run.init is not None else None
    )
