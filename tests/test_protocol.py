"""Both ends in all four combinations, and how each end takes the end of the other."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import (
    UNIXClientEndpoint,
)
from twisted.internet.protocol import (
    Factory,
    Protocol,
    ReconnectingClientFactory,
    connectionDone,
)
from twisted.internet.testing import (
    MemoryReactorClock,
    StringTransport,
    StringTransportWithDisconnection,
)
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from poetry.errors import (
    EmptyPoem,
    PoemError,
    PoemMismatch,
    PoemStopped,
    PoemTimedOut,
    PoemTooLong,
    PoemTruncated,
)
from poetry.protocol import (
    PoetryClientFactory,
    PoetryFactory,
    PoetryProtocol,
    PoetryServerFactory,
)
from tests.ends import (
    EACH_POEM,
    LONG,
    Server,
    connect_endpoint,
    connect_tcp,
    ended_with_reset,
    listening,
    queued,
    reader,
    reset,
)
from tests.loop import drain, reactor, until, wait, wait_error
from tests.transfers import Log

DONE = Failure(error.ConnectionDone())
LOST = Failure(error.ConnectionLost())


CONNECTS = pytest.mark.parametrize("connect", [connect_tcp, connect_endpoint])


def received(*chunks: bytes, reason: Failure = DONE, limit: int | None = None) -> Any:
    """What a client's Deferred fires with after these chunks and this end."""
    factory = PoetryClientFactory()
    factory.max_bytes = limit
    results: list[Any] = []
    factory.received.addBoth(results.append)
    protocol = factory.buildProtocol(None)
    assert protocol is not None
    protocol.makeConnection(StringTransport())
    for chunk in chunks:
        protocol.dataReceived(chunk)
    protocol.connectionLost(reason)
    (result,) = results
    return result.value if isinstance(result, Failure) else result


# The end that connects, and the end that sends


@EACH_POEM
@CONNECTS
def test_server_sends_its_poem(poem: bytes, connect: Callable[..., None]) -> None:
    """A client without a poem gets the server's, byte for byte."""
    server, client = Server(poem), PoetryClientFactory()
    with listening(server) as port:
        connect(port, client)
        assert wait(client.received) == poem
        until(lambda: server.results)
    assert (server.results, server.outcomes) == (["sent"], ["sent"])


@EACH_POEM
@CONNECTS
def test_client_brings_its_poem(poem: bytes, connect: Callable[..., None]) -> None:
    """A server without a poem gets the client's, and the client's Deferred fires with it."""
    server, client = Server(), PoetryClientFactory(poem)
    with listening(server) as port:
        connect(port, client)
        assert wait(client.received) == poem
    assert (server.results, server.outcomes) == ([poem], ["received"])


def test_two_receivers_get_an_error() -> None:
    """Two ends that wait for a poem each get an error when the connection ends."""
    server, client = Server(), PoetryClientFactory()
    with listening(server) as port:
        connect_tcp(port, client)
        until(lambda: server.connections and client.connections)
        next(iter(server.connections)).transport.loseConnection()
        assert isinstance(wait_error(client.received), EmptyPoem)
        until(lambda: server.results)
    assert isinstance(server.results[0], PoemTruncated)


def test_two_senders_discard_the_others_poem() -> None:
    """Two ends that both send discard each other's poem, and both have sent theirs."""
    server, client = Server(LONG), PoetryClientFactory(LONG)
    with listening(server) as port:
        connect_tcp(port, client)
        assert wait(client.received) == LONG
        until(lambda: server.results)
    assert server.results == ["sent"]


def test_replaced_poem_is_for_new_readers() -> None:
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
def test_chunking_makes_no_difference(chunks: list[bytes]) -> None:
    """The poem is the same however its bytes are cut on their way."""
    assert received(*chunks) == b"".join(chunks)


@given(st.lists(st.binary(min_size=1), min_size=1))
def test_lost_connection_is_truncated(chunks: list[bytes]) -> None:
    """A lost connection is an error that says how many bytes came, whatever came before."""
    failure = received(*chunks, reason=LOST)
    assert isinstance(failure, PoemTruncated)
    assert failure.received == sum(map(len, chunks))


