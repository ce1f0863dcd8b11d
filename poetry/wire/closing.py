"""How a connection of Twisted's is closed: gracefully, or with a reset, and at once."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from poetry.wire import kernel
from poetry.wire.layers import handle_of, innermost, log_connection_failure


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
    """Close the connection with a reset; without one if it has none, as a pipe or a process."""
    reset(transport)
    below = innermost(transport)  # a wrapper may not pass it on
    try:
        if hasattr(transport, "abortConnection"):
            transport.abortConnection()
        elif hasattr(below, "abortConnection"):
            below.abortConnection()
        elif hasattr(below, "connectionLost"):  # StandardIO may wait for ever to lose its own
            below.connectionLost(Failure(ConnectionAborted()))
        else:
            transport.loseConnection()
    except Exception:  # the reactor could not let its descriptor go
        _lose(below, Failure(ConnectionAborted()))


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
