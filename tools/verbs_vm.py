"""What the verbs of pctl(8) do with a virtual machine, and which row a command line means."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import locks
from runtime.errors import ConfigMissing, InvalidOption, NameFailed
from tools._command import JSON, Context, Verb, option

if TYPE_CHECKING:
    from vmm.connection import Hypervisor
    from vmm.machine import Machine

ID = option("ident", help="the machine: name or UUID", metavar="ID")
#: Options of ``create`` that only a machine has.
_MACHINE_ONLY = ("-d", "--distribution", "-o", "--ostype", "--no-hdd", "--dst", "--changesid")


@contextmanager
def hypervisor(context: Context) -> Iterator[Hypervisor]:
    """Give the way to libvirt that vz.conf wants."""
    from vmm.connection import Hypervisor

    server = context.server()
    with Hypervisor(
        context.paths,
        uri=server.get("LIBVIRT_URI") or None,
        accelerate=server.get("VM_ACCELERATION"),
        progress=context.progress(),
    ) as found:
        yield found


@contextmanager
def opened(context: Context, ident: str, purpose: str | None = None) -> Iterator[Machine]:
    """Give the machine called ``ident``; ``purpose`` locks it. Raises ConfigMissing, Locked."""
    from vmm import account, registry, upkeep
    from vmm.machine import Machine

    record = registry.find(context.paths, ident)
    progress = context.progress(record.name)
    with hypervisor(context) as way:
        if purpose is None:
            yield Machine(context.paths, record, way, progress)
            return
        with locks.environment(context.paths, record.uuid, purpose):
            # It may have been renamed, moved or deleted before the lock was ours.
            record = registry.find(context.paths, record.uuid)
            machine = Machine(context.paths, record, way, progress)
            upkeep.repair(machine)
            account.check_caller(machine.read_domain(), record.name)
            yield machine


def create(context: Context, args: argparse.Namespace) -> int | None:
    """Create a machine, or list the systems it could be for."""
    from vmm import cloning, creation, registry, systems

    if "list" in (args.distribution, args.ostype):
        print(systems.listing())
        return 0
    if args.ident is None:
        raise InvalidOption("no name is given", hint="pctl create NAME --vmtype vm")
    destination = _home(context, args)
    if args.changesid:
        context.progress(args.ident).warn("--changesid is accepted, but changes nothing")
    if args.ostemplate:
        source = registry.find(context.paths, args.ostemplate)
        with opened(context, source.uuid, "create") as template:
            if not template.is_template:
                raise InvalidOption(
                    f"{args.ostemplate} is not a template", hint="pctl list -t shows the templates"
                )
            wish = cloning.Wish(args.ident, destination, uuid=args.uuid)
            cloning.clone(template, wish)
        return 0
    system, known = systems.choose(args.distribution, args.ostype)
    progress = context.progress(args.ident)
    if not known:
        word = args.distribution or args.ostype
        progress.warn(f"the system {word!r} is not known: the hardware is that for {system.title}")
    order = creation.Order(
        args.ident, system, uuid=args.uuid, destination=destination, disk=not args.no_hdd
    )
    with hypervisor(context) as way:
        creation.create(context.paths, order, way, progress)
    return 0


def _home(context: Context, args: argparse.Namespace) -> Path | None:
    """Return where a new bundle is to be made; None: in the default place."""
    from tools.psrvctl_user import KEY

    chosen = args.dst or context.server().get(KEY)
    return Path(chosen) if chosen else None


def start(context: Context, args: argparse.Namespace) -> None:
    """Start a machine; a paused or suspended one goes on."""
    with opened(context, args.ident, "start") as machine:
        if args.repair:
            machine.repair_disks()
        machine.start()
        if args.wait:
            machine.configure_guest(120)


def stop(context: Context, args: argparse.Namespace) -> None:
    """Stop a machine by its power button, or at once; then decide about undo disks."""
    from vmm import undo
    from vmm.status import State

    with opened(context, args.ident, "stop") as machine:
        if args.undo is not None and undo.mode(machine.read_domain()) == "off":
            raise InvalidOption(
                f"machine {machine.label} has no undo disks",
                hint=f"pctl set {machine.label} --undo-disks ask",
            )
        waiting = undo.pending(machine.read_domain())
        decision = args.undo or (_ask(machine) if waiting else None)
        if not (waiting and decision is not None and machine.state() is State.STOPPED):
            machine.stop(fast=args.kill or args.fast, timeout_s=_stop_timeout(context))
        if decision is not None and undo.pending(machine.current()):
            {"keep": undo.keep, "discard": undo.discard}[decision](machine)


def _ask(machine: Machine) -> str | None:
    """Ask on a terminal what is to become of what was written; None when nothing is decided."""
    from vmm import undo

    if undo.mode(machine.read_domain()) != "ask" or not (
        sys.stdin.isatty() and sys.stderr.isatty()
    ):
        return None
    words = {"k": "keep", "keep": "keep", "d": "discard", "discard": "discard", "": None}
    while True:
        print(f"Keep or discard what {machine.label} wrote to its disks? [k/d, Enter: later] ",
              end="", file=sys.stderr, flush=True)  # fmt: skip
        answer = sys.stdin.readline().strip().lower()
        if answer in words:
            return words[answer]


def _stop_timeout(context: Context) -> float:
    from runtime.defaults import DEFAULTS

    word = context.server().get("STOP_TIMEOUT") or DEFAULTS["STOP_TIMEOUT"]
    return float(word) if word.isdecimal() else float(DEFAULTS["STOP_TIMEOUT"])


def restart(context: Context, args: argparse.Namespace) -> None:
    """Stop a machine if it runs, then start it."""
    with opened(context, args.ident, "restart") as machine:
        machine.restart(fast=args.kill or args.fast, timeout_s=_stop_timeout(context))


def reset(context: Context, args: argparse.Namespace) -> None:
    """Press a machine's reset button."""
    with opened(context, args.ident, "reset") as machine:
        machine.reset()


