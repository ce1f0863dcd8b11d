"""Socket options and queues, by what they are for."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

from poetry.system.features import fcntl, termios

MORE = getattr(socket, "MSG_MORE", 0)
"""A flag of send(2): the end of the stream follows. Both leave in one packet."""

NOW = MORE | getattr(socket, "MSG_DONTWAIT", 0)
"""The same, and that neither send(2) nor recv(2) blocks: on a socket without a timeout of Python's,
which would wait first."""

DISCARDED = bytearray(64 * 1024)
"""Where input goes that nobody wants: as much of it at a time as Twisted reads."""

_MOST_INPUT = 6 * 1024 * 1024
"""Bytes that a receive buffer holds by default: tcp(7), tcp_rmem."""

FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS})
"""What send(2) fails with where it may be asked again."""

_LINGER_NOT = struct.pack("ii", 1, 0)
_LINGER = struct.pack("ii", 0, 0)


class Listening(socket.socket):
    """A listening socket with its family and type as they are.

    Python's own looks two members of an enum up for each connection that it accepts: a thirtieth of
    a short poem's CPU (measured).
    """

    family: Any = None
    type: Any = None

    def __init__(self, family: Any, kind: Any, proto: int, fileno: int) -> None:
        super().__init__(family, kind, proto, fileno)
        self.setblocking(False)
        self.family, self.type = family, kind


def reset_on_close(handle: socket.socket) -> None:
    """From now on closing the socket resets the connection: socket(7), SO_LINGER.

    What a listening socket accepts inherits that (Linux). A Unix socket has no reset: there its
    reader sees an end all the same.
    """
    _set_linger(handle, _LINGER_NOT)


def send_on_close(handle: socket.socket) -> None:
    """From now on closing the socket delivers what the kernel has, and ends the stream."""
    _set_linger(handle, _LINGER)


def _set_linger(handle: socket.socket, value: bytes) -> None:
    try:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
    except OSError:  # macOS: both ends are shut down, and all is said
        return


def reset(handle: socket.socket) -> None:
    """Reset the connection now, whoever else has the socket: connect(2), AF_UNSPEC (Linux).

    A close does so only with the last descriptor, of which a forked child may have one.
    """
    if handle.family in (socket.AF_INET, socket.AF_INET6) and sys.platform == "linux":
        import ctypes  # it takes 10 ms to load, and is seldom needed

        # Python's own connect has no such address. What fails here is left to the close.
        ctypes.CDLL(None).connect(handle.fileno(), bytes(16), 16)


def unacknowledged(handle: socket.socket) -> int:
    """Bytes that the peer has not acknowledged (tcp(7), SIOCOUTQ); 0 where nobody can tell."""
    with suppress(AttributeError, OSError):  # there may be no fcntl
        answer = fcntl.ioctl(handle.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(answer, sys.byteorder)
    return 0


def discard(handle: socket.socket) -> None:
    """Throw away what the peer has said until now: closing a socket with unread input resets it."""
    with suppress(OSError):
        for _ in range(_MOST_INPUT // len(DISCARDED)):
            if not handle.recv_into(DISCARDED, 0, NOW):
                return


def queued(listening: socket.socket) -> int:
    """Connections that wait to be accepted (tcp_info, tcpi_unacked).

    To ask accept(2) in vain costs seven times as much: it makes a socket first (measured).
    """
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int.from_bytes(info[24:], sys.byteorder)


def named(address: tuple[Any, ...]) -> tuple[Any, ...]:
    """An address with the name of its interface, where it has one (IPv6)."""
    if len(address) == 4 and address[3]:
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        return (socket.getnameinfo(address, numeric)[0], *address[1:])
    return address
