"""What a setting is: one row says how it is given, checked, stored, applied live and explained.

``set``, the configuration file, completion and the manual all come from these rows. The rows
themselves live beside the mechanism they drive (``settings_base``, ``settings_resources``,
``net.settings``); ``table()`` joins them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import InvalidValue

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.container import Container

#: From the stored value (None: unset) and the arguments given, the new one (None: unset).
Merge = Callable[[str | None, Sequence[str]], str | None]


@dataclass(frozen=True, slots=True)
class Setting:
    """One ``--option`` of ``set`` and the configuration key behind it.

    ``check`` takes one argument as typed and returns the text to store, raising the VzError whose
    code is documented for it. ``merge`` combines the checked arguments with what is stored; the
    default lets the last one replace it. ``live`` names the function ("module:function", taking
    the container and its configuration before and after) which makes a running container follow,
    and raises VzError; a setting without one takes effect at the next start.
    """

    option: str
    key: str
    help: str
    check: Callable[[str], str] = str
    metavar: str = "VALUE"
    merge: Merge | None = None
    #: From the new value, what it and the other keys it decides become (None: unset).
    also: Callable[[str | None], Mapping[str, str | None]] | None = None
    live: str | None = None
    #: Never written to the configuration (passwords).
    stored: bool = True
    #: ``live`` also acts on a container that is not running.
    always: bool = False
    #: Accepts no argument at all.
    flag: bool = False
    #: For completion and --help.
    choices: tuple[str, ...] = ()
    #: Shown as its heading in --help.
    group: str = "General"
    #: Meaningful in 0.conf, for the host itself.
    host: bool = False

    def value(self, stored: str | None, given: Sequence[str]) -> str | None:
        """Return the new stored text; raises VzError when an argument is not valid."""
        checked = [self.check(argument) for argument in given]
        if self.merge is not None:
            return self.merge(stored, checked)
        return checked[-1]

    def keys(self, value: str | None) -> Mapping[str, str | None]:
        """Return what each configuration key becomes when this setting becomes ``value``."""
        return {self.key: value} if self.also is None else self.also(value)

    def applier(self) -> Callable[[Container, Config, Config], None] | None:
        """Return the function that applies this setting live, importing its module now."""
        if self.live is None:
            return None
        module, _, function = self.live.partition(":")
        found = getattr(importlib.import_module(module), function)
        return found  # type: ignore[no-any-return]  # named by a string, checked by a test


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a check that accepts exactly ``choices``."""

    def check(text: str) -> str:
        if text not in choices:
            raise InvalidValue(f"{text!r} is not one of: {', '.join(choices)}")
        return text

    return check


def whole(low: int, high: int) -> Callable[[str], str]:
    """Return a check that accepts whole numbers from ``low`` to ``high``."""

    def check(text: str) -> str:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise InvalidValue(f"{text!r} is not a whole number from {low} to {high}")
        return str(int(text))

    return check


def yes_no(text: str) -> str:
    """Check ``yes`` or ``no``; returns it in lower case."""
    word = text.lower()
    if word not in ("yes", "no"):
        raise InvalidValue(f"{text!r} is neither yes nor no")
    return word


@functools.cache
def table() -> dict[str, Setting]:
    """Return every setting of a container by its option name (without dashes)."""
    rows: dict[str, Setting] = {}
    for module in (
        "runtime.settings_base",
        "runtime.passwords",
        "runtime.settings_resources",
        "runtime.net.settings",
    ):
        for row in importlib.import_module(module).ROWS:
            if row.option in rows:
                raise AssertionError(f"two settings are called --{row.option}")
            rows[row.option] = row
    return rows