def pause(context: Context, args: argparse.Namespace) -> None:
    """Stop a machine's processors; its state stays in memory."""
    with opened(context, args.ident, "pause") as machine:
        machine.pause()


def suspend(context: Context, args: argparse.Namespace) -> None:
    """Save a machine's memory on disk and stop it."""
    with opened(context, args.ident, "suspend") as machine:
        machine.suspend()


def resume(context: Context, args: argparse.Namespace) -> None:
    """Let a paused or suspended machine go on."""
    with opened(context, args.ident, "resume") as machine:
        machine.resume()


def status(context: Context, args: argparse.Namespace) -> None:
    """Print one line on a machine; needs no running libvirt unless one is configured."""
    from vmm import registry
    from vmm import status as status_module

    record = registry.find(context.paths, args.ident)
    if context.server().get("LIBVIRT_URI"):
        with opened(context, args.ident) as machine:
            state = machine.state()
    else:
        state = status_module.state(context.paths, record)
    if args.json:
        facts = {"uuid": record.uuid, "name": record.name, "exists": True,
                 "running": state.value == "running", "state": state.value}  # fmt: skip
        print(json.dumps(facts, indent=2))
        return
    print(f"Vm {record.name} exists {state}")


def delete(context: Context, args: argparse.Namespace) -> None:
    """Remove a stopped machine and its bundle."""
    with opened(context, args.ident, "delete") as machine:
        if args.force and machine.state().active:
            machine.stop(fast=True)
        machine.delete()


def exec_(context: Context, args: argparse.Namespace) -> int:
    """Run a command inside by the guest agent; return its own status."""
    words = args.rest
    if not words:
        raise InvalidOption("no command is given", hint="pctl exec ID COMMAND…")
    given = _stdin()
    script = " ".join(words)
    if words == ["-"]:
        script, given = (given or b"").decode("utf-8", "surrogateescape"), None
    with opened(context, args.ident) as machine:
        return machine.agent().stream(
            script, stdin=given, out=_writer(sys.stdout.fileno()), err=_writer(sys.stderr.fileno())
        )


def _stdin() -> bytes | None:
    """Return what is piped into us, or None: the agent takes input only as a whole."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
        return sys.stdin.buffer.read()
    return None


class _writer:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def enter(context: Context, args: argparse.Namespace) -> int:
    """Attach to a machine's serial console; Esc . leaves it."""
    from vmm import connection, console

    if not sys.stdin.isatty():
        raise InvalidOption("the console needs a terminal on its standard input")
    connection.start_events()
    with opened(context, args.ident) as machine:
        return console.attach(machine)


