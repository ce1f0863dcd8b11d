"""The idle timeout, and the end of a lingering close."""

from __future__ import annotations

import errno
import socket
from itertools import count
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from poetry import PoetryProtocol, PoetryServerFactory
from poetry.errors import PoemTimedOut
from poetry.idle import sweep
from poetry.serving.stopping import stop_all
from poetry.wire.kernel import unacknowledged
from poetry.wire.outgoing import Pace
from tests.calls import failing
from tests.ends import (
    LONG,
    Server,
    ended_with_reset,
    listening,
    queued,
    reader,
)
from tests.loop import drain, reactor, turn_until_still, until
from tests.transfers import Log


def test_sweep_resets_a_stalled_reader() -> None:
    """No progress for the idle timeout is a reset; progress starts the time again."""
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
    assert isinstance(server.results[0], PoemTimedOut)


def test_what_we_hand_over_is_no_progress_of_a_reader() -> None:
    """A rate limit fills the kernel's buffer for hours, while its reader takes nothing."""
    clock, server = Clock(), Server(LONG)
    server.pace = Pace(1000, 1.0, clock)
    with listening(server) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", port))
        until(lambda: server.connections)
        (protocol,) = server.connections
        for now in range(100):
            clock.advance(1.0)
            reactor.iterate(0.001)
            sweep([protocol], now, 10.0, 30.0)
        assert protocol.outcome == "timed_out"


def test_what_we_answer_is_no_progress_of_a_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS answers each KeyUpdate, and a sender need not take the answers."""
    answers = count()
    monkeypatch.setattr("poetry.idle.unacknowledged", lambda _: next(answers))
    server = Server()
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        (protocol,) = server.connections
        for now in range(12):
            sweep([protocol], now, 10.0, 30.0)
        assert protocol.outcome == "timed_out"


@pytest.mark.parametrize("counted", [True, False])
def test_reader_that_takes_little_is_not_idle(
    counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than the rate limit is progress as well, whether or not the kernel counts it."""
    if not counted:
        monkeypatch.setattr("poetry.idle.acknowledged", lambda _: None)
    clock, server = Clock(), Server(LONG)
    server.pace = Pace(10_000, 1.0, clock)
    with listening(server) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.settimeout(20)
        until(lambda: server.connections)
        (protocol,) = server.connections
        for now in range(100):
            clock.advance(1.0)
            reactor.iterate(0)
            taken = connection.recv(5000)
            while taken and unacknowledged(protocol.transport.getHandle()) > 200_000:
                taken = connection.recv(5000)  # the kernel tells of new room now and then
            sweep([protocol], now, 10.0, 30.0)
        assert protocol.outcome is None


def test_sweep_leaves_the_attributes_of_a_subclass_alone() -> None:
    """A subclass may have attributes of any name."""

    class Measured(PoetryProtocol):
        def progress(self) -> int:
            return self.size

    server = Server(b"short")
    server.protocol = Measured
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        (protocol,) = server.connections
        sweep([protocol], 0, 10.0, 30.0)
        assert isinstance(protocol, Measured)
        assert protocol.progress() == 5


def test_sweep_closes_gracefully_after_the_linger() -> None:
    """A reader that has the whole poem and stays is closed gracefully after the linger."""
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


def test_sweep_resets_a_silent_sender() -> None:
    """A server that receives resets a client that falls silent."""
    server = Server()
    with listening(server) as port, reader(port) as connection:
        connection.sendall(b"half a po")
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: protocol.size)
        sweep([protocol], 0, 10.0, 30.0)
        sweep([protocol], 10, 10.0, 30.0)
        assert ended_with_reset(connection)
    (failure,) = server.results
    assert (failure.seconds, failure.received) == (10.0, 9)


def test_sweep_counts_bytes_without_a_socket() -> None:
    """On a transport that is no socket a sweep measures progress by the bytes alone."""
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


def test_sweep_without_a_socket_calls_nothing_sent() -> None:
    """A transport that cannot tell what has arrived leaves a reader that does not end idle."""
    server = Server(b"short")
    protocol: Any = server.buildProtocol(None)
    protocol.makeConnection(StringTransport())
    for now in (0, 10):
        sweep([protocol], now, 10.0, 5.0)
    assert protocol.outcome == "timed_out"


def test_sweep_leaves_a_closed_connection_alone() -> None:
    """A late sweep neither fails nor closes a closed connection again."""
    server = Server(b"short")
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: not queued(protocol))
        protocol.stop()
        for now in (0, 1000):
            sweep([protocol], now, 10.0, 30.0)
    assert server.outcomes == ["sent"]


def refusals(log: Log) -> list[str]:
    """What could not be done with a connection, and why, of the lines without a traceback."""
    return [
        f"{event['verb']}: {event['reason']}"
        for event in log
        if event.get("event") == "connection_failed" and "log_failure" not in event
    ]


def test_sweep_goes_on_after_an_error(log: Log) -> None:
    """An error while one connection is ended is logged, and does not spare the others."""
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
        assert refusals(log) == ["ended: Cannot allocate memory"] * 2
        for protocol in list(server.connections):
            protocol.transport.abortConnection()
        until(lambda: len(server.outcomes) == 2)
    log.clear()


def test_stop_goes_on_after_an_error(log: Log) -> None:
    """An error while one connection stops is logged, and the next one stops."""
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
    assert refusals(log) == ["ended: Cannot allocate memory"] * 2
    log.clear()
