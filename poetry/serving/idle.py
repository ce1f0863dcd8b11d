"""Who has stopped moving."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from poetry.errors import PoemTimedOut
from poetry.protocol import PoetryProtocol, State
from poetry.wire.kernel import unacknowledged
from poetry.wire.layers import handle_of


class Sweeper:
    """Looks at connections now and then, and remembers how far each was.

    Progress is what the peer has acknowledged: the kernel buffers megabytes, so what the process
    can hand over says little about a reader.
    """

    def __init__(self) -> None:
        self._marks: WeakKeyDictionary[PoetryProtocol, tuple[tuple[int, int], float]] = (
            WeakKeyDictionary()
        )

    def sweep(
        self, connections: Iterable[PoetryProtocol], now: float, idle: float, linger: float
    ) -> None:
        """Fail peers that took nothing for `idle` seconds, and release those that have had it all
        for `linger` seconds and do not end.

        @param now: in seconds, of any clock.
        """
        for connection in list(connections):
            handle = handle_of(connection.transport)
            queued = 0 if handle is None else unacknowledged(handle)
            mark = (connection.size, queued)
            before, since = self._marks.get(connection, (None, now))
            waits_for_us = connection.sender is not None and connection.sender.waits and not queued
            if mark != before or waits_for_us:
                self._marks[connection] = (mark, now)
            elif connection.state is State.ENDED and not queued:
                if now - since >= linger:
                    connection.release()
            elif connection.state is not State.RELEASED and now - since >= idle:
                connection.fail(PoemTimedOut(idle, connection.size))
