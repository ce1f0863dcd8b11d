"""A poem over TLS as Twisted has it: close_notify, and OpenSSL's state."""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from poetry.wire.buffered import Buffered
from poetry.wire.layers import (
    RECEIVED_SHUTDOWN,
    SENT_SHUTDOWN,
    EndedEarly,
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

    Many readers close without a close_notify, once they have ours. Twisted reports that as it does
    a reset, unless OpenSSL is told that one has come. So a poem that is sent stays the producer of
    the transport below, which tells it first that the connection is lost (`stopProducing`).

    OpenSSL answers each KeyUpdate of a reader with as many bytes, so a service reads no more input
    while the buffer of the transport below is full (`backed_up`).

    @cvar turn: a stalled reader costs 117 kB with 64 KiB, 183 kB with 128 KiB, 316 kB with 256 KiB
        (measured).
    """

    pushes = True
    after_handshake = True

    _closed_by_reader = False

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
        return self._paused and not self.ended

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

    def finish(self) -> None:
        """Stay the producer of the transport below, and call the owner."""
        innermost(self._transport).registerProducer(self, True)
        super().finish()

    def resumeProducing(self) -> None:
        """Read input again, and send: the transport has room."""
        innermost(self._transport).resumeProducing()
        super().resumeProducing()

    def stopProducing(self) -> None:
        """Reset the connection if the poem is not out; else let Twisted report how TCP ended."""
        if self.ended:
            connection = self._transport.getHandle()
            self._closed_by_reader = bool(connection.get_shutdown() & RECEIVED_SHUTDOWN)
            connection.set_shutdown(SENT_SHUTDOWN | RECEIVED_SHUTDOWN)
        else:
            super().stopProducing()

    def was_delivered(self, reason: Failure) -> bool:
        """Check whether the reader ended TLS, or TCP below it, after our end of the stream."""
        if isinstance(reason.value, Error):  # a fatal alert, or what is no TLS
            return False
        return self._closed_by_reader or super().was_delivered(reason)


def write_now(transport: Any, data: bytes) -> None:
    """Encrypt data and hand it to the transport below at once.

    `transport.write` may keep small writes for the next reactor turn; the class below it does not.
    """
    TLSMemoryBIOProtocol.write(transport, data)
