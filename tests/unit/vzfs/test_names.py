"""Names and records: attributes out of reach, cookies, options, structures of the wire."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vzfs import links, protocol
from vzfs.attributes import shown_name, stored
from vzfs.listing import DOTDOT, Listing, cookie
from vzfs.options import Options


@pytest.mark.parametrize(
    "name", ["trusted.overlay.opaque", "trusted.vzfs.origin", "user.a", "security.capability"]
)
def test_users_reach_their_own_attributes_only(name: str) -> None:
    at = stored(name.encode())
    assert shown_name(at) == name
    if name.startswith("trusted."):
        assert at != name
        assert shown_name(name) == ""


def test_positions_in_a_directory_do_not_depend_on_the_others() -> None:
    names = [b"file%d" % number for number in range(200)]
    all_of_them = Listing(names, b"key")
    some = Listing(names[::3], b"key")
    at = dict(zip(all_of_them.names, all_of_them.cookies, strict=True))
    assert all(at[name] == where for name, where in zip(some.names, some.cookies, strict=True))
    assert all_of_them.cookies == sorted(all_of_them.cookies)
    assert min(all_of_them.cookies) > DOTDOT
    assert max(all_of_them.cookies) < 1 << 63
    assert cookie(b"a", b"one key") != cookie(b"a", b"another")


def test_options_survive_json() -> None:
    options = Options(
        lower=(Path("/a"), Path("/b")), upper=Path("/p/root"), template_area=Path("/t")
    )
    again = Options.from_json(options.to_json())
    assert again == options
    assert again.work_area == Path("/p/cow")


def test_structures_have_the_sizes_of_the_kernel() -> None:
    # linux/fuse.h, with the 16 bytes of fuse_out_header where a reply is packed whole.
    assert protocol.IN_HEADER.size == 40
    assert protocol.OUT_HEADER.size == 16
    assert protocol.ATTR.size == 88
    assert protocol.ENTRY_REPLY.size == 16 + 128
    assert protocol.ATTR_REPLY.size == 16 + 104
    assert protocol.CREATE_REPLY.size == 16 + 128 + 16
    assert protocol.INIT_OUT.size == 64
    assert protocol.SETATTR_IN.size == 88
    assert protocol.STATFS_REPLY.size == 16 + 80
    assert protocol.STATX_BODY.size == 256
    assert protocol.COPY_FILE_RANGE_IN.size == 56


def test_names_of_one_file_are_counted_once_written_down(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "one").write_text("x")
    os.link(tree / "one", tree / "a" / "b" / "two")
    os.link(tree / "one", tmp_path / "in the store")
    (tree / "alone").write_text("y")
    os.link(tree / "alone", tmp_path / "in the store too")
    wanted = {(tree / "one").stat().st_ino: 2}
    fd = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    assert links.count_names(fd) == wanted
    os.close(fd)
    assert links.read_index(tree) is None
    links.write_index(tree)
    assert links.read_index(tree) == wanted
