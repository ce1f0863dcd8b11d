"""TLS as Twisted has it: close_notify, and OpenSSL's state."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from poetry.wire.buffered import LastBytes
from poetry.wire.layers import forbid_end, innermost, is_closing
from poetry.wire.poem import Poem
from poetry.wire.sender import SHORT, Wire

if TYPE_CHECKING:
    from poetry.protocol import PoetryProtocol

SENT_SHUTDOWN, RECEIVED_SHUTDOWN = 1, 2
"""OpenSSL's flags for a close_notify (openssl/ssl.h)."""


class Tls(Wire):
    """Encrypted by OpenSSL into the buffer of the transport below.

    Twisted answers a peer's close_notify with one of ours, which must not leave early: except while
    we write, OpenSSL is told that it has been sent.

    @cvar turn: a stalled reader costs 117 kB with 64 KiB, 183 kB with 128 KiB, 316 kB with 256 KiB
        (measured).
    """

    handshakes = True
    turn = 64 * 1024

    def send(self, protocol: PoetryProtocol, poem: Poem) -> None:
        """A short poem at once, any other as its transport asks for it."""
        forbid_end(protocol.transport)
        protocol.transport.getHandle().set_shutdown(SENT_SHUTDOWN)
        if len(poem.data) <= SHORT and protocol.factory.pace is None:
            self.write(protocol, poem, SHORT)
        else:
            super().send(protocol, poem)

    def handOver(self, protocol: PoetryProtocol, poem: Poem, limit: int) -> int:
        """Encrypt a piece.

        @raise ConnectionResetError: where the peer has ended TLS: Twisted drops what is written.
        """
        transport = protocol.transport
        if is_closing(innermost(transport)):
            raise ConnectionResetError(errno.ECONNRESET, "the reader ended TLS before the poem")
        piece = bytes(poem.view[protocol.size : protocol.size + limit])
        transport.getHandle().set_shutdown(0)
        write_now(transport, piece)
        transport.getHandle().set_shutdown(SENT_SHUTDOWN)
        return len(piece)

    def end(self, protocol: PoetryProtocol, poem: Poem) -> None:  # noqa: ARG002
        """Send close_notify, and a FIN as soon as the kernel has it: some readers wait for both."""
        transport = protocol.transport
        transport.unregisterProducer()
        transport.getHandle().set_shutdown(0)
        transport.loseConnection()
        LastBytes(protocol).start()

    def wasReceived(self, transport: Any, reason: Failure) -> bool:
        """A close_notify, unless it is we who close.

        A fatal alert sets OpenSSL's flag as well, but has another reason.
        """
        return (
            self.wasSent(reason)
            and bool(transport.getHandle().get_shutdown() & RECEIVED_SHUTDOWN)
            and not is_closing(transport)
        )

    def wasSent(self, reason: Failure) -> bool:
        """Many readers close without a close_notify, once they have ours."""
        return isinstance(reason.value, ConnectionDone | ConnectionLost)


def write_now(transport: TLSMemoryBIOProtocol, data: bytes) -> None:
    """Have OpenSSL encrypt it at once.

    `transport.write` may keep small writes for the next reactor turn; the class below it does not.
    """
    TLSMemoryBIOProtocol.write(transport, data)


TLS = Tls()
