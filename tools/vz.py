"""vz: all containers at once — at boot, at shutdown, and on demand.

``vz start`` starts what has ONBOOT=yes, higher BOOTORDER first, at most VE_PARALLEL at a time;
``vz stop`` stops what runs, in the opposite order. ``vz install`` makes the server do both.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from runtime import files, nursery, state, suspension
from runtime.errors import InvalidValue, Locked, SystemFailure, VzError
from tools import environments, lifecycle
from tools._command import JSON, Context, Program, Verb, option
from tools._command import main as run_program
from tools._entries import Entry, entries
from tools.verbs_container import prepare

_UNIT = """[Unit]
Description=pyvz containers
After=network-online.target local-fs.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={vz} start
ExecStop={vz} stop
KillMode=none
TimeoutSec=0
Delegate=yes

[Install]
WantedBy=multi-user.target
"""

_SCRIPT = """#!/bin/sh
### BEGIN INIT INFO
# Provides:          vz
# Required-Start:    $local_fs $network $remote_fs
# Required-Stop:     $local_fs $network $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: pyvz containers
### END INIT INFO
exec {vz} "$@"
"""


def boot_order(rows: Sequence[Entry]) -> list[Entry]:
    """Return ``rows`` in the order of their start: BOOTORDER descending, unset last, then id."""

    def key(entry: Entry) -> tuple[int, int, int]:
        text = entry.config.get("BOOTORDER") or ""
        return (0, -int(text), entry.ctid) if text.isdecimal() else (1, 0, entry.ctid)

    return sorted(rows, key=key)


def parallel(context: Context) -> int:
    """Return how many containers are started at a time; raises InvalidValue."""
    text = context.server().get("VE_PARALLEL")
    if not text:
        return 4 * (os.cpu_count() or 1)
    if not text.isdecimal() or int(text) < 1:
        raise InvalidValue(f"VE_PARALLEL is not a number above 0: {text}")
    return int(text)


def for_each(ctids: Sequence[int], act: Callable[[int], int], *, at_once: int) -> dict[int, int]:
    """Run ``act`` on each id in a process of its own, begun in order; return the statuses."""
    waiting = list(ctids)
    running: dict[int, int] = {}
    statuses: dict[int, int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            ctid = waiting.pop(0)
            pid = os.fork()
            if pid == 0:
                status = 3
                try:
                    status = act(ctid)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            running[pid] = ctid
        pid, status = os.wait()
        if pid in running:
            statuses[running.pop(pid)] = os.waitstatus_to_exitcode(status)
    return statuses


def _guarded(context: Context, act: Callable[[int], None]) -> Callable[[int], int]:
    def run(ctid: int) -> int:
        try:
            act(ctid)
        except VzError as error:
            print(f"vz: container {ctid}: {error.message}", file=sys.stderr)
            context.log().write(error.message, ctid=ctid)
            return error.code
        return 0

    return run


def start(context: Context, args: argparse.Namespace) -> int:
    """Start every container that is to run with the server."""
    if (context.server().get("VIRTUOZZO") or "yes") == "no":
        print("VIRTUOZZO is 'no': nothing is started")
        return 0
    # All supervisors from one process: what they do not write to is in memory once.
    nursery.begin()
    _restore_host(context)
    _clear_leftovers(context)
    rows = boot_order(
        [
            entry
            for entry in entries(context)
            if entry.config.get("ONBOOT") == "yes"
            and entry.config.get("DISABLED") != "yes"
            and not entry.status.running
        ]
    )

    _reconcile_network(context, rows)

    def act(ctid: int) -> None:
        from runtime import locks

        ct = environments.find_container(context, str(ctid))
        with locks.environment(context.paths, ctid, "boot", timeout_s=60.0):
            prepare(context, ct)
            if not ct.status().running:
                lifecycle.start(context, ct)

    _machines(context, start=True)
    return _report(
        "started",
        for_each([row.ctid for row in rows], _guarded(context, act), at_once=parallel(context)),
    )


def _reconcile_network(context: Context, rows: Sequence[Entry]) -> None:
    """Bring the host's side of the network in order before the first container needs it."""
    from runtime.net import names, netfilter

    for reason in netfilter.load_modules(context.server().get("IPTABLES_MODULES") or ""):
        print(f"vz: IPTABLES_MODULES: {reason}", file=sys.stderr)
    if any(names.wanted(row.config) for row in rows):
        from runtime.net.server import Server

        with Server(context.paths) as server:
            server.reconcile()


