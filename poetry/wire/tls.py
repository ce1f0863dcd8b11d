"""A poem over TLS as Twisted has it: close_notify, and OpenSSL's state."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.wire.buffered import Buffered
from poetry.wire.layers import (
    RECEIVED_SHUTDOWN,
    SENT_SHUTDOWN,
    EndedEarly,
    close,
    innermost,
    is_closing,
    make_close_abortive,
    read_at_most,
)
from poetry.wire.outgoing import SHORT

SMALL_READ = 4 * 1024
"""Bytes to read at a time from a reader, which has nothing to say: 64 KiB of KeyUpdates (RFC 8446,
4.6.3) at a time delayed another reader, of 10 MB without TLS, by 535 ms, 4 KiB by 76 ms
(measured)."""


class Tls(Buffered):
    """Encrypted by OpenSSL into the buffer of the transport below.

    Twisted would answer a peer's close_notify with one of ours, in the middle of a poem. So OpenSSL
    is told, except while we write, that ours has been sent.

    OpenSSL answers each KeyUpdate of a reader with as many bytes, so a service reads no more input
    while the buffer of the transport below is full (`backed_up`). After the end of the stream
    OpenSSL gets none of it (`_Lingering`).

    @cvar turn: a stalled reader costs 117 kB with 64 KiB, 183 kB with 128 KiB, 316 kB with 256 KiB
        (measured).
    """

    pushes = True
    after_handshake = True

    def _start(self) -> None:
        """Send a short poem at once, any other as its transport asks for it."""
        make_close_abortive(self._transport)
        read_at_most(SMALL_READ, self._transport)
        self._transport.getHandle().set_shutdown(SENT_SHUTDOWN)
        if len(self.poem.data) <= SHORT and self._pace is None:
            self.send(SHORT)
        else:
            self.register()

    @property
    def backed_up(self) -> bool:
        """Whether the buffer of the transport below is full."""
        return self._paused

    def _hand_over(self, limit: int) -> int:
        """Encrypt a chunk.

        @raise EndedEarly: if the peer has ended TLS: Twisted would drop what is written.
        """
        transport = self._transport
        if is_closing(innermost(transport)):
            raise EndedEarly
        piece = bytes(self.poem.view[self.size : self.size + limit])
        transport.getHandle().set_shutdown(0)
        write_now(transport, piece)
        transport.getHandle().set_shutdown(SENT_SHUTDOWN)
        return len(piece)

    def _end(self) -> None:
        """Send close_notify, and a FIN as soon as the kernel has it: some readers wait for both."""
        self._transport.getHandle().set_shutdown(0)
        self.unregister()  # sends close_notify, if Twisted was told to close before
        self._transport.loseConnection()
        self._wait_for_kernel()
        innermost(self._transport).startWriting()

    def _has_all(self, below: Any) -> bool:  # noqa: ARG002 (for the base class)
        """Check nothing: there is no wrapper."""
        return True

    def finish(self) -> None:
        """Keep from TLS what the reader still says, and call the owner."""
        below = innermost(self._transport)
        below.protocol = _Lingering(below, self._transport.getHandle())
        super().finish()

    def resumeProducing(self) -> None:
        """Read input again, and send: the transport has room."""
        innermost(self._transport).resumeProducing()
        super().resumeProducing()


@implementer(IHalfCloseableProtocol)
class _Lingering:
    """Stands between TCP and TLS after our end of the stream, and discards input.

    OpenSSL would answer a KeyUpdate, where nothing can be sent any more. And many readers close
    without a close_notify, once they have ours: Twisted reports that and a reset as the same,
    unless OpenSSL is told that a close_notify has come.
    """

    def __init__(self, below: Any, connection: Any) -> None:
        """@param below: the reactor's own transport.

        @param connection: OpenSSL's.
        """
        self._below = below
        self._above = below.protocol
        self._connection = connection

    def dataReceived(self, data: bytes) -> None:
        """Discard what the reader says."""

    def readConnectionLost(self) -> None:
        """Close: the reader has ended."""
        close(self._below)

    def writeConnectionLost(self) -> None:
        """Ignore: our stream is ended on the socket itself."""

    def connectionLost(self, reason: Failure) -> None:
        """Pass on how TCP ended."""
        self._connection.set_shutdown(SENT_SHUTDOWN | RECEIVED_SHUTDOWN)
        self._above.connectionLost(reason)


def write_now(transport: Any, data: bytes) -> None:
    """Encrypt data and hand it to the transport below at once.

    `transport.write` may keep small writes for the next reactor turn; the class below it does not.
    """
    TLSMemoryBIOProtocol.write(transport, data)
