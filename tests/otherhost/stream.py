"""A pytest plugin that writes a JSON line for each test as it begins and ends.

So nothing is lost of a run that hangs, or of a guest that panics.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--reports``."""
    parser.addoption("--reports", metavar="FILE", help="write a JSON line for each test")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to write where it was asked for."""
    if target := config.getoption("--reports"):
        config.pluginmanager.register(_Stream(target))


class _Stream:
    def __init__(self, target: str) -> None:
        self._file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._write(kernel=platform.release(), system=_system(), processors=os.cpu_count())

    def _write(self, **fields: object) -> None:
        os.write(self._file, json.dumps(fields).encode() + b"\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(begin=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write outcome, seconds and, of what did not pass, the reason."""
        if report.when == "call" or report.outcome != "passed":
            outcome = "error" if report.failed and report.when != "call" else report.outcome
            self._write(
                test=report.nodeid,
                outcome=outcome,
                seconds=round(report.duration, 2),
                reason=_reason(report),
            )

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._write(status=int(exitstatus))


def _reason(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)[:2000]


def _system() -> str:
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return fields.get("PRETTY_NAME", "").strip('"')
