"""Copying data, and what has to be waited for."""

import os
from pathlib import Path

import pytest

from vzfs import datacopy


@pytest.mark.parametrize(("said", "kept"), [("1234\n", True), ("<none>\n", False), (None, False)])
def test_the_order_is_kept_where_there_is_a_journal(
    tmp_path: Path, said: str | None, kept: bool
) -> None:
    (tmp_path / "devices/sdx1").mkdir(parents=True)
    (tmp_path / "dev/block").mkdir(parents=True)
    os.symlink("../../devices/sdx1", tmp_path / "dev/block/8:1")
    if said is not None:
        (tmp_path / "fs/ext4/sdx1").mkdir(parents=True)
        (tmp_path / "fs/ext4/sdx1/journal_task").write_text(said)
    assert datacopy.keeps_order(os.makedev(8, 1), str(tmp_path)) is kept


def test_a_copy_keeps_holes_and_takes_no_more_than_wanted(tmp_path: Path) -> None:
    size = 1 << 20
    with (tmp_path / "from").open("wb") as file:
        file.seek(size - 5)
        file.write(b"12345")
    with (tmp_path / "from").open("rb") as source:
        for wanted in (size, size - 3, 10):
            with (tmp_path / f"to{wanted}").open("wb") as target:
                datacopy.copy_data(source.fileno(), target.fileno(), wanted)
            made = tmp_path / f"to{wanted}"
            assert made.read_bytes() == (tmp_path / "from").read_bytes()[:wanted]
            assert made.stat().st_blocks * 512 < size // 2
