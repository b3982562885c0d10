"""Rates as vz.conf writes them: ``BANDWIDTH``, ``TOTALRATE``, ``RATE``, ``RATEMPU``.

Words are ``DEVICE[:CLASS]:KBPS``; ``*`` stands for every device. One Kbps is 1000 bits a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.errors import BandwidthUnset, InvalidValue, RateUnset, ShapingFailed, TotalRateUnset

ANY = "*"
LEAST_KBPS = 8
#: What vz.conf gives a link without an entry in BANDWIDTH, in Kbps (a Fast Ethernet of its day).
DEFAULT_BANDWIDTH_KBPS = 102_400
DEFAULT_MPU_BYTES = 1000
_WORD = re.compile(r"([A-Za-z0-9_.@*-]{1,15}):(\*|\d{1,2}):(\d{1,9})")
_LINK = re.compile(r"([A-Za-z0-9_.@*-]{1,15})(?::(\d{1,9}))?")
_MPU = re.compile(r"([A-Za-z0-9_.@*-]{1,15}):(\d{1,2})(?::(\d{1,5}))?")

#: (device, class) → Kbps, or bytes for RATEMPU.
Rates = Mapping[tuple[str, int], int]


def check(text: str) -> str:
    """Check ``--rate DEVICE:CLASS:KBPS``; raises InvalidValue."""
    return " ".join(
        f"{device}:{number}:{kbps}"
        for (device, number), kbps in parse(text, error=InvalidValue).items()
    )


def parse(
    text: str | None, *, error: type[ShapingFailed] | type[InvalidValue] = ShapingFailed
) -> dict[tuple[str, int], int]:
    """Return (device, class) → Kbps of a RATE or TOTALRATE value; raises ``error``."""
    found = {}
    for word in (text or "").replace(",", " ").split():
        match = _WORD.fullmatch(word)
        if match is None or match[2] == ANY:
            raise error(f"not DEVICE:CLASS:KBPS: {word[:60]!r}", hint="write eth0:1:16")
        number, kbps = int(match[2]), int(match[3])
        if not 1 <= number <= 15:
            raise error(f"a class to shape is a number from 1 to 15: {word!r}")
        if kbps < LEAST_KBPS or kbps % LEAST_KBPS:
            raise error(f"a rate is a multiple of {LEAST_KBPS} Kbps: {word!r}")
        found[match[1], number] = kbps
    return found


def merge(stored: str | None, given: list[str]) -> str | None:
    """Put the given rates in the place of what was stored for their devices and classes."""
    found = parse(stored, error=InvalidValue)
    for word in given:
        found.update(parse(word, error=InvalidValue))
    return " ".join(f"{d}:{c}:{k}" for (d, c), k in found.items()) or None


def parse_bandwidth(text: str | None) -> dict[str, int]:
    """Return device → Kbps of BANDWIDTH; raises BandwidthUnset."""
    found = {}
    for word in (text or "").replace(",", " ").split():
        match = _LINK.fullmatch(word)
        if match is None or (match[2] is not None and int(match[2]) == 0):
            raise BandwidthUnset(f"BANDWIDTH: not DEVICE[:KBPS]: {word[:60]!r}")
        found[match[1]] = int(match[2]) if match[2] else DEFAULT_BANDWIDTH_KBPS
    return found


def parse_mpu(text: str | None) -> dict[tuple[str, int], int]:
    """Return (device, class) → bytes of RATEMPU; raises ShapingFailed."""
    found = {}
    for word in (text or "").replace(",", " ").split():
        match = _MPU.fullmatch(word)
        if match is None or not 1 <= int(match[2]) <= 15:
            raise ShapingFailed(f"RATEMPU: not DEVICE:CLASS[:BYTES]: {word[:60]!r}")
        found[match[1], int(match[2])] = int(match[3]) if match[3] else DEFAULT_MPU_BYTES
    return found


def on_device(rates: Rates, device: str) -> dict[int, int]:
    """Return class → value on one device; a word for the device itself outranks ``*``."""
    found = {number: value for (d, number), value in rates.items() if d == ANY}
    found.update({number: value for (d, number), value in rates.items() if d == device})
    return found


@dataclass(frozen=True, slots=True)
class Share:
    """What one environment gets of one class on one device, in Kbps."""

    rate: int
    ceiling: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a device's outgoing traffic is divided; every rate in Kbps."""

    device: str
    bandwidth: int
    #: class → what all environments together may use.
    totals: Mapping[int, int]
    #: class → least size in bytes a packet is charged with.
    mpu: Mapping[int, int]


def plans(config: Mapping[str, str], default_devices: tuple[str, ...]) -> tuple[Plan, ...]:
    """Return the plan of every device to shape.

    Raises BandwidthUnset, TotalRateUnset, ShapingFailed.
    """
    links = parse_bandwidth(config.get("BANDWIDTH"))
    named = [device for device in links if device != ANY]
    devices = named or list(default_devices)
    totals = parse(config.get("TOTALRATE"))
    if not totals:
        raise TotalRateUnset("TOTALRATE is not set", hint='vz.conf: TOTALRATE="*:1:4096"')
    mpu = parse_mpu(config.get("RATEMPU"))
    found = []
    for device in devices:
        of_device = on_device(totals, device)
        if of_device:
            bandwidth = links.get(device, links.get(ANY, DEFAULT_BANDWIDTH_KBPS))
            over = {number: min(kbps, bandwidth) for number, kbps in of_device.items()}
            found.append(Plan(device, bandwidth, over, on_device(mpu, device)))
    return tuple(found)


def shares(config: Mapping[str, str], plan: Plan) -> dict[int, Share]:
    """Return class → share of an environment on a device; raises RateUnset, ShapingFailed."""
    rates = on_device(parse(config.get("RATE")), plan.device)
    if not rates:
        raise RateUnset("RATE is not set", hint='vz.conf: RATE="*:1:8"')
    bound = config.get("RATEBOUND", "no") == "yes"
    found = {}
    for number, total in plan.totals.items():
        rate = min(rates.get(number, LEAST_KBPS), total)
        found[number] = Share(rate, rate if bound else total)
    return found
