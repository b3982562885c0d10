"""Copying, moving and renumbering containers: ``pctl clone``, vzmlocal(8).

A private area is copied as it stands on disk — whiteouts, hard links, trusted attributes, holes —
by cp(1), the program that knows all of them. A running source is frozen for the time of the copy,
so that the copy is what a power cut would have left.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import files, journal, locks, programs, registry, suspension
from runtime.config import ConfigFile
from runtime.errors import (
    InvalidValue,
    Mounted,
    NameFailed,
    NoDiskSpace,
    PrivateExists,
    SystemFailure,
)
from tools import lifecycle

if TYPE_CHECKING:
    from runtime.container import Container
    from tools._command import Context

#: Parts of an adapter that must differ between two containers; they are made anew.
_ADAPTER_IDENTITY = re.compile(r"(?:^|(?<=,))(?:mac|host_mac|host_ifname)=[^,;]*,?")


def clone(
    context: Context,
    source: Container,
    ctid: int,
    *,
    name: str | None = None,
    private: Path | None = None,
    root: Path | None = None,
) -> None:
    """Copy ``source`` to the new container ``ctid``, called ``name``.

    The copy gets its own UUID and adapters' MAC addresses; its IP addresses stay those of the
    source, which is warned about. Raises PrivateExists, NoDiskSpace, Locked.
    """
    from templates import create as template_create

    paths = context.paths
    progress = context.progress(ctid)
    first, second = sorted((source.ctid, ctid))
    with (
        locks.environment(paths, first, f"clone {source.ctid} to {ctid}"),
        locks.environment(paths, second, f"clone {source.ctid} to {ctid}"),
    ):
        lifecycle.repair(context, ctid)
        source.reconcile()
        target = _free_place(context, ctid, private)
        file = ConfigFile.read(source.record.conf)
        _make_own(file, name=name, private=private, root=root)
        holder = registry.by_name(paths, name) if name is not None else None
        if holder is not None:
            raise NameFailed(f"the name {name} belongs to container {holder.ctid}")
        origin = paths.area(source.config["VE_PRIVATE"])
        with ExitStack() as undo:
            intention = journal.record(paths, ctid, "create", private=str(target))
            undo.callback(intention.clear)
            undo.callback(files.remove_tree, target)
            undo.callback(registry.release_names, paths, ctid)
            progress.say(f"Copying {origin} to {target}")
            with ExitStack() as frozen:
                if source.status().running:
                    source.freeze()
                    frozen.callback(source.thaw)
                copy_tree(origin, target)
            suspension.forget(target)
            template_create.new_identity(paths, target)
            with locks.registry(paths):
                if name:
                    registry.claim_name(paths, ctid, name)
                file.save(paths.ct_conf(ctid))
            intention.clear()
            undo.pop_all()
        if file.get("IP_ADDRESS") or "ip=" in (file.get("NETIF") or ""):
            progress.warn(
                f"container {ctid} has the IP addresses of container {source.ctid}: "
                "change them before it is started"
            )
        progress.say(f"Container {source.ctid} was copied to {ctid}")


def move(
    context: Context,
    ct: Container,
    ctid: int,
    *,
    private: Path | None = None,
    root: Path | None = None,
) -> None:
    """Give ``ct`` the id ``ctid`` (or its own), another private area or mount point.

    A running container is stopped for it and started again. Raises PrivateExists, NoDiskSpace.
    """
    from tools import environments

    paths = context.paths
    progress = context.progress(ct.ctid)
    first, second = sorted((ct.ctid, ctid))
    with ExitStack() as held:
        held.enter_context(locks.environment(paths, first, f"move {ct.ctid} to {ctid}"))
        if first != second:
            held.enter_context(locks.environment(paths, second, f"move {ct.ctid} to {ctid}"))
        lifecycle.repair(context, ctid)
        ct.reconcile()
        status = ct.status()
        if status.mounted and not status.running:
            raise Mounted("Container is currently mounted (umount first)")
        origin = paths.area(ct.config["VE_PRIVATE"])
        if private is not None or (ctid != ct.ctid and origin == paths.private(ct.ctid)):
            target = _free_place(context, ctid, private) if ctid != ct.ctid else private
            assert target is not None
            if target.exists():
                raise PrivateExists(f"private area {target} already exists")
        else:
            target = origin
        if ctid != ct.ctid and paths.ct_conf(ctid).exists():
            raise PrivateExists(f"container {ctid} already exists")
        if status.running:
            ct.stop()
        file = ConfigFile.read(ct.record.conf)
        if private is not None:
            file.set("VE_PRIVATE", _configured(context, private))
        if root is not None:
            file.set("VE_ROOT", _configured(context, root))
        intention = journal.record(
            paths, ct.ctid, "move", target=ctid, origin=str(origin), private=str(target)
        )
        if target != origin:
            progress.say(f"Moving {origin} to {target}")
            _relocate(origin, target)
        if ctid != ct.ctid:
            _renumber(context, ct.ctid, ctid, file)
        else:
            file.save(ct.record.conf)
        intention.clear()
        progress.say(f"Container {ct.ctid} was moved to {ctid}")
        if status.running:
            moved = environments.container(context, registry.record(paths, ctid))
            lifecycle.start(context, moved)


def _renumber(context: Context, old: int, new: int, file: ConfigFile) -> None:
    """Save ``file`` as the configuration of ``new`` and let go of ``old``."""
    paths = context.paths
    name = file.get("NAME")
    with locks.registry(paths):
        file.save(paths.ct_conf(new))
        files.remove(paths.ct_conf(old))
        registry.release_names(paths, old)
        if name:
            registry.claim_name(paths, new, name)
    quota = paths.quota_file(old)
    if quota.exists():
        os.rename(quota, paths.quota_file(new))
    for script in paths.conf_dir.glob(f"{old}.*"):
        if script.suffix != ".destroyed":
            os.rename(script, script.with_name(f"{new}{script.suffix}"))


def _free_place(context: Context, ctid: int, private: Path | None) -> Path:
    """Return where the new container's private area goes; raises PrivateExists when taken."""
    paths = context.paths
    if paths.ct_conf(ctid).exists():
        raise PrivateExists(f"container {ctid} already exists")
    target = private or paths.area(context.config(ctid, None)["VE_PRIVATE"])
    if target.exists():
        raise PrivateExists(f"private area {target} already exists")
    return target


