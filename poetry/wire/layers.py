"""Twisted's transports from outside to inside: TLS and other wrappers, and the reactor's own."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import SSLError
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.logger import Logger
from zope.interface import alsoProvides

from poetry.text import is_of_openssl

try:
    from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
except ImportError:  # pyOpenSSL is not installed
    TLSMemoryBIOFactory = TLSMemoryBIOProtocol = ()  # type: ignore[assignment,misc]

SENT_SHUTDOWN, RECEIVED_SHUTDOWN = 1, 2
"""OpenSSL's flags for a close_notify (openssl/ssl.h)."""

_log = Logger()


class HandshakeError(SSLError):
    """The peer ended TLS during the handshake."""

    outcome = "handshake"


class EndedEarly(ConnectionResetError):
    """TLS, because of its reader, or a wrapper has begun to close before the last byte."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the connection began to close before the poem's end")


def failed_in_tls(error: Any) -> bool:
    """Check whether Twisted's TLS failed on what OpenSSL reported, which is the peer's fault.

    A close_notify during the handshake is such a case: OpenSSL lists no error for it.
    """
    return is_of_openssl(error.__context__)


def log_connection_failure(verb: str) -> None:
    """Log the exception that is being handled: one connection could not be made, closed or ended.

    @param verb: what failed. A refusal of the system is one line; any other error is a defect, and
        has its traceback.
    """
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        _log.error(
            "a connection could not be {verb}: {reason}",
            event="connection_failed",
            verb=verb,
            reason=error.strerror or str(error),
        )
    else:
        _log.failure("a connection could not be {verb}", event="connection_failed", verb=verb)


def innermost(transport: Any) -> Any:
    """Return the reactor's own transport, below TLS and other wrappers."""
    while (inner := getattr(transport, "transport", None)) is not None:
        transport = inner
    return transport


def handle_of(transport: Any) -> socket.socket | None:
    """Return the socket below all layers; None: there is none, or it is closed."""
    handle: socket.socket | None = getattr(innermost(transport), "socket", None)
    return handle


def is_tls(transport: Any) -> bool:
    """Check whether a transport is Twisted's TLS, and no wrapper around it."""
    return isinstance(transport, TLSMemoryBIOProtocol)


def serves_tls(port: Any) -> bool:
    """Check whether a port of Twisted's accepts connections with TLS."""
    return isinstance(port.factory, TLSMemoryBIOFactory)


def is_closing(transport: Any) -> bool:
    """Check whether this side has begun to close this layer, by itself or because its peer did.

    A wrapper is closing if any layer below it is, down to TLS: Twisted closes what is below TLS
    after a clean end as well. Its `disconnecting` is no part of an interface, and every transport
    of its has it.
    """
    while not getattr(transport, "disconnecting", False):
        below = getattr(transport, "transport", None)
        if below is None or is_tls(transport):
            return False
        transport = below
    return True


def hear_half_close(transport: Any) -> None:
    """Declare that what is on a socket hears of the end of the peer's stream.

    The wrapper that a client endpoint puts around a protocol passes it on, and does not say so.
    """
    outer = getattr(transport, "protocol", None) if isinstance(transport, FileDescriptor) else None
    if hasattr(outer, "readConnectionLost") and not IHalfCloseableProtocol.providedBy(outer):
        alsoProvides(outer, IHalfCloseableProtocol)


def read_at_most(size: int, transport: Any) -> None:
    """Limit a read of the reactor to `size` bytes, by a public attribute of its transports."""
    innermost(transport).bufferSize = size
