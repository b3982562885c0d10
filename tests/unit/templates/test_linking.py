"""When a private file may become a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from templates import linking


@pytest.fixture
def alike(tmp_path: Path) -> tuple[Path, Path]:
    """Return two files equal in all that counts."""
    for name in ("private", "entry"):
        (tmp_path / name).write_bytes(b"data" * 4096)
        (tmp_path / name).chmod(0o644)
    return tmp_path / "private", tmp_path / "entry"


def same(private: Path, entry: Path) -> bool:
    """Compare two files."""
    fd = os.open(private, os.O_RDONLY)
    try:
        return linking.same(fd, entry)
    finally:
        os.close(fd)


def test_files_alike_in_all_are_the_same(alike: tuple[Path, Path]) -> None:
    """Content, mode, owner and attributes are equal."""
    private, entry = alike
    for file in alike:
        os.setxattr(file, "user.a", b"1")
    assert same(private, entry)


@pytest.mark.parametrize("value", [b"", b"2"])
def test_an_attribute_of_its_own_keeps_a_file(alike: tuple[Path, Path], value: bytes) -> None:
    """A name or a value the store's file lacks would be lost with a link."""
    private, entry = alike
    os.setxattr(private, "user.a", value)
    assert not same(private, entry)
    os.setxattr(entry, "user.a", b"1")
    assert not same(private, entry)


def test_another_mode_or_byte_keeps_a_file(alike: tuple[Path, Path]) -> None:
    """What a link would change is left alone."""
    private, entry = alike
    private.chmod(0o755)
    assert not same(private, entry)
    private.chmod(0o644)
    private.write_bytes(b"data" * 4095 + b"date")
    assert not same(private, entry)
