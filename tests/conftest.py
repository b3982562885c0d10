"""What every test run needs: markers that skip or, in CI, fail when something is missing."""

from __future__ import annotations

import os
import shutil

import pytest

#: The plugin of a run in the guest of ./runtests other-host, where a missing systemd is a failure.
_OTHER_HOST = "tests.otherhost.stream"
#: sd_booted(3)
_SYSTEMD = "/run/systemd/system"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--require``."""
    parser.addoption(
        "--require",
        default="",
        metavar="MARKER[,MARKER]",
        help="fail instead of skipping where what these markers need is missing (root, kvm)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that decides about collection; the others are in pyproject.toml."""
    config.addinivalue_line("markers", "systemd: about systemd as process 1, collected where it is")


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
    """Skip what cannot run here, naming what is missing; leave it in where it is required.

    What is about systemd as process 1 is no part of a run on a server with another one.
    """
    if not config.pluginmanager.has_plugin(_OTHER_HOST) and not os.path.exists(_SYSTEMD):
        left_out = [item for item in items if item.get_closest_marker("systemd")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
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
