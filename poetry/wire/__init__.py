"""How bytes leave and how a stream ends: one file for each kind of transport.

The end of a stream says that the poem is whole, so it is sent after the last byte and at no other
time; whatever else ends a connection resets it. Two things make that hold on every transport:

  - From the first byte that the kernel may not take at once, closing the socket resets it, whoever
    closes it and why: even a SIGKILL. Once the kernel has the last byte, closing sends again.
  - Then only the sending half is shut down, and input is discarded until the reader ends: closing a
    socket with unread input resets it, and destroys what is still on its way.

`plain` is a socket, `tls` has close_notify before that, `buffered` is any other transport. `sender`
is what they share, `poem` what they send (`pages`: a long one), `layers` and `kernel` what they
know of Twisted's transports and of sockets. `lean` is a transport that is hardly one, for short
poems on sockets; `drain` waits for their readers to end.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import ISSLTransport

from poetry.serving.fast import Lean
from poetry.wire.buffered import BUFFERED
from poetry.wire.plain import LEAN, PLAIN
from poetry.wire.sender import Wire

__all__ = ["Wire", "wire_of"]


def wire_of(transport: Any) -> Wire:
    """What a protocol on this transport sends and receives by."""
    if isinstance(transport, Lean):
        return LEAN if transport.transport is None else PLAIN
    if isinstance(transport, FileDescriptor):
        return PLAIN
    if ISSLTransport.providedBy(transport):
        from twisted.protocols.tls import TLSMemoryBIOProtocol

        if isinstance(transport, TLSMemoryBIOProtocol):  # rather than a wrapper around it
            from poetry.wire.tls import TLS

            return TLS
    return BUFFERED
