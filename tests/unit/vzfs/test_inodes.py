"""Node ids and the table of nodes."""

from __future__ import annotations

import errno
import stat

import pytest

from vzfs.inodes import UNCOMPUTED, Directory, File, NodeTable, split_id


@pytest.fixture
def table() -> NodeTable:
    return NodeTable(Directory(1, 2, None, b"", None, ()))


def _file(table: NodeTable, inode: int) -> File:
    file = File(table.identify_file(1, inode), inode, None, b"x", stat.S_IFREG)
    table.add(file)
    return file


def test_an_id_says_what_it_was_made_of(table: NodeTable) -> None:
    table.epoch = 5
    assert split_id(table.identify_file(3, 12345)) == (5, 3, 12345)
    # Directories keep their ids in every epoch: they have no backing file.
    assert split_id(table.identify(3, 12345)) == (0, 3, 12345)


def test_inode_numbers_too_large_for_an_id_get_plain_numbers(table: NodeTable) -> None:
    nid = table.identify_file(1, 1 << 60)
    assert split_id(nid)[1] == UNCOMPUTED
    assert table.identify_file(1, 1 << 60) == nid
    assert table.identify_file(1, (1 << 60) + 1) != nid
    assert nid < 1 << 63


def test_an_unknown_id_is_stale(table: NodeTable) -> None:
    with pytest.raises(OSError) as error:
        table.get(77)
    assert error.value.errno == errno.ESTALE


def test_a_node_goes_with_its_last_reference(table: NodeTable) -> None:
    file = _file(table, 10)
    file.lookups = 3
    assert table.forget(file.nid, 2) is None
    assert table.forget(file.nid, 1) is file
    assert file.nid not in table.nodes
    assert table.forget(1, 100) is None, "the root stays"


def test_a_split_name_leads_to_the_new_node_until_that_goes(table: NodeTable) -> None:
    file = _file(table, 10)
    file.lookups = 1
    twin = table.split(file, 0, 99)
    twin.lookups = 1
    assert file.twin is twin
    assert twin.ino == file.ino
    assert table.identify_file(1, 10) == twin.nid
    table.forget(twin.nid, 1)
    assert table.identify_file(1, 10) == file.nid


def test_a_split_never_gets_an_id_in_use(table: NodeTable) -> None:
    file = _file(table, 10)
    other = File(table.identify_file(0, 99), 99, None, b"y", stat.S_IFREG)
    table.add(other)
    twin = table.split(file, 0, 99)
    assert twin.nid not in (0, file.nid, other.nid)


def test_what_a_replaced_file_was_known_by_is_free_again(table: NodeTable) -> None:
    file = _file(table, 10)
    file.lookups = 1
    table.rename(file, 0, 20)
    assert table.identify_file(0, 20) == file.nid
    table.rename(file, 0, 30)
    assert table.identify_file(0, 30) == file.nid
    assert table.identify_file(0, 20) != file.nid, "another file may have that inode now"
    table.forget(file.nid, 1)
    assert table.moved == {}
