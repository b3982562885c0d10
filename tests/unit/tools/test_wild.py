"""Configurations from the wild are read, judged, and keep every line that was not set."""

from __future__ import annotations

import pytest

from runtime import resources, resources_inside
from runtime.config import Config, ConfigFile
from runtime.defaults import DEFAULTS
from runtime.memory import memory_of
from runtime.sizing import promised
from tests.unit.tools.wild import CONFIGURATIONS
from tools._validation import Surroundings, findings

WILD = pytest.mark.parametrize("name", CONFIGURATIONS)


def config(name: str) -> Config:
    return Config(ctid=101, container=ConfigFile(CONFIGURATIONS[name]), defaults=DEFAULTS)


@WILD
def test_a_file_is_written_as_it_was_read(name):
    assert ConfigFile(CONFIGURATIONS[name]).text() == CONFIGURATIONS[name]


@WILD
def test_setting_a_key_changes_its_own_line_only(name):
    file = ConfigFile(CONFIGURATIONS[name])
    file.set("CPUUNITS", "750")
    file.set("BOOTORDER", "3")
    after = file.text()
    assert ConfigFile(after).get("CPUUNITS") == "750"
    assert ConfigFile(after).get("BOOTORDER") == "3"

    def others(text):
        lines = text.splitlines(keepends=True)
        return [line.rstrip("\r\n") for line in lines
                if "CPUUNITS" not in line and "BOOTORDER" not in line]  # fmt: skip

    assert others(after) == others(CONFIGURATIONS[name])


@WILD
def test_its_limits_are_understood_and_it_is_judged(name):
    found = config(name)
    assert memory_of(found).ram_bytes >= 64 << 20
    assert promised(found).ram > 0
    assert resources.limits(found).cpu_units
    resources_inside.inside(found)
    assert all(
        str(finding) for finding in findings(ConfigFile(CONFIGURATIONS[name]), Surroundings())
    )


@pytest.mark.parametrize(
    ("name", "ram_mib", "swap_mib"),
    [("proxmox", 256, 512), ("old", 88, 0), ("virtuozzo", 512, 0), ("edited", 512, 256),
     ("panel", 1024, 512)],
)  # fmt: skip
def test_the_memory_is_what_the_file_says(name, ram_mib, swap_mib):
    memory = memory_of(config(name))
    assert (memory.ram_bytes >> 20, memory.swap_bytes >> 20) == (ram_mib, swap_mib)


def test_what_is_no_assignment_is_named_with_its_line():
    assert [bad.number for bad in ConfigFile(CONFIGURATIONS["edited"]).bad] == [16, 17]
    for name in ("proxmox", "old", "virtuozzo", "panel"):
        assert ConfigFile(CONFIGURATIONS[name]).bad == []


def test_quotes_comments_and_exports_are_the_shells():
    found = config("edited")
    assert found["ONBOOT"] == "yes"
    assert found["PHYSPAGES"] == "0:131072"
    assert found["CPUUNITS"] == "1000"
    assert found["DESCRIPTION"] == 'it\'s "mine" $5'
    assert found["VE_ROOT"] == "/vz/root/101"
