"""get_poem and the download: every way in which a server can fail is its own error, in time."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from poetry.addresses import authorities, client_endpoint
from poetry.client import ConsumerGone, download, get_poem, send_poem
from poetry.errors import EmptyPoem, PoemTimedOut, PoemTooLong, PoemTruncated
from poetry.protocol import PoetryClientFactory, PoetryServerFactory
from poetry.server import PoetryService, serve_poem
from poetry.wire.layers import innermost
from tests.certificates import Certificates
from tests.ends import Server, listening
from tests.faults.bad import serving, stall
from tests.loop import reactor, until, wait, wait_error

LONG = bytes(range(256)) * 40_000


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener that does what the test makes it do."""
    with socket.socket() as listener:
        listener.settimeout(20)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def endpoint_of(listener: socket.socket) -> TCP4ClientEndpoint:
    return TCP4ClientEndpoint(reactor, *listener.getsockname())


class NeverConnects:
    """An endpoint to a black hole."""

    def __init__(self) -> None:
        self.cancelled = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        del factory

        def cancel(_: Deferred[Any]) -> None:
            self.cancelled += 1

        return Deferred(cancel)


class InMemory:
    """An endpoint whose transport is a StringTransport."""

    def __init__(self) -> None:
        self.transport = StringTransport()
        self.protocol: Any = None

    def connect(self, factory: Any) -> Deferred[Any]:
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        done: Deferred[Any] = Deferred()
        done.callback(self.protocol)
        return done


def downloading(
    endpoint: Any, write: Callable[[bytes], object], consumer: Any = None, clock: Any = None
) -> Deferred[None]:
    """Begin a download that waits for 5 seconds."""
    options = {"timeout": 5, "max_bytes": None, "consumer": consumer, "clock": clock or Clock()}
    return Deferred.fromCoroutine(download(endpoint, write, **options))


def test_a_path_that_no_socket_has() -> None:
    """What Twisted would never say: no wait finds a Unix socket whose path is too long."""
    endpoint = UNIXClientEndpoint(reactor, f"/{'x' * 107}")
    failed = wait_error(get_poem(endpoint, timeout=float("inf")))
    assert isinstance(failed, error.ConnectError)
    assert "its path has 108 bytes" in str(failed)


@pytest.mark.parametrize("poem", [b"x", LONG], ids=["1 byte", "10 MB"])
def test_a_whole_poem(poem: bytes) -> None:
    """The poem comes byte for byte."""
    server = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    port = wait(server.listen(PoetryServerFactory(poem)))
    address = port.getHost()
    assert wait(get_poem(TCP4ClientEndpoint(reactor, address.host, address.port))) == poem
    wait(port.stopListening())
    until(lambda: not reactor.getDelayedCalls())


def test_a_refused_connection_keeps_twisteds_error(silent: socket.socket) -> None:
    """Where nothing listens, the error is Twisted's."""
    endpoint = endpoint_of(silent)
    silent.close()
    assert isinstance(wait_error(get_poem(endpoint)), error.ConnectionRefusedError)
    assert not reactor.getDelayedCalls()


def test_a_black_hole_times_out() -> None:
    """A connection that is never made is given up after the timeout."""
    clock, endpoint = Clock(), NeverConnects()
    poem = get_poem(endpoint, timeout=5, clock=clock)  # type: ignore[arg-type]
    clock.advance(5)
    failure = wait_error(poem)
    assert isinstance(failure, error.TimeoutError)
    assert "5 s" in str(failure)
    assert endpoint.cancelled == 1


def test_cancelling_gives_a_connection_attempt_up() -> None:
    """A cancelled get_poem stops connecting, and leaves no timer."""
    clock, endpoint = Clock(), NeverConnects()
    poem = get_poem(endpoint, clock=clock)  # type: ignore[arg-type]
    poem.cancel()
    assert isinstance(wait_error(poem), CancelledError)
    assert (endpoint.cancelled, clock.getDelayedCalls()) == (1, [])


def test_cancelling_resets_a_download(silent: socket.socket) -> None:
    """A cancelled get_poem resets its connection, and leaves no timer."""
    poem = get_poem(endpoint_of(silent))
    reactor.iterate(0)  # connects
    connection, _ = silent.accept()
    with connection:
        connection.setblocking(False)
        poem.cancel()
        assert isinstance(wait_error(poem), CancelledError)

        def was_reset() -> bool:
            try:
                return connection.recv(1) == b"never"
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        until(was_reset)
    until(lambda: not reactor.getDelayedCalls())


