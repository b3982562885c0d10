"""What the verbs of pctl(8) do with a machine's hardware, disks and snapshots."""

from __future__ import annotations

from tools._command import Verb

VERBS: tuple[Verb, ...] = ()
