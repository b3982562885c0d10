"""Creating, changing and destroying containers: what needs templates and the registry at once.

Every act that takes several steps is journalled; ``repair`` finishes or undoes what a killed
command left behind, with the container's lock held.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import cgroups, files, journal, locks, registry
from runtime.config import ConfigFile
from runtime.errors import (
    ConfigMissing,
    DeleteFailed,
    InvalidOption,
    Mounted,
    NoDiskSpace,
    PrivateExists,
    SampleMissing,
    TemplateMissing,
    TemplateNotGiven,
)
from runtime.settings import table
from runtime.units import human

if TYPE_CHECKING:
    from runtime.container import Container
    from runtime.paths import Paths
    from templates.catalogue import Template
    from tools._command import Context

#: Below this much free space a container is only created with --force (guide §3.1).
_WANTED_FREE_BYTES = 10 << 30
#: A full file system is full, with --force too.
_LEAST_FREE_BYTES = 1 << 20
#: Keys a sample does not hand on: they belong to one container.
PERSONAL = frozenset(
    [
        "OSTEMPLATE",
        "TEMPLATES",
        "TEMPLATE",
        "VE_ROOT",
        "VE_PRIVATE",
        "HOSTNAME",
        "IP_ADDRESS",
        "NETIF",
        "NAME",
        "UUID",
    ]
)


@dataclass(frozen=True)
class Order:
    """What a new container shall be; None means the configured default."""

    ctid: int
    template: str | None = None
    sample: str | None = None
    private: str | None = None
    root: str | None = None
    force: bool = False
    #: Leave out the application templates the sample asks for.
    skip_applications: bool = False
    #: Option name (without dashes) → its arguments, as for ``set``.
    settings: Mapping[str, list[str]] = field(default_factory=dict)


def next_ctid(paths: Paths) -> int:
    """Return the smallest free id above the reserved ones."""
    taken = set(registry.configured(paths))
    ctid = registry.RESERVED + 1
    while ctid in taken or paths.private(ctid).exists():
        ctid += 1
    return ctid


def create(context: Context, order: Order) -> None:
    """Create a container: configuration, private area, name.

    Raises PrivateExists, SampleMissing, TemplateNotGiven, TemplateMissing, NoDiskSpace, or what
    its settings raise; nothing remains then.
    """
    from templates import create as template_create

    paths = context.paths
    progress = context.progress(order.ctid)
    with locks.environment(paths, order.ctid, "create"):
        repair(context, order.ctid)
        if paths.ct_conf(order.ctid).exists():
            raise PrivateExists(
                f"container {order.ctid} already exists", hint="vzlist -a shows the ids in use"
            )
        file = _initial_config(context, order)
        config = context.config(order.ctid, file)
        private = paths.area(config["VE_PRIVATE"])
        if private.exists():
            raise PrivateExists(
                f"private area {private} already exists", hint="move it away or choose another id"
            )
        template = find_template(context, file)
        _check_space(private, force=order.force)
        values = changed_values(config, order.settings)
        for key, value in values.items():
            if value is not None:
                file.set(key, value)
        name = file.get("NAME")
        with ExitStack() as undo:
            intention = journal.record(paths, order.ctid, "create", private=str(private))
            undo.callback(intention.clear)
            progress.say(f"Creating Container private area ({template.name})")
            undo.callback(files.remove_tree, private)
            undo.callback(registry.release_names, paths, order.ctid)
            template_create.populate(paths, order.ctid, template, private=private)
            with locks.registry(paths):
                if name:
                    registry.claim_name(paths, order.ctid, name)
                paths.conf_dir.mkdir(parents=True, exist_ok=True)
                progress.say("Performing postcreate actions")
                template_create.postcreate(paths, order.ctid, template, private=private)
                file.save(paths.ct_conf(order.ctid))
            intention.clear()
            undo.pop_all()
        progress.say(f"CT configuration saved to {paths.ct_conf(order.ctid)}")
        progress.say("Container private area was created")


def _initial_config(context: Context, order: Order) -> ConfigFile:
    """Return the sample's configuration with what makes it this container's."""
    paths = context.paths
    server = context.config(order.ctid, None)
    sample = order.sample or server["CONFIGFILE"]
    if "/" in sample or sample.startswith("."):
        raise SampleMissing(f"invalid sample name: {registry.printable(sample)}")
    _ship_samples(paths)
    path = paths.sample(sample)
    try:
        file = ConfigFile.read(path)
    except ConfigMissing:
        raise SampleMissing(
            f"sample {path} does not exist", hint=f"samples are {paths.conf_dir}/ve-*.conf-sample"
        ) from None
    file.path = None
    wanted = order.template or file.get("OSTEMPLATE") or server.get("DEF_OSTEMPLATE") or ""
    if not wanted.strip("."):
        raise TemplateNotGiven("no OS template is given", hint="add --ostemplate NAME")
    file.set("OSTEMPLATE", "." + wanted.lstrip("."))
    if order.skip_applications:
        file.unset("TEMPLATES")
    if order.private:
        file.set("VE_PRIVATE", order.private)
    elif "VE_PRIVATE" not in file:
        file.set("VE_PRIVATE", context.server().get("VE_PRIVATE") or server_default("VE_PRIVATE"))
    if order.root:
        file.set("VE_ROOT", order.root)
    elif "VE_ROOT" not in file:
        file.set("VE_ROOT", context.server().get("VE_ROOT") or server_default("VE_ROOT"))
    file.set("ORIGIN_SAMPLE", sample)
    file.set("UUID", registry.new_uuid())
    return file


def server_default(key: str) -> str:
    """Return the built-in value of ``key``, with its ``$VEID``."""
    from runtime.defaults import DEFAULTS

    return DEFAULTS[key]


def _ship_samples(paths: Paths) -> None:
    """Install the shipped samples which are missing; an administrator's own are never touched."""
    shipped = Path(__file__).resolve().parent.parent / "templates" / "samples"
    missing = [
        file
        for file in shipped.glob("ve-*.conf-sample")
        if not (paths.conf_dir / file.name).exists()
    ]
    if missing:
        paths.conf_dir.mkdir(parents=True, exist_ok=True)
    for file in missing:
        files.replace(paths.conf_dir / file.name, file.read_bytes())


