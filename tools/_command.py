"""The frame every command runs in: rows into parsers, errors into exit codes.

A command is a ``Program``: either one action with options, or verbs. Only the parser of the verb
that was asked for is built, so that a short command stays short. The manual pages, the
completions and ``--help`` are made from the same rows.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from runtime.errors import (
    GlobalConfigMissing,
    InvalidOption,
    NotPermitted,
    OutOfMemory,
    VzError,
)
from runtime.paths import Paths

if TYPE_CHECKING:
    from runtime.config import Config, ConfigFile
    from runtime.log import Log
    from runtime.progress import Progress

VERSION = "0.1.0"

#: What a verb does: returns its exit status, None meaning 0.
Run = Callable[["Context", argparse.Namespace], int | None]


@dataclass(frozen=True)
class Option:
    """One option or positional argument, in argparse's words (``settings``)."""

    flags: tuple[str, ...]
    help: str
    settings: dict[str, Any] = field(default_factory=dict)
    #: Its value may begin with a dash (``-s -name``), which argparse takes for an option.
    dashed: bool = False

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add it to ``parser``."""
        parser.add_argument(*self.flags, help=self.help, **self.settings)


def option(*flags: str, help: str, dashed: bool = False, **settings: Any) -> Option:
    """Return an Option; ``settings`` are argparse's (metavar, nargs, action, choices, …)."""
    return Option(flags, help, settings, dashed)


