"""vzpkg: caches of OS templates."""

from __future__ import annotations

import argparse

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
    """Build caches; with -f also those that exist."""
    if args.no_output:
        context.quiet = True
    for template in chosen(context, args.templates):
        cache.create(context.paths, template, progress=context.progress(), force=args.force)


def update(context: Context, args: argparse.Namespace) -> None:
    """Build caches anew where newer packages are to be had."""
    from templates import updates

    if args.no_output:
        context.quiet = True
    progress = context.progress()
    for template in chosen(context, args.templates, cached=True):
        if not args.force and template.cached:
            found = updates.of_template(context.paths, template, progress=progress)
            if not found:
                progress.say(f"OS template cache for {template.name} is up to date")
                continue
            for change in found:
                progress.detail(str(change))
        cache.create(context.paths, template, progress=progress, force=True)


def remove(context: Context, args: argparse.Namespace) -> None:
    """Remove caches."""
    for template in chosen(context, args.templates, cached=True):
        cache.remove(context.paths, template, progress=context.progress())


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
