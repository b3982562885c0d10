"""Requests which a killed server had taken and not answered."""

from __future__ import annotations

import os
import sys

from vzfs import protocol
from vzfs.protocol import OUT_HEADER, OUT_SIZE


def ask(fd: int) -> None:
    """Have the kernel behind ``fd`` send them again, Linux 6.9 (``fuse_notify_resend()``).

    An older one refuses. A line on stderr tells so; all that is asked from then on is served.
    """
    try:
        os.write(fd, OUT_HEADER.pack(OUT_SIZE, protocol.NOTIFY_RESEND, 0))
    except OSError as error:
        print(f"vzfs: unanswered requests are lost: {error.strerror}", file=sys.stderr)
