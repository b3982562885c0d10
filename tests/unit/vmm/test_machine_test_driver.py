"""Machines over libvirt's test driver: the same code, no hypervisor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime import journal
from runtime.errors import AlreadyRunning, Mounted, NotRunning, StartDisabled, VzError
from runtime.paths import Paths
from runtime.progress import Silent
from vmm import (
    boot,
    cloning,
    devices,
    images,
    registry,
    renaming,
    snapshots,
    upkeep,
)
from vmm.change import Change
from vmm.connection import Hypervisor
from vmm.machine import Machine
from vmm.registry import MachineRecord
from vmm.settings import rows
from vmm.status import State

libvirt = pytest.importorskip("libvirt", reason="libvirt-python is missing: tools/bootstrap test")
UUID = "12345678-1234-4234-8234-123456789abc"


def test_a_machine_starts_pauses_and_stops_once(machine: Machine) -> None:
    assert machine.state() is State.STOPPED
    machine.start()
    assert machine.state() is State.RUNNING
    with pytest.raises(AlreadyRunning):
        machine.start()
    machine.pause()
    with pytest.raises(NotRunning):
        machine.pause()
    machine.resume()
    with pytest.raises(Mounted):
        machine.delete()
    machine.stop(fast=True)
    with pytest.raises(NotRunning):
        machine.stop()
    machine.delete()
    assert registry.records(machine.paths) == []


def test_definitions_libvirt_lost_come_back(machine: Machine) -> None:
    machine.raw().undefine()
    machine.start()
    assert machine.state() is State.RUNNING


def test_a_template_is_not_started(machine: Machine) -> None:
    change = Change(machine)
    rows()["template"].apply(change, "yes")
    change.apply()
    with pytest.raises(StartDisabled):
        machine.start()


def test_a_refused_change_leaves_the_bundle_alone(machine: Machine) -> None:
    before = machine.record.config.read_bytes()
    change = Change(machine)
    change.domain.put("vcpu", "0")
    with pytest.raises(VzError):
        change.apply()
    assert machine.record.config.read_bytes() == before
    assert machine.current().cpus == 1


def test_settings_reach_the_bundle(machine: Machine) -> None:
    change = Change(machine)
    for name, value in (("cpus", "4"), ("memsize", "2G"), ("description", "a <b>")):
        rows()[name].apply(change, value)
    change.apply()
    machine.raw().undefine()
    domain = machine.current() if machine.raw() else None
    assert domain is not None
    assert (domain.cpus, domain.memory_bytes, domain.description) == (4, 2 << 30, "a <b>")


def test_snapshots_form_a_tree_and_survive_libvirt(machine: Machine) -> None:
    machine.start()
    first = snapshots.create(machine, "first", "")
    second = snapshots.create(machine, "second", "text")
    snapshots.switch(machine, first.uuid)
    third = snapshots.create(machine, "third", "")
    parents = {one.uuid: one.parent for one in snapshots.listing(machine.record)}
    assert parents == {first.uuid: None, second.uuid: first.uuid, third.uuid: first.uuid}
    assert [one.uuid for one in snapshots.listing(machine.record) if one.current] == [third.uuid]
    snapshots.delete(machine, first.uuid, children=False)
    assert {one.parent for one in snapshots.listing(machine.record)} == {None}
    machine.stop(fast=True)
    from vmm.upkeep import undefine

    undefine(machine.raw())
    names = {one.getName() for one in machine.raw().listAllSnapshots()}
    assert names == {second.uuid, third.uuid}


def test_a_renamed_machine_keeps_its_snapshots(machine: Machine) -> None:
    one = snapshots.create(machine, "one", "")
    renaming.rename(machine, "other")
    assert registry.find(machine.paths, "other").uuid == UUID
    assert snapshots.find(machine.record, one.uuid).name == "one"
    assert machine.raw().name() == "other"


def test_the_server_starts_and_stops_what_it_should(machine: Machine) -> None:
    paths, way = machine.paths, machine.hypervisor
    assert boot.start_all(paths, way, Silent()) == []
    assert machine.state() is State.STOPPED
    change = Change(machine)
    rows()["onboot"].apply(change, "yes")
    change.apply()
    assert boot.start_all(paths, way, Silent()) == []
    assert machine.state() is State.RUNNING


def test_an_unreachable_libvirt_is_told_in_one_line(tmp_path: Path) -> None:
    with Hypervisor(Paths(tmp_path), uri="qemu+unix:///system?socket=/nonexistent") as way:
        with pytest.raises(VzError, match="cannot connect to libvirt"):
            way.domain(UUID)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that our code would do afterwards happens."""


