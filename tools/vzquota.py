"""vzquota: disk quotas of containers, from the server's side (vzquota(8))."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime import units
from runtime.errors import InvalidOption, InvalidValue, VzError
from tools._command import JSON, VERSION, Context, Option, Program, Run, Verb, option
from tools._command import main as run_program
from vzfs import quota, quotaerror, quotastate
from vzfs.quotaerror import EXIT_SYSTEM, EXIT_USAGE, QuotaError
from vzfs.quotalayout import GROUP, USER, Record, Usage

_FILE = option("-c", "--quota-file", help="use this quota file", metavar="FILE", type=Path)
_PATH = option("-p", "--path", help="directory whose use is accounted", metavar="PATH", type=Path)
_RELATIVE = option(
    "-R", "--relative", help="the quota file lies beside PATH: quota.NAME", action="store_true"
)
_FORCE = option("-f", "--force", help="do it even so", action="store_true")
_ID = option("id", help="quota id, by default that of the container", metavar="QUOTA_ID")
_LIMITS = (
    option("-s", "--sub-quotas", help="users and groups: 1 on, 0 off", choices=("0", "1")),
    option("-u", "--ugid-limit", help="how many users and groups may own files", metavar="N"),
    option("-b", "--block-softlimit", help="soft limit in KiB", metavar="N"),
    option("-B", "--block-hardlimit", help="hard limit in KiB", metavar="N"),
    option("-e", "--block-exptime", help="grace period of blocks", metavar="TIME"),
    option("-i", "--inode-softlimit", help="soft limit of inodes", metavar="N"),
    option("-I", "--inode-hardlimit", help="hard limit of inodes", metavar="N"),
    option("-n", "--inode-exptime", help="grace period of inodes", metavar="TIME"),
)
_BATCH = option("--batch", help="print numbers only", action="store_true")
_UGID = option("-t", "--user-group", help="users and groups too", action="store_true")
_COMMON: tuple[Option, ...] = (_ID, _FILE, _PATH, _RELATIVE)


class QuotaFailed(VzError):
    """A quota command failed."""

    def __init__(self, error: QuotaError) -> None:
        """Carry vzquota's own exit status."""
        super().__init__(error.message, hint=error.hint)
        self.status = error.code


def exit_code(error: VzError) -> int:
    """Return vzquota's exit status for an error."""
    if isinstance(error, QuotaFailed):
        return error.status
    if isinstance(error, InvalidOption | InvalidValue):
        return EXIT_USAGE
    return EXIT_SYSTEM


def _warn(context: Context) -> quota.Warn:
    def warn(line: str) -> None:
        if not context.quiet:
            print(f"{context.program}: (warning) {line}", file=sys.stderr)

    return warn


def quota_path(context: Context, args: argparse.Namespace) -> Path:
    """Return the quota file the arguments mean; raises InvalidOption."""
    if not args.id.isascii() or not args.id.isdecimal():
        raise InvalidOption(f"a quota id is a number: {args.id!r}")
    if args.quota_file is not None:
        return Path(args.quota_file)
    if getattr(args, "relative", False):
        if args.path is None:
            raise InvalidOption("-R needs -p PATH")
        area = Path(args.path).absolute()
        return area.parent / f"quota.{area.name}"
    return context.paths.quota_file(int(args.id))


def area_of(path: Path) -> tuple[Path, Path | None]:
    """Return the directory that is accounted for ``path``, and its index of copies.

    Of a container's private area that is its ``root``: the layer its users write to.
    """
    area = path.absolute()
    if (area / "root").is_dir() and (area / "cow").is_dir():
        area /= "root"
    index = area.parent / "cow" / "index"
    return area, index if area.name == "root" and index.is_dir() else None


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    value = units.amount(text, unit=0)
    return 0 if value >= units.UNLIMITED else value


def _time(text: str | None) -> int | None:
    return None if text is None else units.duration(text)


def changes_of(args: argparse.Namespace) -> quota.Changes:
    """Return the limits given as options; raises InvalidValue."""
    return quota.Changes(
        block_soft=_number(args.block_softlimit),
        block_hard=_number(args.block_hardlimit),
        inode_soft=_number(args.inode_softlimit),
        inode_hard=_number(args.inode_hardlimit),
        block_expire=_time(args.block_exptime),
        inode_expire=_time(args.inode_exptime),
        sub_quotas=None if args.sub_quotas is None else int(args.sub_quotas),
        ugid_limit=_number(args.ugid_limit),
    )


