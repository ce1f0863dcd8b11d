"""The wire: both ends, all four combinations, and what each end makes of how the other ends."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure

from poetry.protocol import (
    SHORT,
    EmptyPoem,
    PoemError,
    PoemMismatch,
    PoemStopped,
    PoemTimedOut,
    PoemTooLong,
    PoemTruncated,
    PoetryClientFactory,
    PoetryFactory,
    PoetryProtocol,
    PoetryServerFactory,
)
from tests.certificates import Certificates
from tests.loop import drain, reactor, turn_until_still, until, wait, wait_error

LONG = bytes(range(256)) * 40_000  # 10 MB: more than the kernel takes at once
POEMS = {"1 byte": b"\0", "3 kB": b"line\n" * 600, "16 kB + 1": b"x" * (SHORT + 1), "10 MB": LONG}
DONE = Failure(error.ConnectionDone())
LOST = Failure(error.ConnectionLost())


class Server(PoetryServerFactory):
    """Keeps what its hooks are told."""

    def __init__(self, poem: bytes | None = None) -> None:
        super().__init__(poem)
        self.told: list[Any] = []
        self.outcomes: list[str | None] = []
        self.observers = (lambda protocol: self.outcomes.append(protocol.outcome),)

    def poemReceived(self, poem: bytes) -> None:
        self.told.append(poem)

    def poemFailed(self, reason: Failure) -> None:
        self.told.append(reason.value)

    def poemSent(self, poem: bytes) -> None:
        super().poemSent(poem)
        self.told.append("sent")


@contextmanager
def listening(factory: Any) -> Iterator[int]:
    """A listener on a free port."""
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        yield port.getHost().port
    finally:
        wait(port.stopListening())


@contextmanager
def reader(port: int) -> Iterator[socket.socket]:
    """A blocking reader, once connected."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def connect_tcp(port: int, factory: PoetryClientFactory) -> None:
    reactor.connectTCP("127.0.0.1", port, factory)


def connect_endpoint(port: int, factory: PoetryClientFactory) -> None:
    TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)


CONNECTS = pytest.mark.parametrize("connect", [connect_tcp, connect_endpoint])
EACH_POEM = pytest.mark.parametrize("poem", POEMS.values(), ids=POEMS.keys())


def received(*chunks: bytes, reason: Failure = DONE, limit: int | None = None) -> Any:
    """What a client's Deferred fires with after these chunks and this end."""
    factory = PoetryClientFactory()
    factory.max_bytes = limit
    results: list[Any] = []
    factory.received.addBoth(results.append)
    protocol = factory.buildProtocol(None)
    protocol.makeConnection(StringTransport())
    for chunk in chunks:
        protocol.dataReceived(chunk)
    protocol.connectionLost(reason)
    (result,) = results
    return result.value if isinstance(result, Failure) else result


# Who connects, and who sends


@EACH_POEM
@CONNECTS
def test_the_server_has_the_poem(poem: bytes, connect: Callable[..., None]) -> None:
    """A client without a poem gets the server's, byte for byte."""
    server, client = Server(poem), PoetryClientFactory()
    with listening(server) as port:
        connect(port, client)
        assert wait(client.received) == poem
        until(lambda: server.told)
    assert (server.told, server.outcomes) == (["sent"], ["sent"])


@EACH_POEM
@CONNECTS
def test_the_client_brings_the_poem(poem: bytes, connect: Callable[..., None]) -> None:
    """A server without a poem gets the client's, and the client is told that it is there."""
    server, client = Server(), PoetryClientFactory(poem)
    with listening(server) as port:
        connect(port, client)
        assert wait(client.received) == poem
    assert (server.told, server.outcomes) == ([poem], ["received"])


def test_neither_has_a_poem() -> None:
    """Two ends that wait for a poem each get an error when the connection ends."""
    server, client = Server(), PoetryClientFactory()
    with listening(server) as port:
        connect_tcp(port, client)
        until(lambda: server.connections and client.connections)
        next(iter(server.connections)).transport.loseConnection()
        assert isinstance(wait_error(client.received), EmptyPoem)
        until(lambda: server.told)
    assert isinstance(server.told[0], PoemTruncated)


def test_both_have_a_poem() -> None:
    """Two ends that both send discard each other's poem, and both have sent theirs."""
    server, client = Server(LONG), PoetryClientFactory(LONG)
    with listening(server) as port:
        connect_tcp(port, client)
        assert wait(client.received) == LONG
        until(lambda: server.told)
    assert server.told == ["sent"]


def test_endpoints_serve_too() -> None:
    """The server factory works with an endpoint."""
    port = wait(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Server(b"poem")))
    client = PoetryClientFactory()
    connect_tcp(port.getHost().port, client)
    assert wait(client.received) == b"poem"
    wait(port.stopListening())


