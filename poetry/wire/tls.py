"""A poem over TLS as Twisted has it: close_notify, and OpenSSL's state."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from poetry.wire.buffered import Buffered
from poetry.wire.layers import EndedEarly, innermost, is_closing, make_close_abortive, read_at_most
from poetry.wire.outgoing import SHORT

SENT_SHUTDOWN, RECEIVED_SHUTDOWN = 1, 2
"""OpenSSL's flags for a close_notify (openssl/ssl.h)."""

SMALL_READ = 4 * 1024
"""Bytes to read at a time from a reader, which has nothing to say: 64 KiB of KeyUpdates (RFC 8446,
4.6.3) at a time delayed another reader, of 10 MB without TLS, by 535 ms, 4 KiB by 76 ms
(measured)."""


class Tls(Buffered):
    """Encrypted by OpenSSL into the buffer of the transport below.

    Twisted would answer a peer's close_notify with one of ours, in the middle of a poem. So OpenSSL
    is told, except while we write, that ours has been sent.

    Many readers close without a close_notify, once they have ours (`reader_ends`).

    OpenSSL answers each KeyUpdate of a reader with as many bytes, so a service reads no more input
    while the buffer of the transport below is full (`backed_up`).

    @cvar turn: a stalled reader costs 117 kB with 64 KiB, 183 kB with 128 KiB, 316 kB with 256 KiB
        (measured).
    """

    pushes = True
    after_handshake = True
    reader_ends = (ConnectionDone, ConnectionLost)

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

    @classmethod
    def ends_with(cls, transport: Any, reason: Failure) -> bool:
        """Check whether the peer sent close_notify.

        A fatal alert sets OpenSSL's flag as well, but has another reason.
        """
        ended = isinstance(reason.value, cls.reader_ends)
        return ended and bool(transport.getHandle().get_shutdown() & RECEIVED_SHUTDOWN)

    def resumeProducing(self) -> None:
        """Read input again, and send: the transport has room."""
        innermost(self._transport).resumeProducing()
        super().resumeProducing()


def write_now(transport: Any, data: bytes) -> None:
    """Encrypt data and hand it to the transport below at once.

    `transport.write` may keep small writes for the next reactor turn; the class below it does not.
    """
    TLSMemoryBIOProtocol.write(transport, data)
