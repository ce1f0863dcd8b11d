"""Socket options and queues, by what they are for."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

from poetry.system.features import c_library, fcntl, termios

MORE = getattr(socket, "MSG_MORE", 0)
"""The flag of send(2) that more follows: the last data and the FIN leave in one packet."""

NOW = MORE | getattr(socket, "MSG_DONTWAIT", 0)
"""MORE, and that neither send(2) nor recv(2) blocks. Only for sockets whose `timeout` is None: for
any other Python itself waits."""

DISCARDED = bytearray(64 * 1024)
"""A buffer for unwanted input, of the size that Twisted reads at a time."""

_COUNT = bytearray(4)
"""Where ioctl(2) writes: with one of its own each call costs twice as much (measured)."""

_MOST_INPUT = 6 * 1024 * 1024
"""Bytes that a receive buffer held at most before Linux 6.16: tcp_rmem (ip-sysctl)."""

_RESET = frozenset({errno.ECONNRESET, errno.EPIPE})

FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})
"""Errors of send(2) that mean that the kernel has no room now."""

_ABORTIVE = struct.pack("ii", 1, 0)
_GRACEFUL = struct.pack("ii", 0, 0)


class ListeningSocket(socket.socket):
    """A listening socket with its family and type as plain numbers.

    Python's own looks two members of an enum up for each connection that it accepts: a thirtieth of
    a short poem's CPU (measured).
    """

    family: Any = None
    type: Any = None

    def __init__(self, family: Any, kind: Any, proto: int, fileno: int) -> None:
        super().__init__(family, kind, proto, fileno)
        self.setblocking(False)
        self.family, self.type = family, kind


def call_failed(error: OSError) -> bool:
    """Check whether the caller's own system call raised the error: no frame is below its own.

    A signal handler may raise just after the call: then the bytes are out, and must not be sent
    again.
    """
    traceback = error.__traceback__
    return traceback is not None and traceback.tb_next is None


def make_close_abortive(handle: socket.socket) -> None:
    """Make every later close of the socket reset the connection: socket(7), SO_LINGER.

    Sockets accepted by a listening one inherit that (Linux). A Unix socket has no reset: there its
    reader sees an end all the same.
    """
    _set_linger(handle, _ABORTIVE)


def make_close_graceful(handle: socket.socket) -> None:
    """Make every later close of the socket deliver what the kernel has, and end the stream."""
    _set_linger(handle, _GRACEFUL)


def end_stream(handle: socket.socket) -> None:
    """Shut the sending half down after the last byte, and make every later close graceful.

    @raise OSError: where the connection is broken.
    """
    make_close_graceful(handle)
    handle.shutdown(socket.SHUT_WR)


def _set_linger(handle: socket.socket, value: bytes) -> None:
    try:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
    except OSError:  # macOS: both ends are shut down already
        return


def reset(handle: socket.socket) -> bool:
    """Reset the connection now, whichever process has the socket too: connect(2), AF_UNSPEC.

    A close does so only with the last descriptor, of which a forked child may have one.

    @return: whether it is reset: only Linux can, on TCP, and only where Python has ctypes.
    """
    if handle.family not in (socket.AF_INET, socket.AF_INET6) or sys.platform != "linux":
        return False
    libc = c_library()  # Python's own connect has no such address
    return libc is not None and libc.connect(handle.fileno(), bytes(16), 16) == 0


def unacknowledged(handle: socket.socket) -> int:
    """Count the bytes that the peer has not acknowledged (tcp(7), SIOCOUTQ); 0 if the kernel
    does not tell.
    """
    try:
        fcntl.ioctl(handle.fileno(), termios.TIOCOUTQ, _COUNT)
    except (AttributeError, OSError, ValueError):  # no fcntl; a closed socket
        return 0
    return int.from_bytes(_COUNT, sys.byteorder)


def acknowledged(handle: socket.socket) -> int | None:
    """Count the bytes that the peer has acknowledged since it connected (tcp_info,
    tcpi_bytes_acked); None where the kernel does not count them.
    """
    with suppress(AttributeError, OSError):  # only Linux does, since 4.1, and only of TCP
        info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return int.from_bytes(info[120:], sys.byteorder) if len(info) == 128 else None
    return None


def is_acknowledged(handle: socket.socket) -> bool:
    """Check whether the peer has acknowledged everything; True if the kernel does not tell.

    A connection survives other errors, as of a host that is unreachable for a while (RFC 1122,
    4.2.3.9), until it is closed.

    @raise OSError: if the connection was reset, or is closed: after the peer's end no read tells.
    """
    left = unacknowledged(handle)  # first: the end of a Unix socket's reader empties the queue
    number = handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number in _RESET or (left and _is_closed(handle)):
        number = number or errno.ECONNRESET
        raise OSError(number, os.strerror(number))
    return not left


def _is_closed(handle: socket.socket) -> bool:
    """Check whether the kernel has given the connection up (tcp_info, tcpi_state: TCP_CLOSE)."""
    try:
        return handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07"
    except (AttributeError, OSError):  # only Linux tells, and only of TCP
        return False


def peer_has_ended(handle: socket.socket) -> bool:
    """Check whether the end of the peer's stream is next to be read.

    @raise OSError: if a reset is.
    """
    try:
        return not handle.recv(1, socket.MSG_PEEK | NOW)
    except BlockingIOError:
        return False


def discard(handle: socket.socket) -> None:
    """Discard the input that has come: closing a socket with unread input resets the connection."""
    with suppress(OSError):
        for _ in range(_MOST_INPUT // len(DISCARDED)):
            if not handle.recv_into(DISCARDED, 0, NOW):
                return


def accept_queue(listening: socket.socket) -> float:
    """Count the connections that the kernel holds for a listening socket (tcp_info, tcpi_unacked);
    infinitely many where it does not tell.

    To ask accept(2) in vain costs seven times as much: it makes a socket first (measured).
    """
    with suppress(AttributeError, OSError):  # only Linux tells, and only of TCP
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int.from_bytes(info[24:], sys.byteorder)
    return math.inf


def has_hung_up(listening: socket.socket) -> bool:
    """Check whether a listening socket was shut down: by another process that has it, say, or by
    `ss -K`. Then it is readable for ever, and accept(2) of a Unix socket finds nothing (poll(2)).
    """
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(listening, 0)
    return bool(poll.poll(0))