@given(st.binary(min_size=1), st.integers(min_value=1, max_value=8))
def test_poem_of_the_limit_is_not_too_long(poem: bytes, cut: int) -> None:
    """As many bytes as the limit are a poem, and one more is an error."""
    chunks = [poem[i : i + cut] for i in range(0, len(poem), cut)]
    assert received(*chunks, limit=len(poem)) == poem
    failure = received(*chunks, b"!", b"more", limit=len(poem))
    assert isinstance(failure, PoemTooLong)
    assert failure.limit == len(poem)


def test_clean_end_before_the_first_byte_is_empty() -> None:
    """A clean end before the first byte is an error of its own."""
    assert isinstance(received(), EmptyPoem)


def test_lost_connection_before_the_first_byte_is_truncated() -> None:
    """A connection lost before the first byte is an error that says 0 bytes."""
    failure = received(reason=LOST)
    assert isinstance(failure, PoemTruncated)
    assert failure.received == 0


def test_own_close_while_receiving_is_truncated() -> None:
    """An end that closes the connection while a poem comes in has not received the poem."""
    client = PoetryClientFactory()
    protocol = client.buildProtocol(None)
    assert protocol is not None
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(b"half a po")
    transport.loseConnection()
    protocol.connectionLost(DONE)
    assert isinstance(wait_error(client.received), PoemTruncated)


@pytest.mark.parametrize("error_of_ours", [ValueError("a defect"), OSError("a refusal")])
def test_other_error_before_the_first_byte_is_failed(error_of_ours: Exception) -> None:
    """Without TLS there is no handshake to fail."""
    server = Server()
    protocol = server.buildProtocol(None)
    assert protocol is not None
    protocol.makeConnection(StringTransport())
    protocol.connectionLost(Failure(error_of_ours))
    assert server.outcomes == ["failed"]


@EACH_POEM
def test_transport_that_closes_at_once_is_sent(poem: bytes) -> None:
    """A transport in memory may lose the connection inside `loseConnection`."""
    server = Server(poem)
    protocol = server.buildProtocol(None)
    assert protocol is not None
    transport = StringTransportWithDisconnection()
    transport.protocol = protocol
    protocol.makeConnection(transport)
    while transport.producer is not None:
        transport.producer.resumeProducing()
    assert transport.value() == poem
    assert server.outcomes == ["sent"]


def test_a_refused_connection_fires_received() -> None:
    """`received` fires once for a refused connection, with Twisted's own error."""
    memory = MemoryReactorClock()
    client = PoetryClientFactory()
    memory.connectTCP("127.0.0.1", 1, client)
    client.clientConnectionFailed(memory.connectors[0], Failure(error.ConnectionRefusedError()))
    client.clientConnectionFailed(memory.connectors[0], Failure(error.ConnectionRefusedError()))
    assert isinstance(wait_error(client.received), error.ConnectionRefusedError)


def test_failure_that_only_a_hook_handles_is_handled(log: Log) -> None:
    """Where nobody asks for `received`, its failure is not an unhandled error."""
    client = PoetryClientFactory()
    protocol: Any = client.buildProtocol(None)
    protocol.makeConnection(StringTransport())
    protocol.connectionLost(LOST)
    del client, protocol
    gc.collect()
    assert "log_failure" not in {key for event in log for key in event}


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_received_fires_where_no_protocol_tells(kind: str) -> None:
    """`received` fires although there was no protocol, or its `connectionLost` calls up nothing."""

    class Silent(PoetryProtocol):
        def connectionLost(self, reason: Failure = connectionDone) -> None:
            del reason

    class Client(PoetryClientFactory):
        protocol = Silent

        def buildProtocol(self, addr: Any) -> Any:
            return None if kind == "refused" else super().buildProtocol(addr)

    client = Client()
    with listening(Server(b"poem")) as port:
        reactor.connectTCP("127.0.0.1", port, client)
        if kind == "refused":
            assert isinstance(wait_error(client.received), error.ConnectionClosed)
        else:
            assert wait(client.received) == b"poem"
    assert not client.connections