@pytest.mark.parametrize("chunks", [[], [b"half", b" a po"]], ids=["first byte", "middle"])
def test_a_stall_times_out(chunks: list[bytes]) -> None:
    """A server that falls silent is given up, and each byte starts the wait again."""
    clock, endpoint = Clock(), InMemory()
    poem = get_poem(endpoint, timeout=5, clock=clock)  # type: ignore[arg-type]
    for chunk in chunks:
        clock.advance(4)
        endpoint.protocol.dataReceived(chunk)
    clock.advance(4)
    assert not poem.called
    clock.advance(1)
    failure = wait_error(poem)
    assert isinstance(failure, PoemTimedOut)
    assert (failure.seconds, failure.received) == (5, sum(map(len, chunks)))


@pytest.mark.parametrize("connected", [False, True])
def test_what_waits_in_the_kernel_is_in_time(
    silent: socket.socket, monkeypatch: pytest.MonkeyPatch, *, connected: bool
) -> None:
    """A process that was stopped for longer than the timeout does not blame the server."""
    readers = len(reactor.getReaders())
    poem = get_poem(endpoint_of(silent), timeout=5)
    reactor.runUntilCurrent()  # asks the kernel to connect, and does not look
    if connected:
        until(lambda: len(reactor.getReaders()) > readers)
    with silent.accept()[0] as connection:
        connection.sendall(b"a poem")
    reactor_seconds = reactor.seconds
    monkeypatch.setattr(reactor, "seconds", lambda: reactor_seconds() + 20)
    assert wait(poem) == b"a poem"
    assert not reactor.getDelayedCalls()


@pytest.mark.parametrize("chunks", [None, [], [b"half", b" a", b" poem"]])
def test_all_of_it_takes_too_long(chunks: list[bytes] | None) -> None:
    """With `max_time` a server that never connects, says nothing or drips is given up in time."""
    clock = Clock()
    endpoint: Any = NeverConnects() if chunks is None else InMemory()
    poem = get_poem(endpoint, timeout=30, max_time=10, clock=clock)
    for chunk in chunks or []:
        clock.advance(3)
        endpoint.protocol.dataReceived(chunk)
    clock.advance(10 - 3 * len(chunks or []) - 0.5)
    assert not poem.called
    clock.advance(0.5)
    failure = wait_error(poem)
    assert isinstance(failure, PoemTimedOut)
    received = sum(map(len, chunks or []))
    assert (failure.seconds, failure.received) == (10, received)
    assert str(failure) == f"timed out: not whole after 10 s and {received} bytes"


def test_in_time() -> None:
    """A poem that comes within `max_time` leaves no timer."""
    clock, endpoint = Clock(), InMemory()
    poem = get_poem(endpoint, max_time=10, clock=clock)  # type: ignore[arg-type]
    endpoint.protocol.dataReceived(b"a poem")
    endpoint.protocol.connectionLost(Failure(error.ConnectionDone()))
    assert wait(poem) == b"a poem"
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("chunks", "reason", "expected"),
    [
        ([], error.ConnectionDone(), EmptyPoem),
        ([b"half"], error.ConnectionLost(), PoemTruncated),
        ([b"12345"], error.ConnectionDone(), PoemTooLong),
    ],
)
def test_each_bad_end_is_its_own_error(
    chunks: list[bytes], reason: Exception, expected: type[Exception]
) -> None:
    """Nothing, a break and too much are told apart."""
    endpoint = InMemory()
    poem = get_poem(endpoint, max_bytes=4, clock=Clock())  # type: ignore[arg-type]
    for chunk in chunks:
        endpoint.protocol.dataReceived(chunk)
    endpoint.protocol.connectionLost(Failure(reason))
    assert isinstance(wait_error(poem), expected)


@pytest.mark.parametrize("failure", [OSError(28, "No space"), ValueError("closed")])
def test_a_write_that_fails_is_the_error(failure: Exception) -> None:
    """Where a part cannot be written, the download fails with that, and resets."""

    def write(_: bytes) -> None:
        raise failure

    endpoint = InMemory()
    done = downloading(endpoint, write)
    endpoint.protocol.dataReceived(b"half")
    assert wait_error(done) is failure
    assert endpoint.transport.disconnected or endpoint.transport.disconnecting


