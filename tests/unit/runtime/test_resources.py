"""From a configuration to limits: the conversions of ctid.conf(5)."""

import resource

import pytest

from runtime import resources, resources_inside, settings
from runtime.resources import IO_WEIGHTS, count_limits, cpu_limits, io_limits, memory_limits
from runtime.settings_resources import ROWS
from runtime.units import UNLIMITED

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _four_processors(monkeypatch):
    monkeypatch.setattr(resources, "online_cpus", lambda: frozenset(range(4)))
    monkeypatch.setattr(resources, "cpu_mhz", lambda: 2000.0)


@pytest.mark.parametrize(
    ("config", "quota"),
    [
        ({}, None),
        ({"CPULIMIT": "0"}, None),
        ({"CPULIMIT": "50"}, 0.5),
        ({"CPULIMIT": "250"}, 2.5),
        ({"CPULIMIT": "400"}, None),
        ({"CPULIMIT_MHZ": "500"}, 0.25),
        ({"CPUS": "2"}, 2.0),
        ({"CPUS": "2", "CPULIMIT": "150"}, 1.5),
        ({"CPUS": "1", "CPULIMIT": "150"}, 1.0),
        ({"CPULIMIT": "junk"}, None),
    ],
)
def test_the_smallest_cpu_limit_decides_and_never_exceeds_the_server(config, quota):
    assert resources.cpu_quota(config) == quota


def test_the_mask_chooses_and_cpus_counts_within_it():
    assert resources.processors({}, 101) is None
    assert resources.processors({"CPUMASK": "all"}, 101) is None
    assert resources.processors({"CPUMASK": "0,2-3"}, 101) == {0, 2, 3}
    assert resources.processors({"CPUMASK": "2-9"}, 101) == {2, 3}
    assert len(resources.processors({"CPUS": "2"}, 101)) == 2
    assert resources.processors({"CPUMASK": "1", "CPUS": "3"}, 101) == {1}


def test_containers_with_one_processor_are_spread_over_all():
    assert {min(resources.processors({"CPUS": "1"}, ctid)) for ctid in range(101, 105)} == {
        0,
        1,
        2,
        3,
    }


def test_a_usual_configuration_asks_for_no_controller():
    usual = {"CPUUNITS": "1000", "IOPRIO": "4", "IOLIMIT": "0"}
    limits = cpu_limits(usual, 101, always=False)
    assert not limits.asked("cpu") and not limits.asked("cpuset")
    assert not memory_limits(usual, always=False).asked("memory")
    assert not count_limits(usual, always=False).asked("pids")


def test_a_lifted_limit_is_written_down_live():
    limits = cpu_limits({}, 101)
    assert (limits.cpu_units, limits.cpu_quota, limits.cpus, limits.nodes) == (1000, 0.0, "", "")
    assert memory_limits({}).memory_bytes == UNLIMITED
    assert count_limits({}).tasks == UNLIMITED


def test_vswap_limits_ram_and_swap_apart():
    limits = memory_limits({"PHYSPAGES": "0:65536", "SWAPPAGES": "0:16384", "MEMGUARANTEE": "50"})
    assert (limits.memory_bytes, limits.swap_bytes, limits.guarantee_bytes) == (
        256 * MIB,
        64 * MIB,
        128 * MIB,
    )


def test_io_priorities_are_weights_around_the_kernels_usual_one():
    assert IO_WEIGHTS[4] == 100 and (IO_WEIGHTS[0], IO_WEIGHTS[7]) == (10, 1000)
    assert list(IO_WEIGHTS) == sorted(IO_WEIGHTS)
    assert io_limits({"IOPRIO": "7", "IOLIMIT": "10485760"}, None).io_weight == 1000
    assert io_limits({"IOLIMIT": "10485760"}, None).io_bytes_per_s == 10485760


def test_counters_without_a_controller_are_limits_of_each_process():
    inside = resources_inside.inside(
        {
            "LOCKEDPAGES": "512:512",
            "NUMFILE": "18624:18624",
            "NUMSIGINFO": "512",
            "NUMPTY": "32",
            "SHMPAGES": "43008",
            "PHYSPAGES": "0:65536",
            "SWAPPAGES": "0",
            "VM_OVERCOMMIT": "1.5",
        }
    )
    assert inside.rlimits == {
        resource.RLIMIT_MEMLOCK: 2 * MIB,
        resource.RLIMIT_NOFILE: 18624,
        resource.RLIMIT_SIGPENDING: 512,
        resource.RLIMIT_DATA: 384 * MIB,
    }
    assert (inside.terminals, inside.shared_pages) == (32, 43008)
    assert resources_inside.inside({"NUMFILE": "unlimited"}).rlimits == {}


def test_every_live_setting_names_a_function_that_exists():
    for row in ROWS:
        if row.live is not None:
            assert callable(row.applier()), row.option
    assert {row.option for row in ROWS} <= settings.table().keys()
