"""Disk quota settings of a running or mounted container, through the file layer's quota file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runtime.errors import (
    InvalidValue,
    QuotaInitFailed,
    QuotaOffFailed,
    QuotaOnFailed,
    QuotaSetFailed,
    UgidQuotaFailed,
    VzError,
)
from runtime.units import KIB, UNLIMITED, Pair, pair
from vzfs import quota
from vzfs.quotaerror import EXIT_NO_FILE, QuotaError, open_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.config import Config
    from runtime.container import Container
    from runtime.paths import Paths

#: Grace period where QUOTATIME is not set, in seconds: a week, as vzquota has it.
_GRACE_S = 7 * 86400


def changes(config: Mapping[str, str]) -> quota.Changes:
    """Return the quota limits of a configuration; 0 is the file layer's word for no limit."""
    space, inodes = _limits(config, "DISKSPACE", KIB), _limits(config, "DISKINODES", 0)
    grace = config.get("QUOTATIME", "")
    seconds = int(grace) if grace.isdecimal() else _GRACE_S
    users = config.get("QUOTAUGIDLIMIT", "")
    users_limit = int(users) if users.isdecimal() else 0
    return quota.Changes(
        block_soft=space.barrier,
        block_hard=space.limit,
        inode_soft=inodes.barrier,
        inode_hard=inodes.limit,
        block_expire=seconds,
        inode_expire=seconds,
        sub_quotas=int(users_limit > 0),
        ugid_limit=users_limit,
    )


def _limits(config: Mapping[str, str], key: str, unit: int) -> Pair:
    try:
        found = pair(config.get(key) or "unlimited", unit=unit)
    except InvalidValue:
        return Pair(0, 0)
    return Pair(*(0 if value >= UNLIMITED else value for value in found))


def prepare(paths: Paths, ctid: int, config: Config, private: Path) -> Path | None:
    """Return the quota file which the file server shall keep, made or brought up to ``config``.

    None when the container has no disk quota. Raises QuotaInitFailed.
    """
    path = paths.quota_file(ctid)
    with _translated(QuotaInitFailed):
        if config.get("DISK_QUOTA") != "yes":
            if path.exists():
                # What is written meanwhile is counted when there is a quota again.
                quota.set_limits(path, quota.Changes(), force=True)
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        quota.prepare(path, private / "root", changes(config), index=private / "cow" / "index")
    return path


def apply_enabled(ct: Container, before: Config, after: Config) -> None:
    """Let the limits bind or not, by DISK_QUOTA; raises QuotaOnFailed, QuotaOffFailed."""
    on = after.get("DISK_QUOTA") == "yes"
    path = ct.paths.quota_file(ct.ctid)
    with _translated(QuotaOnFailed if on else QuotaOffFailed):
        if on and not is_served(path):
            ct.progress.warn("disk space is counted after the container is restarted")
        elif on:
            quota.set_limits(path, changes(after))
            quota.apply_enabled(path, enabled=True)
        elif path.exists():
            quota.apply_enabled(path, enabled=False)


def turn_on(ct: Container) -> None:
    """Let the limits of its quota file bind; raises QuotaOnFailed when they do already."""
    with _translated(QuotaOnFailed):
        quota.turn_on(ct.paths.quota_file(ct.ctid))


def turn_off(ct: Container) -> None:
    """Let the limits of its quota file bind no more; raises QuotaOffFailed when they do not."""
    with _translated(QuotaOffFailed):
        quota.turn_off(ct.paths.quota_file(ct.ctid))


def initialise(ct: Container) -> tuple[int, int]:
    """Make its quota file anew; return the KiB and inodes counted. Raises QuotaInitFailed."""
    path = ct.paths.quota_file(ct.ctid)
    with _translated(QuotaInitFailed):
        path.parent.mkdir(parents=True, exist_ok=True)
        area, index = ct.private / "root", ct.private / "cow" / "index"
        usage = quota.init(path, area, changes(ct.config), index=index if index.is_dir() else None)
    return (usage.blocks + 1) // 2, usage.inodes


def is_served(path: Path) -> bool:
    """Return whether a file server keeps the quota file just now; raises QuotaError."""
    try:
        with open_file(path) as file:
            return file.served
    except QuotaError as error:
        if error.code == EXIT_NO_FILE:
            return False
        raise


def apply(ct: Container, before: Config, after: Config) -> None:
    """Let the quota follow DISKSPACE, DISKINODES and QUOTATIME; raises QuotaSetFailed."""
    path = ct.paths.quota_file(ct.ctid)
    if after.get("DISK_QUOTA") == "no":
        return
    new = changes(after)
    with _translated(QuotaSetFailed):
        quota.apply_space(path, new.block_soft or 0, new.block_hard or 0)
        quota.apply_inodes(path, new.inode_soft or 0, new.inode_hard or 0)
        quota.apply_time(path, new.block_expire or 0)


def apply_users(ct: Container, before: Config, after: Config) -> None:
    """Let the quota follow QUOTAUGIDLIMIT; raises UgidQuotaFailed."""
    if after.get("DISK_QUOTA") == "no":
        return
    with _translated(UgidQuotaFailed):
        file = ct.paths.quota_file(ct.ctid)
        if quota.apply_ugid_limit(file, changes(after).ugid_limit or 0):
            ct.progress.warn("users and groups are counted after the container is restarted")


@contextmanager
def _translated(failure: type[VzError]) -> Iterator[None]:
    try:
        yield
    except QuotaError as error:
        raise failure(str(error), hint=getattr(error, "hint", "")) from error
    except OSError as error:
        raise failure(f"{error.filename or 'quota'}: {error.strerror}") from error
