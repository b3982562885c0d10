"""Every documented exit status is provoked through the command line, here or where named."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from provocation import CASES

from runtime import errors, inside

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
# They fill the table.
for module in ("provocations_life", "provocations_settings"):
    importlib.import_module(module)
#: Those whose provocation has a test of its own: file below tests/, function.
ELSEWHERE = {
    15: ("system/test_exit_codes.py", "test_a_program_inside_that_does_not_end_is_code_15"),
    33: ("system/test_vm_life.py", "test_pause_stops_time_inside_and_resume_goes_on"),
    46: (
        "system/test_commands_bad_input.py",
        "test_a_full_disk_is_code_46_and_leaves_nothing",
    ),
    78: (
        "system/test_net_containers.py",
        "test_bad_and_taken_addresses_have_the_documented_codes",
    ),
    54: ("system/test_vm_disks.py", "test_mounts_and_moves_that_cannot_be"),
    104: (
        "system/test_net_devices.py",
        "test_what_is_not_the_containers_to_have_is_refused",
    ),
    152: ("system/test_vm_disks.py", "test_mounts_and_moves_that_cannot_be"),
    153: ("system/test_vm_disks.py", "test_mounts_and_moves_that_cannot_be"),
}
#: What only a machine gives: its own tests provoke them.
NOT_OF_CONTAINERS = {35, 154, 155, 156, 158, 159}


@pytest.fixture(scope="module")
def system(shared_system):
    """A system with container 101 stopped and 102 running."""
    shared_system.create(101)
    shared_system.create(102)
    shared_system.ok("vzctl", "start", 102)
    return shared_system


@pytest.mark.parametrize(
    ("code", "provoked"), CASES, ids=[f"{code}-{case.__name__}" for code, case in CASES]
)
def test_a_status_is_what_its_cause_deserves(system, code, provoked):
    conf = system.paths.ct_conf(101)
    before = conf.read_text()
    with provoked(system) as words:
        system.fails(code, *words)
    assert conf.read_text() == before
    state = system.status(101)
    assert (state["exists"], state["mounted"], state["running"]) == (True, False, False)
    assert system.status(102)["running"]


def test_a_program_inside_that_does_not_end_is_code_15(system):
    from tools import environments
    from tools._command import Context

    ct = environments.find_container(Context("vzctl", system.paths), "102")
    with pytest.raises(errors.ExecTimeout) as error:
        inside.run(ct, ["/bin/sleep", "60"], timeout_s=0.2)
    assert error.value.code == 15


def test_no_status_is_documented_that_nothing_provokes():
    documented = {cls.code for cls in errors.documented() if cls.__module__ == "runtime.errors"}
    provoked = {code for code, _case in CASES} | ELSEWHERE.keys()
    assert documented - provoked - NOT_OF_CONTAINERS == set()
    for file, function in ELSEWHERE.values():
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(), (file, function)