def find_template(context: Context, file: ConfigFile) -> Template:
    """Return the cached OS template of a configuration, building its cache where that is allowed.

    Raises TemplateMissing.
    """
    from templates import cache, catalogue

    name = (file.get("OSTEMPLATE") or "").lstrip(".")
    applications = (file.get("TEMPLATES") or "").split()
    template = catalogue.find(context.paths, name, applications)
    if template.cached:
        return template
    if context.config(0, None)["CREATE_MISSING_CACHE"] == "no":
        raise TemplateMissing(f"OS template {name} has no cache", hint=template.how_to_build)
    cache.create(context.paths, template, progress=context.progress())
    return catalogue.find(context.paths, name, applications)


def _check_space(private: Path, *, force: bool) -> None:
    place = private.parent
    while not place.exists():
        place = place.parent
    stats = os.statvfs(place)
    free = stats.f_bavail * stats.f_frsize
    if free < _LEAST_FREE_BYTES or stats.f_favail == 0 < stats.f_files:
        raise NoDiskSpace(f"{place} is full")
    if free < _WANTED_FREE_BYTES and not force:
        raise NoDiskSpace(
            f"only {human(free)} are free on {place}, less than {human(_WANTED_FREE_BYTES)}",
            hint="--force creates the container all the same",
        )


def changed_values(
    config: Mapping[str, str], given: Mapping[str, list[str]]
) -> dict[str, str | None]:
    """Return key → new text for the settings given (None: unset), all of them checked first.

    Raises InvalidOption for an unknown one, else what its row raises.
    """
    rows = table()
    values: dict[str, str | None] = {}
    for name, arguments in given.items():
        row = rows.get(name)
        if row is None:
            raise InvalidOption(f"unknown setting: --{name}", hint="pctl set --help lists them")
        stored = values[row.key] if row.key in values else config.get(row.key)
        values.update(row.keys(row.value(stored, arguments)))
    return values


def destroy(context: Context, ct: Container) -> None:
    """Destroy a stopped container; its configuration is kept as ``CTID.conf.destroyed``.

    Raises Mounted while it runs or is mounted. A destroy that was killed half-way is finished by
    the next one.
    """
    paths, ctid = context.paths, ct.ctid
    progress = context.progress(ctid)
    with locks.environment(paths, ctid, "destroy"):
        ct.reconcile()
        repair(context, ctid)
        status = ct.status()
        if status.running:
            raise Mounted(
                "Container is currently running. Stop it first.", hint=f"vzctl stop {ctid}"
            )
        if status.mounted:
            raise Mounted(
                "Container is currently mounted (umount first)", hint=f"vzctl umount {ctid}"
            )
        private = paths.area(ct.config["VE_PRIVATE"])
        journal.record(paths, ctid, "destroy", private=str(private))
        progress.say(f"Destroying container private area: {private}")
        _forget_network(context, ct)
        _finish_destroy(paths, ctid, private)
        if not registry.configured(paths):
            cgroups.prune(paths.tag)
        progress.say("Container private area was destroyed")


