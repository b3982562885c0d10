"""Asking the kernel for what a killed server left unanswered."""

from __future__ import annotations

import os

import pytest

from vzfs import protocol, resend


def test_the_kernel_is_asked_once() -> None:
    theirs, ours = os.pipe()
    resend.ask(ours)
    os.close(ours)
    with open(theirs, "rb") as kernel:
        length, code, unique = protocol.OUT_HEADER.unpack(kernel.read())
    assert (length, code, unique) == (protocol.OUT_SIZE, protocol.NOTIFY_RESEND, 0)


def test_a_kernel_that_cannot_leaves_the_server_alive(capsys: pytest.CaptureFixture[str]) -> None:
    # Any descriptor that refuses to be written stands for one from before Linux 6.9.
    refusing = os.open("/dev/null", os.O_RDONLY)
    try:
        resend.ask(refusing)
    finally:
        os.close(refusing)
    assert "unanswered requests are lost" in capsys.readouterr().err
