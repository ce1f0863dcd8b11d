"""What a `Listener` needs of the port whose place it takes: its socket again, and its end."""

from __future__ import annotations

import os
import socket

from twisted.internet.tcp import Port
from twisted.python.failure import Failure

from poetry.wire.kernel import ListeningSocket


def duplicate(listening: socket.socket) -> socket.socket:
    """Duplicate a listening socket, with the family that the kernel knows: that of a passed-in one
    may be given wrong.
    """
    own = socket.socket(fileno=os.dup(listening.fileno()))
    return ListeningSocket(own.family, own.type, own.proto, own.detach())


def close_port(port: Port, reason: Failure) -> None:
    """Close a port of Twisted's, now, even if its Unix socket is gone or not ours to remove any
    longer (after a change of user, say).

    @raise OSError: where it could not be removed.
    """
    if not port.connected:
        return
    try:
        port.connectionLost(reason)
    finally:
        if port.connected:
            Port.connectionLost(port, reason)
