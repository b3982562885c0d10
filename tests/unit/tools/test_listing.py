"""Tables: widths, order, text and JSON."""

import json
from types import SimpleNamespace

import pytest

from runtime.errors import InvalidOption
from tools._entries import limit_of
from tools._listing import Field, choose, matching, print_json, print_table, sort

NAME = Field("name", "NAME", -8, lambda row: row.get("name"))
SIZE = Field("size", "SIZE", 6, lambda row: row.get("size"))
FIELDS = {"name": NAME, "size": SIZE}
ROWS = [{"name": "b", "size": 10}, {"name": "a" * 12, "size": 9}, {"name": "c"}]


def test_columns_grow_with_their_content_and_the_last_is_not_padded(capsys):
    print_table(ROWS, [SIZE, NAME])
    assert capsys.readouterr().out == "  SIZE NAME\n    10 b\n     9 aaaaaaaaaaaa\n     - c\n"


def test_numbers_are_sorted_as_numbers_and_nothing_comes_last():
    assert [row["name"][0] for row in sort(ROWS, SIZE, descending=False)] == ["a", "b", "c"]
    assert [row["name"][0] for row in sort(ROWS, SIZE, descending=True)] == ["b", "a", "c"]


def test_an_unknown_field_is_named():
    with pytest.raises(InvalidOption, match="The x field name is unknown"):
        choose(FIELDS, "name,x", unknown="The {} field name is unknown.")


def test_json_has_the_fields_names_and_null_for_nothing(capsys):
    print_json(ROWS[2:], [NAME, SIZE])
    assert json.loads(capsys.readouterr().out) == [{"name": "c", "size": None}]


@pytest.mark.parametrize(
    ("key", "part", "text", "shown"),
    [
        ("DISKSPACE", 0, "2G:3G", 2 << 20),
        ("DISKSPACE", 1, "2G:3G", 3 << 20),
        ("DISKSPACE", 1, "1000:unlimited", "unlimited"),
        ("DISKINODES", 0, "7", 7),
        ("PHYSPAGES", 1, "0:1G", 1 << 18),
        ("KMEMSIZE", 0, "14M:15M", 14 << 20),
        ("NUMPROC", 1, "10:many", "many"),
    ],
)
def test_limits_with_suffixes_are_shown_in_their_own_unit(key, part, text, shown):
    assert limit_of(key, part)(SimpleNamespace(config={key: text})) == shown


def test_patterns_are_the_shells():
    assert [row["name"] for row in matching(ROWS, lambda row: row["name"], "[bc]")] == ["b", "c"]


def test_what_a_container_calls_itself_cannot_colour_the_terminal(capsys):
    print_table([{"name": "\x1b[31mred\n"}], [NAME], heading=False)
    assert capsys.readouterr().out == "\\x1b[31mred\n"
