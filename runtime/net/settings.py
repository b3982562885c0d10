"""Settings of a container's network."""

from __future__ import annotations

from runtime.settings import Setting

ROWS: tuple[Setting, ...] = ()
