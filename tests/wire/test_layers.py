"""Twisted's transports from outside to inside, and the names of Twisted's own that are used."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from poetry import PoetryClientFactory, PoetryProtocol
from poetry.idle import sweep
from poetry.wire import closing, kernel, kind_of
from poetry.wire.buffered import Buffered
from poetry.wire.layers import handle_of, is_closing
from tests.certificates import Certificates
from tests.ends import (
    LONG,
    Server,
    ended_with_reset,
    listening,
    reader,
)
from tests.loop import drain, reactor, until, wait
from tests.transfers import Log


def test_each_transport_has_its_kind_of_sending(certificates: Certificates) -> None:
    """A socket, TLS, and anything else, such as memory or a wrapper around either."""
    kinds: list[str] = []

    class Tells(PoetryProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            kinds.append(type(self.outgoing).__name__)

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
    assert kind_of(StringTransport()) is Buffered


def test_calls_for_a_socket_do_nothing_in_memory() -> None:
    """Calls that change a socket do nothing on a transport without one."""
    transport = StringTransport()
    assert handle_of(transport) is None
    assert not closing.reset(transport)
    closing.reset_before_close(transport)
    closing.close(transport)
    assert transport.disconnecting
    assert not is_closing(StringTransport())
    assert not is_closing(object())


def test_names_of_twisted_outside_its_interfaces() -> None:
    """Attributes that no interface of Twisted's has exist, with the expected first value."""
    assert not Connection.disconnecting
    assert Connection.bufferSize == 64 * 1024
    assert not TLSMemoryBIOProtocol.disconnecting
    assert callable(TLSMemoryBIOProtocol.write)


@pytest.mark.parametrize("ctypes", [True, False])
def test_reset_before_twisteds_close(monkeypatch: pytest.MonkeyPatch, *, ctypes: bool) -> None:
    """A close that Twisted begins with shutdown(2) is a reset all the same, with ctypes or not."""
    if not ctypes:
        monkeypatch.setattr(kernel, "c_library", lambda: None)
    server = Server()
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        protocol.transport.write(b"some")
        closing.reset_before_close(protocol.transport)
        protocol.transport.connectionLost(Failure(ConnectionDone()))
        assert ended_with_reset(connection)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("end", [closing.close, closing.abort])
def test_close_survives_a_refusal_of_the_reactor(
    end: Callable[[Any], None], times: int, log: Log
) -> None:
    """Where epoll_ctl(2) is refused once or more, the socket is closed, and the protocol knows."""
    server = Server()
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        remove, refused = reactor.removeReader, 0

        def refuse(each: object) -> None:
            nonlocal refused
            remove(each)
            if refused < times:
                refused += 1
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        transport = protocol.transport
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reactor, "removeReader", refuse)
            end(transport)
        assert server.outcomes
        assert ended_with_reset(connection) is (end is closing.abort)
    log.clear()


def test_reused_descriptor_is_served_after_a_refusal(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """After a refused EPOLL_CTL_DEL the next connection of that number is served like any other."""
    server = Server(LONG)
    with listening(server) as port:
        for _ in range(3):
            with reader(port) as connection:
                until(lambda: server.connections)
                (_protocol,) = server.connections
                poller = reactor._poller
                refused: list[int] = []

                class Refuses:
                    """An epoll that refuses to remove one descriptor."""

                    def unregister(self, descriptor: int) -> None:
                        if not refused:  # noqa: B023
                            refused.append(descriptor)  # noqa: B023
                            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
                        poller.unregister(descriptor)  # noqa: B023

                    def __getattr__(self, name: str) -> Any:
                        return getattr(poller, name)  # noqa: B023

                monkeypatch.setattr(reactor, "_poller", Refuses())
                assert drain(connection) == LONG
                connection.close()
                until(lambda: refused)  # noqa: B023
                monkeypatch.undo()
                for now in (0, 1, 2):
                    sweep(server.connections, now, 10.0, 30.0)
            until(lambda: not server.connections)
    assert server.outcomes == ["sent"] * 3
    log.clear()


def test_close_survives_an_error_of_the_protocol(log: Log) -> None:
    """An error of the protocol is logged, and the connection is closed all the same."""

    class Fails(PoetryProtocol):
        def connectionLost(self, reason: Failure = connectionDone) -> None:
            super().connectionLost(reason)
            raise RuntimeError

    server = Server()
    server.protocol = Fails
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        closing.close(protocol.transport)
        assert server.outcomes
        assert drain(connection) == b""
    log.clear()


def test_reset_needs_tcp_and_ctypes() -> None:
    """Only a socket of TCP can be reset, and only with ctypes."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as connection,
    ):
        assert kernel.reset(connection)
    with socket.socket(socket.AF_UNIX) as unix:
        assert not kernel.reset(unix)
