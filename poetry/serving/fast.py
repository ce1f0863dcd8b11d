"""Short poems: sent as their readers are accepted, without a transport of Twisted's.

Most of what a short poem costs in Python is Twisted's work for a connection that will never need
it: log strings, a place in the reactor, dispatch, being dropped from there again. Here a socket
gets its poem at once, and then is drained together with all others: 0.74 times the CPU of 3 kB,
0.69 of 30 kB (measured). Whatever is not done at once goes on with Twisted's own transport.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.serving.lingering import Drain
from poetry.wire import kernel
from poetry.wire.layers import keep_from_shutting_down
from poetry.wire.plain import PLAIN
from poetry.wire.poem import SHARED

AT_ONCE = 100
"""Most connections accepted in a reactor turn, where Twisted raises that while more come."""

_IGNORED = frozenset({"abortConnection", "loseConnection", "write", "writeSequence"})

_log = Logger()


def _ignore(*_: object) -> None: ...


@implementer(ITCPTransport)
class Lean:
    """A connection on which nothing has happened yet, or nothing will but its end.

    Asked for anything that it does not have, it makes way for a transport of Twisted's.

    @ivar transport: that one, once there is one.
    @ivar waits: whether all is sent, so that only the reader's end is missing.
    """

    # `_shouldShutdown` is Twisted's name (see `layers`); False: somebody counts on the reset.
    __slots__ = ("_peer", "_port", "_protocol", "_shouldShutdown", "socket", "transport", "waits")

    def __init__(self, handle: socket.socket, peer: Any, protocol: Any, port: LeanPort) -> None:
        """@param peer: its address, as accept(2) has it."""
        self.socket: socket.socket | None = handle
        self.transport: Any = None
        self.waits = False
        self._shouldShutdown = True
        self._peer = peer
        self._protocol = protocol
        self._port = port

    def getHandle(self) -> socket.socket | None:
        """The socket; None: it is closed."""
        return self.socket

    def getPeer(self) -> IPv4Address | IPv6Address:
        """Who is at the other end."""
        return _address(self._peer)

    def startReading(self) -> None:
        """All is sent: wait for the reader's end."""
        if self.transport is not None:  # a hook has asked for more meanwhile
            self.transport.startReading()
        elif self.socket is not None:  # nor has it ended the connection
            self.waits = True
            self._port.drain.add(self)

    def lose(self, reason: Failure) -> None:
        """The reader has ended, or the reactor does: close it, and tell the protocol."""
        assert self.socket is not None
        self._port.drain.remove(self.socket)
        self.socket.close()
        protocol, self.socket, self._protocol = self._protocol, None, None
        try:
            protocol.connectionLost(reason)
        except BaseException:  # a subclass's: others are not to suffer for it
            _log.failure("connectionLost raised", event="hook_failed")

    def promote(self) -> Any:
        """Give all over to a transport of Twisted's; None: it is closed, or there is none."""
        if self.transport is None and self.socket is not None:
            self._port.drain.remove(self.socket)
            try:
                transport = self._port.make_transport(self.socket, self._protocol, self._peer)
            except OSError as error:  # the reactor can wait for nobody more
                self.lose(Failure(ConnectionLost(str(error))))
                return None
            if self._shouldShutdown:
                kernel.send_on_close(self.socket)
            else:
                keep_from_shutting_down(transport)
            self.transport = self._protocol.transport = transport
            self._protocol.wire = PLAIN
        return self.transport

    def __getattr__(self, name: str) -> Any:
        """What a transport of Twisted's has; once it is closed, what that ignores."""
        if name.startswith("__"):
            raise AttributeError(name)
        transport = self.promote()
        if transport is None and name in _IGNORED:
            return _ignore
        return getattr(transport, name)


class LeanPort:
    """Accepts in a port's place, while its poem is short."""

    def __init__(self, port: Port, factory: Any) -> None:
        """@param factory: a `PoetryServerFactory`, the port's own."""
        own = port.socket
        port.socket = kernel.Listening(own.family, own.type, own.proto, own.detach())
        port.fileno = port.socket.fileno  # type: ignore[method-assign]
        kernel.reset_on_close(port.socket)  # what it accepts inherits that, from its first moment
        self._make: Any = port.transport
        port.transport = self._unarmed  # type: ignore[assignment]
        self.drain = Drain(port.reactor)
        self._port: Any = port
        self._factory = factory
        build = getattr(factory.buildProtocol, "__func__", None)
        self._asks_who = build is not Factory.buildProtocol

    @property
    def suits(self) -> bool:
        """Whether new connections can do with so little."""
        sending = self._factory.sending
        return sending is not None and len(sending.data) < SHARED and self._factory.pace is None

    def accept(self, most: int) -> int:
        """Take in all that are there, also those who come meanwhile, up to `most`.

        @return: how many were; else what accept(2) fails with is raised.
        """
        listening, sending = self._port.socket, self._factory.sending
        accepted, there = 0, kernel.queued(listening) or 1
        while accepted < min(there, most):
            if self._factory.sending is not sending:  # a hook has changed the poem
                break
            try:
                handle, address = listening.accept()
            except BlockingIOError:
                break
            if handle.gettimeout() is not None:  # the application has set a default one
                handle.settimeout(None)
            accepted += 1
            try:
                self._connect(handle, address)
            except BaseException:  # a subclass's
                _log.failure("a connection could not be made", event="hook_failed")
            if accepted == there:
                there += kernel.queued(listening)
        return accepted

    def _connect(self, handle: socket.socket, address: tuple[Any, ...]) -> None:
        protocol = self._factory.buildProtocol(_address(address) if self._asks_who else None)
        if protocol is None:
            handle.close()
            return
        lean = Lean(handle, address, protocol, self)
        try:
            protocol.makeConnection(lean)
            if not lean.waits:
                lean.promote()
        except BaseException as error:
            if lean.transport is None and lean.socket is not None:
                lean.lose(Failure(error))
            raise

    def make_transport(self, handle: socket.socket, protocol: Any, peer: tuple[Any, ...]) -> Any:
        """What the port itself makes of a connection."""
        port = self._port
        port.sessionno += 1
        return self._make(handle, protocol, kernel.named(peer), port, port.sessionno, port.reactor)

    def _unarmed(self, handle: socket.socket, *rest: Any) -> Any:
        """What the port makes of those that it accepts by itself."""
        kernel.send_on_close(handle)
        return self._make(handle, *rest)

    def close(self) -> None:
        """The port closes. Its socket may be systemd's, and is left as it was."""
        kernel.send_on_close(self._port.socket)
        self.drain.close()


def _address(address: tuple[Any, ...]) -> IPv4Address | IPv6Address:
    kind = IPv4Address if len(address) == 2 else IPv6Address
    return kind("TCP", *kernel.named(address))
