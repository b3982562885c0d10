"""The kernel's device events, as the watch for USB devices hears them."""

from __future__ import annotations

import select
import time
from pathlib import Path

import pytest

from vmm import usbwatch

pytestmark = pytest.mark.root


def test_the_kernels_events_arrive() -> None:
    with usbwatch.uevent_socket() as events:
        # The kernel announces a device again when asked (ABI/testing/sysfs-uevent).
        Path("/sys/class/mem/null/uevent").write_text("add")
        deadline = time.monotonic() + 5
        while True:
            assert select.select([events], [], [], max(deadline - time.monotonic(), 0))[0]
            found = usbwatch.fields(events.recv(1 << 16))
            if found.get("DEVNAME") == "null":
                break
    assert (found["ACTION"], found["SUBSYSTEM"]) == ("add", "mem")
