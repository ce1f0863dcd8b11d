"""Transports that are no sockets: in memory, and under wrappers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from poetry import PoemTruncated, PoetryClientFactory, PoetryProtocol, PoetryServerFactory
from poetry.wire.buffered import Buffered
from tests.certificates import Certificates
from tests.ends import (
    EACH_POEM,
    HERE,
    LONG,
    Server,
    connect_tcp,
    ended_with_reset,
    listening,
    reader,
    reset,
)
from tests.loop import drain, reactor, until, wait, wait_error
from tests.transfers import Log


def test_short_poem_is_written_at_once() -> None:
    """On a transport that is no socket the poem is written and the stream ended at once."""
    protocol = PoetryServerFactory(b"poem").buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    transport = StringTransport()
    protocol.makeConnection(transport)
    assert (transport.value(), transport.disconnecting) == (b"poem", True)
    protocol.dataReceived(b"GET / HTTP/1.1")
    protocol.connectionLost(Failure(error.ConnectionDone()))
    assert protocol.outcome == "sent"


def test_long_poem_is_pulled() -> None:
    """On a transport that is no socket a long poem waits until the transport asks."""
    protocol = PoetryServerFactory(LONG).buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    transport = StringTransport()
    protocol.makeConnection(transport)
    assert transport.value() == b""
    while transport.producer is not None:
        assert not transport.disconnecting
        transport.producer.resumeProducing()
    assert (transport.value() == LONG, transport.disconnecting) == (True, True)


@pytest.mark.parametrize("poem", [b"short", LONG], ids=["short", "long"])
def test_wrapped_transport_delivers(poem: bytes) -> None:
    """Under `twisted.protocols.policies` a poem goes through the wrapper."""
    server = Server(poem)
    with listening(WrappingFactory(server)) as port:
        client = PoetryClientFactory()
        connect_tcp(port, client)
        assert wait(client.received) == poem


class Queues(ProtocolWrapper):
    """Passes on what is written a turn later, and closes after that."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._queue: list[bytes] = []
        self._closing = False

    def write(self, data: bytes) -> None:
        self._queue.append(data)
        reactor.callLater(0, self._pass_on)

    def _pass_on(self) -> None:
        super().write(self._queue.pop(0))  # type: ignore[no-untyped-call]
        if self._closing:
            self.loseConnection()

    def loseConnection(self) -> None:
        self._closing = True
        if not self._queue:
            super().loseConnection()  # type: ignore[no-untyped-call]


class ClosesEarly(ProtocolWrapper):
    """Closes as soon as something is written, once."""

    def write(self, data: bytes) -> None:
        super().write(data)  # type: ignore[no-untyped-call]
        if not self.disconnecting:
            self.loseConnection()  # type: ignore[no-untyped-call]


class QueuesAndClosesEarly(Queues):
    """Closes before it has passed all on."""

    def write(self, data: bytes) -> None:
        super().write(data)
        ProtocolWrapper.loseConnection(self)


class ClosesOnce(ClosesEarly):
    """Passes no second close on."""

    def loseConnection(self) -> None:
        if not self.disconnecting:
            super().loseConnection()  # type: ignore[no-untyped-call]


EARLY = [ClosesEarly, QueuesAndClosesEarly, ClosesOnce]


class Fails(ProtocolWrapper):
    """Takes one chunk."""

    taken = False

    def write(self, data: bytes) -> None:
        if self.taken:
            raise RuntimeError("enough")
        self.taken = True
        super().write(data)  # type: ignore[no-untyped-call]


@contextmanager
def wrapped(server: Server, wrapper: type[ProtocolWrapper], listen: str = HERE) -> Iterator[Any]:
    """A listener whose connections have a wrapper."""
    factory = WrappingFactory(server)
    factory.protocol = wrapper
    port = wait(serverFromString(reactor, listen).listen(factory))
    yield port
    wait(port.stopListening())


@EACH_POEM
def test_wrapper_that_queues_delivers(poem: bytes) -> None:
    """The stream ends after what a wrapper has kept; its reader may speak."""
    server = Server(poem)
    with wrapped(server, Queues) as port, reader(port.getHost().port) as connection:
        connection.sendall(b"GET / HTTP/1.1")
        assert drain(connection) == poem
        connection.sendall(b"more")
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


@pytest.mark.parametrize("wrapper", [ProtocolWrapper, Queues])
@EACH_POEM
def test_wrapper_over_tls_delivers(
    poem: bytes, wrapper: type[ProtocolWrapper], certificates: Certificates
) -> None:
    """The poem waits for the handshake, and its close_notify for the rest that a wrapper keeps."""
    server, client = Server(poem), PoetryClientFactory()
    with wrapped(server, wrapper, certificates.listen("good")) as port:
        clientFromString(reactor, certificates.trusting(port.getHost().port)).connect(client)
        assert wait(client.received) == poem
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


