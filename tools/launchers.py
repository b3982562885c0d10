"""Writes the start scripts of the commands: ``python -m tools.launchers DIRECTORY``.

A generated entry point imports ``site`` and a module by name, which costs a command more than its
work; these start an interpreter without ``site`` and hand over to ``tools.client``.
"""

from __future__ import annotations

import sys
from pathlib import Path

#: Command → module of ``tools``.
COMMANDS = {
    "pctl": "pctl",
    "prlctl": "pctl",
    "vzctl": "vzctl",
    "vzlist": "vzlist",
    "vzpid": "vzpid",
    "psrvctl": "psrvctl",
    "prlsrvctl": "psrvctl",
    "vzquota": "vzquota",
    "vzdqcheck": "vzdqcheck",
    "vzdqdump": "vzdqdump",
    "vzdqload": "vzdqload",
    "vz": "vz",
    "vzmlocal": "vzmlocal",
    "prl_disk_tool": "prl_disk_tool",
    "prl_convert": "prl_convert",
    "pconvert": "prl_convert",
    "vzsplit": "vzsplit",
    "vzcfgscale": "vzcfgscale",
    "vzcfgvalidate": "vzcfgvalidate",
    "vzcfgconvert": "vzcfgconvert",
    "vzcalc": "vzcalc",
    "vzmemcheck": "vzmemcheck",
    "vzcpucheck": "vzcpucheck",
    "vzcheckovr": "vzcheckovr",
    "vzdiskcheck": "vzdiskcheck",
    "vzubc": "vzubc",
    "vzps": "vzps",
    "vztop": "vztop",
    "pstat": "pstat",
    "vzstat": "pstat",
    "vzmetrics": "vzmetrics",
    "vzpkg": "vzpkg",
    "vzcache": "vzcache",
    "pnetcfg": "pnetcfg",
    "vznetcfg": "pnetcfg",
    "pnetstat": "pnetstat",
    "vznetstat": "vznetstat",
    "vztactl": "vztactl",
    "vzfsutil": "vzfsutil",
}

_TEMPLATE = """#!{python} -IS
import sys
sys.path.insert(0, {base!r})
from tools.client import run
sys.exit(run({name!r}, {module!r}))
"""


def write(directory: Path) -> list[Path]:
    """Write every start script into ``directory`` and return them; raises OSError."""
    base = Path(__file__).resolve().parent.parent
    written = []
    for name, module in COMMANDS.items():
        script = directory / name
        python = directory / "python3"
        script.write_text(_TEMPLATE.format(python=python, base=str(base), name=name, module=module))
        script.chmod(0o755)
        written.append(script)
    return written


if __name__ == "__main__":
    write(Path(sys.argv[1]).absolute())
