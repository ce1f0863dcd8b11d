"""The idle timeout: resets connections that do not move, and ends those that linger too long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from poetry.errors import PoemTimedOut
from poetry.protocol import PoetryProtocol
from poetry.wire.kernel import acknowledged, peer_has_ended, unacknowledged
from poetry.wire.layers import handle_of, log_connection_failure

_moved: WeakKeyDictionary[PoetryProtocol, tuple[object, float]] = WeakKeyDictionary()
"""The progress of each connection's peer when a sweep last saw it change, and when that was, in
seconds. Subclasses may have any attribute of their own."""


def sweep(connections: Iterable[PoetryProtocol], now: float, idle: float, linger: float) -> None:
    """Reset connections that moved nothing for `idle` seconds, and close gracefully those whose
    reader has had all of its poem for `linger` seconds and does not end.

    Progress is what the peer has sent of a poem, or acknowledged: the kernel buffers megabytes, so
    what the process can hand over says little about a reader.

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
    progress, outgoing = _progress(connection, handle, queued), connection.outgoing
    # A reader is not idle while our own pace keeps it waiting.
    before, since = _moved.get(connection, (None, now))
    if progress != before or (outgoing and outgoing.pacing and not queued):
        _moved[connection] = progress, now
    elif handle is not None and connection.stream_ended and not queued:
        try:  # the reactor may have missed an end that is still unread
            forgotten = peer_has_ended(handle)
        except OSError as error:
            connection.truncate(error)
            return
        if forgotten or now - since >= linger:
            connection.release()
    elif now - since >= idle:
        connection.fail(PoemTimedOut(idle, connection.size))


def _progress(connection: PoetryProtocol, handle: Any, queued: int) -> object:
    """Return what changes when the peer moves, and only then where the kernel counts that.

    Elsewhere a reader of a rate-limited poem seems to move until our side of its buffers is full.
    """
    if connection.outgoing is None:
        return connection.size
    counted = None if handle is None else acknowledged(handle)
    return (connection.size, queued) if counted is None else counted
