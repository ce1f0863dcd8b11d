"""Nothing but the poem is written while it is sent, on any transport."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory

from poetry import PoetryClientFactory, PoetryProtocol, PoetryServerFactory
from poetry.wire.sealed import Sealed, WriteRefused
from tests.certificates import Certificates
from tests.ends import HERE, LONG, Server, serving
from tests.loop import reactor, until, wait
from tests.transfers import Log

Write = Callable[[Any], object]

WRITES: dict[str, Write] = {
    "write": lambda transport: transport.write(b"x"),
    "writeSequence": lambda transport: transport.writeSequence([b"x"]),
    "loseWriteConnection": lambda transport: transport.loseWriteConnection(),
    "registerProducer": lambda transport: transport.registerProducer(None, True),
    "unregisterProducer": lambda transport: transport.unregisterProducer(),
    "stopConsuming": lambda transport: transport.stopConsuming(),
    "startTLS": lambda transport: transport.startTLS(None),
    "sendFileDescriptor": lambda transport: transport.sendFileDescriptor(0),
}


class Before(PoetryProtocol):
    """Writes before its poem."""

    write: Write

    def connectionMade(self) -> None:
        self.write(self.transport)
        super().connectionMade()


class After(Before):
    """Writes after its poem has begun."""

    def connectionMade(self) -> None:
        PoetryProtocol.connectionMade(self)
        self.write(self.transport)


class First(Before):
    """Writes before the connection is made."""

    def makeConnection(self, transport: Any) -> None:
        PoetryProtocol.makeConnection(self, transport)
        self.write(self.transport)

    connectionMade = PoetryProtocol.connectionMade


class Answers(Before):
    """Writes at the first input."""

    connectionMade = PoetryProtocol.connectionMade

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.write(self.transport)


class Later(Before):
    """Writes from a timer, and keeps the error."""

    def connectionMade(self) -> None:
        PoetryProtocol.connectionMade(self)
        reactor.callLater(0, self.write_later)

    def write_later(self) -> None:
        with pytest.raises(WriteRefused):
            self.write(self.transport)


@contextmanager
def listening(kind: str, server: Server, certificates: Certificates) -> Iterator[str]:
    """Listen on a transport of a kind; give its address for a client."""
    listen = certificates.listen("good") if "tls" in kind else HERE
    factory: Any = WrappingFactory(server) if "wrapped" in kind else server
    if kind == "service":
        with serving(server) as service:
            yield f"tcp:{service.addresses[0]}"
        return
    port = wait(serverFromString(reactor, listen).listen(factory))
    number = port.getHost().port
    yield certificates.trusting(number) if "tls" in kind else f"tcp:127.0.0.1:{number}"
    wait(port.stopListening())


@pytest.mark.parametrize("kind", ["bare", "service", "tls", "wrapped", "wrapped tls"])
@pytest.mark.parametrize("protocol", [Before, After, First, Answers, Later])
@pytest.mark.parametrize("poem", [b"short" * 600, LONG], ids=["short", "long"])
def test_write_beside_a_poem_leaves_it_whole_or_resets(
    kind: str,
    protocol: type[Before],
    poem: bytes,
    certificates: Certificates,
    log: Log,
) -> None:
    """A protocol that writes beside its poem spoils no reader's."""
    server, client = Server(poem), PoetryClientFactory()
    server.protocol = type("Writes", (protocol,), {"write": staticmethod(WRITES["write"])})
    speaks = protocol is Answers
    if speaks:
        client.protocol = Speaks
    with listening(kind, server, certificates) as address:
        clientFromString(reactor, address).connect(client)
        results: list[Any] = []
        client.received.addBoth(results.append)
        until(lambda: results and server.outcomes)
    if protocol in (Before, After):
        assert "hook_failed" in log.names
    log.clear()
    refused_by_the_reactor = speaks and kind != "service"
    if not refused_by_the_reactor:
        assert results == [poem]
        assert server.outcomes == ["sent"]
    assert results[0] == poem or isinstance(results[0].value, Exception)


