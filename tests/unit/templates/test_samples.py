"""The samples and the distribution tables that come with the product."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import dists
from runtime.config import ConfigFile
from runtime.dists import Action
from runtime.paths import Paths
from templates import catalogue

_SAMPLES = sorted((Path(catalogue.__file__).parent / "samples").glob("ve-*.conf-sample"))
_NAMES = (
    "basic light confixx cpanel oracle slm.256MB slm.512MB slm.1024MB slm.2048MB slm.plesk "
    "unlimited.db2 vps.256MB vps.512MB vps.1024MB vps.2048MB vps.plesk vswap.256MB vswap.512MB "
    "vswap.1024MB vswap.2048MB vswap.plesk"
)


def test_every_documented_sample_is_there() -> None:
    names = [path.name.removeprefix("ve-").removesuffix(".conf-sample") for path in _SAMPLES]
    assert sorted(names) == sorted(_NAMES.split())


@pytest.mark.parametrize("path", _SAMPLES, ids=lambda path: path.name)
def test_a_sample_begins_with_what_it_is_for_and_has_no_bad_line(path: Path) -> None:
    file = ConfigFile.read(path)
    assert file.bad == []
    assert path.read_text().startswith("# ")
    assert file.get("VERSION") == "2"
    for key in ("DISKSPACE", "DISKINODES", "CPUUNITS"):
        assert file.get(key)


def test_basic_gives_512_megabytes() -> None:
    (path,) = [path for path in _SAMPLES if path.name == "ve-basic.conf-sample"]
    assert ConfigFile.read(path).get("PHYSPAGES") == "131072:131072"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"OSTEMPLATE": ".debian-12-x86_64-server"}, "debian"),
        ({"OSTEMPLATE": ".centos-5-x86"}, "centos"),
        ({"DISTRIBUTION": "fedora-40", "OSTEMPLATE": ".debian-12-x86_64"}, "fedora"),
        ({"OSTEMPLATE": "busybox"}, "busybox"),
        ({"OSTEMPLATE": ".slackware-14-x86"}, "default"),
        ({"DISTRIBUTION": "../../etc/passwd"}, "default"),
        ({}, "default"),
    ],
)
def test_the_table_of_a_distribution_is_found(
    tmp_path: Path, config: dict[str, str], expected: str
) -> None:
    assert dists.configuration(Paths(tmp_path), config).stem == expected


def test_an_administrators_table_and_script_come_first(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    (paths.dists / "scripts").mkdir(parents=True)
    (paths.dists / "debian-12.conf").write_text("SET_USERPASS=mine.sh\n")
    (paths.dists / "scripts/mine.sh").write_text("echo mine\n")
    text = dists.script(paths, {"OSTEMPLATE": ".debian-12-x86_64"}, Action.SET_USERPASS)
    assert text.startswith(b"#!/bin/sh\n") and text.endswith(b"echo mine\n")
    assert b"replace_file()" in text


@pytest.mark.parametrize("line", ["", "SET_USERPASS=../../x.sh\n", "SET_USERPASS=missing.sh\n"])
def test_a_missing_script_is_told(tmp_path: Path, line: str) -> None:
    paths = Paths(tmp_path)
    paths.dists.mkdir(parents=True)
    (paths.dists / "x.conf").write_text(line)
    with pytest.raises(dists.NoDistributionScript):
        dists.script(paths, {"DISTRIBUTION": "x"}, Action.SET_USERPASS)


@pytest.mark.parametrize("table", sorted(dists.SHIPPED.glob("*.conf")), ids=lambda path: path.name)
def test_every_script_a_table_names_is_there(table: Path) -> None:
    named = ConfigFile.read(table).items()
    assert set(named) <= {str(action) for action in Action}
    assert [
        name for name in named.values() if not (dists.SHIPPED / "scripts" / name).is_file()
    ] == []
