"""The fast way: short poems of a service are sent as their readers are accepted."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import ITransport
from twisted.internet.tcp import Server as Transport
from zope.interface.verify import verifyObject

from poetry import PoetryProtocol, PoetryService
from poetry.serving import accepting
from poetry.serving.fast import Sent, end_at_once, send_at_once
from poetry.serving.lingering import CROWD
from poetry.wire.outgoing import SHORT, Pace
from poetry.wire.poem import SHARED, Poem
from poetry.wire.sealed import WriteRefused
from tests.calls import failing
from tests.certificates import Certificates
from tests.ends import (
    LONG,
    Server,
    connected,
    ended_with_reset,
    port_of,
    queued,
    reader,
    reset,
    serving,
    small_buffers,
)
from tests.faults.readers import poem, read_all
from tests.loop import drain, reactor, until, wait
from tests.processes import PATIENCE, run
from tests.transfers import Log

POEM = poem(3_000)


def kind(protocol: PoetryProtocol) -> type:
    return type(protocol.transport)


def read_in_a_thread(address: str, count: int) -> Any:
    """Read a service of the global reactor."""
    results: list[Any] = []
    thread = Thread(
        target=lambda: results.append(read_all(address, POEM, count=count, at_once=count))
    )
    thread.start()
    until(lambda: not thread.is_alive())
    return results[0]


# Which poems


@pytest.mark.parametrize("size", [1, 3_000, SHORT, SHARED - 1])
def test_short_poem_is_sent_without_twisteds_transport(size: int) -> None:
    """The kernel has the poem and its end as soon as the reader is accepted."""
    server = Server(poem(size))
    with connected(server) as (protocol, connection):
        assert (kind(protocol), protocol.size) == (Sent, size)
        assert verifyObject(ITransport, protocol.transport)
        assert protocol.transport.getPeer().port == connection.getsockname()[1]
        assert protocol.transport.getHost().port == connection.getpeername()[1]
        connection.sendall(b"GET / HTTP/1.1")
        assert drain(connection) == poem(size)
        connection.sendall(b"more")
        connection.close()
        until(lambda: server.outcomes)
    assert (server.outcomes, server.results) == (["sent"], ["sent"])


class Subclass(PoetryProtocol):
    """Overrides nothing, but might."""


class Personal(Server):
    """Chooses a poem for each reader."""

    def getPoem(self, protocol: PoetryProtocol) -> bytes:
        return b"for %d" % protocol.transport.getPeer().port


def subclassed() -> Server:
    server = Server(POEM)
    server.protocol = Subclass
    return server


def slow() -> Server:
    server = Server(POEM)
    server.pace = Pace(10, 60.0, reactor)
    return server


@pytest.mark.parametrize(
    "make",
    [lambda: Server(poem(SHARED)), slow, Server, subclassed, lambda: Personal(POEM)],
    ids=["long", "slow", "receives", "subclass", "personal"],
)
def test_other_poems_have_twisteds_transport(make: Any) -> None:
    """A long poem, a slow one, a receiver, a subclass, and a poem for each reader."""
    server = make()
    with connected(server) as (protocol, _):
        assert protocol.transport.getHandle().type == socket.SOCK_STREAM
        assert isinstance(protocol._wire, Transport)


def test_short_poem_over_tls_has_twisteds_transport(certificates: Certificates) -> None:
    """A short poem over TLS waits for the handshake."""
    server = Server(POEM)
    with (
        serving(server, listen=certificates.listen("good")) as service,
        reader(port_of(service)),
    ):
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert kind(protocol) is not Sent


def test_replaced_poem_is_for_new_readers() -> None:
    """Each reader gets the poem of the moment it connects, be it long or short."""
    server = Server(LONG)
    with serving(server) as service:
        for text in (LONG, POEM, LONG):
            server.poem = text
            with reader(port_of(service)) as connection:
                assert drain(connection) == text


def test_poem_replaced_by_a_hook_is_for_the_next_reader() -> None:
    """Readers accepted after the hook, in the same turn, get the new poem."""
    server = Server(POEM)
    server.observers = (lambda _: setattr(server, "poem", None),)
    with serving(server) as service, ExitStack() as readers:
        first, second = (readers.enter_context(reader(port_of(service))) for _ in range(2))
        reset(first)
        until(lambda: server.poem is None)
        second.close()


def test_rest_of_a_partly_sent_poem_has_twisteds_transport() -> None:
    """Bytes that the kernel does not take at once follow on Twisted's transport."""
    server = Server(poem(SHARED - 1))
    with serving(server) as service, small_buffers(service) as connection:
        connection.connect(("127.0.0.1", port_of(service)))
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert 0 < protocol.taken < SHARED - 1
        assert isinstance(protocol._wire, Transport)
        assert drain(connection) == poem(SHARED - 1)