@pytest.mark.parametrize("when", ["before", "after"])
def test_cancelled_received_resets(when: str) -> None:
    """A timeout on `received` ends the connection, and refuses one that is made later."""
    client = PoetryClientFactory()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reactor.connectTCP("127.0.0.1", listener.getsockname()[1], client)
        if when == "after":
            until(lambda: client.connections)
        client.received.cancel()
        assert isinstance(wait_error(client.received), CancelledError)
        listener.settimeout(20)
        until(lambda: not client.connections)
        reactor.iterate(0.01)
        connection, _ = listener.accept()
        with connection, suppress(ConnectionResetError):
            assert drain(connection) == b""
    assert not client.connections


def test_cancelled_received_leaves_other_factories_alone() -> None:
    """Factories may share the set of their connections."""
    first, second = PoetryClientFactory(), PoetryClientFactory()
    second.connections = first.connections
    with listening(Server(LONG)) as port:
        for client in (first, second):
            reactor.connectTCP("127.0.0.1", port, client)
        until(lambda: len(first.connections) == 2)
        first.received.cancel()
        assert isinstance(wait_error(first.received), CancelledError)
        assert wait(second.received) == LONG


def test_wrapper_that_keeps_a_part_for_later_gives_it_yet() -> None:
    """What a wrapper still has belongs to the poem: its end comes from the wrapper."""
    kept: list[tuple[Any, Any]] = []

    class Keeps(ProtocolWrapper):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data[:1])  # type: ignore[no-untyped-call]
            kept.append((super().dataReceived, data[1:]))

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            kept.append((super().connectionLost, reason))

    client = PoetryClientFactory()
    wrapping = WrappingFactory(client)
    wrapping.protocol = Keeps
    with listening(Server(b"a poem")) as port:
        connector = reactor.connectTCP("127.0.0.1", port, wrapping)
        until(lambda: connector.state == "disconnected")
    assert not client.received.called
    for method, what in kept:
        method(what)
    assert wait(client.received) == b"a poem"


def test_hook_may_fire_received_itself() -> None:
    """A program that refuses a poem in its hook has the last word, and the books are right."""

    class Refuses(PoetryClientFactory):
        def poemReceived(self, poem: bytes) -> None:
            self.received.errback(ValueError(poem))

    client, outcomes = Refuses(), []
    client.observers = [lambda protocol: outcomes.append(protocol.outcome)]
    protocol: Any = client.buildProtocol(None)
    protocol.makeConnection(StringTransport())
    refused = client.received
    protocol.dataReceived(b"poem")
    protocol.connectionLost(DONE)
    assert isinstance(wait_error(refused), ValueError)
    assert outcomes == ["received"]


def test_aborted_factory_tells_who_asks_later() -> None:
    """Without a connection the reason of an abort is the result."""
    client = PoetryClientFactory()
    client.abort(ValueError("why"))
    assert isinstance(wait_error(client.received), ValueError)
    assert client.buildProtocol(None) is None


def test_client_factory_calls_up_for_those_that_connect_again() -> None:
    """Beside ReconnectingClientFactory both do their work."""

    class Again(PoetryClientFactory, ReconnectingClientFactory):
        pass

    memory = MemoryReactorClock()
    client: Any = Again()
    client.clock = memory
    memory.connectTCP("127.0.0.1", 1, client)
    client.clientConnectionFailed(memory.connectors[0], Failure(error.ConnectionRefusedError()))
    assert len(memory.getDelayedCalls()) == 1
    assert isinstance(wait_error(client.received), error.ConnectionRefusedError)


def test_protocol_without_a_factory_says_so() -> None:
    """`connectProtocol` has a factory of its own, which is none of ours."""
    protocol, transport = PoetryProtocol(), StringTransport()
    with pytest.raises(TypeError, match="is made by a factory"):
        protocol.makeConnection(transport)
    assert transport.disconnecting
    protocol.connectionLost(DONE)


