"""The complete file system: every operation of the topics put together."""

from __future__ import annotations

from vzfs.accounted import Accounted


class Operations(Accounted):
    """What a transport serves.

    The topics build on one another: overlay (finding), copyup (making private), naming, renaming,
    listing, attributes, files, accounted.
    """
