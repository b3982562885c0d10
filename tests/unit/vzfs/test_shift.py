"""Ids are translated both ways, inside ACLs and file capabilities too."""

import struct

import pytest

from vzfs.shift import NOBODY, Shift

FIRST = 524288


@pytest.fixture
def shift():
    return Shift(FIRST)


def test_ids_go_out_and_come_back(shift):
    assert [shift.inward(shift.outward(number)) for number in (0, 33, 65535)] == [0, 33, 65535]
    assert shift.outward(33) == FIRST + 33


def test_an_id_from_outside_is_nobody_and_the_hosts_root_is_root(shift):
    assert shift.inward(1000) == NOBODY
    assert shift.inward(FIRST + 65536) == NOBODY
    assert shift.outward(70000) == FIRST + NOBODY
    assert shift.inward(0) == 0
    assert shift.inward(0xFFFFFFFF) == 0xFFFFFFFF


def test_named_entries_of_an_acl_are_translated_and_no_others(shift):
    entries = [(0x01, 6, 0xFFFFFFFF), (0x02, 7, 1000), (0x04, 5, 0xFFFFFFFF), (0x08, 4, 50)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    out = shift.value_outward(b"system.posix_acl_access", value)
    ids = [entry[2] for entry in struct.iter_unpack("<HHI", out[4:])]
    assert ids == [0xFFFFFFFF, FIRST + 1000, 0xFFFFFFFF, FIRST + 50]
    assert shift.value_inward(b"system.posix_acl_access", out) == value


def test_capabilities_of_a_file_belong_to_the_containers_root(shift):
    stored = struct.pack("<IIIII", 0x02000001, 0x2000, 0, 0, 0)
    out = shift.value_outward(b"security.capability", stored)
    assert len(out) == 24
    assert struct.unpack_from("<I", out)[0] == 0x03000001
    assert struct.unpack_from("<I", out, 20)[0] == FIRST
    assert shift.value_inward(b"security.capability", out) == stored


def test_capabilities_for_another_namespaces_root_stay(shift):
    foreign = struct.pack("<IIIIII", 0x03000001, 0x2000, 0, 0, 0, 7)
    assert shift.value_inward(b"security.capability", foreign) == foreign


def test_other_attributes_pass_untouched(shift):
    assert shift.value_outward(b"user.x", b"value") == b"value"
    assert shift.value_inward(b"system.posix_acl_access", b"odd") == b"odd"
