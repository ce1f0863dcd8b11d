"""A poem over TLS as Twisted has it: close_notify, and OpenSSL's state."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.wire.buffered import Buffered
from poetry.wire.closing import make_close_abortive
from poetry.wire.layers import (
    RECEIVED_SHUTDOWN,
    SENT_SHUTDOWN,
    EndedEarly,
    innermost,
    is_closing,
    read_at_most,
)
from poetry.wire.outgoing import SHORT, Owner

SMALL_READ = 4 * 1024
"""Bytes to read at a time from a reader, which has nothing to say: 64 KiB of KeyUpdates (RFC 8446,
4.6.3) at a time delayed another reader, of 10 MB without TLS, by 535 ms, 4 KiB by 76 ms
(measured)."""

MOST_HEARD = 16 * 1024
"""Bytes that OpenSSL still reads after our end of the stream, in search of an alert, which has two:
what it does not read it keeps, and a KeyUpdate of 22 bytes takes 11 us (measured)."""


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
        piece = self.poem.data[self.size : self.size + limit]
        transport.getHandle().set_shutdown(0)
        # Its own `write` may keep a small piece for the next reactor turn.
        TLSMemoryBIOProtocol.write(transport, piece)
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
        connection = self._transport.getHandle()
        below.protocol = _Lingering(below.protocol, connection, self._owner)
        super().finish()

    def resumeProducing(self) -> None:
        """Read input again, and send: the transport has room."""
        innermost(self._transport).resumeProducing()
        super().resumeProducing()


@implementer(IHalfCloseableProtocol)
class _Lingering:
    """Stands between TCP and TLS after our end of the stream, and answers nothing.

    OpenSSL would answer a KeyUpdate, where nothing can be sent any more; but an alert means that
    the reader refuses the poem, as one does that wanted a certificate of ours (RFC 8446, 4.4.2.4).
    And many readers close without a close_notify, once they have ours: Twisted reports that and a
    reset as the same, unless OpenSSL is told that a close_notify has come.
    """

    def __init__(self, above: Any, connection: Any, owner: Owner) -> None:
        """@param above: what stood there.

        @param connection: OpenSSL's.
        """
        self._above = above
        self._connection = connection
        self._owner = owner
        self._left = MOST_HEARD

    def dataReceived(self, data: bytes) -> None:
        """Let OpenSSL read what the reader says, and discard both that and the answer."""
        if self._left <= 0:
            return
        self._left -= len(data)
        try:
            self._connection.bio_write(data)
            while True:
                self._connection.recv(SMALL_READ)
        except SSL.WantReadError:
            with suppress(SSL.WantReadError):
                while True:
                    self._connection.bio_read(SMALL_READ)
        except SSL.ZeroReturnError:
            self._left = 0
        except SSL.Error as error:
            self._left = 0
            if self._connection.get_shutdown() & RECEIVED_SHUTDOWN:  # a fatal alert, and no rubbish
                self._owner.truncate(error)

    def readConnectionLost(self) -> None:
        """Pass on that the reader has ended."""
        self._owner.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Ignore: our stream is ended on the socket itself."""

    def connectionLost(self, reason: Failure) -> None:
        """Pass on how TCP ended."""
        self._connection.set_shutdown(SENT_SHUTDOWN | RECEIVED_SHUTDOWN)
        try:
            self._above.connectionLost(reason)
        except IndexError:  # of Twisted 25.5, where OpenSSL has failed before
            self._owner.connectionLost(reason)
