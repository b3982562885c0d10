"""What the verbs of pctl(8) and vzctl(8) do with a container."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from runtime import locks, registry
from runtime.errors import CommandFailed, InvalidOption, ScriptMissing, StartDisabled
from tools import environments, lifecycle
from tools._command import JSON, Context, Option, Verb, option

if TYPE_CHECKING:
    from runtime.container import Container

ID = option("ident", help="the container: CTID, name or UUID", metavar="ID")
_NEW_ID = option("ident", help="id of the new container (above 100), or its name", metavar="CTID")


def create(context: Context, args: argparse.Namespace) -> None:
    """Create a container."""
    from tools._settings import settings_given

    given = settings_given(args, context)
    if args.ident.isdecimal() or not _is_name(args.ident, given):
        ctid = registry.check_new_ctid(args.ident)
    else:
        given["name"] = [args.ident]
        ctid = lifecycle.next_ctid(context.paths)
    order = lifecycle.Order(
        ctid,
        template=args.ostemplate,
        sample=args.config,
        private=args.private,
        root=args.ve_root,
        force=args.force,
        skip_applications=args.skip_app_templates,
        settings=given,
    )
    lifecycle.create(context, order)


def _is_name(text: str, given: dict[str, list[str]]) -> bool:
    """Whether a word for a new container is meant as its name, not as a mistyped id."""
    return "name" not in given and text[:1].isalpha()


def start(context: Context, args: argparse.Namespace) -> None:
    """Start a container; raises AlreadyRunning, StartDisabled."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "start"):
        prepare(context, ct)
        if ct.config["DISABLED"] == "yes" and not args.force:
            raise StartDisabled(
                "Container start disabled",
                hint=f"pctl set {ct.ctid} --disabled no --save, or --force",
            )
        lifecycle.start(context, ct, wait=args.wait)


def prepare(context: Context, ct: Container) -> None:
    """Bring what killed commands left of ``ct`` in order; call it with its lock held."""
    lifecycle.repair(context, ct.ctid)
    ct.reconcile()


def stop(context: Context, args: argparse.Namespace) -> None:
    """Stop a container; raises NotRunning, StopFailed."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "stop"):
        prepare(context, ct)
        ct.stop(fast=args.fast or args.kill, umount=not args.skip_umount)


def restart(context: Context, args: argparse.Namespace) -> None:
    """Stop a container if it runs, then start it."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "restart"):
        prepare(context, ct)
        if ct.status().running:
            ct.stop(fast=args.fast)
        if ct.config["DISABLED"] == "yes" and not args.force:
            raise StartDisabled("Container start disabled")
        lifecycle.start(context, ct, wait=args.wait)


def status(context: Context, args: argparse.Namespace) -> None:
    """Print one line on a container, in vzctl's words."""
    from runtime import status as status_module
    from runtime.config import ConfigFile
    from runtime.errors import ConfigMissing

    try:
        record = registry.find(context.paths, args.ident)
    except ConfigMissing:
        if not args.ident.isdecimal():
            raise
        found, ctid, exists = None, int(args.ident), False
    else:
        ctid = record.ctid
        config = context.config(ctid, ConfigFile.read(record.conf))
        found = status_module.status(context.paths, ctid, context.paths.area(config["VE_PRIVATE"]))
        exists = found.exists
    mounted = found is not None and found.mounted
    running = found is not None and found.running
    suspended = found is not None and found.suspended
    paused = running and _is_paused(context, ctid)
    if args.json:
        import json

        facts = {"ctid": ctid, "exists": exists, "mounted": mounted, "running": running,
                 "suspended": suspended, "paused": paused}  # fmt: skip
        print(json.dumps(facts, indent=2))
        return
    first = "VEID" if context.program == "vzctl" else "CTID"
    words = [
        first,
        str(ctid),
        "exist" if exists and first == "VEID" else "exists" if exists else "deleted",
        "mounted" if mounted else "unmounted",
        "running" if running else "down",
    ]
    words += [word for word, true in (("suspended", suspended), ("paused", paused)) if true]
    print(" ".join(words))


def _is_paused(context: Context, ctid: int) -> bool:
    from runtime.cgroups import Cgroup

    return Cgroup(context.paths.tag, ctid).is_frozen()


def mount(context: Context, args: argparse.Namespace) -> None:
    """Mount a container's private area at its root."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "mount"):
        prepare(context, ct)
        ct.mount()


def umount(context: Context, args: argparse.Namespace) -> None:
    """Unmount a container that does not run; raises AlreadyRunning, NotMounted."""
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "umount"):
        prepare(context, ct)
        ct.umount()


def destroy(context: Context, args: argparse.Namespace) -> None:
    """Destroy a container that does not run."""
    ct = environments.find_container(context, args.ident)
    if args.force and ct.status().running:
        with locks.environment(context.paths, ct.ctid, "stop"):
            prepare(context, ct)
            ct.stop(fast=True)
    lifecycle.destroy(context, ct)


def set_verb(context: Context, args: argparse.Namespace) -> None:
    """Change settings of a container, live and, with --save, in its configuration."""
    from tools._settings import set_container, set_host

    if args.ident == "0":
        set_host(context, args)
        return
    set_container(context, environments.find_container(context, args.ident), args)


def _shell(words: list[str]) -> list[str]:
    """Return the command that runs ``words`` as vzctl does: one line for the shell inside."""
    if not words:
        raise InvalidOption("no command is given", hint="vzctl exec CTID COMMAND…")
    if words == ["-"]:
        return ["/bin/sh", "-s"]
    return ["/bin/sh", "-c", " ".join(words)]


def exec_(context: Context, args: argparse.Namespace) -> int:
    """Run a command inside; vzctl: status 8 when it fails, pctl: the command's own status."""
    code = _exec(context, args, _shell(args.rest))
    if code != 0 and context.program == "vzctl":
        return CommandFailed.code
    return code


