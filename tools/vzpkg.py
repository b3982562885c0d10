"""vzpkg: templates, their caches, and packages in containers (vzpkg(8))."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from runtime.errors import InvalidOption, NotPermitted
from templates.errors import vzpkg_code
from tools._command import JSON, Program, Verb, option
from tools._command import main as run_program

FORCE = option("-f", "--force", help="do it even so", action="store_true")
QUIET = option("-q", "--no-output", help="print nothing but errors", action="store_true")
TEST = option("-n", "--test", help="say what would be done, do nothing", action="store_true")
OS = option("-F", "--for-os", help="OS template the object belongs to", metavar="OSTEMPLATE")
TEMPLATES = option("templates", help="OS templates (default: all)", metavar="OSTEMPLATE", nargs="*")
CT = option("ident", help="container: CTID, name or UUID", metavar="CT")
OBJECTS = option("objects", help="application templates, or packages with -p", metavar="OBJECT",
                 nargs="*")  # fmt: skip
PACKAGES = option("-p", "--packages", help="objects are packages", action="store_true")
GROUPS = option("-g", "--groups", help="objects are package groups", action="store_true")
CACHE_ONLY = option("-C", "--cache", help="use what was fetched before only", action="store_true")
REMOTE = option("-r", "--remote", help="fetch the package lists anew", action="store_true")
DEPENDENCIES = option("-w", "--with-depends", help="with what it depends on, or what depends on it",
                      action="store_true")  # fmt: skip
TIMEOUT = option("--timeout", help="give up after SECONDS", metavar="SECONDS", type=float)
CHANGING = (PACKAGES, GROUPS, CACHE_ONLY, REMOTE, TEST, FORCE, DEPENDENCIES, TIMEOUT)


_WHICH = (
    option("--ostemplate", help="OS template", metavar="OSTEMPLATE"),
    option("--apptemplate", help="application templates, with commas", metavar="APP,..."),
    option("--config", help="sample whose OSTEMPLATE and TEMPLATES are meant", metavar="SAMPLE"),
)

_CACHES = "tools.vzpkg_caches"
_CATALOGUE = "tools.vzpkg_catalogue"
_CONTAINER = "tools.vzpkg_container"
_LINKS = "tools.vzcache"

VERBS: tuple[Verb, ...] = (
    Verb("list", "list templates, or what a container has", f"{_CATALOGUE}:list_", (
        option("objects", help="OS templates or containers", metavar="OBJECT", nargs="*"),
        option("-O", "--os", help="OS templates only", action="store_true"),
        option("-A", "--app", help="application templates only", action="store_true"),
        option("-c", "--cached", help="those with a cache only", action="store_true"),
        option("-S", "--with-summary", help="with one line about each", action="store_true"),
        option("-u", "--custom", help="those that did not come with the product only",
               action="store_true"),
        option("-i", "--pkgid", help="with the id of each package", action="store_true"),
        option("--available", help="those that can be installed", action="store_true"),
        PACKAGES, GROUPS, JSON), changes=False),
    Verb("info", "show a template or a package", f"{_CATALOGUE}:info", (
        option("name", help="OS or application template", metavar="OBJECT"),
        option("fields", help="fields to show (default: all)", metavar="FIELD", nargs="*"),
        OS, JSON), changes=False),
    Verb("install template", "install templates that come with the product",
         f"{_CATALOGUE}:install_template", (
             option("names", help="templates", metavar="TEMPLATE", nargs="+"), FORCE)),
    Verb("update template", "install newer definitions of templates",
         f"{_CATALOGUE}:update_template", (
             option("names", help="templates (default: all)", metavar="TEMPLATE", nargs="*"),
             FORCE)),
    Verb("remove template", "remove templates nobody uses", f"{_CATALOGUE}:remove_template", (
        option("names", help="templates", metavar="TEMPLATE", nargs="+"), OS, FORCE)),
    Verb("create cache", "build caches of OS templates", f"{_CACHES}:create", (
        TEMPLATES, FORCE, QUIET)),
    Verb("update cache", "build caches anew where there are newer packages",
         f"{_CACHES}:update", (TEMPLATES, FORCE, QUIET)),
    Verb("remove cache", "remove caches of OS templates", f"{_CACHES}:remove", (TEMPLATES,)),
    Verb("create appcache", "build caches with application templates in them",
         f"{_CACHES}:create_applications", (*_WHICH, FORCE)),
    Verb("update appcache", "build such caches anew where there are newer packages",
         f"{_CACHES}:update_applications", (*_WHICH, FORCE)),
    Verb("remove appcache", "remove caches with application templates",
         f"{_CACHES}:remove_applications", _WHICH),
    Verb("list appcache", "list caches with application templates",
         f"{_CACHES}:list_applications", (JSON,), changes=False),
    Verb("install", "install application templates or packages in a running container",
         f"{_CONTAINER}:install", (CT, OBJECTS, *CHANGING)),
    Verb("localinstall", "install package files of the server in a running container",
         f"{_CONTAINER}:localinstall", (
             CT, option("files", help="package files", metavar="FILE", nargs="+"),
             CACHE_ONLY, REMOTE, TEST, FORCE, TIMEOUT), aliases=("localupdate",)),
    Verb("update", "update a running container, or some templates or packages in it",
         f"{_CONTAINER}:update", (CT, OBJECTS, *CHANGING)),
    Verb("remove", "remove application templates or packages from a running container",
         f"{_CONTAINER}:remove", (CT, OBJECTS, *CHANGING)),
    Verb("status", "tell whether there are updates (exit status 22: there are)",
         f"{_CONTAINER}:status", (
             option("object", help="container or OS template", metavar="CT|OSTEMPLATE"),
             CACHE_ONLY, REMOTE, JSON), changes=False),
    Verb("update metadata", "fetch the package lists of templates", f"{_CONTAINER}:metadata", (
        TEMPLATES,)),
    Verb("link", "replace private files equal to a template's by magic links",
         f"{_LINKS}:link", (
             option("idents", help="containers, running or not", metavar="CT", nargs="+"),
             option("-s", "--slow", help="unpack what was fetched for its packages first",
                    action="store_true"), TEST)),
    Verb("fetch", "fetch what updates of templates need, install nothing",
         f"{_CONTAINER}:fetch", (TEMPLATES,)),
    Verb("clean", "remove what is no longer used", f"{_CACHES}:clean", (
        TEMPLATES,
        option("-k", "--packages", help="packages that were fetched", action="store_true"),
        option("-t", "--trees", help="file trees and files nobody uses (the default)",
               action="store_true"),
        option("-a", "--all", help="both, and old caches", action="store_true"), TEST)),
)  # fmt: skip


_ROWS = {verb.name: verb for verb in VERBS}
_BEFORE_THE_VERB = ("--root", "--progress")


def joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a verb of two words as one, and what has no dash at the end.

    ``create -f cache NAME`` becomes ``"create cache" -f NAME``: argparse would give up at a list
    of words that options interrupt. Raises InvalidOption when a verb lacks its second word.
    """
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        at += 2 if arguments[at] in _BEFORE_THE_VERB else 1
    head, tail = list(arguments[:at]), list(arguments[at:])
    if not tail:
        return head
    word, tail = tail[0], tail[1:]
    nouns = [name.split()[1] for name in _ROWS if name.startswith(f"{word} ")]
    noun = next((item for item in tail if not item.startswith("-")), "")
    if noun in nouns:
        tail.remove(noun)
        word = f"{word} {noun}"
    elif nouns and word not in _ROWS and not {"-h", "--help"} & set(tail):
        raise InvalidOption(f"vzpkg {word} needs one of: {', '.join(nouns)}")
    verb = _ROWS.get(word)
    return [*head, word, *(_options_first(verb, tail) if verb else tail)]


