"""Parts of a container that need no kernel: rights, devices, ids, init, reports, scripts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from runtime import caps, devices, hooks, idmap, init, mounts, privatearea, reports
from runtime.cgroup_limits import DeviceRule
from runtime.config import Config
from runtime.errors import (
    ActionScriptFailed,
    CapabilityFailed,
    DevicesFailed,
    PrivateBroken,
    PrivateMissing,
    TemplateMissing,
)
from runtime.paths import Paths
from runtime.plan import Order
from runtime.progress import Silent


def test_the_bounding_set_is_the_default_list_and_what_a_namespaced_init_needs() -> None:
    names = caps.bounding({})
    assert {"sys_admin", "net_admin", "setpcap"} <= names
    assert not names & {"sys_module", "sys_rawio", "sys_time", "bpf", "perfmon", "syslog"}


def test_capabilities_are_switched_by_name_and_unknown_ones_refused() -> None:
    assert "sys_rawio" in caps.bounding({"sys_rawio": True})
    assert "chown" not in caps.bounding({"chown": False, "ve_admin": True})
    with pytest.raises(CapabilityFailed):
        caps.bounding({"teleport": True})
    assert caps.without_effect({"sys_time": True, "sys_module": False}) == ["sys_time"]


def test_devices_come_from_the_list_and_the_configuration() -> None:
    found = devices.access({"DEVICES": "c:10:200:rw b:8:all:r", "DEVNODES": "null:rw"})
    assert DeviceRule("c", 10, 200, "rwm") in found.rules
    assert DeviceRule("b", 8, None, "rm") in found.rules
    assert "zero" in found.nodes and "null" not in found.nodes
    assert devices.Node("null", 1, 3) in found.own
    with pytest.raises(DevicesFailed):
        devices.access({"DEVNODES": "no-such-node:rw"})
    with pytest.raises(DevicesFailed):
        devices.access({"DEVICES": "c:10:rw"})


def test_ids_are_claimed_once_and_kept(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    first, second = idmap.claim(paths, 101), idmap.claim(paths, 102)
    assert first == idmap.claim(paths, 101)
    assert abs(first.first - second.first) >= 65536
    assert first.first >= 524288 and second.first + 65536 <= 1879048192


def test_a_taken_slot_is_passed_over(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    wanted = idmap.claim(paths, 101)
    for claim in (tmp_path / "run/vz/ids").iterdir():
        claim.unlink()
        claim.symlink_to("999")
    assert idmap.claim(paths, 101).first != wanted.first


def tree(tmp_path: Path, target: str | None) -> int:
    (tmp_path / "sbin").mkdir()
    if target:
        place = tmp_path / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        (tmp_path / "sbin/init").symlink_to(target)
    return os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)


@pytest.mark.parametrize(
    ("target", "kind", "number"),
    [
        ("/lib/systemd/systemd", init.Kind.SYSTEMD, 37),
        ("/bin/busybox", init.Kind.BUSYBOX, signal.SIGUSR2),
        ("/usr/bin/unheard-of", init.Kind.OTHER, signal.SIGPWR),
        (None, init.Kind.OWN, signal.SIGTERM),
    ],
)
def test_the_init_is_recognised_inside_its_tree_only(
    tmp_path: Path, target: str | None, kind: init.Kind, number: int
) -> None:
    with mounts.closing(tree(tmp_path, target)) as root:
        found = init.detect(root)
    assert (found.kind, found.halt_signal) == (kind, number)


def test_nothing_is_followed_out_of_a_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "dev").symlink_to(outside)
    with mounts.closing(os.open(inside, os.O_PATH | os.O_DIRECTORY)) as root:
        for make in (mounts.make_directory, mounts.make_file):
            with pytest.raises(OSError):
                os.close(make(root, "dev/made"))
    assert list(outside.iterdir()) == []


def private(tmp_path: Path, *lines: str) -> Path:
    area = tmp_path / "private"
    (area / "root").mkdir(parents=True)
    (area / "templates").mkdir()
    (area / "templates/layers").write_text("\n".join(lines) + "\n")
    return area


def test_layers_are_read_top_most_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    area = private(tmp_path, "b", "", "a")
    assert privatearea.layers(area, tmp_path) == (tmp_path / "b", tmp_path / "a")


def test_what_is_wrong_with_a_private_area_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PrivateMissing):
        privatearea.layers(tmp_path / "none", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrivateBroken):
        privatearea.layers(tmp_path / "empty", tmp_path)
    area = private(tmp_path, "gone")
    with pytest.raises(TemplateMissing, match="gone"):
        privatearea.layers(area, tmp_path)
    (area / "templates/layers").write_text("../etc\n")
    with pytest.raises(PrivateBroken, match="below"):
        privatearea.layers(area, tmp_path)


def test_an_error_of_the_supervisor_is_raised_again_by_the_command() -> None:
    read, write = os.pipe()
    reporter = reports.Reporter(write)
    reporter.say("one")
    reporter.error(TemplateMissing("a layer is gone", hint="build it"))
    os.close(write)
    with pytest.raises(TemplateMissing, match="a layer is gone") as caught:
        list(reports.follow(read, Silent()))
    assert caught.value.hint == "build it"


def test_a_report_nobody_reads_says_so() -> None:
    read, write = os.pipe()
    os.close(read)
    reporter = reports.Reporter(write)
    with pytest.raises(reports.CallerGone):
        reporter.say("one")
    with pytest.raises(reports.CallerGone):
        reporter.heed()
    with pytest.raises(reports.CallerGone):
        reporter.ready()
    os.close(write)
    reports.Reporter(-1).say("to nobody, nothing is said")


def test_a_script_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    script = paths.conf_dir / "101.mount"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho first; echo no licence $VEID >&2; exit 4\n")
    script.chmod(0o755)
    (paths.conf_dir / "vps.mount").write_text("not executable: skipped")
    with pytest.raises(ActionScriptFailed, match=r"101\.mount returned 4: no licence 101"):
        hooks.run_on_host(paths, 101, "mount", tmp_path / "private", tmp_path / "root")


def test_the_environment_of_init_takes_the_configured_variables(tmp_path: Path) -> None:
    from runtime import plan
    from runtime.registry import Record

    record = Record(101, None, None, tmp_path / "101.conf")
    config = Config(ctid=101, overrides={"VE_ENVIRONMENT": "A=1 B=x=y"})
    environment = plan.environment(record, config)
    assert environment["A"] == "1" and environment["B"] == "x=y"
    assert environment["container"]
    assert json.dumps(environment)


@pytest.mark.parametrize("root", ["/", "/some where/100 %/\udcff"])
def test_an_order_is_the_same_after_its_way_to_the_supervisor(root: str) -> None:
    order = Order(Paths(Path(root)), 4711, run=True, follow=False, logging=True)
    assert Order.unpack(order.pack()) == order


@pytest.mark.parametrize(
    ("library", "legacy"),
    [
        ("", True),
        ("usr/lib/systemd/libsystemd-shared.so", True),
        ("usr/lib/systemd/libsystemd-shared-252.so", False),
        ("usr/lib/aarch64-linux-gnu/systemd/libsystemd-shared-252.so", False),
    ],
)
def test_a_systemd_without_cgroup_v2_is_known_by_its_library(
    tmp_path: Path, library: str, legacy: bool
) -> None:
    folder = tmp_path / "usr/lib/systemd"
    folder.mkdir(parents=True)
    (folder / "systemd").touch()
    (tmp_path / "lib").symlink_to("usr/lib")
    if library:
        (tmp_path / library).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / library).touch()
    with mounts.closing(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)) as root:
        found = init.detect(root)
    assert (found.kind, found.legacy_cgroups) == (init.Kind.SYSTEMD, legacy)
