"""A kernel without a controller: who asks for it is told its name, who does not is served."""

import pytest

from runtime import cgroups, resources
from runtime.cgroups import Cgroup, Hierarchies
from runtime.config import Config
from runtime.errors import NoKernelSupport


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A kernel whose v2 hierarchy offers no controllers."""
    monkeypatch.setattr(cgroups, "hierarchies", lambda: Hierarchies({}, str(tmp_path), frozenset()))
    (tmp_path / "pyvz/101/ct").mkdir(parents=True)
    return Cgroup("", 101)


@pytest.mark.parametrize(
    ("keys", "controller"),
    [
        ({"CPULIMIT": "50"}, "cpu"),
        ({"CPUUNITS": "2000"}, "cpu"),
        ({"CPUMASK": "0"}, "cpuset"),
        ({"PHYSPAGES": "0:65536"}, "memory"),
        ({"NUMPROC": "100"}, "pids"),
        ({"IOLIMIT": "1048576"}, "io"),
    ],
)
def test_a_limit_without_its_controller_has_code_5_and_its_name(
    bare, tmp_path, monkeypatch, keys, controller
):
    monkeypatch.setattr(resources, "online_cpus", lambda: frozenset(range(4)))
    config = Config(ctid=101, overrides=keys)
    with pytest.raises(NoKernelSupport) as error:
        resources.apply_start(bare, config, tmp_path, lambda line: None)
    assert error.value.code == 5
    assert f"'{controller}'" in error.value.message


def test_a_configuration_that_asks_for_nothing_starts_there(bare, tmp_path):
    resources.apply_start(bare, Config(ctid=101), tmp_path, lambda line: None)


def test_a_priority_nobody_honours_is_only_warned_of(bare, tmp_path):
    warnings = []
    config = Config(ctid=101, overrides={"IOPRIO": "7"})
    resources.apply_start(bare, config, tmp_path, warnings.append)
    assert len(warnings) == 1 and "priority" in warnings[0]
