"""get_poem and the download: every way in which a server can fail is its own error, in time."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import (
    ProcessEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.process import reapAllProcesses
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from poetry.addresses import client_endpoint
from poetry.client import ConsumerGone, download, get_poem, send_poem
from poetry.errors import EmptyPoem, PoemTimedOut, PoemTooLong, PoemTruncated
from poetry.protocol import PoetryClientFactory, PoetryServerFactory
from poetry.server import PoetryService, serve_poem
from poetry.system.certificates import authorities
from poetry.wire.layers import innermost
from tests.calls import failing
from tests.certificates import Certificates
from tests.ends import LONG, Server, listening, reset_seen_as_an_end
from tests.faults.bad import serving, stall
from tests.loop import reactor, until, wait, wait_error
from tests.transfers import Log


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener that does only what the test makes it do."""
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


def test_unix_path_that_is_too_long_is_an_error_at_once() -> None:
    """No wait finds a Unix socket whose path is too long, of which Twisted says nothing."""
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


@pytest.mark.parametrize("max_bytes", [None, 5_000_000])
def test_get_poem_keeps_no_poem(monkeypatch: pytest.MonkeyPatch, max_bytes: int | None) -> None:
    """However it ends, the bytes that it collected are gone, and no collection is needed."""
    kept: list[bytearray] = []

    class Kept(bytearray):
        def __init__(self) -> None:
            kept.append(self)

    monkeypatch.setattr("poetry.client.bytearray", Kept, raising=False)
    with listening(PoetryServerFactory(LONG)) as port:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        getting = get_poem(endpoint, max_bytes=max_bytes)
        if max_bytes is None:
            assert wait(getting) == LONG
        else:
            assert isinstance(wait_error(getting), PoemTooLong)
    assert [len(each) for each in kept] == [0]


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


def test_cancel_ends_a_connection_attempt() -> None:
    """A cancelled get_poem stops connecting, and leaves no timer."""
    clock, endpoint = Clock(), NeverConnects()
    poem = get_poem(endpoint, clock=clock)  # type: ignore[arg-type]
    poem.cancel()
    assert isinstance(wait_error(poem), CancelledError)
    assert (endpoint.cancelled, clock.getDelayedCalls()) == (1, [])


@pytest.mark.parametrize("call", [get_poem, partial(send_poem, poem=b"brief")])
@pytest.mark.parametrize(
    "failure",
    [error.DNSLookupError("no such host"), error.ConnectingCancelledError(None)],
    ids=["lookup", "connect"],
)
def test_cancel_before_the_connection_is_a_cancel(
    failure: Exception, call: Callable[..., Deferred[Any]]
) -> None:
    """Twisted's endpoints fail with different errors, as if there were no such host."""

    class Connects:
        def connect(self, factory: Any) -> Deferred[Any]:
            del factory
            return Deferred(lambda it: it.errback(failure))

    poem = call(Connects(), clock=Clock())
    poem.cancel()
    assert isinstance(wait_error(poem), CancelledError)


