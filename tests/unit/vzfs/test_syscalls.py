"""Kernel calls of the file system: what their wrappers add."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from vzfs import syscalls

RESOLVE_BENEATH = 0x08


def test_a_restricted_open_is_repeated_when_something_was_renamed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_text("here")
    real, refusals = syscalls._openat2, iter((errno.EAGAIN, errno.EAGAIN))

    def racing(*arguments: object) -> int:
        if number := next(refusals, 0):
            ctypes.set_errno(number)
            return -1
        return real(*arguments)

    monkeypatch.setattr(syscalls, "_openat2", racing)
    top = os.open(tmp_path, os.O_PATH)
    fd = syscalls.openat2(top, b"x", os.O_RDONLY, RESOLVE_BENEATH)
    assert os.read(fd, 9) == b"here"
    os.close(fd)
    os.close(top)


def test_a_restricted_open_is_not_repeated_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def racing(*arguments: object) -> int:
        ctypes.set_errno(errno.EAGAIN)
        return -1

    monkeypatch.setattr(syscalls, "_openat2", racing)
    with pytest.raises(BlockingIOError):
        syscalls.openat2(-100, b"x", os.O_RDONLY, RESOLVE_BENEATH)
