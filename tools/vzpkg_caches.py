"""vzpkg: caches of OS templates."""

from __future__ import annotations

import argparse
import json
import time

from runtime.config import ConfigFile
from runtime.errors import ConfigMissing, InvalidOption, SampleMissing
from runtime.registry import printable
from templates import cache, catalogue
from templates.catalogue import Template
from tools._command import Context


def chosen(context: Context, names: list[str], *, cached: bool = False) -> list[Template]:
    """Return the templates called ``names``, or all (``cached``: those with a cache).

    Raises TemplateNotFound, BadName.
    """
    if names:
        return [catalogue.find(context.paths, name) for name in names]
    return [t for t in catalogue.every(context.paths) if t.cached or not cached]


def create(context: Context, args: argparse.Namespace) -> None:
    """Build caches; with -f also those that exist. Without names all that are missing."""
    if args.no_output:
        context.quiet = True
    for template in chosen(context, args.templates):
        if template.cached and not args.templates and not args.force:
            continue
        cache.create(context.paths, template, progress=context.progress(), force=args.force)


def update(context: Context, args: argparse.Namespace) -> None:
    """Build caches anew where newer packages are to be had."""
    if args.no_output:
        context.quiet = True
    for template in chosen(context, args.templates, cached=True):
        _update(context, template, force=args.force)


def _update(context: Context, template: Template, *, force: bool) -> None:
    from templates import updates

    progress = context.progress()
    if not force and template.cached:
        found = updates.of_template(context.paths, template, progress=progress)
        if not found:
            progress.say(f"OS template cache for {template.cache_name} is up to date")
            return
        for change in found:
            progress.detail(str(change))
    cache.create(context.paths, template, progress=progress, force=True)


def remove(context: Context, args: argparse.Namespace) -> None:
    """Remove caches."""
    for template in chosen(context, args.templates, cached=True):
        cache.remove(context.paths, template, progress=context.progress())


def _with_applications(context: Context, args: argparse.Namespace) -> Template:
    """Return the template which --ostemplate and --apptemplate, or a sample, mean.

    Raises InvalidOption, SampleMissing, TemplateNotFound, BadName.
    """
    system, applications = args.ostemplate or "", (args.apptemplate or "").split(",")
    if args.config:
        if "/" in args.config:
            raise SampleMissing(f"invalid sample name: {printable(args.config)}")
        path = context.paths.sample(args.config)
        try:
            file = ConfigFile.read(path)
        except ConfigMissing:
            raise SampleMissing(f"sample {path} does not exist") from None
        system = system or (file.get("OSTEMPLATE") or "")
        if not args.apptemplate:
            applications = (file.get("TEMPLATES") or "").split()
    applications = [word for word in applications if word]
    if not system or not applications:
        raise InvalidOption(
            "no OS template or no application template is given",
            hint="--ostemplate NAME --apptemplate NAME,NAME or --config SAMPLE",
        )
    return catalogue.find(context.paths, system, applications)


def create_applications(context: Context, args: argparse.Namespace) -> None:
    """Build a cache with application templates in it."""
    template = _with_applications(context, args)
    cache.create(context.paths, template, progress=context.progress(), force=args.force)


def update_applications(context: Context, args: argparse.Namespace) -> None:
    """Build such a cache anew where there are newer packages."""
    template = _with_applications(context, args)
    _update(context, template, force=args.force)


def remove_applications(context: Context, args: argparse.Namespace) -> None:
    """Remove such a cache."""
    template = _with_applications(context, args)
    cache.remove(context.paths, template, progress=context.progress())


def list_applications(context: Context, args: argparse.Namespace) -> None:
    """List the caches with application templates."""
    found = []
    for file in sorted((context.paths.template / "cache").glob("*+*.json")):
        if file.stem.endswith("-old"):
            continue
        built = catalogue.read_cache(context.paths.template, file.stem)
        if built is not None:
            found.append((file.stem.partition("+")[0], built))
    if args.json:
        rows = [
            {"name": n, "applications": list(b.applications), "cached": stamp(b.created_s)}
            for n, b in found
        ]
        print(json.dumps(rows, indent=1))
        return
    for name, built in found:
        print(f"{name} {' '.join(built.applications):<20} {stamp(built.created_s)}")


def stamp(seconds: float) -> str:
    """Return a time as the lists show it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def clean(context: Context, args: argparse.Namespace) -> None:
    """Remove what nobody uses; say how much that was."""
    from runtime.units import human
    from templates import upkeep

    report = upkeep.clean(
        context.paths,
        [template.parts for template in chosen(context, args.templates)],
        packages=args.packages or args.all,
        trees=args.trees or args.all or not args.packages,
        old=args.all,
        test=args.test,
    )
    word = "would be freed" if args.test else "were freed"
    context.progress().say(
        f"{report.trees} trees, {report.files} files, {report.packages} packages: "
        f"{human(report.bytes)} {word}"
    )
