"""vzfsutil: check, repair and thin a container's private area (spec of the guide, page 406).

Exit codes are its own: 0 nothing wrong (any more), 1 a usage or system error, 2 inconsistencies.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import InvalidOption, PrivateBroken, VzError
from tools._command import JSON, Context, Program, option
from tools._command import main as run_program

if TYPE_CHECKING:
    from vzfs.check import Area, Problem

#: Actions which only look.
_CHECKS = ("call", "clink", "cvzlinks", "stat")


def open_area(private: Path, template: Path, *, modify: bool) -> Area:
    """Open a private area; raises PrivateBroken, also when it is to be changed and is mounted."""
    from runtime.privatearea import layers
    from vzfs.check import Area
    from vzfs.layers import Busy
    from vzfs.options import Options

    options = Options(
        lower=layers(private, template),
        upper=private / "root",
        work=private / "cow",
        template_area=template,
    )
    try:
        return Area(options, modify=modify)
    except Busy as error:
        raise PrivateBroken(
            f"{private} is mounted", hint="stop the container, or unmount it, first"
        ) from error
    except OSError as error:
        raise PrivateBroken(f"cannot open {private}: {error.strerror}") from error


def _show(path: bytes) -> str:
    return os.fsdecode(path).encode("unicode_escape", "surrogateescape").decode("ascii")


def _agreed(question: str) -> bool:
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _report(args: argparse.Namespace, problems: Iterator[Problem]) -> int:
    """Print what is wrong, repair what was asked for; return how much stays wrong."""
    left = 0
    for problem in list(problems):
        if not args.quiet_mode:
            print(f"{_show(problem.path)}: {problem.text}")
        wanted = args.repair or args.interactive
        if problem.repair is None or not wanted:
            left += 1
            continue
        if args.interactive and not _agreed("repair?"):
            left += 1
            continue
        problem.repair()
        if args.verbosity:
            print(f"{_show(problem.path)}: repaired")
    return left


def _print_figures(args: argparse.Namespace, area: Area) -> None:
    import json
    from dataclasses import asdict

    found = area.figures()
    if args.json:
        values = asdict(found)
        values["broken"] = [os.fsdecode(path) for path in found.broken]
        print(json.dumps(values, indent=2))
        return
    for text, value in (
        ("directories", found.directories),
        ("private files", found.private_files),
        ("private copies of shared files", found.shared_copies),
        ("magic links", found.magic_links),
        ("broken magic links", len(found.broken)),
        ("removed template files", found.whiteouts),
        ("private kilobytes", found.private_bytes // 1024),
        ("shared kilobytes", found.shared_bytes // 1024),
    ):
        print(f"{text:32s}{value:12d}")


def _link(area: Area, private: Path, names: Sequence[str], say: Callable[[str], None]) -> int:
    """Turn private files equal to their template file into magic links; return the failures."""
    from vzfs import layers

    failed = 0
    freed = 0
    for name in names:
        path = (private / "root").resolve() / name.lstrip("/")
        if ".." in path.parts or path.parent.resolve() != path.parent:
            # Through a link of the container's this is another file, perhaps the server's own.
            print(f"{name}: not a plain path below the container's root", file=sys.stderr)
            failed += 1
            continue
        found = layers.resolve_file(area.core.roots, b"/" + os.fsencode(name.lstrip("/")))
        if found is None:
            print(f"{name}: no layer has this file", file=sys.stderr)
            failed += 1
            continue
        layer = area.stack.layers[found.place.layer].path
        inside = os.fsdecode(b"/".join([*found.place.components(), found.name]))
        try:
            freed += area.link(path, layer / inside)
        except OSError as error:
            print(f"{name}: {error.strerror}", file=sys.stderr)
            failed += 1
    say(f"{freed // 1024} kilobytes freed")
    return failed


def _before_change(context: Context, private: Path, *, links: bool) -> None:
    """Have the container's quota counted anew at its next mount, and its links kept in mind."""
    from runtime import files, privatearea, registry
    from templates.users import LINKS
    from tools import environments
    from tools.vzcache import settle

    mark = private / "templates" / LINKS
    if links and mark.parent.is_dir() and not mark.exists():
        files.replace(mark, b"this container has magic links\n", mode=0o600)
    for record, _file in registry.records(context.paths):
        ct = environments.container(context, record)
        if privatearea.location(context.paths, ct.config) == private.resolve():
            settle(context, [ct])


def run(context: Context, args: argparse.Namespace) -> int:
    """Do every action asked for, in the order check, change, report."""
    private, template = Path(args.private), Path(args.template)
    actions = [name for name in ("call", "clink", "cvzlinks", "mcow", "mkmagic", "unlink", "stat")
               if getattr(args, name)]  # fmt: skip
    if not actions:
        raise InvalidOption("no action given", hint="vzfsutil --help lists them")
    if args.interactive and set(actions) - set(_CHECKS):
        raise InvalidOption("-i goes with checks only")
    if not template.is_dir():
        raise InvalidOption(f"{template}: not a directory", hint="give the template area with -t")
    modify = bool(set(actions) - set(_CHECKS)) or args.repair or args.interactive
    area = open_area(private.absolute(), template.absolute(), modify=modify)

    def say(text: str) -> None:
        if not args.quiet_mode:
            print(text)

    wrong = 0
    try:
        if args.mkmagic or args.unlink:
            # Before anything changes: killed half-way, it holds all the same.
            _before_change(context, private, links=bool(args.mkmagic))
        if args.call:
            wrong += _report(args, area.check())
        if args.clink and not args.call:
            wrong += _report(args, area.check_links())
        if args.cvzlinks and not args.call:
            wrong += _report(args, area.check_index())
        if args.mkmagic:
            wrong += _link(area, private, args.mkmagic, say)
        if args.unlink:
            say(f"{area.detach()} files detached from the template")
        if args.mcow:
            say(f"{area.fold()} names given to copies")
        if args.stat:
            _print_figures(args, area)
    except OSError as error:
        raise PrivateBroken(f"{private}: {error.strerror}") from error
    finally:
        area.close()
    return 2 if wrong else 0


def _code(error: VzError) -> int:
    del error
    return 1


PROGRAM = Program(
    "vzfsutil",
    "check, repair and thin a private area",
    run=run,
    options=(
        option("private", help="the private area", metavar="PRIVATE_PATH"),
        option("-t", dest="template", help="the template area", metavar="TEMPLATE_PATH",
               required=True),
        option("--call", help="check everything", action="store_true"),
        option("--clink", help="check magic links against the template", action="store_true"),
        option("--cvzlinks", help="check copies of files with several names", action="store_true"),
        option("--mcow", help="move copies from cow/ to their places", action="store_true"),
        option("--mkmagic", "--link", dest="mkmagic", help="turn files equal to their template "
               "file into magic links", nargs="+", metavar="FILE"),
        option("--unlink", help="replace links by whole files (detach)", action="store_true"),
        option("--stat", help="report counts", action="store_true"),
        option("-r", "--repair", help="repair what the checks find", action="store_true"),
        option("-i", dest="interactive", help="ask before each repair", action="store_true"),
        option("-q", dest="quiet_mode", help="only fatal errors", action="store_true"),
        option("-v", dest="verbosity", help="say more", action="count", default=0),
        option("-p", dest="show_progress", help="show progress",
               action="store_true"),
        JSON,
    ),
    usage_code=1,
    exit_code=_code,
    description="The container must not be mounted for anything that changes the area.",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzfsutil; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
