"""What every test run needs: markers that skip or, in CI, fail when something is missing."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--require``."""
    parser.addoption(
        "--require",
        default="",
        metavar="MARKER[,MARKER]",
        help="fail instead of skipping where what these markers need is missing (root, kvm)",
    )


def _missing(marker: str) -> str | None:
    """Return what is missing on this machine for tests with ``marker``, and how to get it."""
    if marker == "root":
        if os.geteuid() != 0:
            return "not root: run the tests as root"
        if not os.path.exists("/dev/fuse"):
            return "/dev/fuse is missing: modprobe fuse"
    if marker == "kvm":
        if os.geteuid() != 0:
            return "not root: run the tests as root"
        for program in ("libvirtd", "qemu-system-x86_64", "qemu-img"):
            if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
                return f"{program} is not installed: tools/bootstrap test"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here, naming what is missing; leave it in where it is required."""
    required = {word for word in config.getoption("--require").split(",") if word}
    for marker in ("root", "kvm"):
        reason = _missing(marker)
        if reason is None or marker in required:
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's environment out of the tests."""
    for name in ("VZ_ROOT", "VZ_SERVICE"):
        monkeypatch.delenv(name, raising=False)
