"""What apt is shown of a container's package database."""

from __future__ import annotations

from templates.apt import Change, clean_status


def test_only_known_fields_with_plain_values_are_shown() -> None:
    fields = {
        "Package": "a",
        "Status": "install ok installed",
        "Architecture": "amd64",
        "Version": "1:2-3",
        "Depends": "b (>= 1), c:any | d",
        "Description": "anything\nat all",
        "Conflicts": "x\x00y",
    }
    text = clean_status(iter([fields]))
    assert "Depends: b (>= 1), c:any | d\n" in text
    assert "anything" not in text
    assert "Conflicts" not in text


def test_a_stanza_that_is_no_package_is_dropped() -> None:
    assert clean_status(iter([{"Package": "a"}])) == ""


def test_a_value_cannot_begin_another_stanza() -> None:
    fields = {
        "Package": "a\n\nPackage: evil",
        "Status": "install ok installed",
        "Architecture": "all",
        "Version": "1",
    }
    assert clean_status(iter([fields])) == ""


def test_changes_say_what_becomes_of_a_package() -> None:
    assert str(Change("a", "", "1")) == "a 1 is installed"
    assert str(Change("a", "1", "")) == "a 1 is removed"
    assert str(Change("a", "1", "2")) == "a 1 becomes 2"
