"""Names of OS templates."""

from __future__ import annotations

import pytest

from templates import names
from templates.errors import BadName
from templates.names import Name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("centos-5-x86_64", Name("centos", "5", "x86_64")),
        ("redhat-as4-x86", Name("redhat", "as4", "x86")),
        ("debian-12-x86_64-server", Name("debian", "12", "x86_64", "server")),
        ("debian-12-x86_64-my-own", Name("debian", "12", "x86_64", "my-own")),
        ("ubuntu-24.04-aarch64", Name("ubuntu", "24.04", "aarch64")),
    ],
)
def test_a_full_name_is_taken_apart_and_written_the_same(text: str, name: Name) -> None:
    assert names.parse(text) == name
    assert str(name) == text


@pytest.mark.parametrize("text", ["debian-12", "busybox", "debian-12-sparc", "-12-x86", "a-1-x86-"])
def test_what_is_no_full_name_is_not_parsed(text: str) -> None:
    assert names.parse(text) is None


def test_a_set_lies_where_its_base_lies() -> None:
    name = Name("debian", "12", "x86_64", "server")
    assert str(name.place) == "debian/12/x86_64"
    assert str(name.base) == "debian-12-x86_64"


@pytest.mark.parametrize(
    "text", ["", ".", "..", "../x", "a/b-1-x86", "a b", "x\n", "-a", "a" * 201, "é-1-x86_64"]
)
def test_a_name_that_could_be_a_path_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        names.check(text)


def test_the_dot_of_ez_templates_is_dropped() -> None:
    assert names.check(".debian-12-x86_64") == "debian-12-x86_64"


@pytest.mark.parametrize("text", ["", "..", "../x", "a/b", "a b", "a" * 101])
def test_an_application_name_that_could_be_a_path_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        names.check_application(text)
