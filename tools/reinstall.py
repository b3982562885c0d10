"""``reinstall``: a container's system anew from its template, its old tree kept at /old.

The administrator's ``vps.reinstall`` may do it another way; its exit status 128 asks for this
one. ``vps.configure`` runs afterwards. Both get ``--veid``, ``--ve_private_tmp`` and
``--ve_private`` (guide §3.12.4).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import files, journal, locks
from runtime.config import ConfigFile
from runtime.errors import CustomConfigureFailed, ReinstallFailed
from tools import environments, lifecycle
from tools._command import Context, Verb, option
from tools.verbs_container import ID, prepare

if TYPE_CHECKING:
    from runtime.container import Container

#: What "the credentials" are: kept unless --resetpwdb.
_CREDENTIALS = ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")
#: Exit status of vps.reinstall: "do the standard reinstall".
STANDARD = 128


def scripts(context: Context) -> Iterator[tuple[str, Path]]:
    """Yield name and path of the customisation scripts there are."""
    for name in ("vps.reinstall", "vps.configure"):
        path = context.paths.conf_dir / name
        if os.access(path, os.X_OK):
            yield name, path


def reinstall(context: Context, args: argparse.Namespace) -> None:
    """Reinstall a container; it runs afterwards if it ran before."""
    found = dict(scripts(context))
    if args.listscripts:
        for name, path in found.items():
            print(f"{name} {path}" + (f" {_first_comment(path)}" if args.desc else ""))
        return
    ct = environments.find_container(context, args.ident)
    chosen = set(args.scripts.split(",")) if args.scripts else set(found)
    with locks.environment(context.paths, ct.ctid, "reinstall"):
        prepare(context, ct)
        status = ct.status()
        if status.running:
            ct.stop()
        elif status.mounted:
            ct.umount()
        private = context.paths.area(ct.config["VE_PRIVATE"])
        fresh = private.with_name(f"{private.name}.reinstall")
        with ExitStack() as undo:
            intention = journal.record(
                context.paths, ct.ctid, "reinstall", private=str(private), fresh=str(fresh)
            )
            undo.callback(intention.clear)
            undo.callback(files.remove_tree, fresh)
            _build(context, ct, fresh)
            custom = found.get("vps.reinstall")
            if (
                custom is None
                or args.skipscripts
                or "vps.reinstall" not in chosen
                or _customised(custom, ct.ctid, fresh, private) == STANDARD
            ):
                _keep(
                    context, ct, fresh, backup=not args.skipbackup, credentials=not args.resetpwdb
                )
            configure = found.get("vps.configure")
            if configure is not None and not args.skipscripts and "vps.configure" in chosen:
                code = _script(configure, ct.ctid, fresh, private)
                if code != 0:
                    raise CustomConfigureFailed(f"{configure} ended with status {code}")
            old = private.with_name(f"{private.name}.old")
            files.remove_tree(old)
            os.rename(private, old)
            os.rename(fresh, private)
            files.fsync_directory(private.parent)
            files.remove_tree(old)
            intention.clear()
            undo.pop_all()
        context.progress(ct.ctid).say(f"Container {ct.ctid} was reinstalled")
        if status.running:
            lifecycle.start(context, ct)


def _build(context: Context, ct: Container, fresh: Path) -> None:
    from templates import create as template_create

    template = lifecycle.find_template(context, ConfigFile.read(ct.record.conf))
    context.progress(ct.ctid).say(f"Creating Container private area ({template.name})")
    files.remove_tree(fresh)
    template_create.populate(context.paths, ct.ctid, template, private=fresh)
    template_create.postcreate(context.paths, ct.ctid, template, private=fresh)


def _keep(context: Context, ct: Container, fresh: Path, *, backup: bool, credentials: bool) -> None:
    """Take over from the old system: its merged tree to /old, its credentials to /etc."""
    from tools.copying import copy_tree

    ct.mount()
    try:
        root = context.paths.area(ct.config["VE_ROOT"])
        if credentials:
            etc = fresh / "root" / "etc"
            etc.mkdir(mode=0o755, exist_ok=True)
            for name in _CREDENTIALS:
                with suppress(FileNotFoundError):
                    shutil.copy2(root / "etc" / name, etc / name, follow_symlinks=False)
                    facts = os.lstat(root / "etc" / name)
                    os.chown(etc / name, facts.st_uid, facts.st_gid, follow_symlinks=False)
        if backup:
            copy_tree(root, fresh / "root" / "old")
    finally:
        ct.umount()


def _customised(path: Path, ctid: int, fresh: Path, private: Path) -> int:
    """Let vps.reinstall do it; return 0 or STANDARD. Raises ReinstallFailed."""
    code = _script(path, ctid, fresh, private)
    if code not in (0, STANDARD):
        raise ReinstallFailed(f"{path} ended with status {code}")
    return code


def _script(path: Path, ctid: int, fresh: Path, private: Path) -> int:
    words = [
        str(path),
        "--veid",
        str(ctid),
        "--ve_private_tmp",
        str(fresh),
        "--ve_private",
        str(private),
    ]
    try:
        done = subprocess.run(words, check=False, env={**os.environ, "VEID": str(ctid)})
    except OSError as error:
        raise ReinstallFailed(f"cannot run {path}: {error.strerror}") from error
    return done.returncode


def _first_comment(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("#") and not line.startswith("#!"):
                return line.lstrip("# ").strip()
    return ""


VERBS: tuple[Verb, ...] = (
    Verb(
        "reinstall",
        "install a container's system anew, its old tree kept at /old",
        reinstall,
        (
            ID,
            option("--skipbackup", help="keep no old tree", action="store_true"),
            option(
                "--resetpwdb",
                help="take users and passwords from the template",
                action="store_true",
            ),
            option("--skipscripts", help="run no customisation scripts", action="store_true"),
            option("--scripts", help="run only these scripts", metavar="NAME[,NAME]"),
            option("--listscripts", help="list the scripts there are", action="store_true"),
            option("--desc", help="with --listscripts: describe them", action="store_true"),
        ),
    ),
)
