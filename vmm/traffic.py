"""The share of the server's links a machine gets: the same rates as a container's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime import units
from runtime.errors import InvalidValue
from runtime.net import rates
from vmm import networks

if TYPE_CHECKING:
    from vmm.change import Change


def rate(change: Change, text: str) -> None:
    """Set what is guaranteed in a traffic class: CLASS:KBPS, or DEVICE:CLASS:KBPS; raises InvalidValue.

    "none" takes all of them back: RATE of vz.conf holds then.
    """
    domain = change.domain
    if text.strip().lower() == "none":
        domain.set_setting("rate", None)
        change.say("Set the rate parameter to none")
    else:
        given = [_word(word) for word in text.replace(",", " ").split()]
        if not given:
            raise InvalidValue("no rate is given", hint="write 1:64: class 1, 64 Kbps")
        stored = rates.merge(domain.setting("rate") or None, given)
        domain.set_setting("rate", stored)
        change.say(f"Set the rate parameter to {stored}")
    _apply(change)


def _word(text: str) -> str:
    """Return a word with its device: without one it means every uplink."""
    return text if text.count(":") != 1 else f"{rates.ANY}:{text}"


def rate_bound(change: Change, text: str) -> None:
    """Set whether the rate is also the most it gets; raises InvalidValue."""
    bound = units.yes_no(text)
    change.domain.set_setting("ratebound", "yes" if bound else "no")
    change.say(f"Set the ratebound parameter to {'yes' if bound else 'no'}")
    _apply(change)


def _apply(change: Change) -> None:
    taps = list(networks.wanted(change.domain))
    if not taps:
        change.machine.progress.warn(
            "no adapter is on a network of the server: rates hold for those that are "
            "(bridged, host-only, routed)"
        )
        return
    # Both options of one command: the last one's taps have both values.
    change.hot(
        "set rates",
        lambda: networks.attach(change.machine.paths, list(networks.wanted(change.domain))),
    )
