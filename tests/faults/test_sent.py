"""A poem counts as sent once its reader has acknowledged it and ended, and not before."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, PrivateCertificate
from twisted.internet.stdio import StandardIO as _StandardIO
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure

from poetry import PoetryClientFactory, PoetryProtocol, PoetryService, send_poem
from poetry.addresses import client_endpoint
from poetry.errors import PoemTimedOut, PoemTruncated
from poetry.idle import sweep
from poetry.wire.outgoing import SHORT, Pace
from poetry.wire.tls import MOST_HEARD, SMALL_READ
from tests.calls import failing
from tests.certificates import Certificates
from tests.ends import (
    HERE,
    LONG,
    Server,
    Wraps,
    listening,
    port_of,
    queued,
    reset,
    reset_seen_as_an_end,
    serving,
)
from tests.faults.readers import poem
from tests.loop import drain, reactor, until, wait, wait_error

POEM = poem(SHORT)
StandardIO: Any = _StandardIO  # mypy takes it for that of Windows


class Mine(PoetryProtocol):
    """Somebody's own, which does not go the fast way."""


@contextmanager
def fast(server: Server) -> Iterator[int]:
    with serving(server) as service:
        yield port_of(service)


@contextmanager
def subclass(server: Server) -> Iterator[int]:
    server.protocol = Mine
    with fast(server) as port:
        yield port


@contextmanager
def over_tls(server: Server, certificates: Certificates) -> Iterator[int]:
    with serving(server, listen=certificates.listen("good")) as service:
        yield port_of(service)


Way = Callable[[Server], AbstractContextManager[int]]
each_way = pytest.mark.parametrize("way", [fast, subclass, listening])