def again(machine: Machine) -> Machine:
    """Return the machine as the next command finds it, repaired."""
    record = registry.find(machine.paths, UUID)
    found = Machine(machine.paths, record, machine.hypervisor, Silent())
    upkeep.repair(found)
    return found


def kill_at(patch: pytest.MonkeyPatch, target: str) -> None:
    """Let the process end where it calls ``target``; nothing is cleared after that."""

    def die(*_words: object, **_more: object) -> None:
        # What a killed process would have cleared on its way out stays.
        patch.setattr("runtime.journal.Intention.clear", lambda _self: None)
        raise Killed

    patch.setattr(target, die)


@pytest.mark.parametrize(
    "target",
    [
        "vmm.cloning._transfer",
        "vmm.cloning.rehome",
        "vmm.upkeep.undefine",
        "vmm.registry.save",
        "vmm.snapshots.redefine",
        "runtime.files.remove_tree",
    ],
)
def test_a_killed_move_is_finished_or_undone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str
) -> None:
    one = snapshots.create(machine, "one", "")
    old, new = machine.record.home, tmp_path / "elsewhere"
    with monkeypatch.context() as patch:
        kill_at(patch, target)
        with pytest.raises(Killed):
            cloning.move(machine, new)
    found = again(machine)
    assert found.record.home in (old, new / "web.pvm")
    assert found.record.home.is_dir()
    assert not (old if found.record.home != old else new / "web.pvm").exists()
    assert [one.name for one in snapshots.listing(found.record)] == ["one"]
    assert one.uuid in found.raw().snapshotListNames()
    assert journal.pending(machine.paths, UUID) == []
    found.start()


def test_a_killed_copy_to_another_file_system_leaves_the_original(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    new = tmp_path / "elsewhere" / "web.pvm"
    with monkeypatch.context() as patch:

        def copy(_paths: Paths, old: MachineRecord, home: Path) -> None:
            shutil.copytree(old.home, home)
            patch.setattr("runtime.journal.Intention.clear", lambda _self: None)
            raise Killed

        patch.setattr("vmm.cloning._transfer", copy)
        with pytest.raises(Killed):
            cloning.move(machine, new.parent)
    assert new.is_dir()
    assert again(machine).record.home == machine.record.home
    assert not new.exists()


@pytest.mark.parametrize(
    "target", ["vmm.upkeep.undefine", "vmm.snapshots.redefine", "vmm.registry.save"]
)
def test_a_killed_renaming_leaves_the_old_name(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    one = snapshots.create(machine, "one", "")
    with monkeypatch.context() as patch:
        kill_at(patch, target)
        # Nothing of the block's own undoing happens either.
        patch.setattr("vmm.renaming.undo", lambda _machine: None)
        with pytest.raises(Killed):
            renaming.rename(machine, "other")
    found = again(machine)
    assert found.record.name == found.raw().name() == found.current().name == "web"
    assert one.uuid in found.raw().snapshotListNames()
    assert journal.pending(machine.paths, UUID) == []


def test_a_snapshot_whose_bookkeeping_was_killed_is_known(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, "vmm.snapshots.store")
        with pytest.raises(Killed):
            snapshots.create(machine, "named", "")
    assert snapshots.listing(machine.record) == []
    # The test driver has no images that could hold it: let it look as if one did.
    uuid = machine.raw().snapshotListNames()[0]
    image = machine.record.home / "hdd0.qcow2"
    image.touch()
    domain = machine.current().copy()
    disk = devices.Disk.new(image, plain=False, bus="virtio", position=0)
    disk.name = "hdd0"
    domain.devices.append(disk.element)
    machine.commit(domain)
    monkeypatch.setattr(
        "vmm.images.info",
        lambda path, format=None: images.Image(path, "qcow2", 1 << 20, 0, None, (uuid,)),
    )
    found = again(machine)
    assert [one.name for one in snapshots.listing(found.record)] == ["named"]
    assert journal.pending(machine.paths, UUID) == []


def test_a_renaming_that_fails_late_is_taken_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = snapshots.create(machine, "one", "")

    def fail(_paths: Paths, _record: MachineRecord) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("vmm.registry.save", fail)
        with pytest.raises(OSError, match="no space"):
            renaming.rename(machine, "other")
    found = again(machine)
    assert found.record.name == found.raw().name() == found.current().name == "web"
    assert one.uuid in found.raw().snapshotListNames()