def test_a_new_poem_is_for_new_connections() -> None:
    """Replacing `factory.poem` leaves readers in flight with the old one."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as slow:
        until(lambda: server.connections)
        server.poem = b"new"
        client = PoetryClientFactory()
        connect_tcp(port, client)
        assert wait(client.received) == b"new"
        assert drain(slow) == LONG


# A poem is bytes, and not empty


@pytest.mark.parametrize("factory", [PoetryServerFactory, PoetryClientFactory])
def test_an_empty_poem_is_refused(factory: type[PoetryFactory]) -> None:
    """There is no empty poem, neither at first nor later."""
    with pytest.raises(EmptyPoem):
        factory(b"")
    given_one = factory(b"poem")
    with pytest.raises(EmptyPoem):
        given_one.poem = b""
    assert given_one.poem == b"poem"


def test_text_is_refused() -> None:
    """A poem is bytes: which encoding a text has on the wire is not ours to choose."""
    with pytest.raises(TypeError, match="str"):
        PoetryServerFactory("poem")  # type: ignore[arg-type]


# Receiving, in memory


@given(st.lists(st.binary(min_size=1), min_size=1))
def test_any_bytes_in_any_chunking_give_the_same_poem(chunks: list[bytes]) -> None:
    """How the bytes are cut on their way makes no difference."""
    assert received(*chunks) == b"".join(chunks)


@given(st.lists(st.binary(min_size=1), min_size=1))
def test_a_broken_end_is_never_a_poem(chunks: list[bytes]) -> None:
    """Whatever came before it, a lost connection is an error that says how much came."""
    failure = received(*chunks, reason=LOST)
    assert isinstance(failure, PoemTruncated)
    assert failure.received == sum(map(len, chunks))


@given(st.binary(min_size=1), st.integers(min_value=1, max_value=8))
def test_the_limit_itself_is_not_too_long(poem: bytes, cut: int) -> None:
    """As many bytes as the limit are a poem, and one more is an error."""
    chunks = [poem[i : i + cut] for i in range(0, len(poem), cut)]
    assert received(*chunks, limit=len(poem)) == poem
    failure = received(*chunks, b"!", b"more", limit=len(poem))
    assert isinstance(failure, PoemTooLong)
    assert failure.limit == len(poem)


def test_nothing_is_not_a_poem() -> None:
    """A clean end after nothing is an error of its own."""
    assert isinstance(received(), EmptyPoem)


def test_a_break_before_the_first_byte_is_a_truncation() -> None:
    """A lost connection after nothing says that nothing came."""
    failure = received(reason=LOST)
    assert isinstance(failure, PoemTruncated)
    assert failure.received == 0


def test_our_own_close_is_not_the_end_of_a_poem() -> None:
    """Who closes a connection while a poem comes in has not received it."""
    client = PoetryClientFactory()
    protocol = client.buildProtocol(None)
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(b"half a po")
    transport.loseConnection()
    protocol.connectionLost(DONE)
    assert isinstance(wait_error(client.received), PoemTruncated)


def test_a_refused_connection_fires_received() -> None:
    """`received` fires once for a connection that never was, with Twisted's own error."""
    memory = MemoryReactorClock()
    client = PoetryClientFactory()
    memory.connectTCP("127.0.0.1", 1, client)
    client.clientConnectionFailed(memory.connectors[0], Failure(error.ConnectionRefusedError()))
    client.clientConnectionFailed(memory.connectors[0], Failure(error.ConnectionRefusedError()))
    assert isinstance(wait_error(client.received), error.ConnectionRefusedError)


def test_the_hooks_of_a_plain_factory_do_nothing() -> None:
    """Without overriding a hook, a server takes a poem, and drops it."""
    server = PoetryServerFactory()
    protocol = server.buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport())
    protocol.dataReceived(b"poem")
    protocol.connectionLost(DONE)
    server.poemFailed(DONE)
    assert protocol.outcome == "received"


# Sending, in memory


def test_without_a_socket_a_short_poem_is_written_at_once() -> None:
    """On a transport that is not a socket, the poem is written and the stream ended."""
    protocol = PoetryServerFactory(b"poem").buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    transport = StringTransport()
    protocol.makeConnection(transport)
    assert (transport.value(), transport.disconnecting) == (b"poem", True)
    protocol.dataReceived(b"GET / HTTP/1.1")
    protocol.connectionLost(DONE)
    assert protocol.outcome == "sent"


def test_without_a_socket_a_long_poem_is_pulled() -> None:
    """On a transport that is not a socket, a long poem waits for the transport to ask."""
    protocol = PoetryServerFactory(LONG).buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    transport = StringTransport()
    protocol.makeConnection(transport)
    assert transport.value() == b""
    while transport.producer is not None:
        assert not transport.disconnecting
        transport.producer.resumeProducing()
    assert (transport.value() == LONG, transport.disconnecting) == (True, True)