def test_factory_that_spoils_its_books_resets() -> None:
    """An attribute of a subclass with a name of ours leaves no reader waiting."""
    server = Server(b"poem")
    server.connections = None  # type: ignore[assignment]
    with (
        listening(server) as port,
        reader(port) as connection,
        pytest.raises(ConnectionResetError),
    ):
        drain(connection)


class Overrides(PoetryClientFactory):
    """Calls up in none of its hooks, and fails in one."""

    def poemReceived(self, poem: bytes) -> None:
        raise RuntimeError(poem)

    def poemSent(self, poem: bytes) -> None:
        del poem

    def poemFailed(self, reason: Failure) -> None:
        del reason


@pytest.mark.parametrize("how", ["received", "sent", "failed"])
def test_received_fires_whatever_the_hooks_do(how: str, log: Log) -> None:
    """`received` does not depend on the overrides of a subclass."""
    client = Overrides(b"poem" if how == "sent" else None)
    protocol = client.buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport())
    protocol.dataReceived(b"poem")
    protocol.connectionLost(Failure(error.ConnectionLost()) if how == "failed" else DONE)
    log.clear()
    if how == "failed":
        assert isinstance(wait_error(client.received), PoemTruncated)
    else:
        assert wait(client.received) == b"poem"


class NoMemory(bytearray):
    """Bytes of which there is room for no copy."""

    def __bytes__(self) -> bytes:
        raise MemoryError


def test_poem_without_room_for_it_fails() -> None:
    """A poem that was received and cannot be handed over is a failure, and is told."""
    server, client = Server(), PoetryClientFactory()
    for factory in (server, client):
        protocol = factory.buildProtocol(None)
        assert isinstance(protocol, PoetryProtocol)
        protocol.makeConnection(StringTransport())
        protocol.incoming.collected = NoMemory()
        protocol.dataReceived(b"poem")
        protocol.connectionLost(DONE)
    assert server.outcomes == ["failed"]
    assert isinstance(wait_error(client.received), MemoryError)


def test_observers_may_leave() -> None:
    """An observer that removes itself, or another, takes no news from those that stay."""
    told: list[str] = []
    server = PoetryServerFactory(b"poem")

    def once(_: object) -> None:
        told.append("once")
        observers.remove(once)

    observers = [once, lambda _: told.append("always")]
    server.observers = observers
    for _ in range(2):
        protocol = server.buildProtocol(None)
        assert isinstance(protocol, PoetryProtocol)
        protocol.makeConnection(StringTransport())
        protocol.connectionLost(DONE)
    assert told == ["once", "always", "always"]


def test_hooks_of_a_plain_factory_do_nothing() -> None:
    """Without overriding a hook, a server takes a poem, and drops it."""
    server = PoetryServerFactory()
    protocol = server.buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport())
    protocol.dataReceived(b"poem")
    protocol.connectionLost(DONE)
    server.poemFailed(DONE)
    assert protocol.outcome == "received"


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


def test_end_through_a_protocol_that_knows_no_half_close() -> None:
    """A protocol may pass its transport on, as those for proxies do, and know of no half-close."""

    class Outer(Protocol):
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def connectionMade(self) -> None:
            self.inner.makeConnection(self.transport)

        def dataReceived(self, data: bytes) -> None:
            self.inner.dataReceived(data)

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            self.inner.connectionLost(reason)

    server, outer = Server(), Factory()
    outer.protocol = lambda: Outer(server.buildProtocol(None))
    with listening(outer) as port, reader(port) as connection:
        connection.sendall(b"poem")
        connection.shutdown(socket.SHUT_WR)
        until(lambda: server.outcomes)
    assert server.results == [b"poem"]


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
def test_reset_by_a_reader_is_truncated(poem: bytes) -> None:
    """A poem whose reader resets was not sent."""
    server = Server(poem)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


