"""The one table kind → class, and the way from a word on the command line to an environment."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from runtime import registry
from runtime.config import ConfigFile
from runtime.errors import ConfigMissing, InvalidOption
from runtime.registry import Record

if TYPE_CHECKING:
    from runtime.container import Container
    from tools._command import Context


class Kind(StrEnum):
    """The two kinds of environment."""

    CONTAINER = "ct"
    MACHINE = "vm"


def find_container(context: Context, ident: str) -> Container:
    """Return the container called ``ident``; raises ConfigMissing, InvalidOption."""
    return container(context, registry.find(context.paths, ident))


def container(context: Context, record: Record) -> Container:
    """Return the container of a record, with its effective configuration."""
    from runtime.container import Container

    file = ConfigFile.read(record.conf)
    for bad in file.bad:
        context.progress(record.ctid).warn(
            f"{record.conf}, line {bad.number} is ignored: {bad.reason}"
        )
    config = context.config(record.ctid, file)
    return Container(context.paths, record, config, progress=context.progress(record.ctid))


def kind_of(context: Context, ident: str) -> Kind | None:
    """Return which kind of environment is called ``ident``; None when neither is.

    A container of that name wins: its registry is cheap to ask.
    """
    try:
        registry.find(context.paths, ident)
    except (ConfigMissing, InvalidOption):
        from vmm.registry import is_machine

        return Kind.MACHINE if is_machine(context.paths, ident) else None
    return Kind.CONTAINER
