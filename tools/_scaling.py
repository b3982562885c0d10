"""The arithmetic of vzcfgscale(8): every limit of a configuration times a coefficient."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime import ubc
from runtime.config import ConfigFile
from runtime.errors import InvalidValue
from runtime.settings_resources import CPUUNITS_LEAST, CPUUNITS_MOST
from runtime.units import KIB, UNLIMITED, Pair, pair

#: Keys that belong to one container and have no place in a sample.
PERSONAL = (
    "VE_ROOT",
    "VE_PRIVATE",
    "IP_ADDRESS",
    "EXT_IP_ADDRESS",
    "HOSTNAME",
    "NAME",
    "UUID",
    "DESCRIPTION",
    "NAMESERVER",
    "SEARCHDOMAIN",
    "NETIF",
    "OSTEMPLATE",
    "TEMPLATES",
    "DISTRIBUTION",
    "ORIGIN_SAMPLE",
)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What each family of parameters is multiplied by; None leaves it."""

    cpu: float | None = None
    disk: float | None = None
    ubc: float | None = None
    network: float | None = None


def scale(file: ConfigFile, by: Coefficients) -> None:
    """Scale the limits in ``file``; unlimited ones stay, unreadable ones too.

    Results are clamped to the legal range of their parameter.
    """
    if by.ubc is not None:
        for row in ubc.BEANCOUNTERS:
            limits = ubc.lenient(row.key, file.get(row.key))
            if limits is not None:
                file.set(row.key, _pair(limits, by.ubc))
        _number(file, "SLMMEMORYLIMIT", by.ubc, 1, UNLIMITED)
    if by.cpu is not None:
        _number(file, "CPUUNITS", by.cpu, CPUUNITS_LEAST, CPUUNITS_MOST)
        _number(file, "CPULIMIT", by.cpu, 1, 100 * 4096)
        _number(file, "CPULIMIT_MHZ", by.cpu, 1, UNLIMITED)
        _number(file, "CPUS", by.cpu, 1, 4096)
    if by.disk is not None:
        for key, unit in (("DISKSPACE", KIB), ("DISKINODES", 0)):
            text = file.get(key)
            try:
                limits = pair(text, unit=unit) if text else None
            except InvalidValue:
                continue
            if limits is not None:
                file.set(key, _pair(limits, by.disk))
    if by.network is not None:
        words = (file.get("RATE") or "").split()
        if words:
            file.set("RATE", " ".join(_rate(word, by.network) for word in words))


def _pair(limits: Pair, by: float) -> str:
    return str(Pair(*(_times(value, by) for value in limits)))


def _times(value: int, by: float) -> int:
    if ubc.unlimited(value):
        return UNLIMITED
    return min(int(value * by), UNLIMITED)


def _number(file: ConfigFile, key: str, by: float, least: int, most: int) -> None:
    """Scale one number; 0 means no limit everywhere this is used, and stays."""
    text = file.get(key) or ""
    if text.isdecimal() and int(text) and not ubc.unlimited(int(text)):
        file.set(key, str(min(max(int(int(text) * by), least), most)))


def _rate(word: str, by: float) -> str:
    match = re.fullmatch(r"([^:]+:[0-9]+:)([0-9]+)", word)
    return word if match is None else f"{match[1]}{max(int(int(match[2]) * by), 1)}"


def remove_personal(file: ConfigFile) -> None:
    """Drop what belongs to one container only."""
    for key in PERSONAL:
        file.unset(key)
