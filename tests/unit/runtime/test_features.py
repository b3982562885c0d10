"""Features are switches, or refused with the reason."""

from __future__ import annotations

import os
import stat
from types import SimpleNamespace

import pytest

from runtime import features
from runtime.errors import InvalidValue, NoKernelSupport
from runtime.settings import table


@pytest.mark.parametrize("name", ["nfs", "nfsd"])
def test_what_the_kernel_cannot_do_inside_is_refused_with_another_way(name):
    with pytest.raises(NoKernelSupport) as error:
        table()["features"].value(None, [f"{name}:on"])
    assert error.value.hint
    assert table()["features"].value(None, [f"{name}:off"]) == f"{name}:off"


@pytest.mark.parametrize("name", ["sysfs", "sit", "ipip", "ipgre", "bridge"])
def test_what_is_always_there_cannot_be_turned_off(name):
    with pytest.raises(InvalidValue):
        table()["features"].value(None, [f"{name}:off"])
    assert features.enabled({}, name)


def test_a_node_that_is_not_the_device_is_of_no_use_inside(monkeypatch):
    facts = SimpleNamespace(st_mode=stat.S_IFCHR | 0o666, st_rdev=os.makedev(1, 3))
    monkeypatch.setattr(features.os, "stat", lambda _path: facts)
    with pytest.raises(NoKernelSupport) as error:
        features.check("tun", True)
    assert "/dev/net/tun" in error.value.message
    assert features.nodes({"FEATURES": "tun:on"}) == []


def test_an_old_configuration_is_warned_about_not_refused():
    found = features.warnings({"FEATURES": "nfs:on sit:on PPPoE:on time:off"})
    assert [text.split(":")[0] for text in found] == ["feature nfs", "feature pppoe"]


def test_the_servers_id_is_made_once_and_may_be_chosen(tmp_path):
    from runtime.paths import Paths

    paths = Paths(tmp_path)
    first = (features.host_id(paths) / "server-id").read_text()
    assert (features.host_id(paths) / "server-id").read_text() == first
    (paths.etc / "server-id").write_text("rack 7\n")
    assert (features.host_id(paths) / "server-id").read_text() == "rack 7\n"
