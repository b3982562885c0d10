"""Bad input: one clear line, the documented code, nothing changed on disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


def snapshot(root: Path) -> dict[str, str]:
    """Return every file below ``root`` with its content, without logs and locks."""
    found = {}
    for place, _dirs, names in os.walk(root):
        for name in names:
            path = Path(place, name)
            if path.suffix in (".log", ".lck") or path.is_symlink():
                continue
            if path.is_file():
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def system(shared_system):
    """A system with container 101, called web1, stopped."""
    shared_system.create(101, "busybox", "--name", "web1")
    return shared_system


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (44, ("vzctl", "create", "101", "--force")),
        (21, ("vzctl", "create", "100")),
        (21, ("vzctl", "create", "0")),
        (20, ("vzctl", "create", "1x")),
        (20, ("vzctl", "create", "../101")),
        (20, ("vzctl", "create", "-5")),
        (20, ("vzctl", "create", "")),
        (20, ("vzctl", "create")),
        (91, ("vzctl", "create", "150", "--ostemplate", "nonesuch-1-x86_64", "--force")),
        (91, ("vzctl", "create", "150", "--ostemplate", "../../etc", "--force")),
        (82, ("vzctl", "create", "150", "--config", "nonesuch", "--force")),
        (82, ("vzctl", "create", "150", "--config", "../x", "--force")),
        (137, ("vzctl", "create", "150", "--name", "web1", "--force")),
        (137, ("vzctl", "create", "150", "--name", "a/b", "--force")),
        (70, ("vzctl", "create", "150", "--hostname", "bad host", "--force")),
        (31, ("vzctl", "stop", "101")),
        (31, ("vzctl", "exec", "101", "true")),
        (31, ("vzctl", "exec2", "101", "true")),
        (31, ("vzctl", "enter", "101")),
        (40, ("vzctl", "umount", "101")),
        (14, ("vzctl", "start", "999")),
        (14, ("vzctl", "start", "nobody")),
        (14, ("vzctl", "set", "999", "--onboot", "yes", "--save")),
        (14, ("vzctl", "destroy", "999")),
        (20, ("vzctl", "start", "a\nb")),
        (20, ("vzctl", "start", "../x")),
        (20, ("vzctl", "start", "x" * 300)),
        (20, ("vzctl", "start")),
        (20, ("vzctl", "set", "101", "--save")),
        (20, ("vzctl", "set", "101", "--frobnicate", "1")),
        (21, ("vzctl", "set", "101", "--onboot", "maybe", "--save")),
        (21, ("vzctl", "set", "101", "--bootorder", "x", "--save")),
        (70, ("vzctl", "set", "101", "--hostname", "bad-", "--save")),
        (137, ("vzctl", "set", "101", "--name", "12", "--save")),
        (137, ("vzctl", "set", "101", "--name", "a\nb", "--save")),
        (137, ("vzctl", "set", "101", "--name", "ü" * 200, "--save")),
        (82, ("vzctl", "set", "101", "--applyconfig", "nonesuch", "--save")),
        (20, ("vzctl", "exec", "101")),
        (20, ("vzctl", "exec", "101", "--")),
        (20, ("vzctl", "frobnicate", "101")),
        (20, ("pctl", "list", "-o", "nonesuch")),
        (1, ("vzlist", "999")),
        (1, ("vzlist", "-o", "nonesuch")),
        (1, ("vzpid", "x")),
    ],
    ids=lambda value: (
        " ".join(value)[:60].replace("\n", "⏎") if isinstance(value, tuple) else str(value)
    ),
)
def test_bad_input_is_refused_with_its_code_and_changes_nothing(system, code, words):
    before = snapshot(system.root)
    message = system.fails(code, *words)
    assert len([line for line in message.splitlines() if not line.startswith("hint:")]) == 1
    assert "\x1b" not in message
    assert snapshot(system.root) == before


def test_a_name_in_utf8_works_everywhere(system):
    system.ok("vzctl", "set", 101, "--name", "Bücher-1", "--save")
    assert "VEID 101" in system.ok("vzctl", "status", "Bücher-1")
    system.ok("vzctl", "set", 101, "--name", "web1", "--save")
    system.fails(14, "vzctl", "status", "Bücher-1")


def test_a_disabled_container_does_not_start(system):
    system.ok("vzctl", "set", 101, "--disabled", "yes", "--save")
    assert "Container start disabled" in system.fails(105, "vzctl", "start", 101)
    system.ok("vzctl", "set", 101, "--disabled", "no", "--save")


def test_a_broken_line_is_named_with_its_number_and_survives(system):
    conf = system.paths.ct_conf(101)
    good = conf.read_text()
    conf.write_text(good + "this is broken\nFOREIGN='x y'\n")
    done = system.run("vzctl", "set", 101, "--description", "two", "--save")
    assert done.returncode == 0
    assert f"line {len(good.splitlines()) + 1} is ignored" in done.stderr
    assert "this is broken\nFOREIGN='x y'\n" in conf.read_text()
    conf.write_text(good)


def test_a_missing_private_area_is_code_43(system):
    private = system.paths.private(101)
    private.rename(private.with_name("away"))
    try:
        system.fails(43, "vzctl", "start", 101)
        system.fails(43, "vzctl", "mount", 101)
    finally:
        private.with_name("away").rename(private)


def test_a_template_removed_below_a_container_is_named(system):
    layers = system.paths.private(101) / "templates" / "layers"
    good = layers.read_text()
    layers.write_text("nonesuch/1/x86_64/tree/0\n")
    try:
        message = system.fails(91, "vzctl", "start", 101)
        assert "nonesuch/1/x86_64/tree/0" in message
    finally:
        layers.write_text(good)


def test_a_full_disk_is_code_46_and_leaves_nothing(template_area, tmp_path):
    import subprocess

    from conftest import System

    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", root], check=True)
    try:
        (root / "vz").mkdir()
        (root / "vz/template").symlink_to(template_area)
        small = System(root)
        small.fails(46, "vzctl", "create", 101, "--ostemplate", "busybox", "--force")
        assert small.ok("vzlist", "-aH") == ""
        assert not small.paths.private(101).exists()
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def test_status_of_what_never_was_is_deleted(system):
    assert system.ok("vzctl", "status", 999) == "VEID 999 deleted unmounted down\n"
    assert system.ok("pctl", "status", 101) == "CTID 101 exists unmounted down\n"
