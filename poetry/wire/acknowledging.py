"""A reader that has ended, and has not acknowledged everything: looked at until it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

FIRST, MOST = 0.1, 1.0
"""Seconds until the first look, as long as a round trip between continents, and most seconds until
the next; each wait is twice the one before. To look at 1,500 readers ten times a second took 7% of
a core (measured)."""


class Acknowledging:
    """Looks again and again, as no event tells, until it is cancelled or the connection is lost.

    The reactor neither reads nor writes such a connection, and would not close it when it stops:
    this object does.
    """

    def __init__(self, below: Any, look: Callable[[], object]) -> None:
        """@param below: the reactor's own transport.

        @param look: is called each time, and cancels this when there is no more to wait for.
        """
        self._below = below
        self._look = look
        self._delay = FIRST
        self._timer: Any = below.reactor.callLater(FIRST, self._due)
        self._at_shutdown: Any = below.reactor.addSystemEventTrigger(
            "during", "shutdown", self._shut_down
        )

    def _due(self) -> None:
        self._timer = None
        if getattr(self._below, "socket", None) is None:  # it is lost, and an override tells nobody
            self.cancel()
            return
        self._delay = min(2 * self._delay, MOST)
        self._timer = self._below.reactor.callLater(self._delay, self._due)
        self._look()

    def _shut_down(self) -> None:
        self._at_shutdown = None
        self._below.connectionLost(Failure(ConnectionLost()))

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._at_shutdown is not None:
            self._below.reactor.removeSystemEventTrigger(self._at_shutdown)
            self._at_shutdown = None
