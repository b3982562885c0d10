"""How vzquota prints: the columns of its manual page, and its batch form."""

from __future__ import annotations

import time

from vzfs.quotafile import kib
from vzfs.quotalayout import GROUP, USER, Record, Usage
from vzfs.quotastate import Snapshot

_OBJECTS = "{:<11} {:>5} {:>9} {:>11} {:>11} {:>11} {:>8} {:>6}"
_TYPES = {USER: "user", GROUP: "group"}


def period(seconds: int) -> str:
    """Return a period as vzquota rounds it: whole days, or hours and minutes."""
    minutes = (seconds + 30) // 60
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}days" if days else f"{hours:02d}:{minutes:02d}"


def grace(end: int, now: float) -> str:
    """Return what is left until ``end`` (seconds since 1970, 0: nothing runs)."""
    if not end:
        return ""
    return "none" if end <= now else period(int(end - now))


def _over(used: int, soft: int, hard: int) -> str:
    return "*" if (soft and used > soft) or (hard and used > hard) else " "


def first_level(state: Snapshot, *, batch: bool, now: float | None = None) -> list[str]:
    """Return the lines of the container's own quota."""
    moment = time.time() if now is None else now
    limits, usage = state.limits, state.usage
    rows = (
        (
            "1k-blocks",
            kib(usage.blocks),
            limits.block_soft,
            limits.block_hard,
            usage.block_time,
            limits.block_expire,
        ),
        (
            "inodes",
            usage.inodes,
            limits.inode_soft,
            limits.inode_hard,
            usage.inode_time,
            limits.inode_expire,
        ),
    )
    if batch:
        return [
            f"{used:14} {soft:14} {hard:14} {end:14} {expire:14}"
            for _, used, soft, hard, end, expire in rows
        ]
    lines = [f"{'resource':>11} {'usage':>14}  {'softlimit':>14} {'hardlimit':>14} {'grace':>8}"]
    lines += [
        f"{name:>11} {used:14}{_over(used, soft, hard)} {soft:14} {hard:14} {grace(end, moment):>8}"
        for name, used, soft, hard, end, _ in rows
    ]
    return lines


def second_level(state: Snapshot, *, batch: bool, now: float | None = None) -> list[str]:
    """Return the lines ``-t`` adds: users and groups."""
    moment = time.time() if now is None else now
    limits = state.limits
    total = len(state.records)
    loaded = total if state.ugid_active else 0
    if batch:
        lines = [
            f"{int(bool(limits.sub_quotas))} {int(state.ugid_active)}",
            f"{loaded} {total} {limits.ugid_limit}",
            f"{int(state.exceeded)}",
        ]
    else:
        on = "on" if limits.sub_quotas else "off"
        active = "active" if state.ugid_active else "inactive"
        star = "*" if total > limits.ugid_limit else ""
        lines = [
            f"User/group quota: {on},{active}",
            f"{star}Ugids: loaded {loaded}, total {total}, limit {limits.ugid_limit}",
            f"Ugid limit was exceeded: {'yes' if state.exceeded else 'no'}",
            "",
            "User/group grace times and quotafile flags:",
            f"{'type':>5} {'block_exp_time':>14} {'inode_exp_time':>14} {'dqi_flags':>10}",
        ]
    for kind, blocks, inodes in (
        (USER, limits.user_block_expire, limits.user_inode_expire),
        (GROUP, limits.group_block_expire, limits.group_inode_expire),
    ):
        if batch:
            lines.append(f"{_TYPES[kind]:>5} {blocks} {inodes} {0:9X}h")
        else:
            shown = (period(blocks) if blocks else "", period(inodes) if inodes else "")
            lines.append(f"{_TYPES[kind]:>5} {shown[0]:>14} {shown[1]:>14} {0:9X}h")
    if not state.records:
        return lines
    if not batch:
        lines += [
            "",
            "User/group objects:",
            _OBJECTS.format(
                "ID", "type", "resource", "usage", "softlimit", "hardlimit", "grace", "status"
            ),
        ]
    for record in state.records:
        lines += _record(record, loaded=state.ugid_active, batch=batch, now=moment)
    return lines


def _record(record: Record, *, loaded: bool, batch: bool, now: float) -> list[str]:
    usage: Usage = record.usage
    status = f"{int(loaded)} 0" if batch else "loaded" if loaded else ""
    return [
        _OBJECTS.format(
            record.ident,
            _TYPES[record.kind],
            resource,
            used,
            soft,
            hard,
            end if batch else grace(end, now),
            status,
        )
        for resource, used, soft, hard, end in (
            (
                "1k-blocks",
                kib(usage.blocks),
                record.block_soft,
                record.block_hard,
                usage.block_time,
            ),
            ("inodes", usage.inodes, record.inode_soft, record.inode_hard, usage.inode_time),
        )
    ]
