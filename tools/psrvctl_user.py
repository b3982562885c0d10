"""``psrvctl user``: where the machines of this server are made."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from runtime.errors import ConfigMissing, InvalidValue
from tools._command import JSON, Context, Verb, option

#: Key of vz.conf with the directory in which bundles of machines are made.
KEY = "DEF_VM_HOME"


def machine_home(context: Context) -> Path:
    """Return the directory for new machines."""
    chosen = context.server().get(KEY)
    return Path(chosen) if chosen else context.paths.machines


def list_(context: Context, args: argparse.Namespace) -> None:
    """Print who makes machines here, and where: root alone does."""
    home = machine_home(context)
    if args.json:
        print(json.dumps([{"name": "root", "mng_settings": True, "def_vm_home": str(home)}]))
        return
    print(f"{'NAME':<20} {'MNG_SETTINGS':<12} DEF_VM_HOME")
    print(f"{'root':<20} {'allowed':<12} {home}")


def set_(context: Context, args: argparse.Namespace) -> None:
    """Choose the directory in which machines are made from now on; those there stay."""
    from runtime.config import ConfigFile

    home = Path(args.def_vm_home)
    if not home.is_absolute() or not home.is_dir():
        raise InvalidValue(f"not a directory of this server: {args.def_vm_home!r}")
    if not os.access(home, os.W_OK):
        raise InvalidValue(f"{home} cannot be written to")
    path = context.paths.global_config
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = ConfigFile.read(path)
    except ConfigMissing:
        file = ConfigFile()
    file.set(KEY, os.fspath(home))
    file.save(path)
    context.progress().say(f"New machines are made in {home}")


VERBS: tuple[Verb, ...] = (
    Verb("list", "where machines are made", list_, (JSON,), changes=False),
    Verb("set", "choose where machines are made", set_, (
        option("--def-vm-home", help="directory for the bundles of new machines", metavar="DIR",
               required=True),)),
)  # fmt: skip