def clone(context: Context, args: argparse.Namespace) -> None:
    """Copy a stopped machine."""
    from vmm import cloning

    if args.changesid:
        context.progress(args.ident).warn("--changesid is accepted, but changes nothing")
    wish = cloning.Wish(
        args.name,
        _home(context, args),
        linked=args.linked,
        template=args.template,
        uuid=args.uuid,
        detach_external=args.detach_external_hdd == "yes",
    )
    with opened(context, args.ident, "clone") as machine:
        cloning.clone(machine, wish)


def register(context: Context, args: argparse.Namespace) -> None:
    """Make a bundle known that lies on this server."""
    from vmm import registration

    with hypervisor(context) as way:
        registration.register(
            context.paths,
            Path(args.path),
            way,
            context.progress(),
            uuid=args.uuid,
            preserve=args.preserve_uuid,
            force=args.force,
        )


def unregister(context: Context, args: argparse.Namespace) -> None:
    """Forget a machine; its bundle stays."""
    from vmm import registry

    record = registry.find(context.paths, args.ident)
    if not record.home.is_dir():
        with locks.registry(context.paths):
            registry.remove(context.paths, record.uuid)
        context.progress(record.name).say("The VM has been successfully unregistered.")
        return
    with opened(context, args.ident, "unregister") as machine:
        machine.unregister()


def move(context: Context, args: argparse.Namespace) -> None:
    """Move a stopped machine's bundle to another directory."""
    from vmm import cloning

    with opened(context, args.ident, "move") as machine:
        cloning.move(machine, Path(args.dst))


def convert(context: Context, args: argparse.Namespace) -> None:
    """Make a machine from another product's description."""
    from vmm import conversion

    with hypervisor(context) as way:
        conversion.convert(
            context.paths,
            Path(args.path),
            way,
            context.progress(),
            destination=_home(context, args),
            name=args.name,
        )


_KILL = (
    option("--kill", help="at once, without asking the guest", action="store_true"),
    option("--fast", help="same as --kill", action="store_true"),
)
_DST = option("--dst", help="directory for the bundle", metavar="DIR")
_SID = option("--changesid", help="accepted for compatibility", action="store_true")
_UUID = option("--uuid", help="use this UUID", metavar="UUID")
_REST = "COMMAND…  is run by the guest's shell; '-' reads it from standard input."

LIFE: tuple[Verb, ...] = (
    Verb("create", "create a virtual machine", create, (
        option("ident", help="name of the new machine", metavar="NAME", nargs="?"),
        option("--vmtype", help="kind of environment", choices=("ct", "vm"), default="vm"),
        option("-d", "--distribution", help="guest system; 'list' shows them", metavar="NAME|list"),
        option("-o", "--ostype", help="family of guest systems", metavar="NAME|list"),
        option("-t", "--ostemplate", help="make it from a template", metavar="TEMPLATE"),
        option("--no-hdd", help="without a hard disk", action="store_true"), _DST, _SID, _UUID)),
    Verb("start", "start a virtual machine", start, (ID,
         option("--wait", help="wait for the guest agent, then set what is stored for the guest",
                action="store_true"),
         option("--repair", help="check and repair the images of its disks first",
                action="store_true"),
         option("--force", help="accepted", action="store_true"))),
    Verb("stop", "stop a virtual machine", stop, (ID, *_KILL,
         option("--undo", help="what becomes of undo disks", choices=("keep", "discard")))),
    Verb("restart", "stop a machine if it runs, then start it", restart, (ID, *_KILL)),
    Verb("reset", "press the reset button", reset, (ID,)),
    Verb("pause", "stop the processors, keep the state in memory", pause, (ID,)),
    Verb("suspend", "save the memory on disk and stop", suspend, (ID,), aliases=("chkpnt",)),
    Verb("resume", "let a paused or suspended machine go on", resume, (ID,), aliases=("restore-state",)),
    Verb("status", "tell a machine's state", status, (ID, JSON), changes=False),
    Verb("delete", "remove a stopped machine and its bundle", delete, (ID,
         option("--force", help="kill it first if it runs", action="store_true")), aliases=("destroy",)),
    Verb("exec", "run a command inside by the guest agent", exec_, (ID,), rest=True,
         description=_REST, changes=False, aliases=("exec2",)),
    Verb("enter", "attach to the serial console (Esc . leaves)", enter, (ID,), aliases=("console",),
         changes=False),
    Verb("clone", "copy a stopped machine", clone, (ID,
         option("--name", help="name of the copy", metavar="NAME", required=True),
         option("--template", help="make the copy a template", action="store_true"),
         option("--linked", help="share the unchanged blocks of the disks", action="store_true"),
         option("--detach-external-hdd", help="leave out disks outside the bundle",
                choices=("yes", "no"), default="yes"), _DST, _SID, _UUID)),
    Verb("register", "make a bundle known", register, (
        option("path", help="the bundle's directory", metavar="PATH"),
        option("--preserve-uuid", help="keep the UUID it has", action="store_true"), _UUID,
        option("--force", help="also when another server may use it", action="store_true"))),
    Verb("unregister", "forget a machine, keep its bundle", unregister, (ID,)),
    Verb("move", "move a machine's bundle", move, (ID,
         option("--dst", help="the new directory", metavar="DIR", required=True))),
    Verb("convert", "make a machine from a VMX or OVF description", convert, (
        option("path", help="the description", metavar="PATH"), _DST,
        option("--name", help="name of the machine", metavar="NAME"),
        option("--force", help="accepted", action="store_true"))),
)  # fmt: skip


