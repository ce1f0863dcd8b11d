"""Twisted's transports from outside to inside: TLS and other wrappers, and the reactor's own."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import suppress
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionLost, SSLError
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from poetry.wire import kernel

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


def is_of_openssl(error: object) -> bool:
    """Check whether OpenSSL raised an error: of a fatal alert, or of what is no TLS."""
    return type(error).__module__ == "OpenSSL.SSL"


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
    tls = _tls_of_twisted()
    return tls is not None and isinstance(transport, tls.TLSMemoryBIOProtocol)


def serves_tls(port: Any) -> bool:
    """Check whether a port of Twisted's accepts connections with TLS."""
    tls = _tls_of_twisted()
    return tls is not None and isinstance(port.factory, tls.TLSMemoryBIOFactory)


def _tls_of_twisted() -> Any:
    """Return a module that Twisted loads with its TCP; None: pyOpenSSL is not installed."""
    return sys.modules.get("twisted.protocols.tls")


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


def make_close_abortive(transport: Any) -> None:
    """Make every later close reset the connection, if it has a socket."""
    handle = handle_of(transport)
    if handle is not None:
        kernel.make_close_abortive(handle)


def reset(transport: Any) -> bool:
    """Reset the connection now, with whatever is still on its way. The caller closes the transport.

    @return: whether it is reset; if not, closing its socket will do so (except of a Unix socket).
    """
    handle = handle_of(transport)
    if handle is None:
        return False
    kernel.make_close_abortive(handle)
    return kernel.reset(handle)


def reset_before_close(transport: Any) -> None:
    """Reset the connection of a transport that is about to close it.

    For every close but an abort Twisted calls shutdown(2) first, which would end the stream cleanly
    whatever SO_LINGER says. After a reset shutdown(2) fails; where no reset can be had, the socket
    is closed before Twisted can shut it down.
    """
    if not reset(transport) and (handle := handle_of(transport)) is not None:
        below = innermost(transport)
        below.stopReading()
        below.stopWriting()
        handle.close()


def discard_input(transport: Any) -> None:
    """Discard the input that has come: unread, it would turn a graceful close into a reset."""
    handle = handle_of(transport)
    if handle is not None:
        kernel.discard(handle)


def close(transport: Any) -> None:
    """Close the connection gracefully and at once: the kernel has all of it, and delivers.

    `loseConnection` would wait for a turn of the reactor, 29% of a short poem's CPU (measured), and
    would register with its epoll, which may fail (ENOSPC).
    """
    below = innermost(transport)
    if getattr(below, "socket", None) is None:
        below.loseConnection()
    else:
        _lose(below, connectionDone)


def close_at_end(transport: Any) -> None:
    """Close the connection of a receiver whose peer has ended, or has reset it.

    While another processor handles a reset, epoll reports a hang-up with nothing to read yet, which
    Twisted takes for the end of the stream (4 of 720 resets, measured).
    """
    handle = handle_of(transport)
    try:
        ended = handle is None or kernel.peer_has_ended(handle)
    except OSError:
        ended = False
    if ended:
        close(transport)
    else:
        _lose(innermost(transport), Failure(ConnectionLost()))


def abort(transport: Any) -> None:
    """Close the connection with a reset; without one, if the transport has none (of a process)."""
    reset(transport)
    try:
        getattr(transport, "abortConnection", transport.loseConnection)()
    except Exception:  # the reactor could not let its descriptor go
        _lose(innermost(transport), Failure(ConnectionAborted()))


def _lose(below: Any, reason: Failure) -> None:
    """Close the reactor's own transport, even if epoll_ctl(2) fails."""
    try:
        below.connectionLost(reason)
    except Exception:
        log_connection_failure("closed properly")
        if hasattr(below, "protocol"):  # else it is closed, and its protocol raised the error
            _lose_again(below, reason)


def _lose_again(below: Any, reason: Failure) -> None:
    """Close a transport that the reactor could not unregister.

    The reactor still half remembers a descriptor that epoll_ctl(2) refused to remove, and would
    take it for the next connection with that number. To register it anew puts that right.
    """
    for step in (below.startReading, below.startWriting, below.stopReading, below.stopWriting):
        with suppress(Exception):
            step()
    with suppress(Exception):
        below.connectionLost(reason)
    if hasattr(below, "protocol"):
        below.socket.close()
        below.protocol.connectionLost(reason)


def read_at_most(size: int, transport: Any) -> None:
    """Limit a read of the reactor to `size` bytes, by a public attribute of its transports."""
    innermost(transport).bufferSize = size


def as_address(address: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    """Convert an address of Python's sockets to one of Twisted's.

    @param address: as of Python's sockets: a pair, four of IPv6, or the name of a Unix socket.
    """
    if not isinstance(address, tuple):
        return UNIXAddress(os.fsencode(address) or None)
    if len(address) == 2:
        return IPv4Address("TCP", *address)
    return IPv6Address("TCP", *kernel.named(address))
