"""What containers use and were promised, as the checking commands show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import registry, status
from runtime.config import Config
from runtime.sizing import Demand, Server, promised, used
from tools._command import JSON, Option, Program, Run, option

if TYPE_CHECKING:
    from tools._command import Context

#: Several of the commands can speak XML, as their predecessors did.
XML = option("-x", "--xml", help="print XML", action="store_true")
OVERCOMMITTED = "Warning: hardware node is overcommited"


def checker(
    name: str,
    about: str,
    run: Run,
    *own: Option,
    each: str = "one line per container",
    epilog: str = "",
) -> Program:
    """Return a checking command: -v (``each``), its ``own`` options, -j; every failure is 1."""
    return Program(
        name,
        about,
        run=run,
        options=(option("-v", dest="verbose_table", help=each, action="store_true"), *own, JSON),
        usage_code=1,
        exit_code=lambda error: 1,
        epilog=epilog,
    )


@dataclass(frozen=True, slots=True)
class Share:
    """One container's part of the server; ``used`` is None while it does not run."""

    ctid: int
    config: Config
    promised: Demand
    used: Demand | None
    processes: int | None = None


def shares(context: Context, *, running_only: bool = True) -> Iterator[Share]:
    """Yield the share of each container that runs, or of every one."""
    for record, file in registry.records(context.paths):
        config = context.config(record.ctid, file)
        private = context.paths.area(config["VE_PRIVATE"])
        running = status.status(context.paths, record.ctid, private).running
        if running or not running_only:
            yield share(context, record.ctid, config, running=running)


def share(context: Context, ctid: int, config: Config, *, running: bool) -> Share:
    """Return the share of one container."""
    if not running:
        return Share(ctid, config, promised(config), None)
    from runtime.usage import Usage

    usage = Usage(context.paths, ctid)
    memory = usage.memory
    held = used(
        memory.kernel,
        memory.used,
        memory.swap,
        memory.anonymous + memory.shared + memory.swap,
    )
    return Share(ctid, config, promised(config), held, usage.tasks.now)


def megabytes(demand: Demand) -> Demand:
    """Return ``demand`` in MiB."""
    return Demand(*(value / (1 << 20) for value in demand))


def percent(demand: Demand, server: Server) -> Demand:
    """Return ``demand`` in percent of what the server has."""
    return Demand(*(value * 100 for value in demand.relative(server)))


def finite(value: float) -> float | None:
    """Return ``value``, or None where it is without limit (JSON knows no infinity)."""
    return None if value == float("inf") else round(value, 4)
