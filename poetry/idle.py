"""The idle timeout: resets connections that do not move, and ends those that linger too long."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from poetry.errors import PoemTimedOut
from poetry.protocol import PoetryProtocol
from poetry.wire.kernel import peer_has_ended, unacknowledged
from poetry.wire.layers import handle_of, log_connection_failure

_moved: WeakKeyDictionary[PoetryProtocol, tuple[tuple[int, int], float]] = WeakKeyDictionary()
"""What each connection had moved (bytes sent or received, and unacknowledged) when a sweep last saw
that change, and when that was, in seconds. Subclasses may have any attribute of their own."""


def sweep(connections: Iterable[PoetryProtocol], now: float, idle: float, linger: float) -> None:
    """Reset connections that moved nothing for `idle` seconds, and close gracefully those whose
    reader has had all of its poem for `linger` seconds and does not end.

    Progress is what the peer has acknowledged: the kernel buffers megabytes, so what the process
    can hand over says little about a reader.

    @param now: in seconds, of any clock.
    """
    for connection in list(connections):
        try:
            _look(connection, now, idle, linger)
        except Exception:  # the others are not to suffer for it
            log_connection_failure("ended")


def _look(connection: PoetryProtocol, now: float, idle: float, linger: float) -> None:
    handle = handle_of(connection.transport)
    queued = 0 if handle is None else unacknowledged(handle)
    progress, outgoing = (connection.size, queued), connection.outgoing
    # A reader is not idle while our own pace keeps it waiting.
    before, since = _moved.get(connection, (None, now))
    if progress != before or (outgoing and outgoing.pacing and not queued):
        _moved[connection] = progress, now
    elif handle is not None and outgoing is not None and outgoing.ended and not queued:
        try:  # the reactor may have missed an end that is still unread
            forgotten = peer_has_ended(handle)
        except OSError as error:
            connection.truncate(error)
            return
        if forgotten or now - since >= linger:
            connection.release()
    elif now - since >= idle:
        connection.fail(PoemTimedOut(idle, connection.size))