def test_a_full_output_holds_the_server_back() -> None:
    """While the output is full, nothing is read, and the silence is not the server's."""
    clock, endpoint = Clock(), InMemory()
    output = StringTransport()
    done = downloading(endpoint, output.write, output, clock)
    endpoint.protocol.dataReceived(b"half")
    producer: Any = output.producer
    producer.pauseProducing()
    assert endpoint.transport.producerState == "paused"
    clock.advance(1000)
    assert not done.called
    producer.resumeProducing()
    assert endpoint.transport.producerState == "producing"
    endpoint.protocol.dataReceived(b" a poem")
    endpoint.protocol.connectionLost(Failure(error.ConnectionDone()))
    wait(done)
    assert (output.value(), output.producer) == (b"half a poem", None)
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("call", ["pauseProducing", "resumeProducing"])
@pytest.mark.parametrize("abort", ["aborts", "cannot abort"])
def test_a_transport_that_refuses(call: str, abort: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reactor refuses to wait for a connection, that is the download's error."""

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    endpoint, output = InMemory(), StringTransport()
    done = downloading(endpoint, output.write, output)
    monkeypatch.setattr(endpoint.transport, call, refuse)
    if abort == "cannot abort":
        monkeypatch.setattr(endpoint.transport, "abortConnection", refuse)
    producer: Any = output.producer
    producer.pauseProducing()
    producer.resumeProducing()
    assert isinstance(wait_error(done), OSError)


def test_a_server_that_reads_no_answers_is_not_read(certificates: Certificates) -> None:
    """What TLS answers by itself is held back with its questions, and time counts meanwhile."""
    context = certificates.server_context("good")
    output = StringTransport()
    clock = Clock()
    with serving(stall, context) as port:
        connected: list[Any] = []
        trust = authorities(str(certificates.authority))
        endpoint = client_endpoint(reactor, f"tls:127.0.0.1:{port}", 30, trust)
        done = downloading(Watching(endpoint, connected), output.write, output, clock)
        until(lambda: connected and innermost(connected[0].transport).producer)
        transport = innermost(connected[0].transport)
        producer: Any = output.producer

        def reads() -> bool:
            return transport in reactor.getReaders()

        states = []
        for step in (
            transport.producer.pauseProducing,
            producer.pauseProducing,
            producer.resumeProducing,
            transport.producer.resumeProducing,
            transport.producer.pauseProducing,
        ):
            step()
            states.append(reads())
        assert states == [False, False, False, True, False]
        clock.advance(5)
        clock.advance(0)
        assert isinstance(wait_error(done), PoemTimedOut)


class Watching:
    """An endpoint whose protocols are noted."""

    def __init__(self, endpoint: Any, connected: list[Any]) -> None:
        self.endpoint = endpoint
        self.connected = connected

    def connect(self, factory: Any) -> Deferred[Any]:
        """Connect, and note."""
        build = factory.buildProtocol

        def note(address: Any) -> Any:
            self.connected.append(build(address))
            return self.connected[-1]

        factory.buildProtocol = note
        connecting: Deferred[Any] = self.endpoint.connect(factory)
        return connecting


def test_an_output_that_goes_away_ends_the_download() -> None:
    """Where nobody reads the output any more, the download is given up."""
    endpoint, output = InMemory(), StringTransport()
    done = downloading(endpoint, output.write, output)
    producer: Any = output.producer
    producer.stopProducing()
    assert isinstance(wait_error(done), ConsumerGone)


def test_the_global_reactor_is_the_clock() -> None:
    """Without a clock, the global reactor tells the time; QOTD-like servers are read too."""

    class Quote(Protocol):
        def connectionMade(self) -> None:
            assert self.transport is not None
            self.transport.write(b"quote")
            self.transport.loseConnection()

    factory = Factory.forProtocol(Quote)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    poem = get_poem(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port))
    assert wait(poem) == b"quote"
    wait(port.stopListening())


# Bringing a poem


@pytest.mark.parametrize("poem", [b"brief", LONG], ids=["short", "long"])
def test_a_poem_is_brought(poem: bytes) -> None:
    """It fires when the server has ended after all of the poem."""
    server = Server()
    with listening(server) as port:
        assert wait(send_poem(TCP4ClientEndpoint(reactor, "127.0.0.1", port), poem)) is None
    assert server.told == [poem]


