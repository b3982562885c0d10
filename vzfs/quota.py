"""Disk quotas from the server's side: what ``vzquota`` and ``set --diskspace`` do, on paths.

Every function takes the quota file. A file that is being served is changed under the server's
hands: it notices at the next operation (see ``quotafile``). Limits of blocks are KiB.

Life of a quota file:

    init ──► off ──on──► on ──off──► off
                          │ ▲
             attach (a server maps it) … detach (turns off)

"On" is remembered together with the boot: after a crash of the machine it is off and dirty.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from vzfs.quotadump import Dump, Parts
from vzfs.quotaedit import Edit, settled
from vzfs.quotaerror import (
    EXIT_CROSSES,
    EXIT_FILE,
    EXIT_NO_FILE,
    EXIT_NO_MOUNT,
    EXIT_NOT_RUNNING,
    EXIT_RUNNING,
    EXIT_SYSTEM,
    EXIT_USAGE,
    QuotaError,
    open_file,
)
from vzfs.quotafile import QuotaFile, kib
from vzfs.quotalayout import (
    F_ATTACHED,
    F_DIRTY,
    F_ON,
    F_UGID,
    USER,
    W_BUSY,
    W_OBJECTS,
    W_SERVER,
    Limits,
    Record,
    Usage,
)
from vzfs.quotarecovery import rescan

#: Takes one line about something that was done all the same.
Warn = Callable[[str], None]


@dataclass(slots=True)
class Changes:
    """What of the limits is to change; None leaves it."""

    block_soft: int | None = None
    block_hard: int | None = None
    inode_soft: int | None = None
    inode_hard: int | None = None
    block_expire: int | None = None
    inode_expire: int | None = None
    sub_quotas: int | None = None
    ugid_limit: int | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, row.name) is not None for row in fields(self))

    @property
    def complete(self) -> bool:
        """Whether all six limits that ``init`` needs are given."""
        return None not in (
            self.block_soft,
            self.block_hard,
            self.inode_soft,
            self.inode_hard,
            self.block_expire,
            self.inode_expire,
        )

    def apply(self, limits: Limits) -> Limits:
        """Return ``limits`` with the changes; raises QuotaError when a soft one passes its hard."""
        for row in fields(self):
            value = getattr(self, row.name)
            if value is not None:
                setattr(limits, row.name, value)
        limits.changed = int(time.time())
        for what, soft, hard, given in (
            (
                "block",
                limits.block_soft,
                limits.block_hard,
                self.block_soft is not None or self.block_hard is not None,
            ),
            (
                "inode",
                limits.inode_soft,
                limits.inode_hard,
                self.inode_soft is not None or self.inode_hard is not None,
            ),
        ):
            if given and hard and soft > hard:
                raise QuotaError(
                    EXIT_USAGE,
                    f"{what}_hard_limit [{hard}] < {what}_soft_limit [{soft}]",
                    "the hard limit must not be below the soft one",
                )
        return limits


def _silent(_: str) -> None:
    """Drop a warning."""


def _count(file: QuotaFile) -> None:
    try:
        rescan(file)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise QuotaError(
                EXIT_CROSSES,
                f"{file.area}: the directory tree crosses mount points at {error.filename}",
                "unmount what is mounted inside, then try again",
            ) from error
        code = EXIT_NO_MOUNT if error.errno in (errno.ENOENT, errno.ENOTDIR) else EXIT_SYSTEM
        raise QuotaError(code, f"cannot scan {file.area}: {error.strerror}") from error


def _usage_warnings(file: QuotaFile, warn: Warn) -> None:
    limits, usage = file.limits(), file.usage()
    for what, used, soft, hard in (
        ("block", kib(usage.blocks), limits.block_soft, limits.block_hard),
        ("inode", usage.inodes, limits.inode_soft, limits.inode_hard),
    ):
        if hard and used > hard:
            warn(f"{what}_hard_limit [{hard}] < {what}_current_usage [{used}]")
        elif soft and used > soft:
            warn(f"{what}_soft_limit [{soft}] < {what}_current_usage [{used}]")
    objects = file.live[W_OBJECTS]
    if limits.ugid_on and objects > limits.ugid_limit:
        warn(f"ugid_limit [{limits.ugid_limit}] < ugid_current_usage [{objects}]")


def _refuse_served(file: QuotaFile) -> None:
    if file.served:
        raise QuotaError(
            EXIT_RUNNING,
            f"{file.area} is mounted by process {file.live[W_SERVER]}",
            "stop the container first",
        )


def init(
    path: Path,
    area: Path,
    changes: Changes,
    *,
    index: Path | None = None,
    warn: Warn = _silent,
) -> Usage:
    """Make the quota file of ``area``, scan what it uses, and return that.

    An existing file is replaced. Raises QuotaError: 2 without all limits, 5 while it runs, 8 when
    something is mounted inside, 13 when the area is not there.
    """
    if not changes.complete:
        raise QuotaError(EXIT_USAGE, "init needs all six limits: -b -B -e -i -I -n")
    limits = changes.apply(Limits())
    if _in_use(path):
        raise QuotaError(EXIT_RUNNING, "Quota is running, stop it first", "vzquota off")
    if path.exists():
        warn("Quota file exists, it will be overwritten")
    if not area.is_dir():
        raise QuotaError(EXIT_NO_MOUNT, f"{area} is not a directory")
    work = path.with_name(f".init-{path.name}.{os.getpid()}")
    try:
        try:
            file = QuotaFile.create(work, str(area), limits, str(index or ""))
        except OSError as error:
            raise QuotaError(EXIT_FILE, f"cannot make {path}: {error.strerror}") from error
        with file:
            if limits.ugid_on:
                file.set_flags(on=F_UGID)
            _count(file)
            _usage_warnings(file, warn)
            file.seal()
            os.rename(work, path)
            return file.usage()
    finally:
        with suppress(FileNotFoundError):
            work.unlink()


def _in_use(path: Path) -> bool:
    """Whether a usable quota file is on, or somebody serves it."""
    try:
        with QuotaFile.open(path) as file:
            return file.running or file.served
    except OSError:
        return False


def drop(path: Path, *, force: bool = False, warn: Warn = _silent) -> None:
    """Delete the quota file; raises QuotaError (5 while it runs, unless ``force``)."""
    try:
        file = QuotaFile.open(path)
    except FileNotFoundError:
        raise QuotaError(EXIT_NO_FILE, f"quota file {path} does not exist") from None
    except OSError as error:
        if not force:
            raise QuotaError(
                EXIT_FILE, f"quota file {path}: {error.strerror}", "-f removes it all the same"
            ) from error
    else:
        with file:
            if file.running or file.served:
                warn("Quota is running")
                if not force:
                    raise QuotaError(EXIT_RUNNING, "Quota is running", "vzquota off, or drop -f")
                warn("Force quota file delete")
                # Whoever serves it goes on counting, but must not enforce what is gone.
                file.set_flags(off=F_ON)
                file.announce()
    path.unlink()


def turn_on(
    path: Path,
    changes: Changes | None = None,
    *,
    area: Path | None = None,
    force: bool = False,
    warn: Warn = _silent,
) -> None:
    """Turn accounting on, scanning first if the file is dirty or ``force`` says so.

    Raises QuotaError: 5 when it runs already.
    """
    with Edit(path) as file:
        if file.running:
            raise QuotaError(EXIT_RUNNING, f"Quota is running already: {path}")
        served = file.served
        must_count = force
        if area is not None and str(area) != file.area:
            _refuse_served(file)
            file.set_area(str(area))
            must_count = True
        if changes:
            file.write_limits(changes.apply(file.limits()))
        if not served:
            if file.flags & (F_ON | F_ATTACHED):
                warn("Incorrect quota shutdown, recalculating disk usage")
                must_count = True
            elif file.dirty:
                warn("quota usage is invalid, recalculating disk usage...")
                must_count = True
            limits = file.limits()
            if limits.ugid_on and not file.flags & F_UGID:
                must_count = True
            file.set_flags(off=F_ATTACHED | (0 if limits.ugid_on else F_UGID))
            if limits.ugid_on:
                file.set_flags(on=F_UGID)
            else:
                file.drop_records(keep_limited=True)
            file.live[W_BUSY] = 0
            if must_count:
                file.drop_charges()
                _count(file)
        elif must_count:
            raise QuotaError(
                EXIT_RUNNING, "a mounted area cannot be scanned", "stop the container first"
            )
        _usage_warnings(file, warn)
        file.turn_on()
        file.announce()
        file.sync()


def turn_off(path: Path, *, force: bool = False, warn: Warn = _silent) -> None:
    """Turn accounting off and write the usage back; raises QuotaError (6 when it was not on).

    On a mounted area limits stop binding and ``df`` shows the whole disk; counting goes on, so
    that ``turn_on`` needs no scan. ``force`` ignores a file that cannot be read.
    """
    try:
        edit = Edit(path)
    except QuotaError as error:
        if not force or error.code == EXIT_NO_FILE:
            raise
        warn("Force switching quota off (quota file may be inconsistent)")
        path.unlink()
        return
    with edit as file:
        if not file.flags & F_ON:
            raise QuotaError(EXIT_NOT_RUNNING, f"Quota is not running: {path}")
        if not file.running:
            warn("Repairing quota: it was incorrectly marked as running")
            file.set_flags(on=F_DIRTY)
        if not file.served:
            if file.flags & F_ATTACHED or file.dirty:
                # A server died: what it had open may have grown since it was last looked at.
                file.set_flags(on=F_DIRTY)
            file.set_flags(off=F_ATTACHED)
        file.set_flags(off=F_ON)
        file.announce()
        settled(file)


def set_limits(
    path: Path,
    changes: Changes,
    *,
    area: Path | None = None,
    force: bool = False,
    warn: Warn = _silent,
) -> None:
    """Change limits, at once if the quota runs, and in the file. ``force`` marks it dirty.

    A changed ``area`` is recorded without a scan (the area was moved). Raises QuotaError: 2 when
    nothing is to change or a soft limit passes its hard one.
    """
    if not changes and area is None and not force:
        raise QuotaError(EXIT_USAGE, "setlimit needs at least one limit or flag")
    with Edit(path) as file:
        file.write_limits(changes.apply(file.limits()))
        if area is not None and str(area) != file.area:
            _refuse_served(file)
            file.set_area(str(area))
        if force:
            file.set_flags(on=F_DIRTY)
        _usage_warnings(file, warn)
        settled(file)


def _require_ugid(file: QuotaFile) -> None:
    if not file.running:
        raise QuotaError(EXIT_NOT_RUNNING, "Quota accounting is off", "vzquota on")
    if not file.flags & F_UGID:
        raise QuotaError(
            EXIT_NOT_RUNNING,
            "Second level quota accounting is off",
            "set QUOTAUGIDLIMIT and restart the container",
        )


def set_owner_limits(path: Path, record: Record) -> None:
    """Set the limits of a user or group (usage in ``record`` is ignored).

    Raises QuotaError: 6 when quota, or that of users and groups, is off; 2 when a soft limit passes
    its hard one.
    """
    for what, soft, hard in (
        ("block", record.block_soft, record.block_hard),
        ("inode", record.inode_soft, record.inode_hard),
    ):
        if hard and soft > hard:
            raise QuotaError(EXIT_USAGE, f"{what}_hard_limit [{hard}] < {what}_soft_limit [{soft}]")
    with Edit(path) as file:
        _require_ugid(file)
        file.write_record_limits(record)
        file.announce()
        file.sync()


def set_owner_grace(path: Path, kind: int, block_expire: int, inode_expire: int) -> None:
    """Set the grace periods of all users (0) or groups (1), in seconds; raises QuotaError (6)."""
    with Edit(path) as file:
        _require_ugid(file)
        limits = file.limits()
        _grace(limits, kind, block_expire, inode_expire)
        file.write_limits(limits)
        file.sync()


def _grace(limits: Limits, kind: int, block_expire: int, inode_expire: int) -> None:
    if kind == USER:
        limits.user_block_expire, limits.user_inode_expire = block_expire, inode_expire
    else:
        limits.group_block_expire, limits.group_inode_expire = block_expire, inode_expire


def reload_owners(path: Path) -> None:
    """Make a server read the limits of users and groups again; nothing to do when none runs."""
    with Edit(path) as file:
        if file.running and file.flags & F_UGID:
            file.announce()
            file.sync()


def load(path: Path, dump: Dump, parts: Parts) -> None:
    """Put what was dumped into the file; raises QuotaError (5 unless the quota is off)."""
    with Edit(path) as file:
        if file.running or file.served:
            raise QuotaError(EXIT_RUNNING, "Quota is running, stop it first", "vzquota off")
        limits = file.limits()
        if dump.first:
            soft, hard, inode_soft, inode_hard, expire, inode_expire = dump.first
            limits = Changes(soft, hard, inode_soft, inode_hard, expire, inode_expire).apply(limits)
        for kind, (blocks, inodes) in dump.grace.items():
            _grace(limits, kind, blocks, inodes)
        known = {(record.kind, record.ident): record for record in file.records()}
        for given in dump.records:
            record = known.get((given.kind, given.ident), Record(given.kind, given.ident))
            if parts.limits:
                record.block_soft, record.block_hard = given.block_soft, given.block_hard
                record.inode_soft, record.inode_hard = given.inode_soft, given.inode_hard
                record.changed = int(time.time())
            if parts.times:
                record.usage.block_time = given.usage.block_time
                record.usage.inode_time = given.usage.inode_time
            file.write_record(record)
        file.write_limits(limits)
        settled(file)


# what the settings of a container need


def prepare(path: Path, area: Path, changes: Changes, *, index: Path | None = None) -> None:
    """Make sure the quota file exists with these limits, before a server attaches to it.

    A new file is scanned when it is attached to. A damaged one is replaced. Raises QuotaError.
    """
    try:
        file = open_file(path)
    except QuotaError as error:
        if error.code not in (EXIT_NO_FILE, EXIT_FILE):
            raise
        limits = changes.apply(Limits())
        try:
            QuotaFile.create(path, str(area), limits, str(index or "")).close()
        except OSError as failed:
            raise QuotaError(EXIT_FILE, f"cannot make {path}: {failed.strerror}") from failed
        return
    # What a start finds as it should be costs no sync.
    limits = file.limits()
    changed = changes.apply(limits) != limits
    file.close()
    if changed:
        set_limits(path, changes)


def apply_space(path: Path, soft_kib: int, hard_kib: int, *, warn: Warn = _silent) -> None:
    """DISKSPACE: set the block limits, live; raises QuotaError."""
    set_limits(path, Changes(block_soft=soft_kib, block_hard=hard_kib), warn=warn)


def apply_inodes(path: Path, soft: int, hard: int, *, warn: Warn = _silent) -> None:
    """DISKINODES: set the inode limits, live; raises QuotaError."""
    set_limits(path, Changes(inode_soft=soft, inode_hard=hard), warn=warn)


def apply_time(path: Path, seconds: int) -> None:
    """QUOTATIME: set both grace periods, live; raises QuotaError."""
    set_limits(path, Changes(block_expire=seconds, inode_expire=seconds))


def apply_ugid_limit(path: Path, limit: int) -> bool:
    """QUOTAUGIDLIMIT: set it; return whether it takes a restart to have effect (0 → N)."""
    set_limits(path, Changes(sub_quotas=int(limit > 0), ugid_limit=limit))
    with open_file(path) as file:
        return limit > 0 and file.served and not file.flags & F_UGID


def apply_enabled(path: Path, enabled: bool) -> None:
    """DISK_QUOTA on an area that is mounted: bind the limits or do not; raises QuotaError."""
    with open_file(path) as file:
        running = file.running
    if enabled and not running:
        turn_on(path)
    elif running and not enabled:
        turn_off(path)
