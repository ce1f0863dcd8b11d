"""The graceful stop: connections in flight may finish within the grace time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from poetry.protocol import PoetryProtocol
from poetry.wire.layers import log_connection_failure

_log = Logger()


class Stopping:
    """One graceful stop of a service: waits for its connections, and ends them after the grace.

    @ivar connections: those still in flight.
    @ivar done: fires with None when none is left.
    """

    def __init__(self, connections: Iterable[PoetryProtocol], grace: float, clock: Any) -> None:
        """@param grace: in seconds.

        @param clock: an IReactorTime.
        """
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
        self._deadline = clock.callLater(grace, stop_all, self.connections)

    def left(self, connection: PoetryProtocol) -> None:
        """Stop waiting for a connection: it has ended."""
        self.connections.discard(connection)
        if not self.connections:
            if self._deadline.active():
                self._deadline.cancel()
            if not self.done.called:  # or cancelled
                self.done.callback(None)


def stop_all(connections: Iterable[PoetryProtocol]) -> None:
    """End connections now: gracefully if the kernel has the whole poem, else with a reset."""
    reset = 0
    for connection in list(connections):
        reset += not connection.stream_ended
        try:
            connection.stop()
        except Exception:  # go on with the others
            log_connection_failure("ended")
    if reset:
        _log.warn("reset {count} readers in flight", event="grace_over", count=reset)
