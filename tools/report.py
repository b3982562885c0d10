"""``pctl problem-report``: one archive with what a person needs who shall help.

Configurations, logs, versions and the kernel's view, with secrets taken out. It is written to
standard output or a file and never sent anywhere by itself.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runtime import state
from runtime.errors import InvalidOption
from tools import environments
from tools._command import VERSION, Context, Verb, option
from tools.diagnose import TOPICS
from tools.verbs_container import ID

_SECRET = re.compile(
    r"(?im)^(.*?(?:passw(?:or)?d|secret|token|userpw|private[_-]?key)[^=:\n]*[=:]\s*).+$"
)
_CREDENTIALS = re.compile(r"(\w+://|\s)[^\s:/@]+:[^\s:/@]+@")
_LOG_TAIL = 2000


def redact(text: str) -> str:
    """Return ``text`` with passwords, tokens and user:password@host taken out."""
    return _CREDENTIALS.sub(r"\1***:***@", _SECRET.sub(r"\1***", text))


def _members(context: Context, ctid: int) -> Iterator[tuple[str, str]]:
    """Yield name and text of each member of the report."""
    paths = context.paths
    ct = environments.find_container(context, str(ctid))
    yield "container.conf", ct.record.conf.read_text(errors="replace")
    if paths.global_config.exists():
        yield "vz.conf", paths.global_config.read_text(errors="replace")
    run = state.load(paths, ctid)
    yield "state.json", json.dumps(str(run))
    if paths.log.exists():
        lines = paths.log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        yield "vzctl.log", "\n".join(lines) + "\n"
    found = [
        f"{finding.verdict} {finding.check}: {finding.detail}"
        for topic in TOPICS
        for check in TOPICS[topic]
        for finding in check(context, ct)
    ]
    yield "diagnose.txt", "\n".join(found) + "\n"
    uname = os.uname()
    yield (
        "versions.json",
        json.dumps(
            {
                "pyvz": VERSION,
                "python": sys.version,
                "kernel": f"{uname.sysname} {uname.release} {uname.version} {uname.machine}",
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
            indent=2,
        ),
    )
    for name in ("meminfo", "mounts", "cgroups", "filesystems", "loadavg"):
        yield f"proc/{name}", Path("/proc", name).read_text(errors="replace")


def problem_report(context: Context, args: argparse.Namespace) -> int:
    """Write the archive; its checksum goes to standard error."""
    import hashlib
    import tarfile

    if args.send:
        raise InvalidOption(
            "reports are sent nowhere", hint="write it with -o FILE, look into it, send it yourself"
        )
    ct = environments.find_container(context, args.ident)
    if args.output is None and sys.stdout.isatty():
        raise InvalidOption(
            "the report is an archive and does not belong on a terminal",
            hint="add -o FILE, or send standard output to a file",
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, text in _members(context, ct.ctid):
            data = redact(text).encode("utf-8", "surrogateescape")
            info = tarfile.TarInfo(f"report-{ct.ctid}/{name}")
            info.size = len(data)
            info.mtime = int(time.time())
            info.mode = 0o600
            archive.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    if args.output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        fd = os.open(args.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
    print(f"sha256 {hashlib.sha256(data).hexdigest()} ({len(data)} bytes)", file=sys.stderr)
    return 0


VERBS: tuple[Verb, ...] = (
    Verb(
        "problem-report",
        "write an archive for whoever shall help: configurations, logs, versions, no secrets",
        problem_report,
        (
            ID,
            option("-d", "--dump", help="to standard output (the default)", action="store_true"),
            option("-o", "--output", help="to this file", metavar="FILE"),
            option("-s", "--send", help="refused: reports are sent nowhere", action="store_true"),
            option("--proxy", help="accepted with --send", metavar="SERVER"),
            option("--no-proxy", help="accepted with --send", action="store_true"),
        ),
        changes=False,
    ),
)