def _configured(context: Context, place: Path) -> str:
    """Return ``place`` as the configuration has it: seen from the system's root."""
    if context.paths.is_default or not place.is_relative_to(context.paths.root):
        return str(place)
    return "/" + str(place.relative_to(context.paths.root))


def _make_own(
    file: ConfigFile, *, name: str | None, private: Path | None, root: Path | None
) -> None:
    file.set("UUID", registry.new_uuid())
    if name:
        file.set("NAME", name)
    else:
        file.unset("NAME")
    for key, place in (("VE_PRIVATE", private), ("VE_ROOT", root)):
        if place is not None:
            file.set(key, str(place))
        elif "$" not in (file.get(key) or "$"):
            file.unset(key)
    netif = file.get("NETIF")
    if netif:
        adapters = (_ADAPTER_IDENTITY.sub("", part).rstrip(",") for part in netif.split(";"))
        file.set("NETIF", ";".join(adapters))


def copy_tree(source: Path, target: Path) -> None:
    """Copy a private area with everything that belongs to it, in one step for the eye.

    Raises NoDiskSpace, SystemFailure; nothing remains then.
    """
    if not source.is_dir():
        raise InvalidValue(f"{source} is no private area")
    with files.new_directory(target, mode=0o700) as place:
        done = subprocess.run(
            [
                *programs.ENDING_WITH_US,
                *("cp", "-a", "--reflink=auto", "--sparse=auto", f"{source}/.", str(place)),
            ],
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            text = done.stderr.decode("utf-8", "replace").strip().splitlines()
            reason = text[0] if text else f"cp ended with status {done.returncode}"
            if "No space left" in reason or "quota" in reason:
                raise NoDiskSpace(reason)
            raise SystemFailure(f"cannot copy {source}: {reason}")


def _relocate(origin: Path, target: Path) -> None:
    """Rename ``origin`` to ``target``, or copy and remove it across file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if origin.stat().st_dev == target.parent.stat().st_dev:
        os.rename(origin, target)
        files.fsync_directory(target.parent)
        return
    copy_tree(origin, target)
    files.remove_tree(origin)