def test_a_server_that_takes_no_poem(silent: socket.socket) -> None:
    """Where nothing moves for the timeout, it is a failure, and the server sees a reset."""
    clock = Clock()
    sending = send_poem(endpoint_of(silent), LONG, timeout=8.0, clock=clock)
    with accepted(silent) as connection:
        until(lambda: readable(connection))
        clock.pump([1.0] * 12)
        assert isinstance(wait_error(sending), PoemTimedOut)
    assert not clock.getDelayedCalls()


def test_a_server_that_has_it_all_and_stays(silent: socket.socket) -> None:
    """What is acknowledged is sent, though the server does not end."""
    clock = Clock()
    sending = send_poem(endpoint_of(silent), b"brief", timeout=8.0, clock=clock)
    with accepted(silent) as connection:
        until(lambda: readable(connection))
        clock.pump([1.0] * 12)
        assert wait(sending) is None


def test_it_is_brought_in_time(silent: socket.socket) -> None:
    """`max_time` is for all of it, and cancelling resets the connection."""
    clock = Clock()
    sending = send_poem(endpoint_of(silent), LONG, max_time=5.0, clock=clock)
    with accepted(silent) as connection:
        until(lambda: readable(connection))
        clock.advance(5.0)
        failure = wait_error(sending)
        assert isinstance(failure, PoemTimedOut)
        assert failure.received > 0
    assert not clock.getDelayedCalls()


def test_the_global_reactor_is_the_clock_of_a_poem_that_is_brought(silent: socket.socket) -> None:
    """Without a clock it is the reactor; cancelled, nothing is left."""
    sending = send_poem(endpoint_of(silent), b"brief")
    sending.cancel()
    assert isinstance(wait_error(sending), error.ConnectingCancelledError)


HERE: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", 1)
THERE: Any = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")


@pytest.mark.parametrize(
    ("call", "words", "options", "mistake"),
    [
        (get_poem, ["127.0.0.1:10000"], {}, TypeError),
        (send_poem, ["127.0.0.1:10000", b"poem"], {}, TypeError),
        (send_poem, [HERE, None], {}, TypeError),
        (send_poem, [HERE, "text"], {}, TypeError),
        (send_poem, [HERE, b""], {}, EmptyPoem),
        (get_poem, [HERE], {"timeout": None}, TypeError),
        (get_poem, [HERE], {"timeout": -1}, ValueError),
        (get_poem, [HERE], {"max_time": 0}, ValueError),
        (get_poem, [HERE], {"max_bytes": 0}, ValueError),
        (serve_poem, ["tcp:0", b"poem"], {}, TypeError),
        (serve_poem, [HERE, b"poem"], {}, TypeError),
        (serve_poem, [THERE, b"poem"], {"idle_timeout": None}, TypeError),
        (serve_poem, [THERE, b"poem"], {"idle_timeout": 0}, ValueError),
        (serve_poem, [THERE, b"poem"], {"max_connections": "9"}, TypeError),
        (PoetryService, [[]], {"grace": None}, TypeError),
        (PoetryService, [[("tcp:0", PoetryServerFactory(b"poem"))]], {}, TypeError),
        (PoetryService, [[(THERE, b"poem")]], {}, TypeError),
        (PoetryService, [[(THERE, PoetryClientFactory(b"poem"))]], {}, TypeError),
    ],
)
def test_what_makes_no_sense_is_refused(
    call: Any, words: list[Any], options: dict[str, Any], mistake: type[Exception]
) -> None:
    """A wrong argument is an error at the place of the call, which says what is wrong."""
    with pytest.raises(mistake, match=r"endpoint|seconds|bytes|byte|0 s|number|at least|Factory"):
        call(*words, **options)


def accepted(listener: socket.socket) -> socket.socket:
    """The next connection of a listener, while the reactor turns."""
    listener.setblocking(False)
    connections: list[socket.socket] = []

    def accept() -> bool:
        with suppress(BlockingIOError):
            connections.append(listener.accept()[0])
        return bool(connections)

    until(accept)
    connections[0].setblocking(False)
    return connections[0]


def readable(connection: socket.socket) -> bool:
    """Whether something has come, and nothing more comes for a moment."""
    for _ in range(5):
        reactor.iterate(0.01)
    with suppress(BlockingIOError):
        return bool(connection.recv(1, socket.MSG_PEEK))
    return False
