"""Short poems: sent as a connection is accepted, without a transport of Twisted's.

Most of what such a poem costs in Python is Twisted's work for a connection that will never need it:
log strings, a place in the reactor, dispatch, dropping it from there again. Here a socket is sent
its poem at once, and then only waited for, with all others, by one reader of the reactor: that is
0.6 times the CPU of a 3 kB poem (measured). Whatever is not done at once gets Twisted's transport.
"""

from __future__ import annotations

import select
import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor, ITCPTransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

DISCARD = 64 * 1024
"""Bytes of a reader's own words that are read at a time, and thrown away."""

_log = Logger()


@implementer(ITCPTransport)
class Lean:
    """A connection on which nothing has happened yet, or nothing will but its end.

    Asked for anything that it does not have, it makes way for a transport of Twisted's.

    @ivar transport: that one, once there is one.
    """

    __slots__ = (
        "_address",
        "_drain",
        "_shouldShutdown",
        "disconnecting",
        "protocol",
        "reads",
        "socket",
        "transport",
    )

    def __init__(self, handle: socket.socket, address: tuple[Any, ...], drain: Drain) -> None:
        """@param address: as accept(2) has it."""
        self.socket: socket.socket | None = handle
        self.protocol: Any = None
        self.transport: Any = None
        self.disconnecting = False
        self.reads = False
        self._address = address
        self._drain = drain

    def getHandle(self) -> socket.socket | None:
        """The socket. It may block: see MSG_DONTWAIT."""
        return self.socket

    def getPeer(self) -> IPv4Address | IPv6Address:
        """Who is at the other end."""
        return _address(self._address)

    def getHost(self) -> IPv4Address | IPv6Address:
        """Which address of this machine was connected to."""
        assert self.socket is not None
        return _address(self.socket.getsockname())

    def startReading(self) -> None:
        """All is sent: wait for the reader's end."""
        self._drain.add(self)

    def loseConnection(self) -> None:
        """Close it in the next turn."""
        self._loseLater(ConnectionDone())

    def abortConnection(self) -> None:
        """Close it in the next turn; `layers.reset` has said how."""
        self._loseLater(ConnectionAborted())

    def _loseLater(self, reason: Exception) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self._drain.reactor.callLater(0, self.lose, Failure(reason))

    def lose(self, reason: Failure) -> None:
        """Close it, and tell the protocol."""
        if self.socket is not None:
            self._drain.remove(self)
            self.socket.close()
            self.socket = None
            try:
                self.protocol.connectionLost(reason)
            except BaseException:  # of a subclass: others are not to suffer for it
                _log.failure("connectionLost raised", event="hook_failed")

    def promote(self) -> Any:
        """Give the socket to a transport of Twisted's, made as its port makes them."""
        if self.transport is None:
            assert self.socket is not None
            self._drain.remove(self)
            port: Any = self._drain.port
            port.sessionno += 1
            self.transport = self.protocol.transport = port.transport(
                self.socket,
                self.protocol,
                _named(self._address),
                port,
                port.sessionno,
                port.reactor,
            )
        return self.transport

    def __getattr__(self, name: str) -> Any:
        """What a transport of Twisted's has."""
        if name.startswith("__") or self.socket is None:
            raise AttributeError(name)
        return getattr(self.promote(), name)


@implementer(IReadDescriptor)
class Drain:
    """Accepts readers for one port, and waits for those that have everything: one epoll for all."""

    def __init__(self, port: Port, factory: Factory) -> None:
        self.port = port
        self.reactor: Any = port.reactor
        self._factory = factory
        self._epoll: select.epoll | None = None
        self._waiting: dict[int, Lean] = {}
        self._closed = False

    def connect(self, handle: socket.socket, address: tuple[Any, ...]) -> None:
        """Serve who was accepted."""
        lean = Lean(handle, address, self)
        lean.protocol = self._factory.buildProtocol(lean.getPeer())
        if lean.protocol is None:
            handle.close()
            return
        lean.protocol.makeConnection(lean)
        if not lean.reads and lean.transport is None and not lean.disconnecting:
            lean.promote()

    def add(self, lean: Lean) -> None:
        """Wait for a reader's end."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self.reactor.addReader(self)
        handle = lean.socket
        if handle is not None and not lean.reads:
            lean.reads = True
            self._waiting[handle.fileno()] = lean
            self._epoll.register(handle.fileno(), select.EPOLLIN)

    def remove(self, lean: Lean) -> None:
        """Wait no longer."""
        if lean.reads and lean.socket is not None and self._epoll is not None:
            lean.reads = False
            self._epoll.unregister(lean.socket.fileno())
            del self._waiting[lean.socket.fileno()]
            self._rest()

    def close(self) -> None:
        """Nobody more will come: keep nothing open once the last one is gone."""
        self._closed = True
        self._rest()

    def _rest(self) -> None:
        if self._closed and not self._waiting and self._epoll is not None:
            self.reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    def fileno(self) -> int:
        """For the reactor."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """For the reactor."""
        return "drain"

    def doRead(self) -> None:
        """Throw away what readers say, and let go of those that have ended.

        Whatever is wrong with one of them stays there: an exception would make the reactor drop
        the descriptor of all.
        """
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(0):
            lean = self._waiting.get(descriptor)
            if lean is None or lean.socket is None or lean.disconnecting:
                continue
            try:
                if not lean.socket.recv(DISCARD, socket.MSG_DONTWAIT):
                    lean.lose(connectionDone)
            except BlockingIOError:
                continue
            except OSError:
                lean.lose(Failure(ConnectionLost()))

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, and so does all that it has."""
        for lean in list(self._waiting.values()):
            lean.lose(reason)
        self.close()


def _named(address: tuple[Any, ...]) -> tuple[Any, ...]:
    """An address with the name of its interface, where it has one (IPv6)."""
    if len(address) == 4 and address[3]:
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        return (socket.getnameinfo(address, numeric)[0], *address[1:])
    return address


def _address(address: tuple[Any, ...]) -> IPv4Address | IPv6Address:
    kind = IPv4Address if len(address) == 2 else IPv6Address
    return kind("TCP", *_named(address))
