"""The readers of these tests recognize each way to end."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import pytest

from tests.certificates import Certificates
from tests.faults.bad import Handler, closed_port, reset, serving, stall, whole
from tests.faults.readers import (
    ENDS,
    PLAIN,
    Crowd,
    Exactly,
    Expected,
    Habit,
    Numbered,
    numbered_poem,
    read_all,
)

POEM = numbered_poem(7, 200_000, random.Random(7))
OTHER = numbered_poem(8, 200_000, random.Random(8))


def sends(part: bytes, then: Handler = lambda _: None) -> Handler:
    """A handler that sends a part of the poem, and then makes a call."""

    def handle(sock: socket.socket) -> None:
        sock.sendall(part)
        then(sock)

    return handle


HANDLERS: dict[str, Handler] = {
    "whole": lambda sock: whole(sock, POEM),
    "reset": sends(POEM[:-1], reset),
    "empty": lambda sock: whole(sock, b""),
    "truncated": lambda sock: whole(sock, POEM[:-1]),
    "waiting": sends(POEM[:-1], stall),
    "wrong": lambda sock: whole(sock, OTHER),
}

EXPECTED: dict[str, Callable[[], Expected]] = {
    "compared": lambda: Exactly(POEM),
    "counted": lambda: Exactly(POEM, counted=True),
    "numbered": lambda: Numbered(7),
}


def test_each_way_to_end_has_a_server() -> None:
    """No way to end is left out below."""
    assert tuple(HANDLERS) == ENDS


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_each_way_to_end_is_recognized(
    certificates: Certificates, tls: bool, kind: str, end: str
) -> None:
    """Each way to end has its name; a reader that only counts takes wrong bytes for the poem's."""
    ours = certificates.server_context("good") if tls else None
    context = certificates.context() if tls else None
    with serving(HANDLERS[end], ours) as port:
        ends = read_all(f"127.0.0.1:{port}", EXPECTED[kind], count=5, context=context, quiet=0.5)
    assert ends == {"whole" if (kind, end) == ("counted", "wrong") else end: 5}


def test_refused_connections_are_resets() -> None:
    """Readers of a port without a listener end as reset."""
    with closed_port() as port:
        assert read_all(f"127.0.0.1:{port}", POEM, count=5) == {"reset": 5}


@pytest.mark.parametrize(
    "habit",
    [PLAIN, Habit(discards=True), Habit(drips=b"x"), Habit(at_a_time=1000), Habit(stays=True)],
    ids=["plain", "discards", "drips", "small parts", "stays"],
)
def test_each_habit_reads_the_whole_poem(habit: Habit) -> None:
    """With each habit a reader has the whole poem; bytes that the kernel drops are counted."""
    counted = Exactly(POEM, counted=habit.discards)
    with serving(HANDLERS["whole"]) as port:
        assert read_all(f"127.0.0.1:{port}", lambda: counted, habit, count=5) == {"whole": 5}


def test_stopped_readers_make_room() -> None:
    """One reader at a time stops after a byte, until all have; then all read on."""
    with (
        serving(HANDLERS["whole"]) as port,
        Crowd(f"127.0.0.1:{port}", POEM, Habit(takes=1), count=20, at_once=1) as crowd,
    ):
        crowd.run(crowd.stopped)
        assert crowd.received == [1] * 20
        crowd.resume()
        assert crowd.run() == {"whole": 20}
