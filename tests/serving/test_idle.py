"""Who has stopped moving, and who has had it all."""

from __future__ import annotations

import gc

from twisted.internet.testing import StringTransport

from poetry import PoetryProtocol, PoetryServerFactory
from poetry.errors import PoemTimedOut
from poetry.serving.idle import Sweeper
from tests.ends import (
    LONG,
    Server,
    ended_with_reset,
    listening,
    queued,
    reader,
)
from tests.loop import drain, turn_until_still, until


def test_a_sweep_resets_a_reader_that_takes_nothing() -> None:
    """No progress for the idle limit is a reset; progress starts it again."""
    sweeper = Sweeper()
    server = Server(LONG)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        for now in (0, 5, 9.9):
            sweeper.sweep([protocol], now, 10.0, 30.0)
            turn_until_still(protocol)
        assert protocol.outcome is None
        sweeper.sweep([protocol], 1000, 10.0, 30.0)
        assert protocol.outcome == "timed_out"
        assert ended_with_reset(connection)
    assert isinstance(server.told[0], PoemTimedOut)


def test_a_sweep_lets_go_of_a_reader_that_never_ends() -> None:
    """A reader that has everything is closed plainly after the linger."""
    sweeper = Sweeper()
    server = Server(b"short")
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: not queued(protocol))  # the end of the stream is acknowledged a bit later
        for now in (0, 29.9):
            sweeper.sweep([protocol], now, 10.0, 30.0)
        assert not server.outcomes
        sweeper.sweep([protocol], 30, 10.0, 30.0)
        until(lambda: server.outcomes)
        assert drain(connection) == b"short"
    assert server.outcomes == ["sent"]


def test_a_sweep_times_a_sender_out_too() -> None:
    """A server that receives gives up on a client that falls silent."""
    sweeper = Sweeper()
    server = Server()
    with listening(server) as port, reader(port) as connection:
        connection.sendall(b"half a po")
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: protocol.size)
        sweeper.sweep([protocol], 0, 10.0, 30.0)
        sweeper.sweep([protocol], 10, 10.0, 30.0)
        assert ended_with_reset(connection)
    (failure,) = server.told
    assert (failure.seconds, failure.received) == (10.0, 9)


def test_without_a_socket_it_goes_by_the_bytes() -> None:
    """A sweep of a transport that is not a socket goes by the bytes alone."""
    sweeper = Sweeper()
    protocol = PoetryServerFactory().buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport())
    sweeper.sweep([protocol], 0, 10.0, 30.0)
    protocol.dataReceived(b"some")
    sweeper.sweep([protocol], 9, 10.0, 30.0)
    sweeper.sweep([protocol], 18, 10.0, 30.0)
    assert protocol.outcome is None
    sweeper.sweep([protocol], 19, 10.0, 30.0)
    assert protocol.outcome == "timed_out"


def test_its_marks_go_with_the_connections() -> None:
    """Nothing is kept of a connection that is gone."""
    sweeper = Sweeper()
    protocol = PoetryServerFactory().buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport())
    sweeper.sweep([protocol], 0, 10.0, 30.0)
    assert len(sweeper._marks) == 1
    protocol.factory.connections.clear()
    del protocol
    gc.collect()
    assert len(sweeper._marks) == 0


def test_a_released_connection_is_left_alone() -> None:
    """Who is being closed already is neither failed nor released again."""
    sweeper = Sweeper()
    server = Server(b"short")
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        (protocol,) = server.connections
        protocol.stop()
        for now in (0, 1000):
            sweeper.sweep([protocol], now, 10.0, 30.0)
        assert protocol.outcome is None
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]