@contextmanager
def slow(port: int) -> Iterator[socket.socket]:
    """A reader whose kernel takes a few kB until it reads."""
    with socket.socket() as connection:
        connection.settimeout(20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", port))
        yield connection


def turn() -> None:
    """Turn the reactor as often as what it has may take."""
    for _ in range(5):
        reactor.iterate(0.02)


def only(server: Server) -> PoetryProtocol:
    """Return the protocol of the one reader, once its stream is ended."""
    until(lambda: server.connections)
    (protocol,) = server.connections
    until(lambda: protocol.outgoing is not None and protocol.outgoing.ended)
    return protocol


def half_close_then_reset(server: Server, connection: socket.socket) -> None:
    """End a reader in two steps, and check that the server takes the second for the outcome."""
    connection.shutdown(socket.SHUT_WR)
    turn()
    assert not server.outcomes
    reset(connection)
    until(lambda: server.outcomes)


@contextmanager
def half_closed(way: Way) -> Iterator[tuple[Server, PoetryProtocol, socket.socket]]:
    """A reader that has half-closed and has read nothing, which the server knows."""
    server = Server(POEM)
    with way(server) as port, slow(port) as connection:
        connection.shutdown(socket.SHUT_WR)
        protocol = only(server)
        turn()
        yield server, protocol, connection


@each_way
def test_reader_that_half_closes_may_take_its_time(way: Way) -> None:
    """It has ended, and gets the rest; the poem counts as sent when it has all, and once."""
    with half_closed(way) as (server, _, connection):
        assert not server.outcomes
        assert drain(connection) == POEM
        until(lambda: server.outcomes)
    assert (server.results, server.outcomes) == (["sent"], ["sent"])


@each_way
def test_reader_that_ends_and_then_resets_has_not_got_it(way: Way) -> None:
    """Its end comes first, as of one that is killed while bytes are under way: not sent."""
    with half_closed(way) as (server, _, connection):
        reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


@each_way
def test_stop_lets_a_reader_go_that_has_ended(way: Way) -> None:
    """A stop leaves the rest to the kernel, without a promise, and no timer behind."""
    with half_closed(way) as (server, protocol, connection):
        protocol.stop()
        assert server.outcomes == ["stopped"]
        assert drain(connection) == POEM
    assert not [call for call in reactor.getDelayedCalls() if "_due" in str(call)]


@each_way
def test_stop_is_told_of_a_reset(way: Way) -> None:
    """A stop that comes between a reset and the next look finds the reset."""
    with half_closed(way) as (server, protocol, connection):
        reset(connection)
        protocol.stop()
        until(lambda: server.outcomes)
        assert (server.outcomes, server.results == ["sent"]) == (["truncated"], False)


@each_way
def test_stop_calls_sent_what_is_acknowledged(way: Way) -> None:
    """A reader that has everything and has not ended has it, when a stop lets it go."""
    server = Server(POEM)
    with way(server) as port, slow(port) as connection:
        protocol = only(server)
        assert drain(connection) == POEM
        until(lambda: not queued(protocol))
        protocol.stop()
        assert server.outcomes == ["sent"]


def test_reader_that_ends_and_takes_nothing_is_idle() -> None:
    """The sweep resets it like any other."""
    with half_closed(listening) as (server, protocol, _):
        for now in (0.0, 10.0):
            sweep([protocol], now, 10.0, 30.0)
        assert protocol.outcome == "timed_out"
        assert isinstance(server.results[0], PoemTimedOut)


def test_subclass_that_fails_on_its_reader_has_not_sent() -> None:
    """What a reader said closes its connection with a reset: nobody knows what has arrived."""

    class Deaf(PoetryProtocol):
        def dataReceived(self, data: bytes) -> None:
            raise RuntimeError(f"cannot take {data!r}")

    server = Server(POEM)
    server.protocol = Deaf
    with listening(server) as port, slow(port) as connection:
        only(server)
        connection.send(b"GET / HTTP/1.0")
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


@each_way
def test_paced_reader_that_half_closes_is_watched(way: Way) -> None:
    """Its reset is noticed although nothing is to be sent for a while."""
    server = Server(POEM)
    server.pace = Pace(100, 1_000.0, reactor)
    with way(server) as port, slow(port) as connection:
        until(lambda: server.connections)
        half_close_then_reset(server, connection)
    assert server.outcomes == ["truncated"]


def test_paced_reader_in_memory_may_half_close() -> None:
    """Without a socket there is nothing to watch, and the poem goes on."""
    server, clock = Server(b"a poem"), Clock()
    server.pace = Pace(3, 1.0, clock)
    protocol: Any = server.buildProtocol(None)
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.readConnectionLost()
    assert (transport.value(), protocol.outcome) == (b"a p", None)
    clock.advance(1.0)
    assert transport.value() == b"a poem"
    assert transport.disconnecting


def test_reader_that_ends_under_a_wrapper_and_resets() -> None:
    """A wrapper that hides the half-close changes nothing."""
    server = Server(POEM)
    service = PoetryService([(Wraps(HERE), server)], clock=reactor)
    service.startService()
    with slow(port_of(service)) as connection:
        only(server)
        half_close_then_reset(server, connection)
    assert server.outcomes == ["truncated"]
    wait(service.stopService())


def test_sweep_sees_a_reset_that_the_reactor_has_not() -> None:
    """All is acknowledged, and the reader has not read it: its reset is no end."""
    server = Server(b"short")
    with listening(server) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        protocol = only(server)
        until(lambda: not queued(protocol))
        sweep([protocol], 0, 10.0, 30.0)
        reset(connection)
        sweep([protocol], 1, 10.0, 30.0)
        assert protocol.outcome == "truncated"


def test_reset_that_is_reported_as_an_end_is_a_reset_for_a_sender_too() -> None:
    """Twisted takes a hang-up with nothing to read for an end, also in the middle of a reset."""
    server = Server(b"short")
    with listening(server) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        protocol = only(server)
        until(lambda: not queued(protocol))
        reset_seen_as_an_end(protocol, connection)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


def speaks(connection: socket.socket) -> None:
    connection.sendall(b"220 hello")


def half_closes(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("size", [10, 1_500_000])
@pytest.mark.parametrize("first", [speaks, half_closes])
def test_receiver_that_is_first_gets_the_poem(
    first: Callable[[socket.socket], None], size: int
) -> None:
    """A server may speak or half-close before our reactor knows that it is connected: then the same
    event is one to read and to write."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", listener.getsockname()[1])
        listener.settimeout(20)
        sending = send_poem(endpoint, poem(size))
        reactor.runUntilCurrent()  # which begins to connect, and sees no event
        connection, _ = listener.accept()
        with connection:
            first(connection)
            assert drain(connection) == poem(size)
        assert wait(sending) is None


def test_sender_that_is_aborted_before_it_begins_leaves_no_timer() -> None:
    """Between connection and first byte there is a turn of the reactor."""

    class Aborts(PoetryProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.abortConnection()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        factory = PoetryClientFactory(POEM)
        factory.protocol = Aborts
        TCP4ClientEndpoint(reactor, "127.0.0.1", listener.getsockname()[1]).connect(factory)
        error = wait_error(factory.received)
        until(lambda: not reactor.getDelayedCalls())
        connection, _ = listener.accept()
        with connection, pytest.raises(ConnectionResetError):
            drain(connection)
    assert isinstance(error, PoemTruncated)


@pytest.mark.parametrize("how", ["fail", "abort", "raise"])
def test_client_that_fails_before_it_begins_sends_nothing(tmp_path: Path, how: str) -> None:
    """A Unix socket has no reset: its reader gets nothing, which is no poem."""

    class Fails(PoetryProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            if how == "fail":
                self.fail(ValueError())
            elif how == "abort":
                self.transport.abortConnection()
            else:
                raise ValueError

    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(20)
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        factory = PoetryClientFactory(POEM)
        factory.protocol = Fails
        UNIXClientEndpoint(reactor, str(tmp_path / "s")).connect(factory).addErrback(lambda _: None)
        assert isinstance(wait_error(factory.received), (ValueError, PoemTruncated))
        connection, _ = listener.accept()
        with connection:
            until(lambda: not factory.connections)
            assert drain(connection) == b""
    assert not reactor.getDelayedCalls()


def test_client_that_the_reactor_refuses_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a poem begins by a timer, an error of the reactor is the transfer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        factory = PoetryClientFactory(poem(10_000_000))
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", listener.getsockname()[1])
        protocol: Any = wait(endpoint.connect(factory))
        monkeypatch.setattr(protocol._wire, "startWriting", failing(errno.ENOSPC))
        assert isinstance(wait_error(factory.received), OSError)
    assert protocol.outcome == "failed"


def test_killed_receiver_fails_a_sender() -> None:
    """send_poem fails if its receiver ends while bytes are under way, and resets then."""
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        port = receiver.getsockname()[1]
        sending = send_poem(client_endpoint(reactor, f"127.0.0.1:{port}"), POEM)
        receiver.setblocking(False)
        connections: list[socket.socket] = []

        def accepted() -> bool:
            with suppress(BlockingIOError):
                connections.append(receiver.accept()[0])
            return bool(connections)

        until(accepted)
        connections[0].shutdown(socket.SHUT_WR)
        turn()
        reset(connections[0])
        assert isinstance(wait_error(sending), PoemTruncated)


def test_alert_after_the_poem_refuses_it(certificates: Certificates) -> None:
    """A receiver that wants a certificate of its client says so after the handshake, in TLS 1.3."""
    pem = certificates.path("good").read_bytes()
    authority = Certificate.loadPEM(certificates.authority.read_bytes())
    receiver = Server()
    context = PrivateCertificate.loadPEM(pem).options(authority)
    listen = SSL4ServerEndpoint(reactor, 0, context, interface="127.0.0.1").listen(receiver)
    port = wait(listen)
    endpoint = client_endpoint(reactor, certificates.trusting(port.getHost().port))
    assert isinstance(wait_error(send_poem(endpoint, POEM)), PoemTruncated)
    until(lambda: receiver.results)
    assert receiver.outcomes == ["handshake"]
    wait(port.stopListening())


def test_reader_over_tls_that_ends_and_then_resets(certificates: Certificates) -> None:
    """Over TLS as well, the poem of a reader that has not acknowledged all is not sent."""
    server = Server(POEM)
    with over_tls(server, certificates) as port, slow(port) as connection:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = certificates.context(ssl.TLSVersion.TLSv1_2)
        tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        connection.setblocking(False)
        while tls.version() is None or outgoing.pending:
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            connection.sendall(outgoing.read())
            reactor.iterate(0.02)
            with suppress(BlockingIOError):
                incoming.write(connection.recv(1000))
        only(server)
        half_close_then_reset(server, connection)
    assert server.outcomes == ["truncated"]


@pytest.mark.parametrize("first", ["close_notify", "rubbish"])
def test_flood_after_the_end_is_not_heard(
    first: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS a reader may say no more than an alert: OpenSSL would keep the rest in memory."""
    heard: list[int] = []
    write = SSL.Connection.bio_write

    def bio_write(connection: SSL.Connection, data: bytes) -> int:
        heard.append(len(data))
        return write(connection, data)

    def flood(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 20) as plain:
            tls = certificates.context().wrap_socket(plain, server_hostname="127.0.0.1")
            while tls.recv(1000):
                pass
            heard.clear()
            below = tls.unwrap() if first == "close_notify" else socket.socket(fileno=tls.detach())
            with below:
                below.sendall(bytes(500_000))

    monkeypatch.setattr(SSL.Connection, "bio_write", bio_write)
    server = Server(POEM)
    with over_tls(server, certificates) as port:
        thread = Thread(target=flood, args=[port])
        thread.start()
        until(lambda: server.outcomes)
        thread.join()
    assert server.outcomes == ["sent"]
    assert sum(heard) <= MOST_HEARD + SMALL_READ


class Around(Protocol):
    """A wrapper that is a transport, and has no `abortConnection`."""

    disconnecting = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connectionMade(self) -> None:
        self._inner.makeConnection(self)

    def dataReceived(self, data: bytes) -> None:
        self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._inner.connectionLost(reason)

    def write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.transport.registerProducer(producer, streaming)  # type: ignore[union-attr]

    def unregisterProducer(self) -> None:
        self.transport.unregisterProducer()  # type: ignore[union-attr]

    def loseConnection(self) -> None:
        self.disconnecting = True
        self.transport.loseConnection()  # type: ignore[union-attr]


class AroundAll(Factory):
    """A factory of wrappers around what another one builds."""

    noisy = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def buildProtocol(self, addr: Any) -> Any:
        return Around(self._inner.buildProtocol(addr))


@pytest.mark.parametrize("receives", [True, False])
def test_wrapper_that_cannot_abort_is_closed_below(tmp_path: Path, receives: bool) -> None:
    """A reset goes to the reactor's own transport: to tell the wrapper of a loss closes nothing."""
    server = Server(None if receives else LONG)
    path = str(tmp_path / "socket")
    port = reactor.listenUNIX(path, AroundAll(server))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        until(lambda: server.connections)
        for protocol in list(server.connections):
            protocol.fail(PoemTimedOut(1.0, 0))
        drain(connection)  # to its end
    until(lambda: server.outcomes)
    assert (server.outcomes, len(server.results)) == (["timed_out"], 1)
    wait(port.stopListening())


def test_pipe_under_a_wrapper_that_breaks_is_closed() -> None:
    """Under a wrapper of Twisted's a broken pipe is closed once as well."""
    ends, back = os.pipe(), os.pipe()
    server = Server(poem(1_500_000))
    wrapped: Any = WrappingFactory(server)
    StandardIO(wrapped.buildProtocol(None), stdin=ends[0], stdout=back[1])
    until(lambda: any(connection.size for connection in server.connections))
    for connection in list(server.connections):
        connection.fail(PoemTimedOut(1.0, 0))
    os.close(ends[1])
    os.close(back[0])
    assert server.outcomes == ["timed_out"]


def test_pipe_that_breaks_is_told() -> None:
    """Of a pipe whose reader goes a protocol hears only that its write side is lost."""
    ends, back = os.pipe(), os.pipe()
    server = Server(poem(1_500_000))
    StandardIO(server.buildProtocol(None), stdin=ends[0], stdout=back[1])
    until(lambda: any(connection.size for connection in server.connections))
    os.close(back[0])
    try:
        until(lambda: server.outcomes)
    finally:
        os.close(ends[1])
    assert server.outcomes == ["truncated"]
    until(lambda: not server.connections)


def test_poem_from_standard_input_of_the_reactor_is_whole() -> None:
    """A transport that closes later is not taken for one that was closed before the end."""
    ends, back = os.pipe(), os.pipe()
    client = PoetryClientFactory()
    StandardIO(client.buildProtocol(None), stdin=ends[0], stdout=back[1])
    os.write(ends[1], b"hello")
    os.close(ends[1])
    try:
        assert wait(client.received) == b"hello"
    finally:
        os.close(back[0])
