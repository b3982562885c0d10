"""psrvctl: the server itself: networks, shaping, USB devices, what it has."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence

from runtime.units import human
from tools import psrvctl_net, psrvctl_usb, psrvctl_user
from tools._command import JSON, VERSION, Context, Program, Verb
from tools._command import main as run_program
from tools.verbs_net import group


def info(context: Context, args: argparse.Namespace) -> int:
    """Print what the server is and how many environments it has."""
    from tools._entries import entries
    from vmm.registry import records

    rows = entries(context)
    facts = {
        "version": VERSION,
        "hostname": platform.node(),
        "kernel": platform.release(),
        "cpus": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "root": str(context.paths.root),
        "containers": len(rows),
        "containers_running": sum(row.status.running for row in rows),
        "machines": len(list(records(context.paths))),
    }
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"Version: pyvz {facts['version']}")
    print(f"Hostname: {facts['hostname']}")
    print(f"Kernel: {facts['kernel']}")
    print(f"CPUs: {facts['cpus']}")
    print(f"Memory: {human(int(str(facts['memory_bytes'])))}")
    print(f"System root: {facts['root']}")
    print(f"Containers: {facts['containers']} ({facts['containers_running']} running)")
    print(f"Virtual machines: {facts['machines']}")
    return 0


def shutdown(context: Context, args: argparse.Namespace) -> int:
    """Stop every machine and container of the server, in the opposite order of their start."""
    from tools import vz

    return vz.stop(context, argparse.Namespace(fast=False))


PROGRAM = Program(
    "psrvctl",
    "Manage the server itself.",
    verbs=(
        Verb("info", "what this server is and has", info, (JSON,), changes=False),
        *psrvctl_net.VERBS,
        group("user", "who makes machines, and where", psrvctl_user.VERBS, program="psrvctl"),
        group("usb", "USB devices of machines", psrvctl_usb.VERBS, program="psrvctl"),
        Verb("shutdown", "stop every container and machine", shutdown),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run psrvctl; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