def _join_dashed(rows: Sequence[Option], arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` with the values that may begin with a dash joined to their options."""
    flags = {flag for row in rows if row.dashed for flag in row.flags}
    out: list[str] = []
    waiting = False
    for word in arguments:
        if waiting and word.startswith("-"):
            out[-1] += f"={word}" if out[-1].startswith("--") else word
        else:
            out.append(word)
        waiting = word in flags and not waiting
    return out


JSON = option("-j", "--json", help="print JSON with field names", action="store_true")
DRY_RUN = option("-n", "--dry-run", help="say what would be done, do nothing", action="store_true")


@dataclass(frozen=True)
class Verb:
    """A row: one word of a command, what it needs, what it does.

    ``run`` is the function, or "module:function" which is imported when the verb is used.
    ``changes`` says that it changes something: such a verb starts the warm service.
    """

    name: str
    help: str
    run: Run | str
    #: The options, or what makes them when the verb is used (long tables of settings).
    options: tuple[Option, ...] | Callable[[], tuple[Option, ...]] = ()
    aliases: tuple[str, ...] = ()
    changes: bool = True
    #: Everything after the fixed options goes to ``args.rest`` unparsed (commands to execute).
    rest: bool = False
    description: str = ""

    def function(self) -> Run:
        """Return what runs the verb, importing its module now."""
        return resolve(self.run)

    def rows(self) -> tuple[Option, ...]:
        """Return its options."""
        return self.options() if callable(self.options) else self.options


@dataclass(frozen=True)
class Program:
    """A command: its name, its verbs or its single action, and its own exit code for bad usage."""

    name: str
    help: str
    verbs: tuple[Verb, ...] = ()
    run: Run | str | None = None
    options: tuple[Option, ...] = ()
    #: vzctl's "invalid parameter syntax"; others have tables of their own.
    usage_code: int = InvalidOption.code
    #: Turns an error into the program's own code where its table is not vzctl's.
    exit_code: Callable[[VzError], int] | None = None
    changes: bool = False
    description: str = ""
    #: Chooses the row of a verb when several kinds of environment share the word.
    choose: Callable[[Context, str, Sequence[str]], Verb | None] | None = None
    #: The command takes the global options --root, --quiet, --verbose only before the verb.
    epilog: str = ""


def resolve(run: Run | str) -> Run:
    """Return the function named "module:function", or ``run`` itself."""
    if not isinstance(run, str):
        return run
    module, _, name = run.partition(":")
    function: Run = getattr(importlib.import_module(module), name)
    return function


class Context:
    """What a verb needs to know of its surroundings; everything is read when first asked for."""

    def __init__(
        self,
        program: str,
        paths: Paths,
        *,
        quiet: bool = False,
        verbose: bool = False,
        progress: str = "auto",
    ) -> None:
        """Describe one run of ``program`` on the system at ``paths``."""
        self.program = program
        self._root = paths
        self._paths: Paths | None = None
        self.quiet = quiet
        self.verbose = verbose
        self.progress_mode = progress
        self._server: ConfigFile | None = None
        self._log: Log | None = None

    @property
    def paths(self) -> Paths:
        """The places of the system, as vz.conf moves them."""
        if self._paths is None:
            self._paths = self._root
            with suppress(GlobalConfigMissing):
                self._paths = self._root.with_template(self.server().get("TEMPLATE"))
        return self._paths

    def server(self) -> ConfigFile:
        """Return vz.conf, empty when it does not exist; raises GlobalConfigMissing."""
        if self._server is None:
            from runtime.config import ConfigFile

            path = self._root.global_config
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                data = b""
            except OSError as error:
                raise GlobalConfigMissing(f"cannot read {path}: {error.strerror}") from error
            self._server = ConfigFile(data.decode("utf-8", "surrogateescape"), path=path)
        return self._server

    def config(self, ctid: int, container: ConfigFile | None) -> Config:
        """Return the effective configuration of a container (or the host's, ``ctid`` 0)."""
        from runtime.config import Config
        from runtime.defaults import DEFAULTS

        return Config(ctid=ctid, container=container, server=self.server(), defaults=DEFAULTS)

    def log(self) -> Log:
        """Return the product's log as vz.conf wants it."""
        if self._log is None:
            from runtime.log import Log

            server = self.server()
            level = server.get("LOG_LEVEL") or "0"
            where = server.get("LOGFILE")
            self._log = Log(
                self.paths.area(where) if where else self.paths.log,
                program=self.program,
                level=int(level) if level.isdecimal() else 0,
                enabled=(server.get("LOGGING") or "yes") != "no",
            )
        return self._log

    def progress(self, ctid: int | str | None = None) -> Progress:
        """Return where an action on ``ctid`` reports to."""
        from runtime import progress

        if self.progress_mode == "json":
            return progress.Json(sys.stderr, self.log())
        return progress.Lines(
            self.log(),
            ctid=ctid,
            quiet=self.quiet,
            verbose=self.verbose,
            bars=self.progress_mode != "none",
        )


class _Parser(argparse.ArgumentParser):
    """argparse which reports bad usage as our error: one line and a hint."""

    def error(self, message: str) -> NoReturn:
        raise InvalidOption(message, hint=f"{self.prog} --help")


def _global_parser(program: Program) -> _Parser:
    parser = _Parser(prog=program.name, add_help=False, allow_abbrev=False)
    parser.add_argument("--root", metavar="DIR")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--no-progress", action="store_true")
    parser.add_argument("--progress", choices=("auto", "none", "json"), default="auto")
    return parser


GLOBAL_OPTIONS = (
    option("--root", help="use the system below DIR instead of /", metavar="DIR"),
    option("--quiet", help="print nothing but errors", action="store_true"),
    option("--verbose", help="print details", action="store_true"),
    option("--no-progress", help="print no progress bars", action="store_true"),
    option("--progress", help="how to show progress", choices=("auto", "none", "json")),
)


def verb_parser(program: Program, verb: Verb) -> argparse.ArgumentParser:
    """Return the parser of one verb: for parsing, and for the manual."""
    parser = _Parser(
        prog=f"{program.name} {verb.name}",
        description=verb.description or verb.help,
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add(parser, verb.rows())
    if verb.rest:
        parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def program_parser(program: Program) -> argparse.ArgumentParser:
    """Return the parser of a command without verbs."""
    parser = _Parser(
        prog=program.name,
        description=program.description or program.help,
        epilog=program.epilog,
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{program.name} {VERSION}")
    _add(parser, (*program.options, *GLOBAL_OPTIONS))
    return parser


def full_parser(program: Program) -> argparse.ArgumentParser:
    """Return one parser with every verb: what manual pages and completions are made from."""
    if not program.verbs:
        return program_parser(program)
    parser = _Parser(
        prog=program.name,
        description=program.description or program.help,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{program.name} {VERSION}")
    _add(parser, GLOBAL_OPTIONS)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    seen: set[str] = set()
    for verb in program.verbs:
        if verb.name in seen:
            continue
        seen.add(verb.name)
        child = verbs.add_parser(
            verb.name,
            aliases=verb.aliases,
            help=verb.help,
            description=verb.description or verb.help,
            add_help=False,
        )
        _add(child, verb.rows())
    return parser


def _add(parser: argparse.ArgumentParser, rows: tuple[Option, ...]) -> None:
    """Add ``rows`` and --help; -h is help too where the command does not use it otherwise."""
    taken = {flag for row in rows for flag in row.flags}
    help_flags = [flag for flag in ("-h", "--help") if flag not in taken]
    parser.add_argument(*help_flags, action="help", help="show this help")
    for row in rows:
        row.add_to(parser)


def overview(program: Program) -> str:
    """Return the help of a command with verbs."""
    width = max(len(verb.name) for verb in program.verbs) + 2
    lines = [
        f"usage: {program.name} [--root DIR] [--quiet] [--verbose] VERB [ID] [options]",
        "",
        program.description or program.help,
        "",
    ]
    shown: set[str] = set()
    for verb in program.verbs:
        if verb.name not in shown:
            shown.add(verb.name)
            lines.append(f"  {verb.name:<{width}}{verb.help}")
    lines += ["", f"'{program.name} VERB --help' shows the options of a verb."]
    return "\n".join(lines)


def main(program: Program, argv: Sequence[str] | None = None) -> int:
    """Run ``program`` with ``argv`` (default: the process's own) and return its exit status.

    The one place where errors become exit codes.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _status(program, arguments)
        # Here, where a reader who has enough is noticed, and not by the interpreter at its end.
        sys.stdout.flush()
        return status
    except VzError as error:
        refused = os.geteuid() != 0 and isinstance(error.__cause__, PermissionError)
        return _report(program, _not_root(error.message) if refused else error)
    except PermissionError as error:
        if os.geteuid() == 0:
            return _bug(program)
        return _report(program, _not_root(f"{error.filename}: {error.strerror}"))
    except MemoryError:
        return _report(program, OutOfMemory("this server has no memory left for the command"))
    except KeyboardInterrupt:
        print(f"{program.name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read us has enough; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception:
        return _bug(program)


def _status(program: Program, arguments: list[str]) -> int:
    try:
        return _run(program, arguments)
    except SystemExit as stop:  # argparse's --help and --version
        return stop.code if isinstance(stop.code, int) else 0


def _bug(program: Program) -> int:
    """Report the exception being handled, which nobody foresaw."""
    import traceback

    traceback.print_exc()
    print(
        f"{program.name}: this is a bug in pyvz {VERSION}; please report it with the lines above",
        file=sys.stderr,
    )
    return VzError.code


def _not_root(reason: str) -> NotPermitted:
    return NotPermitted(reason, hint="run it as root")


def _run(program: Program, arguments: list[str]) -> int:
    if not program.verbs:
        words = _join_dashed(program.options, arguments)
        args = program_parser(program).parse_args(words)
        context = _context(program, args)
        assert program.run is not None
        return resolve(program.run)(context, args) or 0
    head, word, tail = _split(program, arguments)
    if "--version" in head:
        print(f"{program.name} {VERSION}")
        return 0
    if word in ("", "help") or "--help" in head or "-h" in head:
        print(overview(program))
        return 0 if word or head else program.usage_code
    context = _context(program, _global_parser(program).parse_args(head))
    verb = find_verb(program, word, context, tail)
    args = verb_parser(program, verb).parse_args(_join_dashed(verb.rows(), tail))
    if verb.rest and args.rest[:1] == ["--"]:
        args.rest = args.rest[1:]
    args.verb = verb.name
    return verb.function()(context, args) or 0


def find_verb(program: Program, word: str, context: Context, tail: Sequence[str]) -> Verb:
    """Return the row for ``word``; raises InvalidOption with the nearest words there are."""
    if program.choose is not None:
        chosen = program.choose(context, word, tail)
        if chosen is not None:
            return chosen
    for verb in program.verbs:
        if word == verb.name or word in verb.aliases:
            return verb
    import difflib

    near = difflib.get_close_matches(word, [verb.name for verb in program.verbs], 3)
    raise InvalidOption(
        f"unknown verb: {word!r}",
        hint=f"did you mean {', '.join(near)}?" if near else f"{program.name} --help lists them",
    )


def _split(program: Program, arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Take apart the options before the verb, the verb, and what follows it."""
    head: list[str] = []
    i = 0
    while i < len(arguments) and arguments[i].startswith("-"):
        head.append(arguments[i])
        if arguments[i] in ("--root", "--progress") and i + 1 < len(arguments):
            i += 1
            head.append(arguments[i])
        i += 1
    if i == len(arguments):
        return head, "", []
    return head, arguments[i], arguments[i + 1 :]


def _context(program: Program, args: argparse.Namespace) -> Context:
    return Context(
        program.name,
        Paths.from_environment(args.root),
        quiet=args.quiet,
        verbose=args.verbose,
        progress="none" if args.no_progress else args.progress or "auto",
    )


def _report(program: Program, error: VzError) -> int:
    from runtime.log import one_line

    print(f"{program.name}: {one_line(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {one_line(error.hint)}", file=sys.stderr)
    if program.exit_code is not None:
        return program.exit_code(error)
    if isinstance(error, InvalidOption):
        return program.usage_code
    return error.code