def test_reset_before_the_first_byte_is_truncated() -> None:
    """A reader that is gone before it is accepted costs an outcome, and nothing else."""
    server = Server(b"short")
    with listening(server) as port:
        with reader(port) as connection:
            reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


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


def test_loseConnection_waits_for_the_last_byte() -> None:
    """`loseConnection` on a transport that sends a poem waits for its last byte."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        next(iter(server.connections)).transport.loseConnection()
        assert drain(connection) == LONG


def test_stop_closes_gracefully_after_the_last_byte() -> None:
    """The kernel has a short poem, so that a stop neither waits for its reader nor resets."""
    server = Server(b"short")
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: not queued(protocol))
        protocol.stop()
        assert drain(connection) == b"short"
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


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


def test_long_poem_over_a_unix_socket(tmp_path: Any) -> None:
    """On a Unix socket a long poem arrives whole."""
    path = str(tmp_path / "poem")
    server = Server(LONG)
    port = reactor.listenUNIX(path, server)
    client = PoetryClientFactory()
    UNIXClientEndpoint(reactor, path).connect(client)
    assert wait(client.received) == LONG
    wait(port.stopListening())


def test_writeConnectionLost_does_nothing() -> None:
    """The interface has a method for an event that this protocol never causes."""
    protocol = PoetryProtocol()
    protocol.writeConnectionLost()
    assert protocol.outcome is None


def test_second_stop_does_nothing() -> None:
    """A connection that a stop is closing is not reset by another stop."""
    server = Server(b"short")
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: not queued(protocol))
        protocol.stop()
        protocol.stop()
        assert drain(connection) == b"short"
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_reprs_name_the_state() -> None:
    """A protocol and a factory say what they send or receive, and how far they are."""
    factory = PoetryServerFactory(b"poem")
    protocol = factory.buildProtocol(None)
    assert protocol is not None
    assert repr(protocol) == "<PoetryProtocol not connected>"
    protocol.makeConnection(StringTransport())
    assert repr(protocol) == "<PoetryProtocol sends: 4 bytes, going on>"
    assert repr(factory) == "<PoetryServerFactory sends poem, 4 bytes>"
    assert repr(PoetryClientFactory()) == "<PoetryClientFactory receives>"


def test_a_poem_for_each_reader() -> None:
    """`getPoem` is called once a connection, whose peer it knows; with None the server receives."""
    poems = [b"first", LONG, None]

    class Personal(Server):
        def getPoem(self, protocol: PoetryProtocol) -> bytes | None:
            assert protocol.transport.getPeer().host == "127.0.0.1"
            return poems.pop(0)

    server = Personal(b"the same for all")
    with listening(server) as port:
        for expected in (b"first", LONG):
            with reader(port) as connection:
                assert drain(connection) == expected
        with reader(port) as connection:
            connection.sendall(b"theirs")
            connection.shutdown(socket.SHUT_WR)
            assert drain(connection) == b""
        until(lambda: len(server.outcomes) == 3)
    assert server.outcomes == ["sent", "sent", "received"]


@pytest.mark.parametrize(("chosen", "outcome"), [(b"", "empty"), ("text", "failed")])
def test_wrong_value_of_getPoem_resets(chosen: Any, outcome: str) -> None:
    """A value that `getPoem` may not return is an error, and the reader sees a reset."""

    class Wrong(Server):
        def getPoem(self, protocol: PoetryProtocol) -> Any:
            del protocol
            return chosen

    server = Wrong(b"poem")
    with listening(server) as port, reader(port) as connection:
        assert ended_with_reset(connection)
        until(lambda: server.outcomes)
    assert server.outcomes == [outcome]


def test_second_failure_changes_nothing() -> None:
    """Only the first failure of a transfer reaches the hook and the observers."""
    server = Server()
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        (protocol,) = server.connections
        protocol.fail(PoemStopped())
        protocol.fail(EmptyPoem())
        until(lambda: server.outcomes)
    assert (server.outcomes, len(server.results)) == (["stopped"], 1)
