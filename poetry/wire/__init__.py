"""How the bytes of a poem leave, and how its stream ends: one file for each kind of transport.

The end of a stream says that the poem is whole, so it is sent after the last byte and at no other
time; whatever else ends a connection resets it. Two things make that hold on TCP:

  - Abortive close: until the kernel has the last byte, closing the socket
    resets the connection, whichever code closes it and why: even a SIGKILL. Once the kernel has the
    last byte, a close is graceful again.
  - Lingering close: then only the sending half is shut down, and input is discarded until the
    reader ends: closing a socket with unread input resets it, and destroys what is still on its
    way.

`outgoing` is one poem on its way to one reader: `plain` on a socket, `tls` with close_notify before
the end, `buffered` on any other transport. `sealed` keeps everything else from writing beside it.
`acknowledging` looks at a reader that has ended until it has acknowledged everything.
`receiving` is one poem on its way from a sender: how it is held back, and whether it came whole.
`poem` is what is sent (`pages`: a long one), `closing` is how a connection is closed, `layers` and
`kernel` are what is known of Twisted's transports and of sockets. Nothing here knows the protocol
that a poem is sent for.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.tcp import BaseClient

from poetry.wire.buffered import Buffered
from poetry.wire.layers import is_tls
from poetry.wire.outgoing import Sender
from poetry.wire.plain import Plain, PlainOfClient

with suppress(ImportError):  # pyOpenSSL is not installed, and no transport is one of TLS
    # Now: once a server has changed its root or its user, nothing can be loaded.
    from poetry.wire.tls import Tls

__all__ = ["kind_of"]


def kind_of(transport: Any) -> type[Sender]:
    """Return the `Sender` that fits a transport."""
    if isinstance(transport, BaseClient):
        return PlainOfClient
    if isinstance(transport, FileDescriptor):
        return Plain
    if is_tls(transport):
        return Tls
    return Buffered