def exec2(context: Context, args: argparse.Namespace) -> int:
    """Run a command inside; return its own status."""
    return _exec(context, args, _shell(args.rest))


def exec3(context: Context, args: argparse.Namespace) -> int:
    """Run a program inside with exactly these arguments; return its own status."""
    if not args.rest:
        raise InvalidOption("no command is given", hint="vzctl exec3 CTID PROGRAM [ARGUMENT…]")
    return _exec(context, args, args.rest)


def _exec(context: Context, args: argparse.Namespace, argv: list[str]) -> int:
    ct = environments.find_container(context, args.ident)
    return ct.exec(argv)


def run(context: Context, args: argparse.Namespace) -> int:
    """Start a stopped container with nothing but one program in it; return the program's status."""
    if not args.rest:
        raise InvalidOption("no command is given", hint="pctl run ID PROGRAM [ARGUMENT…]")
    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "run"):
        prepare(context, ct)
        return ct.run(args.rest)


def enter(context: Context, args: argparse.Namespace) -> int:
    """Open a shell inside, on a terminal of the container's own."""
    ct = environments.find_container(context, args.ident)
    return ct.enter(["/bin/sh", "-c", args.exec] if args.exec else None)


def runscript(context: Context, args: argparse.Namespace) -> int:
    """Run a script of the host inside; a stopped container is mounted for it and stopped again."""
    ct = environments.find_container(context, args.ident)
    try:
        script = os.open(args.script, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ScriptMissing(f"cannot read {args.script}: {error.strerror}") from error
    with open(script, "rb") as file:
        text = file.read()
    with locks.environment(context.paths, ct.ctid, "runscript"):
        prepare(context, ct)
        return ct.runscript(text)


def console(context: Context, args: argparse.Namespace) -> int:
    """Attach to a console of a container; Esc . leaves it."""
    ct = environments.find_container(context, args.ident)
    if not sys.stdin.isatty():
        raise InvalidOption("the console needs a terminal on its standard input")
    return ct.console(args.number)


_WAIT = option("--wait", help="wait until the container's start is complete", action="store_true")
_FORCE = option("--force", help="also when starting is disabled", action="store_true")
_FAST = option("--fast", help="kill instead of halting", action="store_true")
_REST = "COMMAND…  is run by the container's shell; '-' reads it from standard input."


def _create_options() -> tuple[Option, ...]:
    from tools._settings import setting_options

    return (
        _NEW_ID,
        option("--ostemplate", help="OS template (vzpkg list -O)", metavar="NAME"),
        option("--pkgset", help="same as --ostemplate", dest="ostemplate", metavar="NAME"),
        option("--config", help="configuration sample", metavar="SAMPLE"),
        option("--private", help="private area", metavar="DIR"),
        option("--ve-root", "--root-dir", help="mount point", dest="ve_root", metavar="DIR"),
        option("--force", help="also with little free space", action="store_true"),
        option(
            "--skip_app_templates", help="install no application templates", action="store_true"
        ),
        option("--vmtype", help="kind of environment", choices=("ct", "vm"), default="ct"),
        *setting_options(("name", "hostname", "description", "ipadd", "onboot", "nameserver")),
    )


def _set_options() -> tuple[Option, ...]:
    from tools._settings import setting_options

    return (ID, *setting_options())


VERBS: tuple[Verb, ...] = (
    Verb(
        "create",
        "create a container from an OS template",
        create,
        _create_options,
    ),
    Verb("start", "start a container", start, (ID, _WAIT, _FORCE,
         option("--skip-fsck", help="accepted; nothing is checked at start", action="store_true"))),
    Verb("stop", "stop a container", stop, (ID, _FAST,
         option("--kill", help="same as --fast", action="store_true"),
         option("--skip-umount", help="leave it mounted", action="store_true"))),
    Verb("restart", "stop a container if it runs, then start it", restart, (ID, _WAIT, _FORCE, _FAST)),
    Verb("status", "tell whether a container exists, is mounted, runs", status, (ID, JSON), changes=False),
    Verb("mount", "mount a container's private area", mount, (ID,)),
    Verb("umount", "unmount a container's private area", umount, (ID,), aliases=("unmount",)),
    Verb("destroy", "destroy a stopped container", destroy, (ID,
         option("--force", help="kill it first if it runs", action="store_true")), aliases=("delete",)),
    Verb("set", "change settings of a container", set_verb, _set_options),
    Verb("exec", "run a command inside", exec_, (ID,), rest=True, description=_REST, changes=False),
    Verb("exec2", "run a command inside, return its status", exec2, (ID,), rest=True,
         description=_REST, changes=False),
    Verb("exec3", "run a program inside without a shell", exec3, (ID,), rest=True, changes=False),
    Verb("run", "start a stopped container with one program only", run, (ID,), rest=True),
    Verb("enter", "open a shell inside", enter, (ID,
         option("--exec", help="run this instead of a shell", metavar="COMMAND")), changes=False),
    Verb("runscript", "run a script of the host inside", runscript, (ID,
         option("script", help="the script's file", metavar="SCRIPT"))),
    Verb("console", "attach to a console of a container (Esc . leaves)", console, (ID,
         option("number", help="2 (default) a login, 1 the system console", nargs="?", type=int,
                default=2, metavar="N")), changes=False),
)  # fmt: skip
