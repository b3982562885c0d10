"""The complete file system: every operation of the topics put together."""

from __future__ import annotations

from vzfs.relinking import Relinking


class Operations(Relinking):
    """What a transport serves.

    The topics build on one another: overlay (state), lookup (finding), copyup (making private),
    naming, removing, renaming, listing, attributes, files; accounted and recovering beside each
    other; relinking.
    """
