"""The fast way: a short poem is sent as its reader is accepted, without a transport of Twisted's.

Most of what a short poem costs in Python is Twisted's work for a connection that will never need
it: log strings, a place in the reactor, dispatch, being dropped from there again. Here a socket
gets its poem before anything is made for it, and then lingers together with all others of its
listener: 0.65 times the CPU of Twisted's way for 3 kB, 0.67 for 30 kB (measured). It is for exactly
`PoetryProtocol`, as the `connectionMade` of a subclass would not be called.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.addresses import as_address
from poetry.protocol import PoetryFactory, PoetryProtocol, PoetryServerFactory
from poetry.serving.limiter import ConnectionLimiter
from poetry.serving.lingering import LingeringClose
from poetry.system.features import EPOLL
from poetry.wire.kernel import NOW, call_failed, end_stream, make_close_abortive
from poetry.wire.outgoing import Outgoing
from poetry.wire.poem import SHARED, Poem
from poetry.wire.sealed import ReadOnly


def poem_for_all(factory: PoetryServerFactory) -> Poem | None:
    """Return the poem, if it can go the fast way to each new reader; None: it cannot.

    That takes exactly `PoetryProtocol`, a poem that a socket takes at once, and no rate limit.
    """
    sending, protocol = factory.sending, factory.protocol
    if (
        EPOLL
        and sending is not None
        and len(sending.data) < SHARED
        and factory.pace is None
        and protocol is PoetryProtocol
        and getattr(factory.buildProtocol, "__func__", None) is Factory.buildProtocol
        and getattr(factory.getPoem, "__func__", None) is PoetryFactory.getPoem
    ):
        return sending
    return None


def send_at_once(handle: socket.socket, poem: Poem) -> int:
    """Send a poem on a socket that was just accepted, as far as the kernel takes it.

    @param handle: without a `timeout`, as `NOW` needs it; closing it resets the connection.
    @return: how many bytes the kernel took; 0 if it failed, as the next attempt will too.
    """
    try:
        return handle.send(poem.data, NOW)
    except OSError as error:
        if not call_failed(error):
            raise
        return 0


def end_at_once(handle: socket.socket) -> bool:
    """End the stream after the last byte; return whether that could be done."""
    try:
        end_stream(handle)
    except OSError:
        return False
    return True


@implementer(ITransport)
class Sent(ReadOnly, Outgoing):
    """A poem that is sent, and the transport of its connection, which has nothing left but to end.

    @ivar socket: None once it is closed.
    """

    begun = ended = True

    def __init__(
        self,
        handle: socket.socket,
        peer: tuple[Any, ...],
        poem: Poem,
        limiter: ConnectionLimiter,
        lingering: LingeringClose,
    ) -> None:
        """@param peer: its address, as accept(2) has it."""
        super().__init__(poem, len(poem.data))
        self.socket: Any = handle
        self._peer = peer
        self._limiter = limiter
        self._lingering = lingering

    @property
    def reactor(self) -> Any:
        """The reactor, as Twisted's transports have it."""
        return self._lingering.reactor

    def linger(self, protocol: PoetryProtocol) -> None:
        """Attach to a protocol, as its outgoing poem and its transport, and linger."""
        self._protocol = protocol
        protocol.outgoing = self
        protocol.attach(self, self)
        self._lingering.add(self)

    def getHandle(self) -> Any:
        """Return the socket; None: it is closed."""
        return self.socket

    def getPeer(self) -> Any:
        """Return the address of the reader."""
        return as_address(self._peer)

    def getHost(self) -> Any:
        """Return our own address.

        @raise OSError: once the socket is closed.
        """
        if self.socket is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return as_address(self.socket.getsockname())

    def loseConnection(self) -> None:
        """Do nothing: the stream is ended, and the connection ends with its reader."""

    def abortConnection(self) -> None:
        """Reset it, now."""
        if self.socket is not None:
            make_close_abortive(self.socket)
        self.connectionLost(Failure(ConnectionAborted()))

    def readConnectionLost(self) -> None:
        """Tell the protocol: the reader has ended before it has acknowledged everything."""
        self._protocol.readConnectionLost()

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, and tell the protocol, once."""
        if self.socket is None:
            return
        self._lingering.remove(self)
        self.socket.close()
        self.socket = None
        self._limiter.leave()
        protocol = self._protocol
        del self._protocol
        protocol.connectionLost(reason)