class Speaks(PoetryProtocol):
    """A reader that speaks first."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.write(b"GET /")


@pytest.mark.parametrize("name", WRITES)
def test_each_way_to_write_is_refused(name: str) -> None:
    """The error is raised where the write is called, in memory too, and says what to do."""
    transport = StringTransport()
    protocol: Any = PoetryServerFactory(b"poem").buildProtocol(None)
    protocol.makeConnection(transport)
    with pytest.raises(WriteRefused, match="getPoem"):
        WRITES[name](protocol.transport)
    assert transport.value() == b"poem"


def test_receiver_may_write() -> None:
    """Only a protocol that sends a poem has its write side sealed."""
    transport = StringTransport()
    protocol: Any = PoetryServerFactory().buildProtocol(None)
    protocol.makeConnection(transport)
    assert protocol.transport is transport


def test_sealed_transport_provides_the_interfaces_below(certificates: Certificates) -> None:
    """A sealed transport provides the interfaces of the transport below."""
    for listen, interface in ((HERE, ITCPTransport), (certificates.listen("good"), ISSLTransport)):
        server = Server(LONG)
        with serving(server, listen=listen) as service:
            address = service.addresses[0].rpartition(":")[2]
            with socket.create_connection(("127.0.0.1", int(address)), 20) as connection:
                until(lambda: server.connections)  # noqa: B023 (it is waited for here)
                (protocol,) = server.connections
                assert isinstance(protocol.transport, Sealed)
                assert interface.providedBy(protocol.transport)
                assert protocol.transport.getPeer().port == connection.getsockname()[1]
                assert repr(protocol.transport).startswith("<Sealed <")


@pytest.mark.parametrize("name", ["write", "loseWriteConnection"])
def test_write_before_the_poem_is_chosen_resets(name: str, log: Log) -> None:
    """A write before `getPoem` has chosen is refused, and resets."""

    class Writes(Server):
        def getPoem(self, protocol: PoetryProtocol) -> bytes | None:
            WRITES[name](protocol.transport)
            return b"poem"

    server = Writes()
    with (
        serving(server) as service,
        socket.create_connection(("127.0.0.1", int(service.addresses[0].split(":")[1])), 20),
    ):
        until(lambda: server.outcomes)
    assert server.outcomes == ["failed"]
    log.clear()


def turn_away_in_getPoem(closes: str) -> Server:
    class TurnsAway(Server):
        def getPoem(self, protocol: PoetryProtocol) -> bytes | None:
            getattr(protocol.transport, closes)()
            return self.poem

    return TurnsAway()


def turn_away_in_connectionMade(closes: str) -> Server:
    class TurnsAway(PoetryProtocol):
        def connectionMade(self) -> None:
            getattr(self.transport, closes)()
            super().connectionMade()

    server = Server()
    server.protocol = TurnsAway
    return server


@pytest.mark.parametrize("kind", ["bare", "service", "tls", "wrapped", "wrapped tls"])
@pytest.mark.parametrize("closes", ["loseConnection", "abortConnection"])
@pytest.mark.parametrize("make", [turn_away_in_getPoem, turn_away_in_connectionMade])
@pytest.mark.parametrize("poem", [b"short", LONG], ids=["short", "long"])
def test_reader_that_is_turned_away_before_the_poem_is_reset(
    kind: str,
    closes: str,
    make: Callable[[str], Server],
    poem: bytes,
    certificates: Certificates,
) -> None:
    """A close before the poem begins resets, whatever the protocol does next."""
    server, client = make(closes), PoetryClientFactory()
    server.poem = poem
    results: list[Any] = []
    client.received.addBoth(results.append)
    with listening(kind, server, certificates) as address:
        connecting = clientFromString(reactor, address).connect(client)
        connecting.addErrback(results.append)  # over TLS it may not have come up
        until(lambda: results and server.outcomes)
    assert server.outcomes == ["truncated"]
    assert isinstance(results[0].value, Exception)
