"""Action scripts of the administrator (vzctl(8), ACTION SCRIPTS; guide, config.md §5).

On the host: ``vps.ACTION`` for every container, then ``CTID.ACTION``, both beside the
configuration files, then ``scripts/ACTION`` in the private area. Inside: ``start`` and ``stop`` of
the container alone. The environment of all holds VEID and VE_CONFFILE.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import ActionScriptFailed
from runtime.paths import Paths

#: Run on the host.
HOST_ACTIONS = ("premount", "mount", "umount", "postumount")
#: Run inside the container.
INSIDE_ACTIONS = ("start", "stop")


def scripts(paths: Paths, ctid: int, action: str, private: Path) -> Iterator[Path]:
    """Yield the executable scripts of an action, in their order."""
    # Names, not paths: there is hardly ever a script, and every start asks twelve times.
    conf = os.fspath(paths.conf_dir)
    places = [f"{conf}/{ctid}.{action}", f"{private}/scripts/{action}"]
    if action in HOST_ACTIONS:
        places.insert(0, f"{conf}/vps.{action}")
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            yield Path(place)


def variables(paths: Paths, ctid: int) -> dict[str, str]:
    """Return what the environment of every action script has, on the host and inside."""
    return {"VEID": str(ctid), "VE_CONFFILE": str(paths.ct_conf(ctid))}


def run_on_host(paths: Paths, ctid: int, action: str, private: Path, root: Path) -> None:
    """Run an action's scripts on the host; the first that fails raises ActionScriptFailed."""
    for script in scripts(paths, ctid, action, private):
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C",
            **variables(paths, ctid),
            "VE_ROOT": str(root),
            "VE_PRIVATE": str(private),
        }
        try:
            done = subprocess.run(
                [str(script)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except OSError as error:
            raise ActionScriptFailed(f"cannot run {script}: {error.strerror}") from error
        if done.returncode != 0:
            last = done.stdout.decode("utf-8", "replace").strip().splitlines()[-1:]
            said = f": {last[0]}" if last else ""
            raise ActionScriptFailed(f"{script} returned {done.returncode}{said}")