def verbs() -> tuple[Verb, ...]:
    """Return every row of machines."""
    from tools import verbs_vm_hardware

    return (*LIFE, *verbs_vm_hardware.VERBS)


def only(others: Iterable[Verb]) -> tuple[Verb, ...]:
    """Return the rows of machines whose words no other kind of environment has."""
    taken = {word for verb in others for word in (verb.name, *verb.aliases)} | {"list"}
    return tuple(verb for verb in verbs() if verb.name not in taken)


def choose(context: Context, word: str, tail: Sequence[str]) -> Verb | None:
    """Return the machine's row for a command line, or None when it does not mean a machine."""
    rows = {name: verb for verb in verbs() for name in (verb.name, *verb.aliases)}
    if word not in rows:
        return None
    if word == "create":
        return rows[word] if _creates_machine(context, tail) else None
    if word == "list" and not any(flag in tail for flag in ("-i", "--info")):
        return None
    if word in ("register", "convert"):
        return rows[word] if _is_foreign(tail) else None
    from tools.environments import Kind, kind_of

    # The id is the first word that is no option; options with values may stand before it.
    for candidate in (part for part in tail if not part.startswith("-")):
        found = kind_of(context, candidate)
        if found is not None:
            return rows[word] if found is Kind.MACHINE else None
        if not tail[0].startswith("-"):
            if _may_be_a_name(candidate):
                raise ConfigMissing(
                    f"no container or machine is called {candidate!r}", hint="pctl list -a"
                )
            break
    return None


def _may_be_a_name(word: str) -> bool:
    """Whether an environment may be called that; what an id or nothing can be is told elsewhere."""
    from runtime.registry import check_name

    with suppress(NameFailed):
        return not check_name(word).isdecimal()
    return False


def _creates_machine(context: Context, tail: Sequence[str]) -> bool:
    from vmm.registry import is_machine

    pairs = list(zip(tail, [*tail[1:], ""], strict=True))
    if any(pair == ("--vmtype", "ct") for pair in pairs) or "--vmtype=ct" in tail:
        return False
    if any(pair == ("--vmtype", "vm") for pair in pairs) or "--vmtype=vm" in tail:
        return True
    if any(part.partition("=")[0] in _MACHINE_ONLY for part in tail):
        return True
    # -t names a template of machines, or one of containers.
    given = [value for flag, value in pairs if flag in ("-t", "--ostemplate")]
    return any(is_machine(context.paths, value) for value in given)


def _is_foreign(tail: Sequence[str]) -> bool:
    """Whether a path on the command line is a machine's: a bundle or a description."""
    return any(
        Path(part).is_file() or (Path(part) / "config.xml").is_file() or part.endswith(".pvm")
        for part in tail
        if not part.startswith("-")
    )
