"""Any other transport: in memory, or a wrapper's, which writes to a buffer of Twisted's."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer, ISSLTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.errors import PoemTruncated
from poetry.wire.layers import (
    handle_of,
    innermost,
    is_closing,
    permit_end,
    reset,
)
from poetry.wire.poem import Poem
from poetry.wire.sender import SHORT, Wire

if TYPE_CHECKING:
    from poetry.protocol import PoetryProtocol


class Buffered(Wire):
    """Written to the transport, which keeps it until the kernel takes it.

    @cvar turn: what a stalled reader keeps in the process.
    """

    turn = 64 * 1024

    def send(self, protocol: PoetryProtocol, poem: Poem) -> None:
        """In memory a short poem is written at once."""
        at_once = len(poem.data) <= SHORT and protocol.factory.pace is None
        if not at_once or handle_of(protocol.transport) is not None:
            super().send(protocol, poem)
        else:
            self.write(protocol, poem, SHORT)

    def handOver(self, protocol: PoetryProtocol, poem: Poem, limit: int) -> int:
        """Write a piece."""
        piece = bytes(poem.view[protocol.size : protocol.size + limit])
        protocol.transport.write(piece)
        return len(piece)

    def end(self, protocol: PoetryProtocol, poem: Poem) -> None:  # noqa: ARG002
        """Have the kernel take the rest, and then end the stream."""
        transport = protocol.transport
        if protocol.sender is not None:
            transport.unregisterProducer()
        if handle_of(transport) is None or ISSLTransport.providedBy(transport):
            # In memory there is no kernel; TLS below a wrapper has an end and a wait of its own.
            permit_end(transport)
            transport.loseConnection()
            protocol.streamEnded()
        else:
            LastBytes(protocol).start()

    def wasReceived(self, transport: Any, reason: Failure) -> bool:
        """A clean end, unless it is we who close, at whichever layer.

        Below TLS it is Twisted that closes, after a clean end too.
        """
        below = transport if ISSLTransport.providedBy(transport) else innermost(transport)
        closing = is_closing(transport) or is_closing(below)
        return isinstance(reason.value, ConnectionDone) and not closing

    def wasSent(self, reason: Failure) -> bool:
        """A clean end."""
        return isinstance(reason.value, ConnectionDone)


@implementer(IPullProducer)
class LastBytes:
    """Ends the stream as soon as the kernel has what the reactor's own transport has buffered.

    A transport asks a pull producer for more when its buffer is empty, and once as it registers.
    """

    __slots__ = ("_protocol", "_registered", "_transport")

    def __init__(self, protocol: PoetryProtocol) -> None:
        self._protocol = protocol
        self._transport = innermost(protocol.transport)
        self._registered = False

    def start(self) -> None:
        """Wait for an empty buffer."""
        self._transport.registerProducer(self, False)
        self._registered = True
        self._transport.startWriting()

    def resumeProducing(self) -> None:
        """The kernel has it all: shut down the sending half."""
        if not self._registered:
            return
        self._transport.unregisterProducer()
        try:
            self._transport.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._protocol.fail(PoemTruncated(self._protocol.size, Failure(error)))
            return
        permit_end(self._transport)
        self._protocol.streamEnded()

    def stopProducing(self) -> None:
        """The transport is going before that: its reader must not see an end."""
        reset(self._transport)


BUFFERED = Buffered()
