"""A factory that keeps its results, listeners and readers: for tests of both ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry import PoetryClientFactory, PoetryProtocol, PoetryServerFactory, PoetryService
from poetry.wire.kernel import has_hung_up, unacknowledged
from poetry.wire.layers import handle_of, innermost
from poetry.wire.outgoing import SHORT
from tests.faults.readers import reset as reset
from tests.loop import drain, reactor, until, wait

LONG = bytes(range(256)) * 40_000
"""10 MB: more than the kernel takes at once."""

POEMS = {"1 byte": b"\0", "3 kB": b"line\n" * 600, "16 kB + 1": b"x" * (SHORT + 1), "10 MB": LONG}
EACH_POEM = pytest.mark.parametrize("poem", POEMS.values(), ids=POEMS.keys())


class Server(PoetryServerFactory):
    """Keeps the results of its hooks and observers."""

    def __init__(self, poem: bytes | None = None) -> None:
        super().__init__(poem)
        self.results: list[Any] = []
        self.outcomes: list[str | None] = []
        self.observers = (lambda protocol: self.outcomes.append(protocol.outcome),)

    def poemReceived(self, poem: bytes) -> None:
        self.results.append(poem)

    def poemFailed(self, reason: Failure) -> None:
        self.results.append(reason.value)

    def poemSent(self, poem: bytes) -> None:
        super().poemSent(poem)
        self.results.append("sent")


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), 20)
        other, _ = listener.accept()
    with one, other:
        yield one, other


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


HERE = "tcp:0:interface=127.0.0.1"


@implementer(IStreamServerEndpoint)
class Wraps:
    """An endpoint that puts a wrapper of Twisted's around each protocol."""

    def __init__(self, listen: str) -> None:
        self._endpoint = serverFromString(reactor, listen)

    def listen(self, factory: Any) -> Any:
        return self._endpoint.listen(WrappingFactory(factory))


@contextmanager
def serving(*factories: Any, listen: str = HERE, **limits: Any) -> Iterator[PoetryService]:
    """A started service with a listener a factory; it is stopped at once in the end."""
    listeners = [(serverFromString(reactor, listen), factory) for factory in factories]
    service = PoetryService(listeners, **limits)
    service.startService()
    try:
        yield service
    finally:
        stopped = service.stopService()
        service.abort()
        wait(stopped)


def port_of(service: PoetryService, index: int = 0) -> int:
    """The number of the port of a listener."""
    port: Any = service.ports[index]
    number: int = port.getHost().port
    return number


@contextmanager
def connected(server: Server, **limits: Any) -> Iterator[tuple[PoetryProtocol, socket.socket]]:
    """One reader of a service, and the protocol that serves it."""
    with serving(server, **limits) as service, reader(port_of(service)) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        yield protocol, connection


@contextmanager
def small_buffers(service: PoetryService) -> Iterator[socket.socket]:
    """A reader, not yet connected, of whose poem a service's kernel takes a few kB at a time."""
    listener: Any = service.ports[0]
    listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with socket.socket() as connection:
        connection.settimeout(20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        yield connection


def connect_tcp(port: int, factory: PoetryClientFactory) -> None:
    reactor.connectTCP("127.0.0.1", port, factory)


def connect_endpoint(port: int, factory: PoetryClientFactory) -> None:
    TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)


def queued(protocol: PoetryProtocol) -> int:
    """Bytes that the peer has not acknowledged."""
    handle = handle_of(protocol.transport)
    return unacknowledged(handle) if handle is not None else 0


def ended_with_reset(connection: socket.socket) -> bool:
    """Whether a reader gets an error before the end of the stream."""
    try:
        drain(connection)
    except ConnectionResetError:
        return True
    return False


def reset_seen_as_an_end(protocol: PoetryProtocol, peer: socket.socket) -> None:
    """Reset a connection, and report that as Twisted does in the middle of a reset: as an end."""
    below = innermost(protocol.transport)
    below.stopReading()
    reset(peer)
    until(lambda: has_hung_up(below.socket))
    below.readConnectionLost(Failure(ConnectionDone()))
