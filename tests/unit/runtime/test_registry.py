"""Names and ids lead to containers, however the index of names stands."""

import pytest

from runtime import registry
from runtime.errors import ConfigMissing, InvalidOption, InvalidValue, NameFailed
from runtime.paths import Paths

UUID = "5c6f5b0e-7f0c-4a5b-8b3a-0d2f9f1e2a3b"


@pytest.fixture
def paths(tmp_path):
    paths = Paths(tmp_path)
    paths.conf_dir.mkdir(parents=True)
    paths.ct_conf(101).write_text(f'NAME="web 1"\nUUID="{UUID}"\n')
    paths.ct_conf(102).write_text('HOSTNAME="db"\n')
    return paths


def test_configured_lists_ids_above_the_reserved_ones(paths):
    paths.ct_conf(0).write_text("")
    paths.ct_conf(100).write_text("")
    (paths.conf_dir / "103.conf.destroyed").write_text("")
    assert registry.configured(paths) == [101, 102]


@pytest.mark.parametrize("ident", ["101", "web 1", UUID, "{" + UUID.upper() + "}"])
def test_id_name_and_uuid_find_the_same_container(paths, ident):
    assert registry.find(paths, ident).ctid == 101


@pytest.mark.parametrize("ident", ["103", "nobody", UUID.replace("5", "6")])
def test_what_is_not_configured_is_not_found(paths, ident):
    with pytest.raises(ConfigMissing):
        registry.find(paths, ident)


@pytest.mark.parametrize("ident", ["", "../101", "a\nb", "x" * 300, "-a", "a/b"])
def test_what_can_be_no_name_is_bad_syntax(paths, ident):
    with pytest.raises(InvalidOption):
        registry.find(paths, ident)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("100", InvalidValue),
        ("0", InvalidValue),
        ("2147483645", InvalidValue),
        ("1x", InvalidOption),
        ("-5", InvalidOption),
        ("", InvalidOption),
        ("٣٣٣", InvalidOption),
    ],
)
def test_reserved_and_malformed_ids_are_refused(text, error):
    with pytest.raises(error):
        registry.check_new_ctid(text)


def test_names_may_be_in_any_script():
    assert registry.check_name("Änderung-1") == "Änderung-1"


@pytest.mark.parametrize("text", ["../x", "a\0", "a\n", " a", "a ", "12", "", "a/b", "ü" * 200])
def test_bad_names_are_refused(text):
    with pytest.raises(NameFailed):
        registry.check_name(text)


def test_a_name_link_that_lies_is_not_believed(paths):
    paths.names.mkdir()
    (paths.names / "web 1").symlink_to("../conf/102.conf")
    assert registry.find(paths, "web 1").ctid == 101


def test_a_name_in_use_cannot_be_claimed_by_another(paths):
    with pytest.raises(NameFailed, match="101"):
        registry.claim_name(paths, 102, "web 1")


def test_released_names_are_gone_but_the_kept_one(paths):
    registry.claim_name(paths, 102, "old")
    registry.claim_name(paths, 102, "new")
    registry.release_names(paths, 102, keep="new")
    assert [link.name for link in paths.names.iterdir()] == ["new"]


def test_text_for_terminals_holds_no_control_characters():
    assert registry.printable("a\x1b[31m") == r"'a\x1b[31m'"
