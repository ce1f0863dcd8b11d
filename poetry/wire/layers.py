"""Twisted's transports from outside to inside: TLS and other wrappers, and the reactor's own."""

from __future__ import annotations

import socket
from typing import Any

from poetry.wire import kernel

RECEIVE_BUFFER = 1024 * 1024
"""Bytes a read: 100 MB took 0.15 s with 1 MiB and 0.23 s with Twisted's 64 KiB (measured)."""


def innermost(transport: Any) -> Any:
    """The reactor's own transport, under TLS and other wrappers."""
    while (inner := getattr(transport, "transport", None)) is not None:
        transport = inner
    return transport


def handle_of(transport: Any) -> socket.socket | None:
    """The socket at the bottom; None: there is none, or none any more."""
    handle: socket.socket | None = getattr(innermost(transport), "socket", None)
    return handle


def is_closing(transport: Any) -> bool:
    """Whether this side has begun to close this layer, by itself or because its peer did.

    Twisted's `disconnecting` is no part of an interface, and every transport of its has it.
    """
    return bool(getattr(transport, "disconnecting", False))


def forbid_end(transport: Any) -> None:
    """Whoever closes the connection from now on resets it."""
    if not getattr(transport, "_shouldShutdown", True):
        return  # it is so already
    handle = handle_of(transport)
    if handle is not None:
        kernel.reset_on_close(handle)
        keep_from_shutting_down(innermost(transport))


def reset(transport: Any) -> None:
    """Reset the connection now, with whatever is still on its way; the transport is still to go."""
    handle = handle_of(transport)
    if handle is not None:
        kernel.reset_on_close(handle)
        keep_from_shutting_down(innermost(transport))
        kernel.reset(handle)


def permit_end(transport: Any) -> None:
    """The kernel has the last byte: whoever closes the connection from now on ends the stream."""
    handle = handle_of(transport)
    if handle is not None:
        kernel.send_on_close(handle)


def discard_input(transport: Any) -> None:
    """The connection is to be closed plainly: unread input would make that a reset."""
    handle = handle_of(transport)
    if handle is not None:
        kernel.discard(handle)


def keep_from_shutting_down(transport: Any) -> None:
    """Keep a transport of the reactor from shutdown(2) before close(2).

    Twisted does so for every close but an abort, and it is a clean end whatever SO_LINGER says.
    There is no public way; where a stream is ended already it saves a system call.
    """
    transport._shouldShutdown = False


def receive(transport: Any) -> None:
    """Take large pieces at a time."""
    innermost(transport).bufferSize = RECEIVE_BUFFER
