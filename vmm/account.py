"""Accounts of the server: the one a machine's QEMU runs as, and the one who answers for it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lxml.builder import E

from runtime.errors import DevicesFailed, InvalidValue, NotPermitted
from runtime.registry import printable
from vmm import devices
from vmm.domain import Domain

if TYPE_CHECKING:
    from vmm.change import Change
    from vmm.machine import Machine

_KVM = Path("/dev/kvm")
#: What belongs to QEMU in a bundle, beside the disks.
_FILES = ("vmlinuz", "initrd", "nvram.fd")


def start_as_user(change: Change, text: str) -> None:
    """Set whose account QEMU runs as: "administrator" (libvirt's choice), "owner", or a name.

    Raises InvalidValue.
    """
    domain, word = change.domain, text.strip()
    name, colon, _password = word.partition(":")
    if colon:
        change.machine.progress.warn("root needs no password to use an account: it is ignored")
    for label in domain.root.findall("seclabel"):
        if label.get("model") == "dac":
            domain.root.remove(label)
    if name in ("administrator", "default"):
        domain.set_setting("start-as-user", None)
    else:
        account = _account(owner(domain) if name == "owner" else name)
        label = E.label(f"+{account.pw_uid}:+{_group(account)}")
        domain.root.append(E.seclabel(label, type="static", model="dac", relabel="yes"))
        domain.set_setting("start-as-user", account.pw_name)
    change.say(f"Set the start-as-user parameter to {name}")
    change.later("--start-as-user")


def host_admin(change: Change, text: str) -> None:
    """Set which account of the server answers for the machine; "none" takes it back.

    Whoever comes by sudo from another account may no longer change it. Raises InvalidValue.
    """
    name = text.strip()
    if name in ("none", "root"):
        change.domain.set_setting("host-admin", None)
    else:
        change.domain.set_setting("host-admin", _account(name).pw_name)
    change.say(f"Set the host-admin parameter to {name}")


def owner(domain: Domain) -> str:
    """Return the account that answers for a machine."""
    return domain.setting("host-admin", "root")


def check_caller(domain: Domain, name: str) -> None:
    """Raise NotPermitted when sudo brought somebody who does not answer for the machine.

    Root itself always may; what is kept out is a mistake among administrators, not an attack.
    """
    wanted, caller = owner(domain), os.environ.get("SUDO_USER", "root")
    if "root" not in (wanted, caller) and caller != wanted:
        raise NotPermitted(
            f"{wanted} answers for machine {name}, not {printable(caller)}",
            hint=f"ask {wanted}, or as root: pctl set {name} --host-admin {printable(caller)}",
        )


def hand_over(machine: Machine, domain: Domain) -> None:
    """Give the bundle's files to the account the machine runs as; raises DevicesFailed.

    libvirt does that only where it owns the images (dynamic_ownership), and never outside.
    """
    name = domain.setting("start-as-user")
    if not name:
        return
    try:
        account = _account(name)
    except InvalidValue as error:
        raise DevicesFailed(
            f"machine {machine.label} runs as {name}: {error.message}",
            hint=f"pctl set {machine.label} --start-as-user administrator",
        ) from error
    home = machine.record.home
    for place in (home, *home.parents):
        if not _may_pass(place, account):
            raise DevicesFailed(
                f"{name} cannot reach {home}: {place} is closed to others",
                hint=f"chmod o+x {place}, or another --start-as-user",
            )
    for disk in devices.all_of(domain):
        if isinstance(disk, devices.Disk) and disk.kind == "hdd" and disk.image:
            _give(Path(disk.image), home, account)
    # Originals below undo overlays and bases of linked clones are only read.
    for path in (*home.glob("*.qcow2"), *home.glob("*.raw"), *(home / file for file in _FILES)):
        _give(path, home, account)


def _give(path: Path, home: Path, account: pwd.struct_passwd) -> None:
    """Make a file of the bundle the account's; others are used as they are."""
    if path.parent != home:
        return
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # A second name could be any file of the server which root is made to give away.
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                os.fchown(fd, account.pw_uid, _group(account))
        finally:
            os.close(fd)


def _may_pass(place: Path, account: pwd.struct_passwd) -> bool:
    found = os.stat(place)
    if account.pw_uid in (0, found.st_uid):
        return account.pw_uid == 0 or bool(found.st_mode & 0o100)
    if found.st_gid in (account.pw_gid, _group(account)):
        return bool(found.st_mode & 0o010)
    return bool(found.st_mode & 0o001)


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise InvalidValue(
            f"this server has no account {printable(name)}", hint="getent passwd lists them"
        ) from None


def _group(account: pwd.struct_passwd) -> int:
    """Return the group QEMU gets: the one that may use KVM, where there is one."""
    with suppress(OSError, KeyError):
        found = os.stat(_KVM)
        if found.st_mode & 0o060 == 0o060:
            return grp.getgrgid(found.st_gid).gr_gid
    return account.pw_gid
