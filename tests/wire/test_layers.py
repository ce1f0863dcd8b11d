"""Twisted's transports from outside to inside, and the names of Twisted's own that are used."""

from __future__ import annotations

import pytest
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol

from poetry import PoetryClientFactory, PoetryProtocol
from poetry.wire import layers, wire_of
from poetry.wire.buffered import BUFFERED
from poetry.wire.layers import handle_of, is_closing
from tests.certificates import Certificates
from tests.ends import (
    Server,
    ended_with_reset,
    listening,
    reader,
)
from tests.loop import reactor, until, wait


def test_each_transport_has_its_wire(certificates: Certificates) -> None:
    """A socket, TLS itself, and anything else, such as memory or a wrapper around either."""
    kinds: list[str] = []

    class Tells(PoetryProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            kinds.append(type(self.wire).__name__)

    for secure in (False, True):
        for wrap in (lambda factory: factory, WrappingFactory):
            server, client = Server(b"poem"), PoetryClientFactory()
            server.protocol = Tells
            listen = certificates.listen("good") if secure else "tcp:0:interface=127.0.0.1"
            port = wait(serverFromString(reactor, listen).listen(wrap(server)))
            number = port.getHost().port
            address = certificates.trusting(number) if secure else f"tcp:127.0.0.1:{number}"
            clientFromString(reactor, address).connect(client)
            assert wait(client.received) == b"poem"
            wait(port.stopListening())
    assert kinds == ["Plain", "Buffered", "Tls", "Buffered"]
    assert wire_of(StringTransport()) is BUFFERED


def test_in_memory_there_is_no_socket() -> None:
    """What is done to a socket is not done where there is none."""
    transport = StringTransport()
    assert handle_of(transport) is None
    layers.forbid_end(transport)
    layers.permit_end(transport)
    layers.discard_input(transport)
    assert not is_closing(transport)
    assert not is_closing(object())


def test_the_names_of_twisted() -> None:
    """What is no part of an interface of Twisted's is there, and starts as we take it to."""
    assert Connection._shouldShutdown is True
    assert not Connection.disconnecting
    assert not TLSMemoryBIOProtocol.disconnecting
    assert callable(TLSMemoryBIOProtocol.write)


@pytest.mark.parametrize("permitted", [False, True])
def test_a_forbidden_end(*, permitted: bool) -> None:
    """Once forbidden, no close of Twisted's ends the stream, until it is permitted."""
    server = Server()
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        protocol.transport.write(b"some")
        layers.forbid_end(protocol.transport)
        if permitted:
            layers.permit_end(protocol.transport)
        protocol.transport.loseConnection()
        assert ended_with_reset(connection) is not permitted
