"""What a killed server left unanswered: asked of the kernel, or found in memory all servers have."""

from __future__ import annotations

import os

import pytest

from vzfs import protocol, resend
from vzfs.resend import LONGEST, PLAIN, Hand


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


def _request(unique: int, length: int = 100) -> bytes:
    return protocol.IN_START.pack(length, protocol.Op.LOOKUP, unique, 1).ljust(length, b"x")


def _in_a_child(act: object) -> None:
    """Do it in another process, which is killed then."""
    child = os.fork()
    if not child:
        assert callable(act)
        act()
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)


def test_nothing_is_left_at_first() -> None:
    assert Hand().left() == []


def test_the_request_in_hand_is_left_to_the_next_server() -> None:
    hand = Hand()
    request = _request(4)

    def read() -> None:
        hand.expect(PLAIN)
        hand.buffer[: len(request)] = request

    _in_a_child(read)
    assert hand.left() == [request]


def test_parked_requests_are_left_in_their_order_until_they_are_given_up() -> None:
    hand = Hand()
    requests = [_request(unique) for unique in (8, 4, 6)]

    def park() -> None:
        for request in requests:
            assert hand.park(request)
            hand.buffer[: len(request)] = request
        hand.unpark(4)

    _in_a_child(park)
    # The last is both in hand and parked: it is there once.
    assert hand.left() == [requests[2], requests[0]]
    hand.unpark(8)
    hand.unpark(99)
    assert hand.left() == [requests[2]]


def test_a_request_is_parked_once_however_often_it_waits() -> None:
    hand = Hand()
    for _ in range(200):
        assert hand.park(_request(4))
    hand.unpark(4)
    assert hand.left() == []


def test_what_has_no_place_is_refused() -> None:
    hand = Hand()
    assert not hand.park(_request(2, PLAIN + 1))
    kept = 0
    while hand.park(_request(4 + 2 * kept, PLAIN)):
        kept += 1
    assert kept >= 32
    assert len(hand.left()) == kept
    hand.unpark(4)
    assert hand.park(_request(2))


def test_pages_no_request_reached_cost_nothing() -> None:
    before = _resident_kib()
    hand = Hand()
    hand.expect(PLAIN)
    assert _resident_kib() - before < 200
    hand.expect(LONGEST)
    assert _resident_kib() - before > 1000


def _resident_kib() -> int:
    with open("/proc/self/status") as status:
        return sum(int(line.split()[1]) for line in status if line.startswith("RssShmem:"))


def test_an_answer_the_kernel_takes_is_not_asked_with() -> None:
    sink = os.open("/dev/null", os.O_WRONLY)
    try:
        with pytest.raises(AssertionError, match="none"):
            resend.is_waiting(sink, 2)
    finally:
        os.close(sink)
