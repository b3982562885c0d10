"""vzpkg: listing, describing, installing and removing templates."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from runtime.errors import InvalidOption
from templates import catalogue, names
from templates.catalogue import Template
from templates.errors import BadName, TemplateNotFound
from templates.recipe import Recipe
from tools._command import Context
from tools.vzpkg_caches import stamp

_NAME_WIDTH = 34


@dataclass(frozen=True)
class Line:
    """One line of the list: an OS template, or an application template of one."""

    template: Template
    application: str = ""

    @property
    def name(self) -> str:
        """What the list shows."""
        return f"{self.template.name} {self.application}".rstrip()

    @property
    def recipe(self) -> Recipe:
        """Its definition."""
        if self.application:
            return catalogue.application(self.template.area, self.template.parts, self.application)
        return self.template.recipe


def list_(context: Context, args: argparse.Namespace) -> None:
    """List templates, installed packages, or what can be installed."""
    if args.packages or args.groups or _is_container(context, args.objects):
        from tools import vzpkg_container

        vzpkg_container.list_(context, args)
        return
    if args.available:
        _available(context, args)
        return
    lines = _lines(context, args)
    if args.json:
        print(json.dumps([_object(line) for line in lines], indent=1))
        return
    for line in lines:
        if args.with_summary:
            print(f"{line.name:<{_NAME_WIDTH}} :{line.recipe.summary}")
        elif line.application or line.template.cache is None:
            print(line.name)
        else:
            print(f"{line.name:<{_NAME_WIDTH}} {stamp(line.template.cache.created_s)}")


def _is_container(context: Context, objects: list[str]) -> bool:
    """Tell whether the objects are containers; a template wins where a word may be both."""
    if not objects:
        return False
    try:
        catalogue.find(context.paths, objects[0])
    except TemplateNotFound as error:
        from runtime import registry
        from runtime.errors import ConfigMissing

        try:
            registry.find(context.paths, objects[0])
        except (ConfigMissing, InvalidOption):
            if objects[0].isdecimal():
                raise
            raise error from None
        return True
    except BadName:
        return True
    return False


def _lines(context: Context, args: argparse.Namespace) -> list[Line]:
    if args.objects:
        templates = [catalogue.find(context.paths, name) for name in args.objects]
    else:
        templates = catalogue.every(context.paths)
    lines: list[Line] = []
    shipped = catalogue.shipped()
    for template in templates:
        if args.cached and not template.cached:
            continue
        if args.custom and str(template.parts.base) in shipped:
            continue
        if not args.app:
            lines.append(Line(template))
        if not args.os and template.parts.set == names.DEFAULT_SET:
            found = catalogue.applications(template.area, template.parts)
            lines += [Line(template, name) for name in found]
    return lines


def _object(line: Line) -> dict[str, object]:
    built = line.template.cache
    body: dict[str, object] = {
        "name": line.template.name,
        "summary": line.recipe.summary,
        "cached": stamp(built.created_s) if built and not line.application else None,
    }
    if line.application:
        body["application"] = line.application
    elif built is not None:
        body.update(
            build=built.build,
            distribution=built.distribution,
            init=built.init,
            packages=len(built.packages),
            **built.figures,
        )
    return body


def _available(context: Context, args: argparse.Namespace) -> None:
    area = context.paths.template
    catalogue.install_shipped(area)
    have = {str(name) for name in catalogue.installed(area)}
    missing = [name for name in catalogue.shipped() if name not in have]
    if args.json:
        print(json.dumps([{"name": name} for name in missing], indent=1))
        return
    for name in missing:
        print(name)


def info(context: Context, args: argparse.Namespace) -> None:
    """Show the fields of a template."""
    if args.for_os:
        template = catalogue.find(context.paths, args.for_os)
        line = Line(template, names.check_application(args.name))
    else:
        line = Line(catalogue.find(context.paths, args.name))
    body = _description(line)
    unknown = [field for field in args.fields if field.lower() not in body]
    if unknown:
        raise InvalidOption(
            f"unknown field: {unknown[0]}", hint=f"fields are {', '.join(sorted(body))}"
        )
    shown = {k: v for k, v in body.items() if not args.fields or k in map(str.lower, args.fields)}
    if args.json:
        print(json.dumps(shown, indent=1))
        return
    for key, value in shown.items():
        label = f"{key.replace('_', ' ').capitalize()}:"
        if isinstance(value, list):
            print(label)
            for item in value:
                print(f"  {item}")
        else:
            print(f"{label} {value}")


def _description(line: Line) -> dict[str, object]:
    recipe = line.recipe
    body: dict[str, object] = {
        "name": line.name,
        "summary": recipe.summary,
        "description": " ".join(recipe.text("description").split()),
        "packages": recipe.packages,
        "distribution": line.template.distribution,
    }
    if line.application:
        return body
    body |= {
        "package_manager": recipe.package_manager,
        "repositories": recipe.repositories,
        "version": recipe.text("version"),
        "release": recipe.text("release"),
        "applications": catalogue.applications(line.template.area, line.template.parts),
        "cached": stamp(line.template.cache.created_s) if line.template.cache else "no",
    }
    built = line.template.cache
    if built is not None:
        body |= {
            "build": built.build,
            "init": built.init,
            "installed": [f"{name} {version} {arch}" for name, version, arch in built.packages],
            **built.figures,
        }
    return body


def install_template(context: Context, args: argparse.Namespace) -> None:
    """Install definitions that come with the product."""
    from templates import upkeep

    for name in args.names:
        upkeep.install(context.paths, name, force=args.force)
        context.progress().say(f"Template {name} was installed")


def update_template(context: Context, args: argparse.Namespace) -> None:
    """Replace definitions by newer ones; changed ones only by name, with -f."""
    from templates import upkeep

    catalogue.install_shipped(context.paths.template)
    for name in args.names:
        upkeep.install(context.paths, name, force=args.force)
        context.progress().say(f"Template {name} was updated")


def remove_template(context: Context, args: argparse.Namespace) -> None:
    """Remove templates nobody uses."""
    from templates import upkeep

    for name in args.names:
        if args.for_os:
            template = catalogue.find(context.paths, args.for_os)
            upkeep.remove_application(context.paths, template, name)
        else:
            upkeep.remove(context.paths, catalogue.find(context.paths, name), force=args.force)
        context.progress().say(f"Template {name} was removed")
