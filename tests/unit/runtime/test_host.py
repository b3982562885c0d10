"""0.conf means systemd's properties for the server's own services."""

import pytest

from runtime import host
from runtime.errors import NoKernelSupport


def test_keys_become_properties_of_the_slice():
    assert host.properties(
        {"CPUUNITS": "5000", "PHYSPAGES": "0:262144", "NUMPROC": "480:480", "ONBOOT": "yes"}
    ) == {"CPUWeight": "500", "MemoryMax": str(1 << 30), "TasksMax": "480"}


def test_nothing_asked_for_is_nothing_set():
    assert host.apply({"ONBOOT": "yes", "VERSION": "2"}) == {}


def test_without_systemd_the_reason_is_named(monkeypatch):
    monkeypatch.setattr(host.os.path, "isdir", lambda path: False)
    with pytest.raises(NoKernelSupport, match="systemd"):
        host.apply({"CPUUNITS": "5000"})
