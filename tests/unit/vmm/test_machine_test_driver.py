"""Machines over libvirt's test driver: the same code, no hypervisor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import AlreadyRunning, Mounted, NotRunning, StartDisabled, VzError
from runtime.paths import Paths
from runtime.progress import Silent
from vmm import blueprint, boot, creation, registry, renaming, snapshots
from vmm.acceleration import Acceleration
from vmm.change import Change
from vmm.connection import Hypervisor
from vmm.machine import Machine
from vmm.registry import MachineRecord
from vmm.settings import rows
from vmm.status import State
from vmm.systems import SYSTEMS

libvirt = pytest.importorskip("libvirt", reason="libvirt-python is missing: tools/bootstrap test")
UUID = "12345678-1234-4234-8234-123456789abc"


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    """A connection of its own to the test driver."""
    # A description of one's own gives a private driver; "default" is shared by the process.
    node = tmp_path / "node.xml"
    node.write_text("<node/>")
    with Hypervisor(Paths(tmp_path), uri=f"test://{node}", accelerate="tcg") as found:
        yield found


@pytest.fixture
def machine(hypervisor: Hypervisor) -> Machine:
    """A stopped machine."""
    paths = hypervisor.paths
    domain = blueprint.blank("web", UUID, SYSTEMS["linux"], Acceleration.EMULATED)
    domain.root.set("type", "test")
    home = paths.machines / "web.pvm"
    home.mkdir(parents=True)
    creation.write_config(home, domain)
    return creation.enlist(paths, MachineRecord(UUID, "web", home), hypervisor, Silent())


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