# The transport of a poem that is sent


def test_sent_transport_refuses_to_write() -> None:
    """After the end of the stream another byte is refused."""
    with (
        connected(Server(POEM)) as (protocol, _),
        pytest.raises(WriteRefused),
    ):
        protocol.transport.write(b"x")


@pytest.mark.parametrize("make", [lambda: Server(POEM), subclassed], ids=["sent", "sealed"])
def test_loseConnection_after_the_poem_does_nothing(make: Any) -> None:
    """The connection ends with its reader: a close would reset one that has spoken."""
    server = make()
    with connected(server) as (protocol, connection):
        connection.sendall(b"GET / HTTP/1.1")
        protocol.transport.loseConnection()
        assert server.outcomes == []
        assert drain(connection) == POEM
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_abortConnection_on_a_sent_transport_is_truncated() -> None:
    """After `abortConnection` the outcome does not claim that the poem arrived; it closes once."""
    server = Server(POEM)
    with connected(server) as (protocol, _):
        transport = protocol.transport
        transport.abortConnection()
        transport.abortConnection()
        assert server.outcomes == ["truncated"]
        assert transport.getHandle() is None
        with pytest.raises(OSError, match="descriptor"):
            transport.getHost()


def test_reset_by_a_reader_is_truncated() -> None:
    """The poem of a reader that resets counts as truncated; other readers are served as before."""
    server = Server(POEM)
    with serving(server) as service:
        with reader(port_of(service)) as connection:
            until(lambda: server.connections)
            reset(connection)
            until(lambda: server.outcomes)
        assert server.outcomes == ["truncated"]
        assert read_in_a_thread(service.addresses[0], 5) == {"whole": 5}


def test_stop_closes_gracefully() -> None:
    """A stop closes behind a reader that stays with its poem, and leaves nothing behind."""
    readers, timers = len(reactor.getReaders()), len(reactor.getDelayedCalls())
    server = Server(POEM)
    with ExitStack() as stack:
        with serving(server) as service:
            connection = stack.enter_context(reader(port_of(service)))
            until(lambda: server.connections)
        assert (server.outcomes, drain(connection)) == (["sent"], POEM)
    until(lambda: len(reactor.getReaders()) == readers)
    assert len(reactor.getDelayedCalls()) == timers


# What may go wrong


def test_failed_send_falls_back() -> None:
    """The kernel took nothing: the ordinary way is tried, and shows the error again."""
    with socket.socket() as unconnected:
        assert send_at_once(unconnected, Poem(POEM)) == 0


def test_exception_of_a_signal_handler_is_no_error_of_send() -> None:
    """An exception that a signal's handler raises just after the call passes through."""

    class Socket(socket.socket):
        def send(self, *_: Any) -> int:
            raise BlockingIOError

    with Socket() as handle, pytest.raises(BlockingIOError):
        send_at_once(handle, Poem(POEM))


