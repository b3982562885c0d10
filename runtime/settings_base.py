"""Settings that make a container what it is called and how it starts."""

from __future__ import annotations

import re

from runtime import registry
from runtime.errors import BadHostname, InvalidValue
from runtime.settings import Setting, whole, yes_no
from runtime.suspension import check_autostop

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def hostname(text: str) -> str:
    """Check a host name (RFC 1123, underscores tolerated as vzctl does); raises BadHostname."""
    labels = text.rstrip(".").split(".")
    if len(text) > 64 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadHostname(
            f"invalid host name: {registry.printable(text)}",
            hint="letters, digits and '-' in labels of at most 63, 64 characters in all",
        )
    return text.rstrip(".")


def description(text: str) -> str:
    """Check a description: any text without NUL, up to 4096 characters; raises InvalidValue."""
    if "\0" in text or len(text) > 4096:
        raise InvalidValue("a description is text of at most 4096 characters")
    return text


def name(text: str) -> str:
    """Check a container's name; the empty text removes it. Raises NameFailed."""
    return registry.check_name(text) if text else ""


def environment(text: str) -> str:
    """Check ``NAME=VALUE …`` for VE_ENVIRONMENT; raises InvalidValue."""
    for word in text.split():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=\S*", word):
            raise InvalidValue(f"not NAME=VALUE: {registry.printable(word)}")
    return text


ROWS = (
    Setting(
        "name",
        "NAME",
        "name to use instead of the CTID; '' removes it",
        check=name,
        metavar="NAME",
        live="runtime.identity:apply_name",
        always=True,
    ),
    Setting("description", "DESCRIPTION", "text shown in lists", check=description, metavar="TEXT"),
    Setting(
        "hostname",
        "HOSTNAME",
        "host name inside",
        check=hostname,
        metavar="NAME",
        live="runtime.identity:apply_hostname",
    ),
    Setting("onboot", "ONBOOT", "start with the server", check=yes_no, choices=("yes", "no")),
    Setting(
        "bootorder",
        "BOOTORDER",
        "higher starts earlier at boot",
        check=whole(0, 2**31 - 1),
        metavar="N",
    ),
    Setting("disabled", "DISABLED", "forbid starting", check=yes_no, choices=("yes", "no")),
    Setting(
        "autostop",
        "AUTOSTOP",
        "how the server's shutdown ends it",
        check=check_autostop,
        choices=("stop", "suspend"),
    ),
    Setting("stop-timeout", "STOP_TIMEOUT", "seconds before a stop kills", check=whole(1, 86400)),
    Setting(
        "allowreboot",
        "ALLOWREBOOT",
        "let a reboot from inside restart it",
        check=yes_no,
        choices=("yes", "no"),
    ),
    Setting(
        "environment",
        "VE_ENVIRONMENT",
        "environment of the container's init",
        check=environment,
        metavar="NAME=VALUE…",
    ),
)
