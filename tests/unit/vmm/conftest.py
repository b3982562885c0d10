"""A machine in libvirt's test driver: the same code, no hypervisor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.paths import Paths

if TYPE_CHECKING:
    from vmm.connection import Hypervisor
    from vmm.machine import Machine

UUID = "12345678-1234-4234-8234-123456789abc"


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    """A connection of its own to the test driver."""
    # A description of one's own gives a private driver; "default" is shared by the process.
    node = tmp_path / "node.xml"
    node.write_text("<node/>")
    from vmm.connection import Hypervisor

    with Hypervisor(Paths(tmp_path), uri=f"test://{node}", accelerate="tcg") as found:
        yield found


@pytest.fixture
def machine(hypervisor: Hypervisor) -> Machine:
    """A stopped machine."""
    from runtime.progress import Silent
    from vmm import blueprint, creation
    from vmm.acceleration import Acceleration
    from vmm.registry import MachineRecord
    from vmm.systems import SYSTEMS

    paths = hypervisor.paths
    domain = blueprint.blank("web", UUID, SYSTEMS["linux"], Acceleration.EMULATED)
    domain.root.set("type", "test")
    home = paths.machines / "web.pvm"
    home.mkdir(parents=True)
    creation.write_config(home, domain)
    return creation.enlist(paths, MachineRecord(UUID, "web", home), hypervisor, Silent())
