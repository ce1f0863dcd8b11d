"""The graceful stop: connections in flight may finish within the grace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from poetry.protocol import PoetryProtocol

_log = Logger()


class Stopping:
    """The connections in flight at a stop.

    @ivar connections: those that have not finished.
    @ivar done: fires with None when none is left.
    """

    def __init__(self, connections: Iterable[PoetryProtocol], grace: float, clock: Any) -> None:
        """@param grace: in seconds of `clock`, an IReactorTime."""
        self.connections = set(connections)
        self.done: Deferred[None] = Deferred()
        if not self.connections:
            self.done.callback(None)
            return
        _log.info(
            "stopping: {count} in flight have {grace:g} s to finish",
            event="draining",
            count=len(self.connections),
            grace=grace,
        )
        self._late = clock.callLater(grace, stop_all, self.connections)

    def left(self, connection: PoetryProtocol) -> None:
        """Wait for a connection no longer: it has ended."""
        self.connections.discard(connection)
        if not self.connections and not self.done.called:
            if self._late.active():
                self._late.cancel()
            self.done.callback(None)


def stop_all(connections: Iterable[PoetryProtocol]) -> None:
    """End connections now: gracefully where the kernel has the poem, else with a reset."""
    reset = 0
    for connection in list(connections):
        try:
            connection.stop()
        except Exception:  # the others are to be stopped all the same
            _log.failure("a connection could not be ended", event="connection_failed")
        reset += connection.outcome != "sent"
    if reset:
        _log.warn("reset {count} readers in flight", event="grace_over", count=reset)