@pytest.mark.parametrize("wrapper", EARLY)
@EACH_POEM
def test_wrapper_that_closes_early_resets(poem: bytes, wrapper: type[ProtocolWrapper]) -> None:
    """Nobody can tell whether a wrapper that has closed passes the rest on."""
    server = Server(poem)
    with wrapped(server, wrapper) as port, reader(port.getHost().port) as connection:
        assert ended_with_reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


@pytest.mark.parametrize("wrapper", EARLY)
@EACH_POEM
def test_wrapper_over_tls_that_closes_early_resets(
    poem: bytes, wrapper: type[ProtocolWrapper], certificates: Certificates
) -> None:
    """No close_notify may leave before the last piece, which TLS keeps until it is flushed."""
    server, client = Server(poem), PoetryClientFactory()
    with wrapped(server, wrapper, certificates.listen("good")) as port:
        clientFromString(reactor, certificates.trusting(port.getHost().port)).connect(client)
        assert isinstance(wait_error(client.received), PoemTruncated)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


@pytest.mark.parametrize("secure", [False, True])
def test_wrapper_that_fails_resets(secure: bool, certificates: Certificates, log: Log) -> None:
    """The reader neither waits, nor takes a part for the whole."""
    server, client = Server(LONG), PoetryClientFactory()
    listen = certificates.listen("good") if secure else HERE
    with wrapped(server, Fails, listen) as port:
        number = port.getHost().port
        address = certificates.trusting(number) if secure else f"tcp:127.0.0.1:{number}"
        clientFromString(reactor, address).connect(client)
        assert isinstance(wait_error(client.received), PoemTruncated)
        until(lambda: server.outcomes)
    assert server.outcomes == ["failed"]
    assert "hook_failed" in log.names
    log.clear()


class LosesInWrite(ProtocolWrapper):
    """Loses its connection while it is written to."""

    def write(self, data: bytes) -> None:
        super().write(data)  # type: ignore[no-untyped-call]
        below: Any = self.transport
        below.connectionLost(Failure(error.ConnectionLost()))


def test_connection_lost_in_a_write_is_truncated(log: Log) -> None:
    """What a poem has forgotten by then is not asked for."""
    server = Server(LONG)
    with wrapped(server, LosesInWrite) as port, reader(port.getHost().port) as connection:
        until(lambda: server.outcomes)
        assert ended_with_reset(connection)
    assert server.outcomes == ["truncated"]
    assert "hook_failed" not in log.names


def test_failing_transport_is_logged_once(log: Log) -> None:
    """A transport that fails may ask again before it is closed."""

    class Refuses(StringTransport):
        def write(self, data: bytes) -> None:
            raise RuntimeError(len(data))

    server = Server(LONG)
    protocol = server.buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(Refuses())
    assert isinstance(protocol.outgoing, Buffered)
    for _ in range(2):
        protocol.outgoing.resumeProducing()
    assert protocol.outcome == "failed"
    assert log.names == ["hook_failed"]
    log.clear()


def test_early_end_under_a_wrapper_is_a_reset() -> None:
    """A wrapper hides the half-close, so that an early end of the reader is a reset."""
    server = Server(LONG)
    with listening(WrappingFactory(server)) as port, reader(port) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert ended_with_reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


def test_input_under_a_wrapper_does_not_reset() -> None:
    """Unread input does not reset bytes that are still on their way."""
    server = Server(LONG)
    with listening(WrappingFactory(server)) as port, reader(port) as connection:
        connection.sendall(b"GET / HTTP/1.1")
        assert drain(connection) == LONG
        connection.sendall(b"more")
        connection.close()
        until(lambda: server.outcomes)


def test_reset_by_a_reader_is_truncated() -> None:
    """A poem whose end cannot be sent counts as truncated."""
    server = Server(b"short")
    with listening(WrappingFactory(server)) as port, reader(port) as connection:
        reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


def test_reset_before_the_end_is_sent_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has reset since the last write has not taken the end."""
    server = Server(LONG)
    with listening(WrappingFactory(server)) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert isinstance(protocol.outgoing, Buffered)
        reset(connection)
        monkeypatch.setattr(protocol.outgoing, "size", len(LONG))
        protocol.outgoing.resumeProducing()
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]
    assert [type(error) for error in server.results] == [PoemTruncated]


def test_reader_that_ends_in_no_tls_is_truncated(certificates: Certificates) -> None:
    """Under a wrapper too, a reader that ends TLS with something else has not taken the poem."""

    def read(port: int) -> None:
        with reader(port) as plain:
            tls = certificates.context().wrap_socket(plain, server_hostname="127.0.0.1")
            tls.recv(1)
            with socket.socket(fileno=tls.detach()) as below:
                below.sendall(b"GET / HTTP/1.1\r\n\r\n")

    server = Server(b"short" * 600)
    endpoint = serverFromString(reactor, certificates.listen("good"))
    port = wait(endpoint.listen(WrappingFactory(server)))
    thread = Thread(target=read, args=[port.getHost().port])
    thread.start()
    until(lambda: server.outcomes)
    thread.join()
    wait(port.stopListening())
    assert server.outcomes == ["truncated"]
