"""``set``: from options to the configuration file and the running container, all or nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from runtime import locks, registry, unsaved
from runtime.config import Config, ConfigFile
from runtime.errors import (
    ApplyConfigFailed,
    ConfigMissing,
    InvalidOption,
    NameFailed,
    ParametersMissing,
    SampleMissing,
    VzError,
)
from runtime.net.settings import fold
from runtime.settings import Setting, table
from runtime.settings_resources import PCTL_UNITS
from tools._command import Option, option

if TYPE_CHECKING:
    from runtime.container import Container
    from tools._command import Context

_PREFIX = "setting_"


def setting_options(names: Iterable[str] | None = None) -> tuple[Option, ...]:
    """Return the options of the settings called ``names``, or of all, with those of ``set``."""
    rows = table()
    chosen = list(rows.values()) if names is None else [rows[n] for n in names if n in rows]
    options = [_option(row) for row in chosen]
    if names is None:
        options += [
            option("--save", help="also store it in the configuration", action="store_true"),
            option(
                "--setmode",
                help="what to do when a setting needs a restart",
                choices=("restart", "ignore"),
            ),
            option("--applyconfig", help="take the values of a sample", metavar="SAMPLE"),
            option("--force", help="store also what cannot be applied", action="store_true"),
        ]
    return tuple(options)


def _option(row: Setting) -> Option:
    dest = _PREFIX + row.option.replace("-", "_")
    if row.flag:
        return option(
            f"--{row.option}", help=row.help, dest=dest, action="append_const", const="yes"
        )
    metavar = "|".join(row.choices) or row.metavar
    return option(f"--{row.option}", help=row.help, dest=dest, action="append", metavar=metavar)


def settings_given(args: argparse.Namespace, context: Context) -> dict[str, list[str]]:
    """Return option name → arguments for every setting on the command line."""
    found = {}
    units = PCTL_UNITS if context.program == "pctl" else {}
    for name in table():
        value = getattr(args, _PREFIX + name.replace("-", "_"), None)
        if value:
            unit = units.get(name, "")
            found[name] = [word + unit if word.isdecimal() else word for word in value]
    return fold(found)


def set_container(context: Context, ct: Container, args: argparse.Namespace) -> None:
    """Change settings of ``ct``: check all, apply live, then store; undone if anything fails.

    Raises InvalidOption when there is nothing to change, ParametersMissing, else what the settings raise.
    """
    from tools import lifecycle

    given = settings_given(args, context)
    if not given and not args.applyconfig:
        raise InvalidOption("nothing to set", hint="pctl set --help lists the settings")
    if "crypted" in given and "userpasswd" not in given:
        raise ParametersMissing("--crypted is given without --userpasswd")
    progress = context.progress(ct.ctid)
    with locks.environment(context.paths, ct.ctid, "set"):
        lifecycle.repair(context, ct.ctid)
        ct.reconcile()
        file = ConfigFile.read(ct.record.conf)
        running = ct.status().running
        kept = unsaved.read(context.paths, ct.ctid) if running else {}
        before = ct.config.with_overrides(kept)
        sample = _sample_values(context, args.applyconfig) if args.applyconfig else {}
        rows = [table()[name] for name in given] + [
            row for row in table().values() if args.applyconfig and row.key in sample
        ]
        values = _merged(ct.config, sample, given)
        _check_name(context, ct.ctid, values)
        stored_keys = {key for row in rows if row.stored for key in row.keys(None)} | set(sample)
        for key in stored_keys & values.keys():
            value = values[key]
            if value is None or value == "":
                file.unset(key)
            else:
                file.set(key, value)
        # What is in force goes on from what is in force, what is stored from what is stored.
        wanted = _merged(before, sample, given)
        after = context.config(ct.ctid, file).with_overrides({**kept, **wanted})
        if running or args.save or wanted.keys() - stored_keys:
            force = args.save and args.force
            needs_restart = _apply(ct, rows, before, after, running=running, force=force)
        else:
            needs_restart = []
        if args.save:
            file.save(ct.record.conf)
            progress.say(f"Saved parameters for Container {ct.ctid}")
        elif running:
            _warn_unsaved(ct, rows, needs_restart)
        elif any(row.stored for row in rows):
            progress.warn("The container does not run and --save is not given: nothing was changed")
        if running:
            live = {
                key: wanted[key]
                for row in rows
                if row.stored and row.live is not None
                for key in row.keys(None).keys() & wanted.keys()
            }
            stays = {**kept, **live}
            if args.save:
                stays = {
                    key: value
                    for key, value in stays.items()
                    if key not in values or value != values[key]
                }
            unsaved.write(context.paths, ct.ctid, stays)
        if needs_restart and running and args.save:
            _restart(context, ct, args, needs_restart, after)


def _merged(
    config: Config, sample: Mapping[str, str | None], given: Mapping[str, list[str]]
) -> dict[str, str | None]:
    """Return key → new text for a sample and the settings given, going on from ``config``."""
    from tools import lifecycle

    known = {key: value for key, value in sample.items() if value is not None}
    return {**sample, **lifecycle.changed_values({**config, **known}, given)}


def _sample_values(context: Context, sample: str) -> dict[str, str | None]:
    from tools.lifecycle import PERSONAL

    if "/" in sample:
        raise SampleMissing(f"invalid sample name: {registry.printable(sample)}")
    path = context.paths.sample(sample)
    try:
        file = ConfigFile.read(path)
    except ConfigMissing:
        raise SampleMissing(f"sample {path} does not exist") from None
    if file.bad:
        raise ApplyConfigFailed(f"{path}, line {file.bad[0].number}: {file.bad[0].reason}")
    values: dict[str, str | None] = {
        key: value for key, value in file.items().items() if key not in PERSONAL
    }
    values["ORIGIN_SAMPLE"] = sample
    return values


def _check_name(context: Context, ctid: int, values: dict[str, str | None]) -> None:
    name = values.get("NAME")
    if name:
        holder = registry.by_name(context.paths, name)
        if holder is not None and holder.ctid != ctid:
            raise NameFailed(
                f"the name {registry.printable(name)} belongs to container {holder.ctid}"
            )


def _warn_unsaved(ct: Container, rows: list[Setting], waiting: list[str]) -> None:
    """Tell what becomes of settings of a running container that are not stored."""
    if any(row.stored and f"--{row.option}" not in waiting for row in rows):
        ct.progress.warn(
            "Settings were not saved and will be lost after the container is restarted"
        )
    if waiting:
        ct.progress.warn(
            f"{', '.join(waiting)} would take effect when the container is restarted, but is not"
            " saved: nothing was changed by it"
        )


def _apply(
    ct: Container, rows: list[Setting], before: Config, after: Config, *, running: bool, force: bool
) -> list[str]:
    """Apply each row once; return the options that only act after a restart.

    When one fails, those applied before it are turned back; with ``force`` it is passed over.
    """
    waiting: list[str] = []
    done: list[Callable[[Container, Config, Config], None]] = []
    for row in rows:
        function = row.applier()
        if function is None:
            changed = before.get(row.key) != after.get(row.key)
            if changed and row.stored and row.option not in _AT_ONCE:
                waiting.append(f"--{row.option}")
            continue
        if function in done or not (running or row.always):
            continue
        try:
            function(ct, before, after)
        except VzError as error:
            if force:
                ct.progress.warn(f"--{row.option} is stored, but not applied: {error.message}")
                continue
            # It may have done a part; what it cannot undo now is what it could not do before.
            with suppress(VzError):
                function(ct, after, before)
            _turn_back(ct, done, before, after)
            raise
        done.append(function)
    return waiting


def _turn_back(
    ct: Container,
    done: list[Callable[[Container, Config, Config], None]],
    before: Config,
    after: Config,
) -> None:
    for function in reversed(done):
        try:
            function(ct, after, before)
        except VzError as error:
            ct.progress.warn(f"cannot be turned back: {error.message}")


#: Settings which only commands read: nothing in a running container depends on them.
_AT_ONCE = frozenset(
    ("description", "onboot", "bootorder", "disabled", "stop-timeout", "allowreboot", "autostop")
)


def _restart(
    context: Context, ct: Container, args: argparse.Namespace, waiting: list[str], after: Config
) -> None:
    what = ", ".join(waiting)
    if args.setmode == "restart":
        from tools import environments, lifecycle

        ct.stop()
        record = registry.record(context.paths, ct.ctid)
        lifecycle.start(context, environments.container(context, record))
    elif args.setmode != "ignore":
        context.progress(ct.ctid).warn(
            f"{what} takes effect when the container is restarted (--setmode restart does it)"
        )


def set_host(context: Context, args: argparse.Namespace) -> None:
    """Change the limits of the server's own services: 0.conf, and with --save nothing less.

    Raises InvalidOption for a setting the server itself does not have.
    """
    from runtime import host
    from tools import lifecycle

    given = settings_given(args, context)
    foreign = [name for name in given if not table()[name].host and name != "onboot"]
    if foreign or not given:
        raise InvalidOption(
            f"the server itself has no setting --{foreign[0]}" if foreign else "nothing to set",
            hint="0 takes limits of CPU, memory and processes, and --onboot",
        )
    conf = context.paths.ct_conf(0)
    with locks.environment(context.paths, 0, "set"):
        text = conf.read_text(encoding="utf-8") if conf.exists() else 'VERSION="2"\n'
        file = ConfigFile(text, path=conf)
        before = file.items()
        for key, value in lifecycle.changed_values(before, given).items():
            if value:
                file.set(key, value)
            else:
                file.unset(key)
        changed = {key: value for key, value in file.items().items() if before.get(key) != value}
        if changed.keys() - {"ONBOOT"}:
            host.apply(changed)
        if args.save:
            conf.parent.mkdir(parents=True, exist_ok=True)
            file.save()
            context.progress(0).say("Saved parameters for Container 0")
