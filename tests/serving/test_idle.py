"""The idle timeout, and the end of a lingering close."""

from __future__ import annotations

import errno

import pytest
from twisted.internet.testing import StringTransport

from poetry import PoetryProtocol, PoetryServerFactory
from poetry.errors import PoemTimedOut
from poetry.serving.idle import sweep
from poetry.serving.stopping import stop_all
from tests.calls import failing
from tests.ends import (
    LONG,
    Server,
    ended_with_reset,
    listening,
    queued,
    reader,
)
from tests.loop import drain, turn_until_still, until
from tests.transfers import Log


def test_a_sweep_resets_a_reader_that_takes_nothing() -> None:
    """No progress for the idle limit is a reset; progress starts it again."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        for now in (0, 5, 9.9):
            sweep([protocol], now, 10.0, 30.0)
            turn_until_still(protocol)
        assert protocol.outcome is None
        sweep([protocol], 1000, 10.0, 30.0)
        assert protocol.outcome == "timed_out"
        assert ended_with_reset(connection)
    assert isinstance(server.told[0], PoemTimedOut)


def test_a_sweep_lets_go_of_a_reader_that_never_ends() -> None:
    """A reader that has everything is closed plainly after the linger."""
    server = Server(b"short")
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: not queued(protocol))  # the end of the stream is acknowledged a bit later
        for now in (0, 29.9):
            sweep([protocol], now, 10.0, 30.0)
        assert not server.outcomes
        sweep([protocol], 30, 10.0, 30.0)
        until(lambda: server.outcomes)
        assert drain(connection) == b"short"
    assert server.outcomes == ["sent"]


def test_a_sweep_times_a_sender_out_too() -> None:
    """A server that receives gives up on a client that falls silent."""
    server = Server()
    with listening(server) as port, reader(port) as connection:
        connection.sendall(b"half a po")
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: protocol.size)
        sweep([protocol], 0, 10.0, 30.0)
        sweep([protocol], 10, 10.0, 30.0)
        assert ended_with_reset(connection)
    (failure,) = server.told
    assert (failure.seconds, failure.received) == (10.0, 9)


def test_without_a_socket_it_goes_by_the_bytes() -> None:
    """A sweep of a transport that is not a socket goes by the bytes alone."""
    protocol = PoetryServerFactory().buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport())
    sweep([protocol], 0, 10.0, 30.0)
    protocol.dataReceived(b"some")
    sweep([protocol], 9, 10.0, 30.0)
    sweep([protocol], 18, 10.0, 30.0)
    assert protocol.outcome is None
    sweep([protocol], 19, 10.0, 30.0)
    assert protocol.outcome == "timed_out"


def test_a_released_connection_is_left_alone() -> None:
    """A connection that was closed is neither failed nor closed again by a late look."""
    server = Server(b"short")
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        (protocol,) = server.connections
        protocol.stop()
        for now in (0, 1000):
            sweep([protocol], now, 10.0, 30.0)
    assert server.outcomes == ["sent"]


def test_a_connection_that_cannot_be_ended(log: Log) -> None:
    """What goes wrong with one keeps the sweep, a stop and a grace from no other."""
    server = Server(LONG)
    with listening(server) as port, reader(port), reader(port):
        until(lambda: len(server.connections) == 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("poetry.protocol.abort", failing(errno.ENOMEM))
            sweep(server.connections, 0, 10.0, 30.0)
            for protocol in server.connections:
                turn_until_still(protocol)
            sweep(server.connections, 1, 10.0, 30.0)
            sweep(server.connections, 1000, 10.0, 30.0)
        assert len([event for event in log if "log_failure" in event]) == 2
        for protocol in list(server.connections):
            protocol.transport.abortConnection()
        until(lambda: len(server.outcomes) == 2)
    log.clear()


def test_a_stop_that_fails(log: Log) -> None:
    """The next connection is stopped all the same."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as first, reader(port) as second:
        until(lambda: len(server.connections) == 2)
        with pytest.MonkeyPatch.context() as patch:
            for protocol in server.connections:
                patch.setattr(protocol, "stop", failing(errno.ENOMEM))
            stop_all(server.connections)
        stop_all(server.connections)
        assert ended_with_reset(first)
        assert ended_with_reset(second)
    assert len([event for event in log if "log_failure" in event]) == 2
    log.clear()