def _clear_leftovers(context: Context) -> None:
    """Undo what killed commands began on ids that no container has."""
    from runtime import journal, locks

    for word in journal.unfinished(context.paths):
        if word.isdecimal() and not context.paths.ct_conf(int(word)).exists():
            with suppress(Locked), locks.environment(context.paths, int(word), "boot"):
                lifecycle.repair(context, int(word))


def _restore_host(context: Context) -> None:
    """Apply 0.conf to the host when it says so."""
    from runtime.config import ConfigFile

    conf = context.paths.ct_conf(0)
    if conf.exists() and (file := ConfigFile.read(conf)).get("ONBOOT") == "yes":
        from runtime import host

        host.apply(file.items())


def stop(context: Context, args: argparse.Namespace) -> int:
    """Stop every container that runs, and end what is left of those that died."""
    rows = boot_order([entry for entry in entries(context) if entry.status.run is not None])

    def act(ctid: int) -> None:
        from runtime import locks

        ct = environments.find_container(context, str(ctid))
        with locks.environment(context.paths, ctid, "shutdown", timeout_s=60.0):
            lifecycle.repair(context, ctid)
            ct.reconcile()
            if ct.status().running:
                if (ct.config.get("AUTOSTOP") or ct.config["VE_STOP_MODE"]) == "suspend":
                    ct.progress.warn(f"it is stopped, not suspended: {suspension.obstacle()}")
                ct.stop(fast=args.fast)
            elif ct.status().mounted:
                ct.umount()

    _machines(context, start=False)
    ids = [row.ctid for row in reversed(rows)]
    return _report("stopped", for_each(ids, _guarded(context, act), at_once=parallel(context)))


def restart(context: Context, args: argparse.Namespace) -> int:
    """Stop all, then start all."""
    return stop(context, args) or start(context, args)


def _machines(context: Context, *, start: bool) -> None:
    """Start or stop the machines of this server; one without any asks libvirt nothing."""
    from vmm import registry

    if registry.records(context.paths):
        from tools.verbs_vm import hypervisor
        from vmm import boot

        act = boot.start_all if start else boot.stop_all
        with hypervisor(context) as way:
            act(context.paths, way, context.progress())


def _report(word: str, statuses: dict[int, int]) -> int:
    failed = sorted(ctid for ctid, status in statuses.items() if status)
    print(f"{len(statuses) - len(failed)} containers {word}")
    if failed:
        print(f"vz: not {word}: {' '.join(map(str, failed))}", file=sys.stderr)
    return 3 if failed else 0


def status(context: Context, args: argparse.Namespace) -> int:
    """Tell how many containers run."""
    rows = entries(context)
    facts = {
        "configured": len(rows),
        "running": sum(row.status.running for row in rows),
        "onboot": sum(row.config.get("ONBOOT") == "yes" for row in rows),
        "states": len(state.present(context.paths)),
    }
    if args.json:
        import json

        print(json.dumps(facts, indent=2))
    else:
        print(
            f"{facts['running']} of {facts['configured']} containers run; "
            f"{facts['onboot']} start with the server"
        )
    return 0


def install(context: Context, args: argparse.Namespace) -> None:
    """Write the systemd unit, or where there is no systemd an init script."""
    program = Path(sys.argv[0]).absolute()
    root = context.paths.root
    if (root / "etc/systemd/system").is_dir():
        target, text, mode = root / "etc/systemd/system/vz.service", _UNIT, 0o644
        then = "systemctl enable --now vz"
    elif (root / "etc/init.d").is_dir():
        target, text, mode = root / "etc/init.d/vz", _SCRIPT, 0o755
        then = "update-rc.d vz defaults"
    else:
        raise SystemFailure(f"{root / 'etc'} has neither systemd/system nor init.d")
    files.replace(target, text.format(vz=program).encode(), mode=mode)
    print(f"{target} was written; enable it with: {then}")


_FAST = option("--fast", help="kill instead of halting", action="store_true")

PROGRAM = Program(
    "vz",
    "Start and stop all containers of this server.",
    verbs=(
        Verb("start", "start what has ONBOOT=yes, in BOOTORDER", start),
        Verb("stop", "stop what runs", stop, (_FAST,)),
        Verb("restart", "stop all, start all", restart, (_FAST,)),
        Verb("status", "tell how many run", status, (JSON,), changes=False),
        Verb("install", "start with the server: a systemd unit or an init script", install),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vz; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