def test_exception_of_a_signal_handler_resets(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """An exception just after the bytes have gone resets, so that none is sent twice."""

    def interrupted(handle: socket.socket, poem: Poem) -> int:
        handle.send(poem.data[:1_000])
        raise BlockingIOError(errno.EAGAIN, "raised by the handler of a signal")

    monkeypatch.setattr(accepting, "send_at_once", interrupted)
    server = Server(POEM)
    with serving(server) as service, reader(port_of(service)) as connection:
        assert ended_with_reset(connection)
        monkeypatch.undo()
        with reader(port_of(service)) as another:
            assert drain(another) == POEM
    log.clear()


def test_end_that_cannot_be_sent_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The poem of a reader that has reset by the end of the stream counts as truncated."""

    def refuse(*_: object) -> bool:
        reset(connection)
        return False

    monkeypatch.setattr(accepting, "end_at_once", refuse)
    server = Server(POEM)
    with serving(server) as service:
        connection = socket.create_connection(("127.0.0.1", port_of(service)), 20)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


def test_failed_shutdown_is_reported() -> None:
    """The end of the stream fails on a socket without a stream."""
    with socket.socket() as unconnected:
        assert not end_at_once(unconnected)


def test_readers_linger_without_an_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for an epoll, readers still end."""
    monkeypatch.setattr("select.epoll", failing(errno.EMFILE))
    server = Server(POEM)
    with connected(server) as (protocol, connection):
        assert kind(protocol) is Sent
        assert drain(connection) == POEM
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_default_socket_timeout_is_ignored() -> None:
    """No call on a socket blocks, whatever socket.setdefaulttimeout says."""
    socket.setdefaulttimeout(0.1)
    try:
        server = Server(POEM)
        with connected(server) as (protocol, connection):
            assert protocol.transport.socket.gettimeout() is None
            assert drain(connection) == POEM
            connection.close()
            until(lambda: server.outcomes)
    finally:
        socket.setdefaulttimeout(None)
    assert server.outcomes == ["sent"]


# Limits and platforms


@pytest.mark.parametrize("listen", ["tcp:0:interface=127.0.0.1", "unix:poem"])
def test_place_is_given_on_at_the_limit(
    listen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that wait for a place get one as soon as another reader has closed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("poetry.serving.lingering.INTERVAL", 3_600.0)
    server = Server(POEM)
    with serving(server, listen=listen, max_connections=2) as service:
        assert read_in_a_thread(service.addresses[0], 50) == {"whole": 50}
    assert server.outcomes == ["sent"] * 50


@pytest.mark.parametrize("count", [CROWD - 1, CROWD, 40])
def test_crowd_is_watched_from_the_start(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that come together while none lingers are watched, and not looked at before."""
    monkeypatch.setattr("poetry.serving.lingering.INTERVAL", 3_600.0)
    server = Server(POEM)
    with serving(server) as service, ExitStack() as stack:
        crowd = [stack.enter_context(reader(port_of(service))) for _ in range(count)]
        for each in crowd:
            assert drain(each) == POEM
            each.close()
        if count >= CROWD:
            until(lambda: not service.connections)
        reactor.iterate(0)
        assert len(service.connections) + len(server.outcomes) == count
        assert server.outcomes == ["sent"] * (count if count >= CROWD else 0)


def test_each_reactor_serves(any_reactor: Any) -> None:
    """Select, poll, epoll and asyncio's reactor watch these descriptors like any others."""
    server = Server(POEM)
    endpoint = TCP4ServerEndpoint(any_reactor, 0, interface="127.0.0.1")
    service = PoetryService([(endpoint, server)], clock=any_reactor)
    results: list[Any] = []
    kinds: list[type] = []
    server.observers = (*server.observers, lambda protocol: kinds.append(kind(protocol)))

    def read() -> None:
        results.append(read_all(service.addresses[0], POEM, count=50, at_once=10))
        any_reactor.callFromThread(stop)

    def stop() -> None:
        service.stopService().addCallback(lambda _: any_reactor.stop())

    thread = Thread(target=read)
    any_reactor.callWhenRunning(service.startService)
    any_reactor.callWhenRunning(thread.start)
    any_reactor.run(installSignalHandlers=False)
    thread.join(PATIENCE)
    assert (results, server.outcomes) == ([{"whole": 50}], ["sent"] * 50)
    assert kinds == [Sent] * 50


WITHOUT_EPOLL = """
import select
for name in [name for name in dir(select) if "epoll" in name.lower()]:
    delattr(select, name)
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, serverFromString
from poetry import get_poem, serve_poem
from poetry.protocol import PoetryProtocol

async def main():
    port = await serve_poem(serverFromString(reactor, "tcp:0:interface=127.0.0.1"), b"poem")
    made = PoetryProtocol.connectionMade
    def connectionMade(self):
        print(type(self.transport).__name__)
        made(self)
    PoetryProtocol.connectionMade = connectionMade
    address = f"tcp:127.0.0.1:{port.getHost().port}"
    print(await get_poem(clientFromString(reactor, address)))

from twisted.internet.task import react
from twisted.internet.defer import Deferred
react(lambda _: Deferred.fromCoroutine(main()))
"""


def test_system_without_epoll_has_twisteds_transports() -> None:
    """Without epoll all readers have Twisted's transports."""
    done = run([sys.executable, "-c", WITHOUT_EPOLL])
    assert done.stderr == b""
    assert done.stdout.split() == [b"Sealed", b"Client", b"b'poem'"]


@pytest.mark.parametrize(
    ("size", "outcome"),
    [(2_000, "sent"), (SHORT, "stopped"), (SHARED - 1, "stopped"), (SHARED, "stopped")],
)
def test_stop_with_unread_input_is_no_reset(size: int, outcome: str) -> None:
    """Unread input does not turn the end into a reset, acknowledged or not."""
    server = Server(poem(size))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with serving(server, grace=0) as service:
            connection.connect(("127.0.0.1", port_of(service)))
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            until(lambda: server.connections)
            (protocol,) = server.connections
            until(lambda: protocol.outgoing is not None and protocol.outgoing.ended)
            until(lambda: outcome == "stopped" or not queued(protocol))
        assert (server.outcomes, drain(connection)) == ([outcome], poem(size))


def test_port_closed_twice_ends_both_calls() -> None:
    """A port's own `stopListening` and a stop of the service, in one turn, both end."""
    with serving(Server(POEM)) as service:
        closed: Any = service.ports[0].stopListening()
        wait(service.stopService())
        wait(closed)
