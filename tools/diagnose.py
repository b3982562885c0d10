"""``pctl diagnose``: why a container does not start, has no network, or lets nobody in.

Each check is a row: it looks, says what it found and what to do, and never changes anything. The
order is that of a person who suspects the simplest thing first (guide §10.3).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import journal, locks
from runtime.config import ConfigFile
from runtime.units import human
from tools import environments
from tools._command import JSON, Context, Verb, option
from tools.verbs_container import ID

if TYPE_CHECKING:
    from runtime.container import Container


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: ``ok``, ``warn`` or ``fail``, in words, and what to do about it."""

    check: str
    verdict: str
    detail: str
    todo: str = ""


Check = Callable[["Context", "Container"], Iterator[Finding]]


def _configuration(context: Context, ct: Container) -> Iterator[Finding]:
    file = ConfigFile.read(ct.record.conf)
    for bad in file.bad:
        yield Finding(
            "configuration", "warn", f"{ct.record.conf}, line {bad.number}: {bad.reason}",
            "correct or remove the line",
        )  # fmt: skip
    if not file.bad:
        yield Finding("configuration", "ok", str(ct.record.conf))
    if ct.config.get("DISABLED") == "yes":
        yield Finding(
            "disabled", "fail", "starting is disabled", f"pctl set {ct.ctid} --disabled no --save"
        )


def _locked(context: Context, ct: Container) -> Iterator[Finding]:
    holder = locks.holder(context.paths, ct.ctid)
    if holder is not None:
        yield Finding("lock", "warn", f"held by {holder}", "wait for that command")
    for entry in journal.pending(context.paths, ct.ctid):
        if holder is None:
            yield Finding(
                "journal", "warn", f"a {entry.act} was interrupted", "the next command repairs it"
            )


def _private(context: Context, ct: Container) -> Iterator[Finding]:
    private = context.paths.area(ct.config["VE_PRIVATE"])
    if not private.is_dir():
        yield Finding("private area", "fail", f"{private} is missing", "restore it from a backup")
        return
    layers = private / "templates" / "layers"
    try:
        names = layers.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        yield Finding("template", "fail", f"{layers}: {error.strerror}", "restore it from a backup")
        return
    gone = [name for name in names if name and not (context.paths.template / name).is_dir()]
    for name in gone:
        yield Finding(
            "template", "fail", f"the template tree {name} is missing",
            "vzpkg create cache for the container's OS template, or restore the template area",
        )  # fmt: skip
    if not gone:
        yield Finding("private area", "ok", f"{private}, {len(names) - 1} layers")
    stats = os.statvfs(private)
    free = stats.f_bavail * stats.f_frsize
    if free < 64 << 20:
        yield Finding("disk space", "fail", f"only {human(free)} free", "make room on the server")
    else:
        yield Finding("disk space", "ok", f"{human(free)} free on the server")


def _kernel(context: Context, ct: Container) -> Iterator[Finding]:
    for node, need in (
        ("/dev/fuse", "modprobe fuse"),
        ("/proc/self/ns/user", "a kernel with USER_NS"),
    ):
        if os.path.exists(node):
            yield Finding("kernel", "ok", node)
        else:
            yield Finding("kernel", "fail", f"{node} is missing", need)
    try:
        limit = int(Path("/proc/sys/user/max_user_namespaces").read_text())
    except (OSError, ValueError):
        limit = 1
    if limit == 0:
        yield Finding(
            "kernel",
            "fail",
            "user namespaces are forbidden",
            "sysctl user.max_user_namespaces=10000",
        )


def _log(context: Context, ct: Container) -> Iterator[Finding]:
    try:
        lines = context.paths.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    own = [line for line in lines[-5000:] if f" CT {ct.ctid} " in line][-3:]
    for line in own:
        yield Finding("log", "ok", line)


def _running(context: Context, ct: Container) -> Iterator[Finding]:
    status = ct.status()
    if status.running:
        yield Finding("running", "ok", "the container runs")
    else:
        yield Finding("running", "fail", "the container does not run", f"pctl start {ct.ctid}")


def _network(context: Context, ct: Container) -> Iterator[Finding]:
    from runtime.net import diagnose as net

    for found in net.checks(context.paths, ct.ctid, ct.config):
        yield Finding(found.name, found.status, found.detail, found.todo)


#: Lines: "nologin" if so; number of root's usable passwords; the SSH server's path.
_LOGIN_FACTS = """
test -f /etc/nologin && echo nologin
grep -c '^root:[^!*]' /etc/shadow
command -v sshd || ls /usr/sbin/sshd 2>/dev/null
"""


def _login(context: Context, ct: Container) -> Iterator[Finding]:
    if not ct.status().running:
        return
    out = ct.output(["/bin/sh", "-c", _LOGIN_FACTS]).decode("utf-8", "replace").splitlines()
    if out and out[0] == "nologin":
        yield Finding("nologin", "fail", "/etc/nologin forbids logins", "remove the file inside")
        out = out[1:]
    if out and out[0] == "0":
        yield Finding(
            "password", "warn", "root has no password inside",
            f"pctl set {ct.ctid} --userpasswd root:PASSWORD",
        )  # fmt: skip
    else:
        yield Finding("password", "ok", "root has a password")
    if not any("sshd" in line for line in out):
        yield Finding(
            "ssh", "warn", "no SSH server is installed inside", "pctl enter works without one"
        )
    else:
        yield Finding("ssh", "ok", "an SSH server is installed")


TOPICS: dict[str, tuple[Check, ...]] = {
    "start": (_configuration, _locked, _private, _kernel, _log),
    "net": (_running, _network),
    "login": (_running, _login),
}


def diagnose(context: Context, args: argparse.Namespace) -> int:
    """Print what the checks of a topic (or of all) find; status 1 when one fails."""
    ct = environments.find_container(context, args.ident)
    topics = [args.topic] if args.topic else list(TOPICS)
    findings = [
        finding for topic in topics for check in TOPICS[topic] for finding in check(context, ct)
    ]
    if args.json:
        keys = ("check", "verdict", "detail", "todo")
        print(json.dumps([{key: getattr(f, key) for key in keys} for f in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.verdict:<5} {finding.check}: {finding.detail}")
            if finding.todo and finding.verdict != "ok":
                print(f"      → {finding.todo}")
    return int(any(finding.verdict == "fail" for finding in findings))


VERBS: tuple[Verb, ...] = (
    Verb(
        "diagnose",
        "find out why a container does not start, has no network or lets nobody in",
        diagnose,
        (
            ID,
            option("topic", help="only this", nargs="?", choices=tuple(TOPICS)),
            JSON,
        ),
        changes=False,
    ),
)
