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
def test_a_short_poem_is_sent_without_a_transport(size: int) -> None:
    """The poem and its end are with the kernel as soon as the reader is accepted."""
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
    assert (server.outcomes, server.told) == (["sent"], ["sent"])


class Subclass(PoetryProtocol):
    """Nothing is overridden, and anything could be."""


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
def test_all_others_have_a_transport_of_twisteds(make: Any) -> None:
    """A long poem, a slow one, a receiver, a subclass, and a poem for each reader."""
    server = make()
    with connected(server) as (protocol, _):
        assert protocol.transport.getHandle().type == socket.SOCK_STREAM
        assert isinstance(protocol._wire, Transport)


def test_tls_has_a_transport_of_twisteds(certificates: Certificates) -> None:
    """A short poem over TLS waits for the handshake."""
    server = Server(POEM)
    with (
        serving(server, listen=certificates.listen("good")) as service,
        reader(port_of(service)),
    ):
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert kind(protocol) is not Sent


def test_a_poem_that_is_replaced() -> None:
    """Each reader gets what is the poem as it comes: a long one, and then a short one."""
    server = Server(LONG)
    with serving(server) as service:
        for text in (LONG, POEM, LONG):
            server.poem = text
            with reader(port_of(service)) as connection:
                assert drain(connection) == text


def test_a_hook_that_changes_the_poem() -> None:
    """Readers that are accepted after it, in the same turn, get the new one."""
    server = Server(POEM)
    server.observers = (lambda _: setattr(server, "poem", None),)
    with serving(server) as service, ExitStack() as readers:
        first, second = (readers.enter_context(reader(port_of(service))) for _ in range(2))
        reset(first)
        until(lambda: server.poem is None)
        second.close()


def test_only_a_part_fits() -> None:
    """What the kernel does not take at once goes on where it stopped, on Twisted's transport."""
    server = Server(poem(SHARED - 1))
    with serving(server) as service, small_buffers(service) as connection:
        connection.connect(("127.0.0.1", port_of(service)))
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert 0 < protocol.taken < SHARED - 1
        assert isinstance(protocol._wire, Transport)
        assert drain(connection) == poem(SHARED - 1)


# The transport of a poem that is sent


def test_it_refuses_to_write() -> None:
    """Its poem is sent: another byte would follow the end of the stream."""
    with (
        connected(Server(POEM)) as (protocol, _),
        pytest.raises(WriteRefused),
    ):
        protocol.transport.write(b"x")


def test_it_can_be_closed_by_hand() -> None:
    """`loseConnection` ends it now, gracefully, and once."""
    server = Server(POEM)
    with connected(server) as (protocol, connection):
        transport = protocol.transport
        transport.loseConnection()
        transport.abortConnection()
        transport.loseConnection()
        assert server.outcomes == ["sent"]
        assert transport.getHandle() is None
        with pytest.raises(OSError, match="descriptor"):
            transport.getHost()
        assert drain(connection) == POEM


def test_it_can_be_aborted_by_hand() -> None:
    """After `abortConnection` nothing says that its reader has got it."""
    server = Server(POEM)
    with connected(server) as (protocol, _):
        protocol.transport.abortConnection()
        assert server.outcomes == ["truncated"]


def test_a_reader_that_half_closes_and_takes_its_time() -> None:
    """What the kernel has is delivered, though the connection is closed by then."""
    server = Server(poem(SHORT))
    with serving(server) as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", port_of(service)))
        connection.shutdown(socket.SHUT_WR)
        until(lambda: server.outcomes)
        assert (server.outcomes, drain(connection)) == (["sent"], poem(SHORT))


def test_a_reader_that_resets() -> None:
    """A reader that resets instead of ending was perhaps not served; others are, as before."""
    server = Server(POEM)
    with serving(server) as service:
        with reader(port_of(service)) as connection:
            until(lambda: server.connections)
            reset(connection)
            until(lambda: server.outcomes)
        assert server.outcomes == ["truncated"]
        assert read_in_a_thread(service.addresses[0], 5) == {"whole": 5}


def test_a_stop_closes_it_gracefully() -> None:
    """A stop lets a reader that stays go, with its poem; nothing is left behind."""
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


def test_a_send_that_fails() -> None:
    """The kernel took nothing: the ordinary way is tried, on which the error shows again."""
    with socket.socket() as unconnected:
        assert send_at_once(unconnected, Poem(POEM)) == 0


def test_a_send_that_is_interrupted() -> None:
    """What the handler of a signal raises just after the call is no error of the call."""

    class Socket(socket.socket):
        def send(self, *_: Any) -> int:
            raise BlockingIOError

    with Socket() as handle, pytest.raises(BlockingIOError):
        send_at_once(handle, Poem(POEM))


def test_the_handler_of_a_signal_that_raises(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """An error of its own, just after the bytes went, resets: they must not be sent again."""

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


def test_an_end_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is gone by the end of its poem was not served."""

    def refuse(*_: object) -> bool:
        reset(connection)
        return False

    monkeypatch.setattr(accepting, "end_at_once", refuse)
    server = Server(POEM)
    with serving(server) as service:
        connection = socket.create_connection(("127.0.0.1", port_of(service)), 20)
        until(lambda: server.outcomes)
    assert server.outcomes == ["truncated"]


def test_a_socket_that_cannot_be_shut_down() -> None:
    """The end of the stream is tried on a socket that has none, and it says so."""
    with socket.socket() as unconnected:
        assert not end_at_once(unconnected)


def test_no_descriptor_to_linger_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none for an epoll, readers are let go all the same."""
    monkeypatch.setattr("select.epoll", failing(errno.EMFILE))
    server = Server(POEM)
    with connected(server) as (protocol, connection):
        assert kind(protocol) is Sent
        assert drain(connection) == POEM
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_an_application_with_a_default_timeout() -> None:
    """No call on a socket waits but the reactor's."""
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
def test_at_the_limit(listen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that wait for a place get one as soon as another has gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("poetry.serving.lingering.INTERVAL", 3_600.0)
    server = Server(POEM)
    with serving(server, listen=listen, max_connections=2) as service:
        assert read_in_a_thread(service.addresses[0], 50) == {"whole": 50}
    assert server.outcomes == ["sent"] * 50


def test_on_each_reactor(any_reactor: Any) -> None:
    """Select, poll, epoll and asyncio's wait for descriptors of ours as for any others."""
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


def test_without_epoll() -> None:
    """Where there is none all goes through Twisted's transports."""
    done = run([sys.executable, "-c", WITHOUT_EPOLL])
    assert done.stderr == b""
    assert done.stdout.split() == [b"Sealed", b"Client", b"b'poem'"]


@pytest.mark.parametrize("size", [3_000, SHORT, SHARED - 1, SHARED])
def test_a_stop_beside_a_reader_that_has_spoken(size: int) -> None:
    """Its unread input does not make a reset of the end."""
    server = Server(poem(size))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with serving(server, grace=0) as service:
            connection.connect(("127.0.0.1", port_of(service)))
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            until(lambda: server.connections)
            (protocol,) = server.connections
            until(lambda: protocol.outgoing is not None and protocol.outgoing.ended)
        assert (server.outcomes, drain(connection)) == (["sent"], poem(size))


def test_a_port_that_is_closed_twice() -> None:
    """Its own `stopListening` and a stop of the service, in one turn, both end."""
    with serving(Server(POEM)) as service:
        closed: Any = service.ports[0].stopListening()
        wait(service.stopService())
        wait(closed)
