"""Verbs on a container's place and identity: clone, move, register, unregister."""

from __future__ import annotations

import argparse

from runtime import files, locks, registry
from runtime.config import ConfigFile
from runtime.errors import (
    BadConfig,
    ConfigMissing,
    Mounted,
    RegisterFailed,
    UnregisterFailed,
)
from tools import copying, environments, lifecycle
from tools._command import Context, Verb, option
from tools.verbs_container import ID, prepare


def clone(context: Context, args: argparse.Namespace) -> None:
    """Copy a container."""
    source = environments.find_container(context, args.ident)
    if args.name and args.name.isdecimal():
        ctid, name = registry.check_new_ctid(args.name), None
    else:
        ctid = lifecycle.next_ctid(context.paths)
        name = registry.check_name(args.name) if args.name else None
    place = context.paths.typed(args.dst) / str(ctid) if args.dst else None
    copying.clone(context, source, ctid, name=name, private=place)


def move(context: Context, args: argparse.Namespace) -> None:
    """Move a container's private area."""
    ct = environments.find_container(context, args.ident)
    place = context.paths.typed(args.dst) / str(ct.ctid)
    copying.move(context, ct, ct.ctid, private=place)


def register(context: Context, args: argparse.Namespace) -> None:
    """Make a private area that lies somewhere a container of this server."""
    paths = context.paths
    private = paths.typed(args.path)
    conf = private / "ve.conf"
    if not (private / "root").is_dir():
        raise RegisterFailed(f"{private} is no private area: it has no directory 'root'")
    ctid = registry.check_new_ctid(args.ident)
    with locks.environment(paths, ctid, "register"):
        if paths.ct_conf(ctid).exists() and not args.force:
            raise RegisterFailed(f"container {ctid} already exists")
        try:
            text = conf.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise RegisterFailed(
                f"cannot read {conf}: {error.strerror}", hint="unregister leaves it there"
            ) from error
        file = ConfigFile(text, path=paths.ct_conf(ctid))
        if not file.get("OSTEMPLATE"):
            raise BadConfig(f"{conf} is no container's configuration: it has no OSTEMPLATE")
        file.set("VE_PRIVATE", "/" + str(private.relative_to(paths.root)))
        name = file.get("NAME")
        with locks.registry(paths):
            if name:
                registry.claim_name(paths, ctid, name)
            paths.conf_dir.mkdir(parents=True, exist_ok=True)
            file.save(paths.ct_conf(ctid))
        context.progress(ctid).say(f"Container {ctid} was successfully registered")


def unregister(context: Context, args: argparse.Namespace) -> None:
    """Let go of a container; its private area stays, with its configuration inside."""
    ct = environments.find_container(context, args.ident)
    paths = context.paths
    with locks.environment(paths, ct.ctid, "unregister"):
        prepare(context, ct)
        if ct.status().mounted:
            raise Mounted("Container is currently running or mounted", hint=f"vzctl stop {ct.ctid}")
        private = paths.area(ct.config["VE_PRIVATE"])
        try:
            text = ConfigFile.read(ct.record.conf).text()
            files.remove(private / "ve.conf")
            files.replace(private / "ve.conf", text.encode("utf-8", "surrogateescape"))
        except (OSError, ConfigMissing) as error:
            raise UnregisterFailed(
                f"cannot keep the configuration in {private}: {error}"
            ) from error
        registry.release_names(paths, ct.ctid)
        files.remove(ct.record.conf)
        context.progress(ct.ctid).say(f"Container {ct.ctid} was successfully unregistered")


VERBS: tuple[Verb, ...] = (
    Verb("clone", "copy a container", clone, (ID,
         option("--name", help="name (or CTID) of the copy", metavar="NAME"),
         option("--dst", help="directory for its private area", metavar="DIR"))),
    Verb("move", "move a container's private area", move, (ID,
         option("--dst", help="directory to move it to", metavar="DIR", required=True))),
    Verb("register", "make a private area a container of this server", register, (
         option("path", help="the private area", metavar="PATH"),
         option("ident", help="its CTID", metavar="CTID"),
         option("--force", help="replace a configuration that exists", action="store_true"))),
    Verb("unregister", "let go of a container, keeping its private area", unregister, (ID,)),
)  # fmt: skip
