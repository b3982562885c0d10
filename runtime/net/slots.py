"""Which number an environment has in the classes of traffic shaping: kept across reboots.

A slot times 16 plus the traffic class is the minor number of an HTB class, so slots go from 1 to
0xeff; minors from 0xf001 on are those of the classes themselves.
"""

from __future__ import annotations

import json
from pathlib import Path

from runtime import files, locks
from runtime.errors import ShapingFailed
from runtime.paths import Paths

LARGEST = 0xEFF


def _file(paths: Paths) -> Path:
    return paths.lib / "net" / "slots.json"


def _load(paths: Paths) -> dict[str, int]:
    try:
        return {str(who): int(slot) for who, slot in json.loads(_file(paths).read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _save(paths: Paths, slots: dict[str, int]) -> None:
    target = _file(paths)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.replace(target, json.dumps(slots).encode(), mode=0o600)


def get(paths: Paths, who: str) -> int:
    """Return the slot of an environment, giving it the smallest free one; raises ShapingFailed."""
    slots = _load(paths)
    if who in slots:
        return slots[who]
    with locks.environment(paths, "slots", "slots", timeout_s=10.0):
        slots = _load(paths)
        taken = set(slots.values())
        free = next((slot for slot in range(1, LARGEST + 1) if slot not in taken), None)
        if free is None:
            raise ShapingFailed(f"only {LARGEST} environments can be shaped on one server")
        if who not in slots:
            slots[who] = free
            _save(paths, slots)
        return slots[who]


def release(paths: Paths, who: str) -> None:
    """Free the slot of a destroyed environment; absent is success."""
    if who not in _load(paths):
        return
    with locks.environment(paths, "slots", "slots", timeout_s=10.0):
        slots = _load(paths)
        if slots.pop(who, None) is not None:
            _save(paths, slots)


def minor(slot: int, number: int) -> int:
    """Return the minor number of class ``number`` of the environment in ``slot``."""
    if not 1 <= slot <= LARGEST or not 0 <= number <= 15:
        raise ValueError(f"no such slot or class: {slot}, {number}")
    return slot * 16 + number


def total_minor(number: int) -> int:
    """Return the minor number of what all environments share in class ``number``."""
    return 0xF000 + number
