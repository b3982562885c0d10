"""``--userpasswd``: passwords of users inside, by the distribution's own means; never stored here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime import dists
from runtime.errors import ActionScriptFailed, PasswordFailed
from runtime.settings import Setting

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.container import Container

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
#: crypt(5): what --crypted takes; anything else would lock the account.
_HASH = re.compile(r"\$[0-9a-z]+\$[^:\s]+|[./0-9A-Za-z]{13}|[!*]+")


def check(text: str) -> str:
    """Check ``USER:PASSWORD``; raises PasswordFailed."""
    user, colon, password = text.partition(":")
    if not colon or not _USER.fullmatch(user):
        raise PasswordFailed("not USER:PASSWORD", hint="--userpasswd root:secret")
    if not password or any(not char.isprintable() or char.isspace() for char in password):
        raise PasswordFailed("a password has at least one character, no spaces, no controls")
    return text


def together(_stored: str | None, given: Sequence[str]) -> str:
    """Return all pairs of one command as the distribution's script takes them."""
    return " ".join(given)


def apply(ct: Container, before: Config, after: Config) -> None:
    """Set the passwords in a container; one that does not run is started for it without its init.

    Raises PasswordFailed.
    """
    pairs = after.get("USERPW")
    if not pairs:
        return
    crypted = bool(after.get("USERPW_CRYPTED"))
    if crypted and not all(_HASH.fullmatch(pair.partition(":")[2]) for pair in pairs.split()):
        raise PasswordFailed("--crypted wants a hash as crypt(5) has it: $6$salt$…")
    variables = {"USERPW": pairs, "CRYPTED": "yes" if crypted else "no"}
    running = ct.status().running
    if not running:
        ct.start(init=())
    try:
        dists.run(ct, dists.Action.SET_USERPASS, variables)
    except ActionScriptFailed as error:
        raise PasswordFailed(f"the password cannot be set: {error.message}") from error
    finally:
        if not running:
            ct.stop(fast=True)


ROWS = (
    Setting(
        "userpasswd",
        "USERPW",
        "set a user's password inside; a user that is not there is made",
        check=check,
        metavar="USER:PASSWORD",
        merge=together,
        live="runtime.passwords:apply",
        stored=False,
        always=True,
    ),
    Setting(
        "crypted",
        "USERPW_CRYPTED",
        "the password of --userpasswd is a hash",
        stored=False,
        flag=True,
    ),
)