def _say(context: Context, line: str) -> None:
    if context.verbose:
        print(line, file=sys.stderr)


def _init(context: Context, args: argparse.Namespace) -> None:
    if args.path is None:
        raise InvalidOption("init needs -p PATH", hint="the directory whose use is accounted")
    area, index = area_of(args.path)
    usage = quota.init(
        quota_path(context, args), area, changes_of(args), index=index, warn=_warn(context)
    )
    _say(context, f"{area}: {usage.blocks} blocks of 512 bytes, {usage.inodes} inodes")


def _drop(context: Context, args: argparse.Namespace) -> None:
    quota.drop(quota_path(context, args), force=args.force, warn=_warn(context))


def _on(context: Context, args: argparse.Namespace) -> None:
    quota.turn_on(
        quota_path(context, args),
        changes_of(args),
        area=None if args.path is None else area_of(args.path)[0],
        force=args.force,
        warn=_warn(context),
    )


def _off(context: Context, args: argparse.Namespace) -> None:
    quota.turn_off(quota_path(context, args), force=args.force, warn=_warn(context))


def _setlimit(context: Context, args: argparse.Namespace) -> None:
    quota.set_limits(
        quota_path(context, args),
        changes_of(args),
        area=None if args.path is None or args.relative else area_of(args.path)[0],
        force=args.force,
        warn=_warn(context),
    )


def _setlimit2(context: Context, args: argparse.Namespace) -> None:
    path = quota_path(context, args)
    kind = GROUP if args.group is not None else USER
    words = [*(args.values), *(args.user or ()), *(args.group or ()), *(args.grace or ())]
    if args.grace is not None:
        if len(words) != 2:
            raise InvalidOption("-t needs two times: of blocks and of inodes")
        quota.set_owner_grace(path, kind, units.duration(words[0]), units.duration(words[1]))
        return
    if not words:
        raise InvalidOption("setlimit2 needs -u UID or -g GID")
    options = (
        args.block_softlimit,
        args.block_hardlimit,
        args.inode_softlimit,
        args.inode_hardlimit,
    )
    ident = _ident(words[0])
    if len(words) == 5 and options == (None,) * 4:
        numbers = [_number(word) or 0 for word in words[1:]]
    elif len(words) == 1 and options != (None,) * 4:
        numbers = _merged(path, kind, ident, options)
    else:
        raise InvalidOption("give all four limits as numbers, or some of -b -B -i -I")
    quota.set_owner_limits(path, Record(kind, ident, Usage(), *numbers))


def _merged(path: Path, kind: int, ident: int, options: Sequence[str | None]) -> list[int]:
    """Return the four limits where some are given as options and the rest stays."""
    old = [0, 0, 0, 0]
    for record in quotastate.snapshot(path, exact=False).records:
        if (record.kind, record.ident) == (kind, ident):
            old = [record.block_soft, record.block_hard, record.inode_soft, record.inode_hard]
    given = [_number(word) for word in options]
    return [was if new is None else new for was, new in zip(old, given, strict=True)]


def _ident(word: str) -> int:
    if not word.isascii() or not word.isdecimal() or int(word) >= 2**32 - 1:
        raise InvalidValue(f"not a user or group id: {word!r}")
    return int(word)


def _reload2(context: Context, args: argparse.Namespace) -> None:
    quota.reload_owners(quota_path(context, args))


def _print(args: argparse.Namespace, state: quotastate.Snapshot, context: Context) -> None:
    from tools import quotaview

    if args.json:
        import json

        print(json.dumps(state.as_dict(), indent=2))
        return
    lines = quotaview.first_level(state, batch=args.batch)
    if args.user_group:
        lines += quotaview.second_level(state, batch=args.batch)
    print("\n".join(lines))
    if context.verbose:
        print(f"path: {state.area}", file=sys.stderr)
        if state.served:
            who = f"served by process {state.server}" if state.server else "its server rests"
            print(f"{who}, transport {state.transport}", file=sys.stderr)


