"""Packages in containers: decided and fetched on the server, installed inside."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import _templates
import pytest
from conftest import System

pytestmark = pytest.mark.root

CTID = 301


class Repository:
    """A package repository in a directory, as apt reads it (deb-src is not needed)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self._index = ""

    def add(self, name: str, version: str, depends: str = "") -> Path:
        """Build a package that prints its version, and offer it."""
        tree = self.place.parent / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/bin").mkdir(parents=True)
        program = tree / "usr/bin" / name
        program.write_text(f"#!/bin/sh\necho {name} {version}\n")
        program.chmod(0o755)
        fields = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\n"
        fields += f"Depends: {depends}\n" if depends else ""
        (tree / "DEBIAN/control").write_text(f"{fields}Description: says its version\n")
        file = self.place / f"{name}_{version}_all.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-b", tree, file], check=True, capture_output=True
        )
        data = file.read_bytes()
        self._index += (
            f"{fields}Filename: ./{file.name}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\nDescription: says its version\n\n"
        )
        (self.place / "Packages").write_text(self._index)
        return file


@pytest.fixture(scope="module")
def debian(shared_system: System) -> Iterator[System]:
    """A system with one running Debian container."""
    system = shared_system
    system.ok("vzctl", "create", CTID, "--ostemplate", _templates.debian(system), "--force")
    system.ok("vzctl", "start", CTID, "--wait")
    yield system
    system.ok("vzctl", "stop", CTID, "--fast")
    system.ok("vzctl", "destroy", CTID)


@pytest.fixture
def greeter(debian: System, tmp_path: Path) -> Iterator[Repository]:
    """An application template "greeter" of Debian, with a repository of its own."""
    repository = Repository(tmp_path / "repository")
    repository.add("greeter-data", "1.0")
    repository.add("greeter", "1.0", "greeter-data")
    directory = _templates.place(debian, _templates.DEBIAN) / "config/app/greeter/default"
    directory.mkdir(parents=True)
    (directory / "packages").write_text("greeter\n")
    (directory / "summary").write_text("says hello\n")
    (directory / "repositories").write_text(f"[trusted=yes] file:{repository.place} ./\n")
    (directory / "post-install").write_text("echo $VEID >/etc/greeter\n")
    yield repository
    debian.run("vzpkg", "remove", "-w", CTID, "greeter")
    debian.ok("vzpkg", "remove", "template", "-F", _templates.DEBIAN, "greeter")


def inside(system: System, *words: str) -> str:
    """Run a command in the container, which must succeed."""
    return system.ok("vzctl", "exec", CTID, *words)


def test_an_application_template_comes_gets_newer_and_goes(
    debian: System, greeter: Repository
) -> None:
    said = debian.ok("vzpkg", "install", "-r", CTID, "greeter", timeout_s=300)
    table = [line.split() for line in said.partition("Installed:\n")[2].splitlines()]
    assert table == [["greeter", "all", "0:1.0"], ["greeter-data", "all", "0:1.0"]]
    assert inside(debian, "greeter") == "greeter 1.0\n"
    assert inside(debian, "cat", "/etc/greeter") == f"{CTID}\n"
    assert inside(debian, "apt-mark", "showauto", "greeter-data") == "greeter-data\n"
    assert "TEMPLATES=" in debian.paths.ct_conf(CTID).read_text()
    assert debian.ok("vzpkg", "list", CTID).splitlines() == [
        _templates.DEBIAN,
        f"{_templates.DEBIAN} greeter",
    ]
    assert "container" in debian.fails(
        27, "vzpkg", "remove", "template", "-F", _templates.DEBIAN, "greeter"
    )

    greeter.add("greeter", "2.0", "greeter-data")
    said = debian.ok("vzpkg", "update", "-r", CTID, "greeter", timeout_s=300)
    assert said.partition("Updated:\n")[2].split() == ["greeter", "all", "0:2.0"]
    assert inside(debian, "greeter") == "greeter 2.0\n"

    assert "-w" in debian.fails(70, "vzpkg", "remove", "-p", CTID, "greeter-data")
    said = debian.ok("vzpkg", "remove", "-w", CTID, "greeter")
    assert [line.split()[0] for line in said.partition("Removed:\n")[2].splitlines()] == [
        "greeter",
        "greeter-data",
    ]
    assert "TEMPLATES=" not in debian.paths.ct_conf(CTID).read_text()
    debian.fails(26, "vzpkg", "remove", CTID, "greeter")