def _options_first(verb: Verb, tail: list[str]) -> list[str]:
    """Return ``tail`` with its options, and what belongs to them, before everything else."""
    valued = {
        flag
        for row in verb.rows()
        for flag in row.flags
        if flag.startswith("-") and "action" not in row.settings
    }
    options: list[str] = []
    words: list[str] = []
    items = iter(tail)
    for item in items:
        if item == "--":
            words += ["--", *items]
        elif not item.startswith("-") or item == "-":
            words.append(item)
        else:
            options.append(item)
            if item in valued:
                options += [value for value in (next(items, None),) if value is not None]
    return options + words


PROGRAM = Program(
    name="vzpkg",
    help="manage templates, their caches, and packages in containers",
    verbs=VERBS,
    usage_code=35,
    exit_code=vzpkg_code,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzpkg."""
    try:
        arguments = joined(sys.argv[1:] if argv is None else argv)
    except InvalidOption as error:
        print(f"vzpkg: {error.message}", file=sys.stderr)
        return PROGRAM.usage_code
    asking = {"--help", "-h", "help", "--version"} & set(arguments)
    if os.geteuid() != 0 and arguments and not asking:
        print("vzpkg: must be run as root", file=sys.stderr)
        return vzpkg_code(NotPermitted())
    if "site" not in sys.modules:
        # A "status" is started without it, as one that only reads files; ours needs libraries.
        import site

        site.main()
    return run_program(PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