# How a reader may behave, on real sockets


@EACH_POEM
def test_a_reader_may_speak_first(poem: bytes) -> None:
    """Input is discarded rather than left unread, which would reset the connection."""
    server = Server(poem)
    with listening(server) as port, reader(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert drain(connection) == poem
        connection.shutdown(socket.SHUT_WR)
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


@EACH_POEM
def test_a_reader_may_end_first(poem: bytes) -> None:
    """A reader that half-closes at once still gets the whole poem."""
    server = Server(poem)
    with listening(server) as port, reader(port) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert drain(connection) == poem
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


@pytest.mark.parametrize("poem", [b"short", LONG], ids=["short", "long"])
def test_a_reader_that_resets_was_not_served(poem: bytes) -> None:
    """A reset by the reader is a poem that was not sent."""
    server = Server(poem)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


def test_a_reset_before_the_first_byte_is_noticed() -> None:
    """A reader that is gone before it is served costs an outcome, and nothing else."""
    server = Server(b"short")
    with listening(server) as port:
        with reader(port) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


def ended_with_reset(connection: socket.socket) -> bool:
    """Whether a reader gets an error before the end of the stream."""
    try:
        drain(connection)
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize(
    "end",
    [
        lambda p: p.stop(),
        lambda p: p.fail(PoemStopped()),
        lambda p: p.transport.abortConnection(),
        lambda p: p.transport.connectionLost(LOST),
    ],
    ids=["stop", "fail", "abort", "reactor ends"],
)
def test_an_unfinished_poem_ends_in_a_reset(end: Callable[[PoetryProtocol], None]) -> None:
    """However a transfer ends before the last byte, its reader sees a reset."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        end(next(iter(server.connections)))
        assert ended_with_reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes[0] in ("stopped", "truncated")


def test_closing_by_hand_lets_the_poem_out_first() -> None:
    """`loseConnection` on a transport that sends a poem waits for its last byte."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        next(iter(server.connections)).transport.loseConnection()
        assert drain(connection) == LONG


def test_stop_closes_plainly_what_the_kernel_has() -> None:
    """A short poem is with the kernel, so that a stop neither waits for its reader nor resets."""
    server = Server(b"short")
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        next(iter(server.connections)).stop()
        assert drain(connection) == b"short"
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


# The sweep


def test_a_sweep_resets_a_reader_that_takes_nothing() -> None:
    """No progress for the idle limit is a reset; progress starts it again."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: not reactor.getWriters() or protocol.size)
        for now in (0, 5, 9.9):
            protocol.sweep(now, 10.0, 30.0)
            turn_until_still(protocol)
        assert protocol.outcome is None
        protocol.sweep(1000, 10.0, 30.0)
        assert protocol.outcome == "timed_out"
        assert ended_with_reset(connection)
    assert isinstance(server.told[0], PoemTimedOut)


def test_a_sweep_lets_go_of_a_reader_that_never_ends() -> None:
    """A reader that has everything is closed plainly after the linger."""
    server = Server(b"short")
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: not protocol._queued())  # the end of the stream is acknowledged a bit later
        for now in (0, 29.9):
            protocol.sweep(now, 10.0, 30.0)
        assert not server.outcomes
        protocol.sweep(30, 10.0, 30.0)
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
        protocol.sweep(0, 10.0, 30.0)
        protocol.sweep(10, 10.0, 30.0)
        assert ended_with_reset(connection)
    (failure,) = server.told
    assert (failure.seconds, failure.received) == (10.0, 9)


def test_without_a_socket_nothing_is_queued() -> None:
    """A sweep of a transport that is not a socket goes by the bytes alone."""
    protocol = PoetryServerFactory().buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport())
    protocol.sweep(0, 10.0, 30.0)
    protocol.dataReceived(b"some")
    protocol.sweep(9, 10.0, 30.0)
    protocol.sweep(18, 10.0, 30.0)
    assert protocol.outcome is None
    protocol.sweep(19, 10.0, 30.0)
    assert protocol.outcome == "timed_out"


# Wrappers


@pytest.mark.parametrize("poem", [b"short", LONG], ids=["short", "long"])
def test_a_wrapped_transport_delivers_too(poem: bytes) -> None:
    """Under `twisted.protocols.policies` a poem goes through the wrapper."""
    server = Server(poem)
    with listening(WrappingFactory(server)) as port:
        client = PoetryClientFactory()
        connect_tcp(port, client)
        assert wait(client.received) == poem


def test_a_wrapped_transport_resets_too() -> None:
    """Under a wrapper, which hides the half-close, an early end of the reader is a reset."""
    server = Server(LONG)
    with listening(WrappingFactory(server)) as port, reader(port) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert ended_with_reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


# Errors


@pytest.mark.parametrize(
    ("failure", "outcome", "says"),
    [
        (PoemTruncated(1234, LOST), "truncated", "1,234 bytes"),
        (EmptyPoem(), "empty", "empty poem"),
        (PoemTooLong(5), "too_long", "more than 5 bytes"),
        (PoemTimedOut(2.5, 7), "timed_out", "2.5 s after 7 bytes"),
        (PoemMismatch("ab", "cd"), "mismatch", "expected ab, got cd"),
        (PoemStopped(), "stopped", "stopped"),
    ],
)
def test_errors_say_what_happened(failure: PoemError, outcome: str, says: str) -> None:
    """Each error has a line for people, and a word for logs and metrics."""
    assert (failure.outcome, says in str(failure)) == (outcome, True)


def test_unix_sockets_work_too(tmp_path: Any) -> None:
    """On a Unix socket a long poem arrives whole, and the sweep sees its queue."""
    path = str(tmp_path / "poem")
    server = Server(LONG)
    port = reactor.listenUNIX(path, server)
    client = PoetryClientFactory()
    UNIXClientEndpoint(reactor, path).connect(client)
    until(lambda: server.connections)
    next(iter(server.connections)).sweep(0, 10.0, 30.0)
    assert wait(client.received) == LONG
    wait(port.stopListening())


def test_half_closed_writing_is_not_used() -> None:
    """The interface has a method for an event that this protocol never asks for."""
    protocol = PoetryProtocol()
    protocol.writeConnectionLost()
    assert not protocol.finished


# TLS


@contextmanager
def listening_tls(factory: Any, certificates: Certificates) -> Iterator[int]:
    """A TLS listener on a free port."""
    endpoint = serverFromString(reactor, certificates.listen("good"))
    port = wait(endpoint.listen(factory))
    try:
        yield port.getHost().port
    finally:
        wait(port.stopListening())


@EACH_POEM
def test_over_tls(poem: bytes, certificates: Certificates) -> None:
    """Over TLS each poem arrives whole, and its sender is told."""
    server, client = Server(poem), PoetryClientFactory()
    with listening_tls(server, certificates) as port:
        clientFromString(reactor, certificates.trusting(port)).connect(client)
        assert wait(client.received) == poem
        until(lambda: server.told)
    assert (server.told, server.outcomes) == (["sent"], ["sent"])


def test_a_reader_that_ends_tls_early_was_not_served(certificates: Certificates) -> None:
    """A close_notify from the reader in the middle of a poem is a poem that was not sent."""

    class Leaves(PoetryProtocol):
        def dataReceived(self, data: bytes) -> None:
            del data
            self.transport.loseConnection()

    server, client = Server(LONG), PoetryClientFactory()
    client.protocol = Leaves
    with listening_tls(server, certificates) as port:
        clientFromString(reactor, certificates.trusting(port)).connect(client)
        assert isinstance(wait_error(client.received), PoemTruncated | EmptyPoem)
        until(lambda: server.told)
    assert server.outcomes == ["truncated"]


def test_a_sweep_ends_what_tls_does_not(certificates: Certificates) -> None:
    """A reader that does not answer a close_notify sees the FIN, and is let go in the end."""
    server = Server(b"short")
    with listening_tls(server, certificates) as port, reader(port) as connection:
        context = certificates.context()
        connection.setblocking(False)
        tls = context.wrap_socket(
            connection, server_hostname="localhost", do_handshake_on_connect=False
        )
        with tls:
            assert until_tls(tls.do_handshake) is None
            assert until_tls(lambda: tls.recv(100)) == b"short"
            (protocol,) = server.connections
            for now in (0, 10, 20):
                until(lambda: not protocol._queued())
                protocol.sweep(now, 5.0, 30.0)
            until(lambda: not protocol._queued())
            assert not server.outcomes
            protocol.sweep(30, 5.0, 30.0)
            until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def until_tls(step: Callable[[], Any]) -> Any:
    """Turn the reactor until a step of non-blocking TLS is done; give its result."""
    results: list[Any] = []

    def done() -> bool:
        with suppress(ssl.SSLWantReadError):
            results.append(step())
        return bool(results)

    until(done)
    return results[0]


def test_a_kernel_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not say what is queued, nothing is."""

    def refuse(*_: object) -> bytes:
        raise OSError(25, "Inappropriate ioctl for device")

    server = Server(LONG)
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        monkeypatch.setattr("fcntl.ioctl", refuse)
        (protocol,) = server.connections
        assert protocol._queued() == 0
        protocol.stop()
        until(lambda: server.outcomes)
