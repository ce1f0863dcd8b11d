"""The slow server: a sender around another, over any transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory

from poetry.serving.idle import Sweeper
from poetry.wire.sender import Pace
from tests.ends import (
    Server,
    listening,
    queued,
    reader,
)
from tests.loop import drain, until


def slow(poem: bytes, clock: Clock) -> Server:
    server = Server(poem)
    server.pace = Pace(2, 1.5, clock)
    return server


def test_a_few_bytes_at_a_time() -> None:
    """It sends its first bytes at once, and some more after each delay."""
    clock = Clock()
    protocol = slow(b"12345", clock).buildProtocol(None)
    assert protocol is not None
    transport = StringTransport()
    protocol.makeConnection(transport)
    seen = [transport.value()]
    for _ in range(2):
        clock.advance(1.5)
        seen.append(transport.value())
    assert seen == [b"12", b"1234", b"12345"]
    assert (transport.disconnecting, clock.getDelayedCalls()) == (True, [])


def test_paused() -> None:
    """A full transport pauses it, and a lost one leaves no timer behind."""
    clock = Clock()
    protocol = slow(b"12345", clock).buildProtocol(None)
    assert protocol is not None
    transport = StringTransport()
    protocol.makeConnection(transport)
    producer: Any = transport.producer
    producer.pauseProducing()
    producer.pauseProducing()
    clock.advance(10)
    assert transport.value() == b"12"
    producer.resumeProducing()
    assert transport.value() == b"1234"
    producer.stopProducing()
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(
    "wrap", [lambda factory: factory, WrappingFactory], ids=["plain", "wrapped"]
)
def test_on_a_socket(wrap: Callable[[Any], Any]) -> None:
    """On a real socket the slow poem arrives whole, and its reader is not blamed for the wait."""
    clock, sweeper = Clock(), Sweeper()
    server = slow(b"12345", clock)
    with listening(wrap(server)) as port, reader(port) as connection:
        until(clock.getDelayedCalls)
        (protocol,) = server.connections
        until(lambda: not queued(protocol))
        for now in (0.0, 100.0, 200.0):
            sweeper.sweep([protocol], now, 1.0, 1.0)
        assert protocol.outcome is None
        clock.advance(1.5)
        clock.advance(1.5)
        assert drain(connection) == b"12345"
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_a_lost_connection_leaves_no_timer() -> None:
    """However a slow transfer ends, its timer goes with it."""
    clock = Clock()
    server = slow(b"12345", clock)
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        (protocol,) = server.connections
        protocol.stop()
        until(lambda: server.outcomes)
    assert (server.outcomes, clock.getDelayedCalls()) == (["stopped"], [])
