"""The minute of the warm service: counters are saved, flushed rules put back.

Needed only while some container has a network; what to lose is then bounded by ``EVERY_S``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NoReturn

from runtime.errors import VzError
from runtime.log import Log
from runtime.paths import Paths

EVERY_S = 60.0


def needed(paths: Paths) -> bool:
    """Whether a container of this system has something in the host's network."""
    try:
        return any(name.startswith("ct") for name in os.listdir(paths.run / "net"))
    except FileNotFoundError:
        return False


def act(paths: Paths) -> NoReturn:
    """Do one minute's work in this (forked) process, and end it."""
    from runtime.net import server

    status = 1
    try:
        with suppress(OSError):
            server.tick(paths)
            status = 0
    except VzError as error:
        Log(paths.log, program="service").write(f"network: {error.message}", ctid=0)
    finally:
        os._exit(status)