def _forget_network(context: Context, ct: Container) -> None:
    """Drop counters and the shaping slot of a container that had a network."""
    if ct.config.get("IP_ADDRESS", "").strip() or ct.config.get("NETIF", "").strip():
        from runtime.net import attach

        attach.forget(context.paths, ct.ctid)


def _finish_destroy(paths: Paths, ctid: int, private: Path) -> None:
    """Take the steps of a destroy that are not taken yet, in order; the intention goes last."""
    conf = paths.ct_conf(ctid)
    try:
        files.remove_tree(private)
        with suppress(FileNotFoundError):
            os.rmdir(paths.ct_root(ctid))
    except OSError as error:
        raise DeleteFailed(f"cannot delete {private}: {error.strerror}") from error
    files.sweep_temporaries(private.parent)
    registry.release_names(paths, ctid)
    for state in (paths.quota_file(ctid), paths.ct_state(ctid)):
        files.remove(state) if state.parent.is_dir() else None
    for script in paths.conf_dir.glob(f"{ctid}.*"):
        if script.suffix in (".premount", ".mount", ".start", ".stop", ".umount", ".postumount"):
            files.remove(script)
    if conf.exists():
        os.rename(conf, conf.with_name(f"{ctid}.conf.destroyed"))
        files.fsync_directory(paths.conf_dir)
    for entry in journal.pending(paths, ctid):
        if entry.act == "destroy":
            entry.clear()


def start(context: Context, ct: Container, *, wait: bool = False) -> None:
    """Start ``ct`` and give it the quota commands it needs; every start of a container is this one."""
    ct.start(wait=wait)
    _place_quota_tools(context, ct)


def _place_quota_tools(context: Context, ct: Container) -> None:
    """Put the quota commands for users and groups inside where they are counted, else not."""
    counted = (ct.config.get("QUOTAUGIDLIMIT") or "0") != "0"
    there = (context.paths.area(ct.config["VE_PRIVATE"]) / "root/usr/local/lib/vzfs-quota").exists()
    if counted != there:
        from tools import quotatools

        act = quotatools.install if counted else quotatools.remove
        try:
            act(context.paths.area(ct.config["VE_ROOT"]))
        except OSError as error:
            ct.progress.warn(f"the quota commands cannot be placed inside: {error.strerror}")


def repair(context: Context, ctid: int) -> None:
    """Finish or undo what killed commands began on ``ctid``; call it with its lock held."""
    paths = context.paths
    for entry in journal.pending(paths, ctid):
        private = Path(entry.details.get("private", paths.private(ctid)))
        if entry.act == "create":
            # Acknowledged only by its configuration file: without that, it never was.
            if not paths.ct_conf(ctid).exists():
                files.remove_tree(private)
                registry.release_names(paths, ctid)
            if private.parent.is_dir():
                files.sweep_temporaries(private.parent)
            entry.clear()
        elif entry.act == "destroy":
            context.progress(ctid).warn("finishing a destroy that was interrupted")
            _finish_destroy(paths, ctid, private)
        elif entry.act == "reinstall":
            _repair_reinstall(private, Path(entry.details["fresh"]))
            entry.clear()
        elif entry.act == "move":
            _repair_move(
                paths, ctid, entry.details["target"], Path(entry.details["origin"]), private
            )
            entry.clear()


def _repair_move(paths: Paths, old: int, new: int, origin: Path, target: Path) -> None:
    """Finish a move whose new configuration was saved, else put the private area back."""
    if new != old and paths.ct_conf(new).exists():
        files.remove(paths.ct_conf(old))
        registry.release_names(paths, old)
    elif target.exists() and not origin.exists():
        os.rename(target, origin)
        files.fsync_directory(origin.parent)


def _repair_reinstall(private: Path, fresh: Path) -> None:
    """Leave the old system where it still stands, else put the finished new one in its place."""
    old = private.with_name(f"{private.name}.old")
    if not private.exists() and fresh.exists():
        os.rename(fresh, private)
    if private.exists():
        files.remove_tree(fresh)
        files.remove_tree(old)
    files.sweep_temporaries(private.parent)
