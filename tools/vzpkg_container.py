"""vzpkg: packages and application templates in running containers."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import locks, registry
from runtime.config import ConfigFile
from runtime.errors import ConfigMissing, InvalidOption
from templates import catalogue, inspection
from templates.errors import NotUpToDate, ObjectNotFound, TemplateNotFound
from tools import environments
from tools._command import Context

if TYPE_CHECKING:
    from templates.apt import Change
    from templates.guest import Guest, How, Outcome, Package


def how(args: argparse.Namespace) -> How:
    """Return the options as how to go about it."""
    from templates.guest import How

    return How(
        test=getattr(args, "test", False),
        remote=getattr(args, "remote", False),
        cached=getattr(args, "cache", False),
        force=getattr(args, "force", False),
        dependencies=getattr(args, "with_depends", False),
        timeout_s=getattr(args, "timeout", None) or 3600.0,
    )


def _guest(context: Context, ident: str) -> Guest:
    from templates.guest import Guest

    ct = environments.find_container(context, ident)
    return Guest(ct, context.progress(ct.ctid))


def _no_groups(args: argparse.Namespace) -> None:
    if getattr(args, "groups", False):
        raise InvalidOption("dpkg knows no package groups", hint="use -p with packages")


def install(context: Context, args: argparse.Namespace) -> None:
    """Install application templates or packages in a container."""
    _no_groups(args)
    if not args.objects:
        raise InvalidOption("nothing to install is given")
    ctid = registry.find(context.paths, args.ident).ctid
    with locks.environment(context.paths, ctid, "vzpkg install"):
        guest = _guest(context, args.ident)
        report(context, guest.install(args.objects, how(args), packages=args.packages))


def localinstall(context: Context, args: argparse.Namespace) -> None:
    """Install package files of the server in a container."""
    files = [Path(name) for name in args.files]
    for file in files:
        if not file.is_file():
            raise ObjectNotFound(f"there is no file {file}")
        if file.suffix != ".deb":
            raise InvalidOption(f"not a package of this system: {file}", hint="NAME.deb")
    ctid = registry.find(context.paths, args.ident).ctid
    with locks.environment(context.paths, ctid, "vzpkg localinstall"):
        report(context, _guest(context, args.ident).install_files(files, how(args)))


def update(context: Context, args: argparse.Namespace) -> None:
    """Update a container, or application templates or packages in it."""
    _no_groups(args)
    ctid = registry.find(context.paths, args.ident).ctid
    with locks.environment(context.paths, ctid, "vzpkg update"):
        guest = _guest(context, args.ident)
        report(context, guest.update(args.objects, how(args), packages=args.packages))


def remove(context: Context, args: argparse.Namespace) -> None:
    """Remove application templates or packages from a container."""
    _no_groups(args)
    if not args.objects:
        raise InvalidOption("nothing to remove is given")
    ctid = registry.find(context.paths, args.ident).ctid
    with locks.environment(context.paths, ctid, "vzpkg remove"):
        guest = _guest(context, args.ident)
        report(context, guest.remove(args.objects, how(args), packages=args.packages))


def report(context: Context, outcome: Outcome) -> None:
    """Print what was done as vzpkg does: a table for each kind of change."""
    if context.quiet:
        return
    for change in outcome.planned:
        print(change)
    tables = (
        ("Installed", outcome.installed),
        ("Updated", outcome.updated),
        ("Removed", outcome.removed),
    )
    for title, packages in tables:
        if packages:
            print(f"{title}:")
            for package in packages:
                print(f" {row(package)}")
    if not outcome.planned and not any(packages for _title, packages in tables):
        print("Nothing to do")


def row(package: Package) -> str:
    """Return a package as a line: name, architecture, epoch:version-release."""
    name, version, arch = package
    full = version if ":" in version else f"0:{version}"
    return f"{name:<30} {arch:<8} {full}"


def status(context: Context, args: argparse.Namespace) -> int:
    """Tell whether there are updates for a container or a template's cache."""
    changes = _changes(context, args)
    if args.json:
        print(json.dumps([{"name": c.name, "old": c.old, "new": c.new} for c in changes], indent=1))
    elif changes:
        print(f"Updates for {args.object}:")
        for change in changes:
            print(f" {change.name:<30} {change.old or '-':<28} {change.new or '-'}")
    else:
        print(f"{args.object} is up to date")
    return NotUpToDate.vzpkg_code if changes else 0


def _changes(context: Context, args: argparse.Namespace) -> list[Change]:
    from templates import updates

    try:
        template = catalogue.find(context.paths, args.object)
    except TemplateNotFound as error:
        try:
            registry.find(context.paths, args.object)
        except (ConfigMissing, InvalidOption):
            if args.object.isdecimal():
                raise
            raise error from None
        return _guest(context, args.object).updates(how(args))
    return updates.of_template(
        context.paths,
        template,
        progress=context.progress(),
        remote=args.remote,
        cached=args.cache,
    )


def list_(context: Context, args: argparse.Namespace) -> None:
    """List what containers, or caches (with -p), have."""
    _no_groups(args)
    body: list[dict[str, object]] = []
    for word in args.objects or [t.name for t in catalogue.every(context.paths) if t.cached]:
        try:
            template = catalogue.find(context.paths, word)
            packages = inspection.packages_of(template.layers()[0])
            body += [_package(package) for package in packages]
            continue
        except TemplateNotFound:
            record = registry.find(context.paths, word)
        if args.packages:
            guest = _guest(context, word)
            body += [_package((n, v, a)) for (n, a), v in sorted(guest.packages().items())]
            continue
        file = ConfigFile.read(record.conf)
        name = (file.get("OSTEMPLATE") or "").lstrip(".")
        with suppress(TemplateNotFound):
            name = catalogue.find(context.paths, name).name
        if not args.app:
            body.append({"name": name})
        if not args.os:
            found = (file.get("TEMPLATES") or "").split()
            body += [{"name": name, "application": one.lstrip(".")} for one in found]
    if args.json:
        print(json.dumps(body, indent=1))
        return
    for item in body:
        if "version" in item:
            package = (str(item["name"]), str(item["version"]), str(item["arch"]))
            print(inspection.package_directory(*package) if args.pkgid else row(package))
        else:
            print(f"{item['name']} {item.get('application', '')}".rstrip())


def _package(package: Package) -> dict[str, object]:
    name, version, arch = package
    return {"name": name, "version": version, "arch": arch}


def metadata(context: Context, args: argparse.Namespace) -> None:
    """Fetch the package lists of templates."""
    from templates import updates
    from tools.vzpkg_caches import chosen

    for template in chosen(context, args.templates, cached=True):
        updates.refresh(context.paths, template, progress=context.progress(), remote=True)


def fetch(context: Context, args: argparse.Namespace) -> None:
    """Fetch the packages that updates of templates need, installing nothing."""
    from templates import updates
    from tools.vzpkg_caches import chosen

    for template in chosen(context, args.templates, cached=True):
        files = updates.fetch(context.paths, template, progress=context.progress())
        context.progress().say(f"{template.name}: {len(files)} packages are there")
