"""Settings whose effect shows at a start or an end: undo disks, accounts, rates, firmware, tools."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import (
    DevicesFailed,
    InvalidValue,
    NoKernelSupport,
    NotPermitted,
    SnapshotFailed,
)
from vmm import (
    account,
    devices,
    firmware,
    guestsettings,
    images,
    networks,
    snapshots,
    startup,
    traffic,
    undo,
    uptime,
)
from vmm.change import Change
from vmm.machine import Machine
from vmm.settings import rows

pytest.importorskip("libvirt", reason="libvirt-python is missing: tools/bootstrap test")
UUID = "12345678-1234-4234-8234-123456789abc"
needs_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is missing: apt-get install qemu-utils"
)


@pytest.fixture
def machine(machine: Machine) -> Machine:
    """A stopped machine with one disk."""
    home = machine.record.home
    if shutil.which("qemu-img"):
        images.create(home / "hdd0.qcow2", 1 << 20, plain=False)
    domain = machine.current().copy()
    disk = devices.Disk.new(home / "hdd0.qcow2", plain=False, bus="virtio", position=0)
    disk.name = "hdd0"
    domain.devices.append(disk.element)
    machine.commit(domain)
    return machine


def set_(machine: Machine, option: str, value: str) -> None:
    """Change one setting."""
    change = Change(machine)
    rows()[option].apply(change, value)
    change.apply()


# undo disks
@needs_qemu_img
def test_overlays_come_with_a_start_and_go_with_its_end(machine: Machine) -> None:
    set_(machine, "undo-disks", "discard")
    machine.start()
    overlay = machine.record.home / "hdd0.undo.qcow2"
    assert devices.disks(machine.current())[0].image == str(overlay)
    assert undo.originals(machine.current(), machine.record.home) == {
        "hdd0": machine.record.home / "hdd0.qcow2"
    }
    machine.stop(fast=True)
    assert not overlay.exists()
    disk = devices.disks(machine.current())[0]
    assert (disk.image, disk.format) == (str(machine.record.home / "hdd0.qcow2"), "qcow2")
    assert not undo.pending(machine.current())


@needs_qemu_img
def test_asked_overlays_stay_and_changes_are_kept_even_after_a_crash(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_(machine, "undo-disks", "ask")
    machine.start()
    machine.stop(fast=True)
    assert undo.pending(machine.current())
    overlay = machine.record.home / "hdd0.undo.qcow2"
    subprocess.run(
        ["qemu-io", "-c", "write -q -P 7 0 512", overlay], check=True, capture_output=True
    )

    def die(_path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vmm.images.commit", die)
        with pytest.raises(KeyboardInterrupt):
            undo.keep(machine)
    # Half written back it cannot be discarded: it is finished as soon as somebody looks.
    with pytest.raises(DevicesFailed, match="can no longer be discarded"):
        undo.discard(machine)
    undo.ended(machine)
    assert not undo.pending(machine.current())
    assert not overlay.exists()
    raw = machine.record.home / "raw"
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", machine.record.home / "hdd0.qcow2", raw], check=True
    )
    assert raw.read_bytes()[:512] == b"\7" * 512


@needs_qemu_img
def test_an_overlay_nobody_names_is_swept(machine: Machine) -> None:
    stray = machine.record.home / "hdd0.undo.qcow2"
    stray.touch()
    undo.ended(machine)
    assert not stray.exists()


def test_undo_disks_and_snapshots_exclude_each_other(machine: Machine) -> None:
    snapshots.create(machine, "one", "")
    with pytest.raises(SnapshotFailed):
        set_(machine, "undo-disks", "ask")
    for bad in ("", "on", "keep"):
        with pytest.raises(InvalidValue):
            set_(machine, "undo-disks", bad)


def test_an_original_outside_of_the_bundle_is_refused(machine: Machine) -> None:
    domain = machine.current().copy()
    domain.set_setting("undo.hdd0", "../other.pvm/hdd0.qcow2")
    with pytest.raises(DevicesFailed, match="not in the bundle"):
        undo.originals(domain, machine.record.home)


# accounts
def test_an_account_becomes_a_label_and_goes_again(machine: Machine) -> None:
    entry = pwd.getpwnam("nobody")
    set_(machine, "start-as-user", "nobody")
    label = machine.current().root.findtext("seclabel/label") or ""
    assert label.startswith(f"+{entry.pw_uid}:+")
    set_(machine, "start-as-user", "administrator")
    assert machine.current().root.find("seclabel") is None
    with pytest.raises(InvalidValue, match="no account"):
        set_(machine, "start-as-user", "nobody\x1b[2J-here")


def test_the_owner_may_be_who_it_runs_as(machine: Machine) -> None:
    set_(machine, "host-admin", "daemon")
    set_(machine, "start-as-user", "owner")
    assert machine.current().setting("start-as-user") == "daemon"


@pytest.mark.parametrize(
    ("caller", "allowed"), [(None, True), ("root", True), ("daemon", True), ("games", False)]
)
def test_only_the_administrator_of_a_machine_and_root_change_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caller: str | None, allowed: bool
) -> None:
    set_(machine, "host-admin", "daemon")
    monkeypatch.delenv("SUDO_USER", raising=False)
    if caller is not None:
        monkeypatch.setenv("SUDO_USER", caller)
    if allowed:
        account.check_caller(machine.current(), "web")
    else:
        with pytest.raises(NotPermitted, match="daemon answers for machine web, not 'games'"):
            account.check_caller(machine.current(), "web")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_of_other_places_and_other_names_are_not_given_away(
    machine: Machine, tmp_path: Path
) -> None:
    set_(machine, "start-as-user", "nobody")
    home, victim = machine.record.home, tmp_path / "victim"
    victim.touch()
    os.link(victim, home / "hdd7.raw")
    (home / "initrd").symlink_to(victim)
    for place in (tmp_path, *tmp_path.parents):
        if not os.stat(place).st_mode & 0o001:
            with pytest.raises(DevicesFailed, match="is closed to others"):
                account.hand_over(machine, machine.current())
            break
    account._give(home / "hdd7.raw", home, pwd.getpwnam("nobody"))
    with pytest.raises(OSError):
        account._give(home / "initrd", home, pwd.getpwnam("nobody"))
    assert os.stat(victim).st_uid == 0


# rates
def test_rates_are_merged_and_reach_the_taps(machine: Machine) -> None:
    domain = machine.current().copy()
    adapter = networks.adapter(machine.paths, "Routed")
    adapter.name = "net0"
    domain.devices.append(adapter.element)
    networks.remember(domain, "net0", "Routed")
    machine.commit(domain)
    set_(machine, "rate", "1:64")
    set_(machine, "rate", "eth0:2:128 1:80")
    set_(machine, "ratebound", "yes")
    (tap,) = networks.wanted(machine.current())
    assert (tap.rate, tap.rate_bound) == ("*:1:80 eth0:2:128", "yes")
    set_(machine, "rate", "none")
    assert [tap.rate for tap in networks.wanted(machine.current())] == [""]


@pytest.mark.parametrize("text", ["", "1", "1:7", "16:8", "0:8", "1:x", "eth0:1:9", "a b:1:8"])
def test_rates_which_are_none_are_refused(machine: Machine, text: str) -> None:
    with pytest.raises(InvalidValue):
        traffic.rate(Change(machine), text)


# firmware and boot menu
def test_uefi_keeps_its_variables_in_the_bundle(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(firmware, "_DESCRIPTIONS", (tmp_path / "none",))
    with pytest.raises(NoKernelSupport, match="no UEFI firmware"):
        firmware.efi_boot(Change(machine), "on")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "60-x.json").touch()
    monkeypatch.setattr(firmware, "_DESCRIPTIONS", (tmp_path / "some",))
    change = Change(machine)
    firmware.efi_boot(change, "on")
    assert firmware.is_efi(change.domain)
    assert change.domain.root.findtext("os/nvram") == str(machine.record.home / "nvram.fd")
    firmware.efi_boot(change, "off")
    assert not firmware.is_efi(change.domain)
    assert change.domain.root.find("os/nvram") is None


def test_the_boot_menu_is_there_once(machine: Machine) -> None:
    change = Change(machine)
    startup.boot_menu(change, "on")
    startup.boot_menu(change, "on")
    assert len(change.domain.root.findall("os/bootmenu")) == 1
    startup.boot_menu(change, "off")
    assert change.domain.root.find("os/bootmenu") is None


def test_an_uptime_counts_anew_only_for_the_same_process(machine: Machine) -> None:
    domain = machine.current().copy()
    mine = os.getpid()
    whole = uptime.seconds(domain, mine)
    assert whole is not None
    domain.set_setting("uptime-reset", f"{uptime._mark(mine)} {whole:.2f}")
    assert (uptime.seconds(domain, mine) or 0) < 5
    domain.set_setting("uptime-reset", f"{uptime._mark(1)} 5.0")
    found = uptime.seconds(domain, mine)
    assert found is not None and found >= whole
    assert uptime.seconds(domain, None) is None


def test_every_new_setting_is_a_row() -> None:
    names: dict[str, Callable[..., object]] = {name: row.apply for name, row in rows().items()}
    assert {"undo-disks", "start-as-user", "host-admin", "tools-autoupdate", "rate", "ratebound",
            "select-boot-device", "efi-boot"} <= names.keys()  # fmt: skip


# adapters and disks
def test_filters_of_an_adapter_reach_its_tap(machine: Machine) -> None:
    from vmm import hardware
    from vmm.wish import Wish

    change = Change(machine)
    hardware.add(
        change, "net", Wish(network="Routed", ipfilter=True, preventpromisc=True, configure=False)
    )
    hardware.configure(change, "net0", Wish(macfilter=False, ipadd=("192.0.2.5/32",)))
    change.apply()
    (tap,) = networks.wanted(machine.current())
    assert (tap.mac_filter, tap.ip_filter, tap.addresses) == (False, True, ("192.0.2.5/32",))
    assert tap.sealed
    assert not guestsettings.configured_inside(machine.current(), "net0")
    change = Change(machine)
    hardware.remove(change, "net0")
    change.apply()
    assert guestsettings.configured_inside(machine.current(), "net0")
    assert not [name for name in machine.current().settings if name.startswith("net0.")]


def test_a_disk_of_the_server_gets_the_guests_own_commands() -> None:
    disk = devices.Disk.new("/dev/sdz", plain=True, bus="scsi", position=0)
    disk.pass_through()
    assert (disk.element.get("device"), disk.element.get("type")) == ("lun", "block")
    assert type(devices.wrap(disk.element)) is devices.Disk


@needs_qemu_img
def test_a_good_image_is_left_and_a_broken_one_told(machine: Machine) -> None:
    image = machine.record.home / "hdd0.qcow2"
    before = image.read_bytes()
    machine.repair_disks()
    assert image.read_bytes() == before
    image.write_bytes(before[:24] + b"\xff" * 4096)
    with pytest.raises(images.ImageBroken):
        machine.repair_disks()


@needs_qemu_img
def test_an_image_that_was_to_be_replaced_is_back_when_the_change_fails(machine: Machine) -> None:
    from vmm import hardware
    from vmm.wish import Wish

    image = machine.paths.root / "other.qcow2"
    images.create(image, 1 << 20, plain=False)
    assert image.stat().st_mode & 0o777 == 0o600
    before = image.read_bytes()
    for apply in (False, True):
        change = Change(machine)
        hardware.add(change, "hdd", Wish(image=str(image), size="2", recreate=True))
        if apply:
            change.apply()
            assert images.info(image).virtual_bytes == 2 << 20
        else:
            change.give_up()
            assert image.read_bytes() == before
    assert [path.name for path in image.parent.glob(".tmp-*")] == []
