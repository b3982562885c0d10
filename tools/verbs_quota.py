"""vzctl's quota verbs: quotaon, quotaoff, quotainit, on a container's own quota file."""

from __future__ import annotations

import argparse

from runtime import locks
from runtime.errors import DiskInodesUnset, DiskSpaceUnset, UgidQuotaNotInitialised
from tools import environments
from tools._command import Context, Verb
from tools.verbs_container import ID, prepare


def turn_on(context: Context, args: argparse.Namespace) -> None:
    """Let the limits bind; raises QuotaOnFailed."""
    from runtime import resources_disk

    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "quotaon"):
        prepare(context, ct)
        resources_disk.turn_on(ct)
        context.progress(ct.ctid).say("Container quota is on")


def turn_off(context: Context, args: argparse.Namespace) -> None:
    """Let the limits bind no more; raises QuotaOffFailed."""
    from runtime import resources_disk

    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "quotaoff"):
        prepare(context, ct)
        resources_disk.turn_off(ct)
        context.progress(ct.ctid).say("Container quota is off")


def initialise(context: Context, args: argparse.Namespace) -> None:
    """Count a container's area anew; raises what is missing, or QuotaInitFailed."""
    from runtime import resources_disk

    ct = environments.find_container(context, args.ident)
    with locks.environment(context.paths, ct.ctid, "quotainit"):
        prepare(context, ct)
        for key, missing in (("DISKSPACE", DiskSpaceUnset), ("DISKINODES", DiskInodesUnset)):
            if not ct.config.get(key):
                raise missing(
                    f"{key} is not set", hint=f"pctl set {ct.ctid} --{key.lower()} … --save"
                )
        if ct.status().mounted:
            raise UgidQuotaNotInitialised(
                "Container is mounted: its files cannot be counted", hint=f"vzctl stop {ct.ctid}"
            )
        kib, inodes = resources_disk.initialise(ct)
        context.progress(ct.ctid).say(f"Container quota was initialised: {kib} KB, {inodes} inodes")


VERBS: tuple[Verb, ...] = (
    Verb("quotaon", "let a container's disk limits bind", turn_on, (ID,)),
    Verb("quotaoff", "let a container's disk limits bind no more", turn_off, (ID,)),
    Verb("quotainit", "count a container's disk space anew", initialise, (ID,)),
)
