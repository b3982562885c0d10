"""What a file tree is."""

from __future__ import annotations

from pathlib import Path

import pytest

from templates import inspection


@pytest.mark.parametrize(
    ("package", "directory"),
    [
        (("bash", "5.2.15-2+b2", "amd64"), "bash-0:5.2.15-2+b2.amd64"),
        (("passwd", "1:4.13+dfsg1-1", "amd64"), "passwd-1:4.13+dfsg1-1.amd64"),
        (("adduser", "3.134", "all"), "adduser-0:3.134-0.all"),
        (("isc", "4.4.3-P1-2", "all"), "isc-0:4.4.3-P1-2.all"),
    ],
)
def test_package_directories_are_named_as_ez_templates_name_them(
    package: tuple[str, str, str], directory: str
) -> None:
    assert inspection.package_directory(*package) == directory


def test_only_installed_packages_are_told(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: b\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n"
        "Description: x\n more: y\n\n"
        "Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 2\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 2\n\n"
    )
    assert inspection.packages_of(tmp_path) == (("a", "2", "all"), ("b", "1", "all"))


def test_links_of_a_tree_are_followed_inside_it(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("/usr/bin")
    (tmp_path / "out").symlink_to("../../../../../../../../../../usr/bin")
    for name in ("bin", "out"):
        assert inspection.resolve(tmp_path, name) == tmp_path / "usr/bin"
    assert inspection.resolve(tmp_path, "etc/passwd") is None


def test_a_tree_without_an_init_gets_ours(tmp_path: Path) -> None:
    kind, _signal = inspection.init_of(tmp_path)
    assert kind == "own"