def test_a_sample_may_ask_for_applications(debian: System, greeter: Repository) -> None:
    (debian.paths.conf_dir / "ve-greeting.conf-sample").write_text(
        f'OSTEMPLATE=".{_templates.DEBIAN}"\nTEMPLATES=".greeter"\n'
    )
    try:
        debian.ok("vzctl", "create", 303, "--config", "greeting", "--force", timeout_s=600)
        caches = debian.ok("vzpkg", "list", "appcache").splitlines()
        assert [line.split()[:2] for line in caches] == [[_templates.DEBIAN, "greeter"]]
        debian.ok("vzctl", "start", 303)
        assert debian.ok("vzctl", "exec", 303, "greeter") == "greeter 1.0\n"
        assert debian.ok("vzctl", "exec", 303, "cat", "/etc/greeter") == "\n"
        assert "greeter" in debian.ok("vzpkg", "list", 303)
        debian.fails(29, "vzpkg", "create", "appcache", "--config", "greeting")
        debian.ok("vzctl", "stop", 303, "--fast")
        debian.ok("vzctl", "destroy", 303)
        debian.ok("vzctl", "create", 303, "--config", "greeting", "--skip_app_templates", "--force")
        assert "TEMPLATES=" not in debian.paths.ct_conf(303).read_text()
        debian.ok("vzctl", "destroy", 303)
    finally:
        debian.run("vzctl", "stop", 303, "--fast")
        debian.run("vzctl", "destroy", 303)
        debian.ok("vzpkg", "remove", "appcache", "--config", "greeting")


def test_a_trial_changes_nothing(debian: System, greeter: Repository) -> None:
    said = debian.ok("vzpkg", "install", "-r", "-n", CTID, "greeter", timeout_s=300)
    assert "greeter 1.0 is installed" in said
    assert debian.run("vzctl", "exec2", CTID, "test", "-e", "/usr/bin/greeter").returncode == 1
    assert "TEMPLATES=" not in debian.paths.ct_conf(CTID).read_text()


def test_status_tells_of_updates_with_22(debian: System, greeter: Repository) -> None:
    file = greeter.place / "greeter-data_1.0_all.deb"
    said = debian.ok("vzpkg", "localinstall", CTID, file, timeout_s=300)
    assert "greeter-data" in said and "0:1.0" in said
    greeter.add("greeter-data", "1.1")
    debian.ok("vzpkg", "install", "-r", CTID, "greeter", timeout_s=300)
    greeter.add("greeter", "1.5", "greeter-data")
    done = debian.run("vzpkg", "status", "-r", CTID, timeout_s=300)
    assert done.returncode == 22, done.stderr
    assert "greeter" in done.stdout and "1.5" in done.stdout
    debian.ok("vzpkg", "update", "-C", CTID, timeout_s=300)
    assert inside(debian, "greeter") == "greeter 1.5\n"
    assert debian.run("vzpkg", "status", "-C", CTID).returncode == 0


def test_packages_of_a_container_are_listed_by_file_name_too(debian: System) -> None:
    names = debian.ok("vzpkg", "list", "-p", "-i", CTID).splitlines()
    assert any(name.startswith("bash-0:5.2") and name.endswith(".amd64") for name in names)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, ("install", "-p", CTID, "no-such-package-anywhere")),
        (24, ("install", CTID, "no-such-template")),
        (26, ("remove", "-p", CTID, "no-such-package")),
        (35, ("install", CTID)),
        (35, ("install", "-g", CTID, "group")),
        (16, ("install", 999, "nginx")),
        (9, ("localinstall", CTID, "/nonexistent.deb")),
        (46, ("install", CTID, "../../etc")),
    ],
)
def test_bad_requests_have_their_codes(
    debian: System, code: int, words: tuple[object, ...]
) -> None:
    debian.fails(code, "vzpkg", *map(str, words))


def test_a_stopped_container_is_refused(shared_system: System) -> None:
    shared_system.create(302)
    shared_system.fails(15, "vzpkg", "install", 302, "nginx")
    shared_system.ok("vzctl", "start", 302)
    shared_system.fails(73, "vzpkg", "install", 302, "nginx")
    shared_system.ok("vzctl", "stop", 302, "--fast")
    shared_system.ok("vzctl", "destroy", 302)


def test_passwords_are_set_where_tools_are_missing_too(debian: System) -> None:
    from runtime import dists, registry
    from runtime.config import Config, ConfigFile
    from runtime.container import Container
    from runtime.defaults import DEFAULTS

    record = registry.find(debian.paths, str(CTID))
    config = Config(ctid=CTID, container=ConfigFile.read(record.conf), defaults=DEFAULTS)
    ct = Container(debian.paths, record, config)
    dists.run(ct, dists.Action.SET_USERPASS, {"USERPW": "root:one alice:two"})
    shadow = dict(line.split(":")[:2] for line in inside(debian, "cat", "/etc/shadow").splitlines())
    assert shadow["root"].startswith("$") and shadow["alice"].startswith("$")
    with pytest.raises(dists.ActionScriptFailed):
        dists.run(ct, dists.Action.SET_USERPASS, {"USERPW": "-x:y"})
