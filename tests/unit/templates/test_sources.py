"""Where packages come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.paths import Paths
from templates import sources
from templates.errors import BadRecipe, NoRepository
from templates.sources import Source

_KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    parts = tmp_path / "apt/sources.list.d"
    parts.mkdir(parents=True)
    (tmp_path / "apt/sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb-src http://m.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://vendor.example/tool bookworm main\n"
    )
    (parts / "debian.sources").write_text(
        "Types: deb deb-src\nURIs: http://m.example/debian\n"
        "Suites: bookworm bookworm-updates\nComponents: main\n"
        f"Signed-By: {_KEY}\n\n"
        "Types: deb\nURIs: http://m.example/debian-security\nSuites: bookworm-security\n"
        f"Components: main\nSigned-By: {_KEY}\n\n"
        "Types: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n"
        "Enabled: no\n"
    )
    return tmp_path / "apt"


def test_both_styles_are_read_and_what_is_off_is_left_out(apt: Path) -> None:
    assert [source.uri for source in sources.host_sources(apt)] == [
        "http://vendor.example/tool",
        "http://m.example/debian",
        "http://m.example/debian-security",
    ]


def test_the_archive_wins_over_a_vendor_of_the_same_suite(apt: Path) -> None:
    found = sources.server_variables(sources.host_sources(apt), ("debian", "bookworm"))
    assert found["DEBIAN_SERVER"].uri == "http://m.example/debian"
    assert found["DEBIAN_SECURITY_SERVER"].uri == "http://m.example/debian-security"
    assert found["DEBIAN_SERVER"].signed_by == _KEY


def test_a_server_of_another_distribution_gives_nothing(apt: Path) -> None:
    assert sources.server_variables(sources.host_sources(apt), ("", "")) == {}
    assert sources.server_variables(sources.host_sources(apt), ("fedora", "")) == {}


def test_url_map_decides_before_the_servers_own_sources(tmp_path: Path) -> None:
    (tmp_path / "etc/vztt").mkdir(parents=True)
    (tmp_path / "etc/vztt/url.map").write_text("# comment\n$X_SERVER http://mine.example/x\nbad\n")
    known = {"X_SERVER": Source("http://other.example", ("s",), ("main",), "/k")}
    assert sources.expand(Paths(tmp_path), "$X_SERVER s main", known) == (
        "http://mine.example/x s main",
        "",
    )


def test_an_unknown_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoRepository, match=r"\$NOWHERE_SERVER"):
        sources.expand(Paths(tmp_path), "${NOWHERE_SERVER} s main", {})


def test_options_of_a_line_are_kept(tmp_path: Path) -> None:
    (source,) = sources.apt_sources(Paths(tmp_path), ["[trusted=yes] file:/r ./"], "debian")
    assert source.line == "deb [trusted=yes] file:/r ./"


def test_a_line_without_a_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe):
        sources.apt_sources(Paths(tmp_path), ["http://x.example"], "debian")
