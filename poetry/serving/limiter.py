"""The connection limiter: holds all listeners of a service to one limit."""

from __future__ import annotations

from typing import Protocol

from twisted.logger import Logger

_log = Logger()


class Pausable(Protocol):
    """What accepts connections."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class ConnectionLimiter:
    """Counts connections from their accept to their close; at the limit all listeners pause.

    Refusing would be lying: a connection that is accepted and closed reads as an empty poem. So
    the kernel's queues hold new readers.

    @ivar limit: most connections at once.
    @ivar count: connections that are open.
    @ivar full: whether the limit is reached, so that the listeners are paused.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.full = False
        self._listeners: set[Pausable] = set()
        self._told = False

    def add(self, listener: Pausable) -> None:
        """Pause this listener too whenever the limit is reached."""
        self._listeners.add(listener)

    def remove(self, listener: Pausable) -> None:
        """Forget a listener: it is closed."""
        self._listeners.discard(listener)

    @property
    def room(self) -> int:
        """How many connections may still be accepted."""
        return self.limit - self.count

    @property
    def accepting(self) -> bool:
        """Whether a connection can still be accepted by any listener, now or later."""
        return bool(self._listeners)

    def enter(self) -> None:
        """Count a connection that was accepted."""
        self.count += 1

    def leave(self) -> None:
        """Count a connection no longer: it is closed."""
        self.count -= 1
        if self.full and self.room > 0:
            self.full = False
            for listener in list(self._listeners):
                listener.resume()

    def pause_if_full(self) -> None:
        """Pause all listeners at the limit."""
        if self.room > 0:
            return
        self.full = True
        for listener in list(self._listeners):
            listener.pause()
        if not self._told:
            self._told = True
            _log.warn(
                "{limit} connections are open, the most there may be: new readers wait",
                event="limit_reached",
                limit=self.limit,
            )

    def report(self) -> None:
        """Log that the limit is left, if it is: a busy server leaves it for a moment only."""
        if self._told and not self.full and self.room > 0:
            self._told = False
            _log.warn("below {limit} connections again", event="limit_left", limit=self.limit)
