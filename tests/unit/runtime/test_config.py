"""Configuration files keep what they hold, and mean what the shell would make of them."""

import shlex
import string
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.config import Config, ConfigFile, quote, unquote
from runtime.errors import ConfigMissing, ConfigNotSaved

HAND_MADE = """\
# Basic container
ONBOOT="yes"

VERSION=2   # a remark
NAME='web one'
FOREIGN_KEY="kept $AS it is"
this line means nothing
export VE_ENVIRONMENT="A=b"
ONBOOT="no"
DESCRIPTION="two
lines"
"""


def test_a_file_that_is_not_changed_is_kept_to_the_byte():
    assert ConfigFile(HAND_MADE).text() == HAND_MADE


def test_the_last_assignment_of_a_key_decides():
    assert ConfigFile(HAND_MADE).get("ONBOOT") == "no"


def test_values_follow_the_shells_quoting():
    file = ConfigFile(HAND_MADE)
    assert file.get("VERSION") == "2"
    assert file.get("NAME") == "web one"
    assert file.get("VE_ENVIRONMENT") == "A=b"
    assert file.get("DESCRIPTION") == "two\nlines"


def test_a_line_nobody_understands_is_named_with_its_number():
    (bad,) = ConfigFile(HAND_MADE).bad
    assert (bad.number, bad.text) == (7, "this line means nothing")


def test_setting_a_key_changes_its_line_only():
    file = ConfigFile(HAND_MADE)
    file.set("NAME", "db")
    assert file.text() == HAND_MADE.replace("NAME='web one'", 'NAME="db"')


def test_setting_a_key_again_leaves_one_line_of_it():
    file = ConfigFile('A="1"\nB="2"\nA="3"\n')
    file.set("A", "4")
    assert file.text() == 'B="2"\nA="4"\n'


def test_line_ends_of_windows_stay():
    file = ConfigFile('A="1"\r\nB=2\r\n')
    assert file.get("A") == "1"
    file.set("C", "3")
    assert file.text() == 'A="1"\r\nB=2\r\nC="3"\r\n'


def test_a_missing_last_newline_is_supplied_before_a_new_key():
    file = ConfigFile('A="1"')
    file.set("B", "2")
    assert file.text() == 'A="1"\nB="2"\n'


def test_an_open_quote_spoils_its_own_line_only():
    file = ConfigFile('A="open\nB="2"\n')
    assert file.get("B") == "2"
    assert file.get("A") is None
    assert file.bad[0].number == 1


def test_bytes_that_are_no_utf8_survive(tmp_path):
    path = tmp_path / "101.conf"
    path.write_bytes(b'DESCRIPTION="caf\xe9"\nA="1"\n')
    file = ConfigFile.read(path)
    file.set("A", "2")
    file.save()
    assert path.read_bytes() == b'DESCRIPTION="caf\xe9"\nA="2"\n'


def test_a_file_that_is_not_there_is_config_missing(tmp_path):
    with pytest.raises(ConfigMissing):
        ConfigFile.read(tmp_path / "101.conf")


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "gone" / "101.conf"
    with pytest.raises(ConfigNotSaved):
        ConfigFile('A="1"\n').save(path)


def test_the_container_beats_the_server_and_the_server_the_defaults():
    config = Config(
        ctid=101,
        overrides={"D": "4"},
        container=ConfigFile('C="3"\nD="3"\n'),
        server=ConfigFile('B="2"\nC="2"\n'),
        defaults={"A": "1", "B": "1"},
    )
    assert dict(config) == {"A": "1", "B": "2", "C": "3", "D": "4"}


def test_veid_is_the_container_that_asks():
    config = Config(ctid=101, server=ConfigFile('VE_ROOT=/vz/root/$VEID\nX="${VEID}$VEIDX"\n'))
    assert config["VE_ROOT"] == "/vz/root/101"
    assert config["X"] == "101$VEIDX"


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r\f")))
def test_quoting_and_unquoting_return_the_value(value):
    assert unquote(quote(value)) == value


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet=string.printable.replace("\r", "").replace("\x0b", "").replace("\x0c", "")))
def test_the_shell_reads_what_we_quote_as_we_do(value):
    script = f"VEID=; V={quote(value.replace('VEID', ''))}; printf '%s.' \"$V\""
    printed = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout
    assert printed.decode() == value.replace("VEID", "") + "."


@given(st.lists(st.text(alphabet=string.ascii_letters + "='\"# \\$\n\t", max_size=20), max_size=8))
def test_no_text_breaks_the_parser_and_all_of_it_is_kept(lines):
    text = "\n".join(lines)
    assert ConfigFile(text).text() == text


def test_our_quotes_are_words_for_shlex_too():
    assert shlex.split(quote('a "b" c')) == ['a "b" c']