def _stat(context: Context, args: argparse.Namespace) -> int:
    state = quotastate.snapshot(quota_path(context, args), sync=not args.force)
    if not state.running:
        raise QuotaError(
            quotaerror.EXIT_NOT_RUNNING, "Quota accounting is off, try vzquota show id"
        )
    _print(args, state, context)
    if args.user_group and not state.ugid_active:
        return quotaerror.EXIT_UGID_INACTIVE
    return 0


def _show(context: Context, args: argparse.Namespace) -> int:
    state = quotastate.snapshot(quota_path(context, args), exact=False)
    if state.running:
        _warn(context)(
            "Quota is running, so data reported from quota file may not reflect current values"
        )
    _print(args, state, context)
    return quotaerror.EXIT_DIRTY if state.dirty else 0


def guard(run: Callable[[Context, argparse.Namespace], int | None]) -> Run:
    """Return ``run`` with its failures carrying vzquota's exit codes."""

    def guarded(context: Context, args: argparse.Namespace) -> int | None:
        try:
            return run(context, args)
        except QuotaError as error:
            raise QuotaFailed(error) from error
        except OSError as error:
            raise QuotaFailed(
                QuotaError(EXIT_SYSTEM, f"{error.filename or 'quota file'}: {error.strerror}")
            ) from error

    return guarded


def _verb(
    name: str,
    help_text: str,
    run: Callable[[Context, argparse.Namespace], int | None],
    *options: Option,
) -> Verb:
    return Verb(name, help_text, guard(run), (*_COMMON, *options), changes=False)


VERBS = (
    _verb("init", "make the quota file and count what PATH uses", _init, *_LIMITS),
    _verb("on", "turn accounting on, counting afresh if need be", _on, *_LIMITS, _FORCE),
    _verb("off", "turn accounting off and write the usage back", _off, _FORCE),
    _verb("drop", "delete the quota file", _drop, _FORCE),
    _verb("setlimit", "set limits, at once where it runs", _setlimit, *_LIMITS, _FORCE),
    _verb(
        "setlimit2",
        "set limits of a user or group, or (-t) grace periods",
        _setlimit2,
        option("-u", "--user", "--uid", help="user, its four limits", metavar="UID", nargs="*"),
        option("-g", "--group", "--gid", help="group, its four limits", metavar="GID", nargs="*"),
        option("-t", "--grace", help="set the two grace periods", metavar="TIME", nargs="*"),
        option("values", help="the four limits, or the two times", nargs="*", metavar="VALUE"),
        *(row for row in _LIMITS if row.flags[0] in ("-b", "-B", "-i", "-I")),
        _FORCE,
    ),
    _verb("reload2", "make limits of users and groups in the file effective", _reload2),
    _verb(
        "stat",
        "show usage and limits, exact, of a running quota",
        _stat,
        _UGID,
        _FORCE,
        _BATCH,
        JSON,
    ),
    _verb("show", "show usage and limits as the file has them", _show, _UGID, _BATCH, JSON),
)

PROGRAM = Program(
    "vzquota",
    "Control disk quotas of containers.",
    verbs=VERBS,
    usage_code=EXIT_USAGE,
    exit_code=exit_code,
    description="""Control disk quotas of containers. Before the verb: -q quiet, -v verbose, -b numbers only, -V
version. Exit status: 0 done, 1 system error, 2 usage, 3 system call, 4 quota file, 5 already
running, 6 not running, 7 locked, 8 crosses mount points, 9 users and groups inactive (stat -t),
10 dirty (show), 11 no quota file, 13 no such directory.""",
)

_SHORT = {"-q": "--quiet", "-v": "--verbose", "-V": "--version", "-h": "--help"}


def translate(argv: Sequence[str]) -> list[str]:
    """Return the arguments with vzquota's short global options as the frame knows them."""
    head: list[str] = []
    tail = list(argv)
    batch = False
    while tail and tail[0].startswith("-"):
        word = tail.pop(0)
        if word == "-b":
            batch = True
            continue
        if re.fullmatch(r"-v+", word):
            word = "-v"
        head.append(_SHORT.get(word, word))
        if word in ("--root", "--progress") and tail:
            head.append(tail.pop(0))
    if batch and tail[:1] in (["stat"], ["show"]):
        tail.append("--batch")
    return head + tail


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzquota; return its exit status."""
    arguments = translate(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"{PROGRAM.name} {VERSION}")
        return 0
    return run_program(PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