class Uncancellable:
    """An endpoint that connects when the test says so, also after a cancel."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._deferred: Deferred[Any] = Deferred()

    def connect(self, factory: Any) -> Deferred[Any]:
        self._factory = factory
        return self._deferred

    def go_on(self) -> None:
        address = TCP4ClientEndpoint(reactor, "127.0.0.1", self._port)
        address.connect(self._factory).chainDeferred(self._deferred)


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
@pytest.mark.parametrize("what", ["get", "send"])
def test_connection_that_comes_after_all_is_not_used(what: str, how: str, log: Log) -> None:
    """Not every endpoint can be cancelled: a poem that was given up is neither fetched nor sent."""
    clock, server = Clock(), Server(LONG if what == "get" else None)
    with listening(server) as port:
        endpoint: Any = Uncancellable(port)
        if what == "get":
            done: Deferred[Any] = get_poem(endpoint, clock=clock)
        else:
            done = send_poem(endpoint, b"a poem", clock=clock)
        if how == "cancelled":
            done.cancel()
        else:
            clock.advance(30)
        expected = CancelledError if how == "cancelled" else error.TimeoutError
        assert isinstance(wait_error(done), expected)
        endpoint.go_on()
        until(lambda: server.outcomes)
    assert server.outcomes in (["truncated"], ["empty"])
    assert not clock.getDelayedCalls()
    assert not [event for event in log if "log_failure" in event]


def test_reset_that_is_reported_as_an_end_is_a_reset(silent: socket.socket, log: Log) -> None:
    """Twisted takes a hang-up with nothing to read for an end, also in the middle of a reset."""
    client = PoetryClientFactory()
    connecting = endpoint_of(silent).connect(client)
    until(lambda: connecting.called)
    (protocol,) = client.connections
    connection, _ = silent.accept()
    connection.sendall(b"half")
    until(lambda: protocol.size)
    reset_seen_as_an_end(protocol, connection)
    assert isinstance(wait_error(client.received), PoemTruncated)
    assert log.names == []


def test_poem_of_a_process() -> None:
    """A process may print the poem: it has no address, and no reset."""
    results: list[Any] = []
    for script, limit in (("echo a poem", None), ("echo a poem; read line", 2)):
        endpoint = ProcessEndpoint(reactor, "/bin/sh", ["sh", "-c", script])
        get_poem(endpoint, max_bytes=limit).addBoth(results.append)

    def ended() -> bool:
        reapAllProcesses()  # no SIGCHLD comes here
        return len(results) == 2 and not reactor.getDelayedCalls()

    until(ended)
    assert b"a poem\n" in results
    assert any(isinstance(getattr(each, "value", None), PoemTooLong) for each in results)


def test_cancel_resets_a_download(silent: socket.socket) -> None:
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
    """A server that falls silent times out, and each byte starts the time again."""
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
def test_bytes_in_the_kernel_are_in_time(
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
def test_max_time_bounds_the_whole_download(chunks: list[bytes] | None) -> None:
    """With `max_time` a server that never connects, is silent or drips times out."""
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


def test_download_within_max_time_leaves_no_timer() -> None:
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
    """An empty poem, a lost connection and a poem over the limit are told apart."""
    endpoint = InMemory()
    poem = get_poem(endpoint, max_bytes=4, clock=Clock())  # type: ignore[arg-type]
    for chunk in chunks:
        endpoint.protocol.dataReceived(chunk)
    endpoint.protocol.connectionLost(Failure(reason))
    assert isinstance(wait_error(poem), expected)


@pytest.mark.parametrize("failure", [OSError(28, "No space"), ValueError("closed")])
def test_failed_write_fails_the_download(failure: Exception) -> None:
    """A download whose part cannot be written fails with that error, and resets."""

    def write(_: bytes) -> None:
        raise failure

    endpoint = InMemory()
    done = downloading(endpoint, write)
    endpoint.protocol.dataReceived(b"half")
    assert wait_error(done) is failure
    assert endpoint.transport.disconnected or endpoint.transport.disconnecting


def test_full_output_pauses_the_server() -> None:
    """While the output is full nothing is read, and the silence is not the server's."""
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
def test_refusal_of_the_reactor_fails_the_download(
    call: str, abort: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the reactor refuses to watch a connection, that is the download's error."""

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


def test_tls_that_owes_answers_is_not_read(certificates: Certificates) -> None:
    """While a server takes no answers of TLS's own, its input waits, and the timeout counts."""
    context = certificates.server_context("good")
    output = StringTransport()
    clock = Clock()
    with serving(stall, context) as port:
        connected: list[Any] = []
        trust = authorities(str(certificates.authority))
        endpoint = client_endpoint(reactor, f"tls:127.0.0.1:{port}", trust)
        done = downloading(Watching(endpoint, connected), output.write, output, clock)
        until(lambda: connected and connected[0].transport.getPeerCertificate())
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
    """An endpoint that keeps the protocols which it has connected."""

    def __init__(self, endpoint: Any, connected: list[Any]) -> None:
        self.endpoint = endpoint
        self.connected = connected

    def connect(self, factory: Any) -> Deferred[Any]:
        """Connect, and keep the protocol."""
        build = factory.buildProtocol

        def note(address: Any) -> Any:
            self.connected.append(build(address))
            return self.connected[-1]

        factory.buildProtocol = note
        connecting: Deferred[Any] = self.endpoint.connect(factory)
        return connecting


def test_closed_output_ends_the_download() -> None:
    """Where the output's reader has gone, the download fails."""
    endpoint, output = InMemory(), StringTransport()
    done = downloading(endpoint, output.write, output)
    producer: Any = output.producer
    producer.stopProducing()
    assert isinstance(wait_error(done), ConsumerGone)


def test_default_clock_is_the_global_reactor() -> None:
    """Without a clock the global reactor keeps the time; a QOTD server's quote is a poem."""

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
def test_send_poem_fires_at_the_end_of_the_server(poem: bytes) -> None:
    """`send_poem` fires when the server has ended after the whole poem."""
    server = Server()
    with listening(server) as port:
        assert wait(send_poem(TCP4ClientEndpoint(reactor, "127.0.0.1", port), poem)) is None
    assert server.results == [poem]


def test_send_poem_to_a_stalled_server_times_out(silent: socket.socket) -> None:
    """Without progress for the timeout `send_poem` fails, and the server sees a reset."""
    clock = Clock()
    sending = send_poem(endpoint_of(silent), LONG, timeout=8.0, clock=clock)
    with accepted(silent) as connection:
        until(lambda: readable(connection))
        clock.pump([1.0] * 12)
        assert isinstance(wait_error(sending), PoemTimedOut)
    assert not clock.getDelayedCalls()


def test_send_poem_fires_once_all_is_acknowledged(silent: socket.socket) -> None:
    """An acknowledged poem is sent, though the server does not end."""
    clock = Clock()
    sending = send_poem(endpoint_of(silent), b"brief", timeout=8.0, clock=clock)
    with accepted(silent) as connection:
        until(lambda: readable(connection))
        clock.pump([1.0] * 12)
        assert wait(sending) is None


def test_max_time_bounds_send_poem(silent: socket.socket) -> None:
    """With `max_time` a server that does not take the poem in time is given up."""
    clock = Clock()
    sending = send_poem(endpoint_of(silent), LONG, max_time=5.0, clock=clock)
    with accepted(silent) as connection:
        until(lambda: readable(connection))
        clock.advance(5.0)
        failure = wait_error(sending)
        assert isinstance(failure, PoemTimedOut)
        assert failure.received > 0
    assert not clock.getDelayedCalls()


def test_default_clock_of_send_poem_is_the_global_reactor(silent: socket.socket) -> None:
    """Without a clock the global reactor keeps the time; a cancel leaves nothing."""
    sending = send_poem(endpoint_of(silent), b"brief")
    sending.cancel()
    assert isinstance(wait_error(sending), CancelledError)


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
        (get_poem, [HERE], {"timeout": 10**400}, ValueError),
        (get_poem, [HERE], {"max_time": 0}, ValueError),
        (get_poem, [HERE], {"max_bytes": 0}, ValueError),
        (serve_poem, ["tcp:0", b"poem"], {}, TypeError),
        (serve_poem, [HERE, b"poem"], {}, TypeError),
        (serve_poem, [THERE, b"poem"], {"idle_timeout": None}, TypeError),
        (serve_poem, [THERE, b"poem"], {"idle_timeout": 0}, ValueError),
        (serve_poem, [THERE, b"poem"], {"max_connections": "9"}, TypeError),
        (PoetryService, [[]], {"grace": None}, TypeError),
        (PoetryService, [[]], {"grace": 10**400}, ValueError),
        (PoetryService, [[("tcp:0", PoetryServerFactory(b"poem"))]], {}, TypeError),
        (PoetryService, [[(THERE, b"poem")]], {}, TypeError),
        (PoetryService, [[(THERE, PoetryClientFactory(b"poem"))]], {}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(
    call: Any, words: list[Any], options: dict[str, Any], mistake: type[Exception]
) -> None:
    """A wrong argument raises where the function is called, and the error names the mistake."""
    with pytest.raises(mistake, match=r"endpoint|second|bytes|byte|0 s|number|at least|Factory"):
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


class Stubborn:
    """An endpoint that goes on when it is cancelled: it tries another address, or fails at that."""

    def __init__(self, cancelled: Any) -> None:
        self._cancelled = cancelled

    def connect(self, _: Any) -> Deferred[Any]:
        first: Deferred[Any] = Deferred(self._cancelled)
        return first.addErrback(lambda _: Deferred())


@pytest.mark.parametrize("cancelled", [lambda _: None, failing(errno.EIO)])
@pytest.mark.parametrize("brings", [False, True])
def test_timeout_ends_a_connect_that_cannot_be_cancelled(
    cancelled: Callable[[Any], object], *, brings: bool
) -> None:
    """The wait is our own, whatever the endpoint does when it is told to stop."""
    clock = Clock()
    endpoint: Any = Stubborn(cancelled)
    done: Deferred[Any] = (
        send_poem(endpoint, b"poem", timeout=1, clock=clock)
        if brings
        else get_poem(endpoint, timeout=1, clock=clock)
    )
    clock.advance(1)
    clock.advance(0)
    assert isinstance(wait_error(done), error.TimeoutError)
    assert not clock.getDelayedCalls()


def test_second_connection_of_an_endpoint_is_refused() -> None:
    """The bytes of two servers are not mixed."""
    made: list[Any] = []

    class Races:
        def connect(self, factory: Any) -> Deferred[Any]:
            made.extend(factory.buildProtocol(None) for _ in range(2))
            made[0].makeConnection(StringTransport())
            return succeed(made[0])

    got = get_poem(Races(), clock=Clock())  # type: ignore[arg-type]
    made[0].dataReceived(b"poem")
    made[0].connectionLost(Failure(error.ConnectionDone()))
    assert (wait(got), made[1]) == (b"poem", None)
