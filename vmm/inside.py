"""Settings that hold inside the guest and are made by its agent: passwords, names, DNS."""

from __future__ import annotations

from runtime.errors import BadHostname, PasswordFailed
from vmm import guestsettings
from vmm.change import Change


def userpasswd(change: Change, text: str) -> None:
    """Set a user's password inside; raises PasswordFailed, NotRunning."""
    user, colon, password = text.partition(":")
    if not colon or not user or not password:
        raise PasswordFailed("write --userpasswd USER:PASSWORD")
    change.inside(
        "set a password", lambda agent: agent.set_password(user, password, crypted=change.crypted)
    )
    change.say("Authentication tokens updated successfully.")


def hostname(change: Change, text: str) -> None:
    """Set the host name inside; raises BadHostname, NotRunning."""
    if not guestsettings.is_hostname(text):
        raise BadHostname(f"not a host name: {text!r}")
    change.domain.set_setting("hostname", text)
    change.inside("set the host name", lambda agent: guestsettings.set_hostname(agent, text))
    change.say(f"Set the hostname parameter to {text}")


def nameserver(change: Change, text: str) -> None:
    """Set the DNS servers inside; raises BadNameserver, NotRunning."""
    servers = guestsettings.check_servers(text)
    change.domain.set_setting("nameserver", " ".join(servers))
    _resolver(change)


def searchdomain(change: Change, text: str) -> None:
    """Set the domains searched inside; raises BadSearchDomain, NotRunning."""
    domains = guestsettings.check_domains(text)
    change.domain.set_setting("searchdomain", " ".join(domains))
    _resolver(change)


def _resolver(change: Change) -> None:
    servers = change.domain.setting("nameserver").split()
    domains = change.domain.setting("searchdomain").split()
    change.inside(
        "set the DNS servers", lambda agent: guestsettings.set_resolver(agent, servers, domains)
    )
